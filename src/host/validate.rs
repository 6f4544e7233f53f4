//! Asks a program whether a candidate is good before it replaces anything.
//!
//! The program sees a copy under the file's own name, which only its user can read, alone in a directory that is root's
//! and that only its user's group can enter: nothing can be put beside it. `/run/converger` is root's alone, so this
//! lies beside it. Never: runs as root where it need not, or shows what it said about a file with secrets.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use super::HostError;
use super::command::{Command, Output};
use super::root::{Directory, Root, file, split};
use crate::resource::FileSpec;
use crate::resource::file::Validate;

const ROOM: &str = "/run/converger-validate";
/// One check at a time: there is one agent.
const CHECK: &str = "check";
const WITHIN: Duration = Duration::from_secs(30);
/// Whoever checks a file without secrets, if the role does not say who.
const NOBODY: &str = "nobody";

/// Errors: the candidate was refused, or could not be checked.
pub fn validate(root: &Root, spec: &FileSpec, rules: &Validate) -> Result<(), HostError> {
    let Some(bytes) = spec.content.bytes() else { return Ok(()) };
    // A file with secrets is nobody's to read: its owner checks it.
    let user = match rules.user.as_str() {
        "" if spec.content.is_secret() => &spec.owner,
        "" => NOBODY,
        user => user,
    };
    let (_, name) = split(spec.path.as_str())?;
    let room = Room::open(root, user, spec)?;
    room.put(name, bytes, spec)?;
    let candidate = root.outside(ROOM).join(CHECK).join(name).to_string_lossy().into_owned();
    let argv: Vec<String> = rules.run.iter().map(|argument| argument.replace("{}", &candidate)).collect();
    let user = if nix::unistd::geteuid().is_root() { user } else { "" };
    let output = Command { argv: &argv, user, within: WITHIN }.run()?;
    match refusal(rules, &output)? {
        None => Ok(()),
        Some(_) if spec.content.is_secret() => {
            Err(refused(spec, rules, format!("exit {} (the file has secrets: what it said is not shown)", output.exit)))
        }
        Some(why) => Err(refused(spec, rules, why.replace(&candidate, spec.path.as_str()))),
    }
}

fn refused(spec: &FileSpec, rules: &Validate, output: String) -> HostError {
    HostError::Invalid { path: spec.path.to_string(), command: rules.run.join(" "), output }
}

/// In words, why what the program did means no; `None`: it means yes.
fn refusal(rules: &Validate, output: &Output) -> Result<Option<String>, HostError> {
    let good = if rules.ok_exit.is_empty() { output.exit == 0 } else { rules.ok_exit.contains(&output.exit) };
    if !good {
        return Ok(Some(format!("exit {}: {}", output.exit, output.tail())));
    }
    let patterns = |patterns: &[String]| {
        let compile = |pattern: &String| {
            let why = |error: regex_lite::Error| format!("`{pattern}`: {error}");
            regex_lite::Regex::new(pattern)
                .map_err(|error| HostError::Command { command: rules.run.join(" "), why: why(error) })
        };
        patterns.iter().map(compile).collect::<Result<Vec<_>, _>>()
    };
    let (fail_on, ignore) = (patterns(&rules.fail_on)?, patterns(&rules.ignore)?);
    let text = output.text();
    let looked_at = text.lines().filter(|line| !ignore.iter().any(|pattern| pattern.is_match(line)));
    Ok(looked_at.filter(|line| fail_on.iter().any(|pattern| pattern.is_match(line))).map(str::to_owned).next())
}

/// A directory for one check; it goes when the check is over.
struct Room {
    home: Directory,
    fd: OwnedFd,
    owner: Option<(Uid, Gid)>,
}

