//! What programs say about something with secrets: in a file of root's on this node, and in no report.
//!
//! One file for each resource, below `/run`, which is memory: what it says next takes its place, and when all is well again
//! it goes. Never: readable by others than root.

use rustix::fs::{AtFlags, Mode};

use super::HostError;
use super::command::Output;
use super::root::{Root, file, replace};

const SAID: &str = "/run/converger/said";

/// Whether a program's own words may be told when it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Words {
    Told,
    /// Secrets are near: told is the exit code and where the words are.
    Kept,
}

/// Keeps what `who` said. Returns where it is, in words.
pub fn keep(root: &Root, who: &str, output: &Output) -> String {
    let name = file_name(who);
    match write(root, &name, output) {
        Ok(()) => format!("secrets are near, so what it said is on the node only: {SAID}/{name}"),
        Err(_) => "secrets are near, so what it said is not told, and it could not be kept".to_owned(),
    }
}

fn write(root: &Root, name: &str, output: &Output) -> Result<(), HostError> {
    let (directory, _) = root.make_directory(SAID)?;
    rustix::fs::fchmod(&directory.fd, Mode::from_raw_mode(0o700)).map_err(file("make", SAID))?;
    replace(&directory.fd, name, output.text().as_bytes(), Mode::from_raw_mode(0o600), SAID)
}

/// All is well with `who`: what it said before goes.
pub fn forget(root: &Root, who: &str) {
    if let Ok(Some(directory)) = root.directory(SAID) {
        let _ = rustix::fs::unlinkat(&directory.fd, file_name(who), AtFlags::empty());
    }
}

/// A path or a command as one name.
fn file_name(who: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    who.trim_start_matches('/').chars().map(plain).take(100).collect()
}

/// The lines of a candidate that a program names: `line 7`, `NAME:7`. Numbers beyond its end are something else, maybe a
/// part of a value.
pub fn lines_named(said: &str, name: &str, lines: usize) -> Vec<usize> {
    let after = |mark: &str| {
        let lower = said.to_ascii_lowercase();
        let mark = mark.to_ascii_lowercase();
        let ends: Vec<usize> = lower.match_indices(&mark).map(|(at, _)| at + mark.len()).collect();
        ends.into_iter().filter_map(|end| number(lower.get(end..)?)).collect::<Vec<_>>()
    };
    let mut named: Vec<usize> = after("line").into_iter().chain(after(&format!("{name}:"))).collect();
    named.retain(|line| (1..=lines).contains(line));
    named.sort_unstable();
    named.dedup();
    named
}

fn number(text: &str) -> Option<usize> {
    let text = text.trim_start_matches([' ', ':', '#', '=']);
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_quoted_by_the_lines_that_it_names() {
        let said =
            "nginx: [emerg] unknown directive \"hunter2\" in /tmp/x/site.conf:3\nError on Line 12: pin 7\nline 4711";
        assert_eq!(lines_named(said, "site.conf", 20), [3, 12]);
        assert!(lines_named("no number in any line", "x", 9).is_empty());
    }

    #[test]
    fn words_are_roots_alone_and_go_when_all_is_well() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let output = Output { exit: 1, stdout: b"hunter2".to_vec(), stderr: Vec::new() };
        let told = keep(&root, "/etc/x y", &output);
        assert!(told.ends_with("/run/converger/said/etc-x-y"), "{told}");
        let file = dir.path().join("run/converger/said/etc-x-y");
        assert_eq!(std::fs::read(&file).unwrap(), b"hunter2");
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        keep(&root, "/etc/x y", &Output { stdout: b"again".to_vec(), ..output });
        assert_eq!(std::fs::read(&file).unwrap(), b"again");
        forget(&root, "/etc/x y");
        assert!(!file.exists());
    }
}
