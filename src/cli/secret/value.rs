//! What people type or hand over: a new value, from a file, a pipe or a terminal; the passphrase of a key.
//!
//! Touches: standard input, the terminal, and whether it echoes. Never: a buffer that is not wiped.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use age::secrecy::SecretString;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::cli::{Failure, tell};
use crate::secrets::header::FILE_BYTES_MAX;

/// The value of a secret, every byte as it comes. Somebody at a terminal types a line, twice, unseen.
pub fn read(from: Option<&Path>, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let value = match from {
        Some(path) => File::open(path)
            .and_then(bounded)
            .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?,
        None => {
            let failed = |error| Failure::usage(format!("cannot read {what} from standard input: {error}"));
            match io::stdin().is_terminal() {
                true => typed(what).map_err(failed)?,
                false => stdin().and_then(bounded).map_err(failed)?,
            }
        }
    };
    if value.is_empty() {
        return Err(Failure::usage(format!("{what} is empty; nothing was written")));
    }
    Ok(value)
}

/// Not through the library's own buffer, which nobody wipes.
fn stdin() -> io::Result<File> {
    io::stdin().as_fd().try_clone_to_owned().map(File::from)
}

fn bounded(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Reserved at once: a vector that grows leaves copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
    from.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut value)?;
    if value.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(value)
}

/// The passphrase of a private key, from the terminal whatever standard input is. `None`: there is none.
pub fn passphrase(of: &Path) -> Option<SecretString> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
    let mut typed = {
        let keyboard = terminal.try_clone().ok()?;
        let _hidden = Hidden::on(keyboard.as_fd()).ok()?;
        writeln!(terminal, "passphrase of {}, not shown:", of.display()).ok()?;
        line(&mut terminal).ok()?
    };
    String::from_utf8(std::mem::take(&mut *typed)).ok().map(SecretString::from)
}

fn typed(what: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut stdin = stdin()?;
    let (first, again) = {
        let keyboard = stdin.try_clone()?;
        let _hidden = Hidden::on(keyboard.as_fd())?;
        tell(format!("{what}, one line, not shown (a file or a pipe may have more):"));
        let first = line(&mut stdin)?;
        tell("the same again:");
        (first, line(&mut stdin)?)
    };
    if *first == *again { Ok(first) } else { Err(io::Error::other("the two lines differ")) }
}

fn line(from: &mut File) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX));
    let mut byte = Zeroizing::new([0]);
    while line.len() < FILE_BYTES_MAX && from.read(byte.as_mut())? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(line)
}

/// A terminal that does not echo, until this is dropped.
struct Hidden<'t> {
    terminal: BorrowedFd<'t>,
    before: Termios,
}

impl<'t> Hidden<'t> {
    fn on(terminal: BorrowedFd<'t>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}