impl Room {
    fn open(root: &Root, user: &str, spec: &FileSpec) -> Result<Self, HostError> {
        let owner = match nix::unistd::User::from_name(user) {
            _ if !nix::unistd::geteuid().is_root() => None,
            Ok(Some(user)) => Some((Uid::from_raw(user.uid.as_raw()), Gid::from_raw(user.gid.as_raw()))),
            _ => return Err(HostError::NoSuchAccount { name: user.to_owned(), path: spec.path.to_string() }),
        };
        let home = root.make_directory(ROOM)?.0;
        clear(&home)?;
        rustix::fs::mkdirat(&home.fd, CHECK, Mode::from_raw_mode(0o700)).map_err(file("make", ROOM))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&home.fd, CHECK, flags, Mode::empty()).map_err(file("open", ROOM))?;
        let room = Self { home, fd, owner };
        if let Some((_, group)) = owner {
            rustix::fs::fchown(&room.fd, None, Some(group)).map_err(file("open", ROOM))?;
            rustix::fs::fchmod(&room.fd, Mode::from_raw_mode(0o750)).map_err(file("open", ROOM))?;
        }
        Ok(room)
    }

    fn put(&self, name: &str, bytes: &[u8], spec: &FileSpec) -> Result<(), HostError> {
        let path = spec.path.as_str();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o400)).map_err(file("copy", path))?;
        let mut copy = std::fs::File::from(fd);
        std::io::Write::write_all(&mut copy, bytes).map_err(|source| HostError::File {
            operation: "copy",
            path: path.to_owned(),
            source,
        })?;
        if let Some((user, group)) = self.owner {
            rustix::fs::fchown(&copy, Some(user), Some(group)).map_err(file("copy", path))?;
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = clear(&self.home);
    }
}

/// Removes what a crash left of a check.
pub fn clean(root: &Root) -> Result<(), HostError> {
    root.directory(ROOM)?.map_or(Ok(()), |home| clear(&home))
}

/// Removes a check's directory and the files in it (a program that runs as root may have left some of its own).
fn clear(home: &Directory) -> Result<(), HostError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&home.fd, CHECK, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(file("open", ROOM)(error)),
    };
    for entry in rustix::fs::Dir::read_from(&fd).map_err(file("read", ROOM))? {
        let entry = entry.map_err(file("read", ROOM))?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            rustix::fs::unlinkat(&fd, entry.file_name(), AtFlags::empty()).map_err(file("clean", ROOM))?;
        }
    }
    rustix::fs::unlinkat(&home.fd, CHECK, AtFlags::REMOVEDIR).map_err(file("clean", ROOM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Content;

    fn said(exit: i32, stderr: &str) -> Output {
        Output { exit, stdout: Vec::new(), stderr: stderr.as_bytes().to_vec() }
    }

    fn check(root: &Root, content: Content, owner: &str) -> Result<(), HostError> {
        let script = "echo \"$(id -un) sees ${0##*/}: $(cat \"$0\")\"; ls -a \"${0%/*}\" | wc -l; grep -q good \"$0\"";
        let rules = Validate {
            run: ["sh", "-c", script, "{}"].map(str::to_owned).to_vec(),
            user: String::new(),
            ok_exit: Vec::new(),
            fail_on: Vec::new(),
            ignore: Vec::new(),
        };
        let spec = FileSpec {
            path: "/etc/units/x.service".into(),
            content,
            owner: owner.to_owned(),
            group: "bin".to_owned(),
            mode: 0o600,
            policy: Default::default(),
            validate: None,
        };
        validate(root, &spec, &rules)
    }

    #[test]
    fn the_program_sees_a_copy_of_its_own_and_secrets_stay_with_their_owner() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(dir.path(), mode).unwrap();
        let root = Root::open(dir.path()).unwrap();
        check(&root, Content::plain(b"good".to_vec()), "root").unwrap();
        let error = check(&root, Content::plain(b"bad".to_vec()), "root").unwrap_err();
        assert!(error.to_string().ends_with("exit 1: nobody sees x.service: bad; 3"), "{error}");
        let secret =
            |value: &str| Content::secret(Some(value.as_bytes().to_vec().into()), b"masked".to_vec(), Vec::new());
        check(&root, secret("good hunter2"), "daemon").unwrap();
        let error = check(&root, secret("hunter2"), "daemon").unwrap_err();
        assert!(error.to_string().contains("not shown") && !error.to_string().contains("hunter2"), "{error}");
        let left = std::fs::read_dir(dir.path().join("run/converger-validate")).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn exit_code_and_output_decide_together() {
        let mut rules = Validate {
            run: vec!["check".to_owned()],
            user: String::new(),
            ok_exit: vec![0, 1],
            fail_on: vec!["(?i)error".to_owned()],
            ignore: vec!["^known".to_owned()],
        };
        assert_eq!(refusal(&rules, &said(0, "fine\n")).unwrap(), None);
        assert_eq!(refusal(&rules, &said(1, "known error 7\n")).unwrap(), None);
        assert_eq!(refusal(&rules, &said(0, "fine\nan ERROR in line 3\n")).unwrap().unwrap(), "an ERROR in line 3");
        assert_eq!(refusal(&rules, &said(2, "bad\n")).unwrap().unwrap(), "exit 2: bad");
        rules.fail_on = vec!["(".to_owned()];
        assert!(refusal(&rules, &said(0, "")).is_err());
    }
}
