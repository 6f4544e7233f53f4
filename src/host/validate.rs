//! Asks a file's own program whether a candidate is good, before anything is replaced.
//!
//! The program sees the candidates of the whole batch where they will be (`view`); where that cannot be, or its user does
//! not come that far, a copy of its own in a tree laid out alike (`room`). A file with secrets is checked by its owner, any
//! other by `nobody`, unless the role says who. Never: runs as root where it need not, after the first rename, or shows
//! what it said about a file with secrets.

use std::time::Duration;

use nix::unistd::User;

use super::command::{Command, Output};
use super::programs::{self, Program};
use super::room::{Attributes, Plain, Room};
use super::root::{Root, split};
use super::units::Systemd;
use super::view::{self, View};
use super::{HostError, Words, activate, said};
use crate::resource::file::Validate;
use crate::resource::{Activation, FileSpec};

const WITHIN: Duration = Duration::from_secs(30);
/// Whoever checks a file without secrets, if the role does not say who.
const NOBODY: &str = "nobody";

/// Checks one candidate after the other. Errors: the first that was refused, or could not be checked.
pub fn validate(
    root: &Root,
    systemd: Option<&Systemd>,
    candidates: &[&FileSpec],
    words: Words,
) -> Result<(), HostError> {
    let mut open: Option<(Plain, View<'_>)> = None;
    for spec in candidates {
        let tool = Activation::of(&spec.path);
        tool.map_or(Ok(()), |tool| activate::before(tool, spec))?;
        let default = tool.and_then(activate::default_check);
        let Some(rules) = spec.validate.as_ref().or(default.as_ref()) else { continue };
        if spec.content.bytes().is_none() {
            continue;
        }
        let user = user_of(spec, rules)?;
        let check = Check { root, systemd, spec, rules, user: &user, words };
        if systemd.is_some() && nix::unistd::geteuid().is_root() && view::is_for(root, &user, spec)? {
            let plain = if user.uid.is_root() { Plain::AsDeclared } else { Plain::ReadByAll };
            if open.as_ref().is_none_or(|(open, _)| *open != plain) {
                // One at a time: they have one place.
                drop(open.take());
                let view = View::open(root, candidates, plain);
                let told = |error: &HostError| tracing::debug!(%error, "candidates are checked in a copy");
                open = view.inspect_err(told).ok().map(|view| (plain, view));
            }
            if let Some((_, view)) = &open {
                check.run(&Program::Validator(&view.binds), spec.path.as_str())?;
                continue;
            }
        }
        drop(open.take());
        let room = Room::furnish(root, candidates, &Attributes::For { user: &user, checked: spec })?;
        check.run(&Program::Validator(&[]), &room.candidate(spec.path.as_str()))?;
    }
    Ok(())
}

/// A file with secrets is nobody's to read: its owner checks it.
fn user_of(spec: &FileSpec, rules: &Validate) -> Result<User, HostError> {
    if !nix::unistd::geteuid().is_root() {
        let us = User::from_uid(nix::unistd::geteuid()).ok().flatten();
        return us.ok_or_else(|| HostError::NoSuchAccount { name: "our own".to_owned(), path: spec.path.to_string() });
    }
    let name = match rules.user.as_str() {
        "" if spec.content.is_secret() => &spec.owner,
        "" => NOBODY,
        user => user,
    };
    let user = User::from_name(name).ok().flatten();
    user.ok_or_else(|| HostError::NoSuchAccount { name: name.to_owned(), path: spec.path.to_string() })
}

/// One candidate and who looks at it.
struct Check<'a> {
    root: &'a Root,
    systemd: Option<&'a Systemd>,
    spec: &'a FileSpec,
    rules: &'a Validate,
    user: &'a User,
    words: Words,
}

impl Check<'_> {
    /// `candidate`: where the program finds it.
    fn run(&self, program: &Program<'_>, candidate: &str) -> Result<(), HostError> {
        let Self { root, spec, rules, .. } = *self;
        let argv: Vec<String> = rules.run.iter().map(|argument| argument.replace("{}", candidate)).collect();
        let output =
            programs::run(self.systemd, program, &Command { argv: &argv, user: &self.user.name, within: WITHIN })?;
        let who = format!("validate-{}", spec.path);
        match refusal(rules, &output)? {
            None => {
                said::forget(root, &who);
                Ok(())
            }
            Some(_) if spec.content.is_secret() || self.words == Words::Kept => {
                let lines = spec.content.bytes().unwrap_or_default().split(|byte| *byte == b'\n').count();
                let named = said::lines_named(&output.text(), split(spec.path.as_str())?.1, lines);
                let at: String = named.iter().map(|line| format!(", line {line}")).collect();
                Err(refused(spec, rules, format!("exit {}{at} ({})", output.exit, said::keep(root, &who, &output))))
            }
            Some(why) => Err(refused(spec, rules, why.replace(candidate, spec.path.as_str()))),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Content;

    fn said(exit: i32, stderr: &str) -> Output {
        Output { exit, stdout: Vec::new(), stderr: stderr.as_bytes().to_vec() }
    }

    fn check(root: &Root, content: Content, owner: &str, words: Words) -> Result<(), HostError> {
        let script = "echo \"$(id -un) sees ${0##*/}: $(cat \"$0\")\"; ls -a \"${0%/*}\" | wc -l; \
                      stat -c %a \"$0\" \"${0%/*}\"; grep -q good \"$0\"";
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
            validate: Some(rules),
        };
        validate(root, None, &[&spec], words)
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
        check(&root, Content::plain(b"good".to_vec()), "root", Words::Told).unwrap();
        let error = check(&root, Content::plain(b"bad".to_vec()), "root", Words::Told).unwrap_err();
        assert!(error.to_string().ends_with("exit 1: nobody sees x.service: bad; 3; 400; 750"), "{error}");
        let secret =
            |value: &str| Content::secret(Some(value.as_bytes().to_vec().into()), b"masked".to_vec(), Vec::new());
        check(&root, secret("good hunter2"), "daemon", Words::Told).unwrap();
        let error = check(&root, secret("hunter2"), "daemon", Words::Told).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(error.to_string().contains("exit 1") && error.to_string().contains("validate--etc-units-x"), "{error}");
        let kept =
            || std::fs::read_to_string(dir.path().join("run/converger/said/validate--etc-units-x.service")).unwrap();
        assert!(kept().starts_with("daemon sees x.service: hunter2\n3\n400\n750"), "{}", kept());
        // A plain file in a role that has secrets: the program may have read those.
        let error = check(&root, Content::plain(b"bad".to_vec()), "root", Words::Kept).unwrap_err();
        assert!(!error.to_string().contains("nobody sees"), "{error}");
        assert!(kept().starts_with("nobody sees x.service: bad"), "{}", kept());
        let left = std::fs::read_dir(dir.path().join("run/converger-validate")).unwrap().count();
        assert_eq!(left, 0);
    }

    /// C9, where there is no systemd: a copy of the batch, and links to what stays.
    #[test]
    fn includes_resolve_in_a_copy_and_secrets_of_others_are_not_in_it() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(dir.path(), mode).unwrap();
        let root = Root::open(dir.path()).unwrap();
        for (name, text) in [("stays.conf", "stays\n"), ("twin.conf", "old\n")] {
            let (conf, _) = root.make_directory("/etc/app").unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            crate::host::root::replace(&conf.fd, name, text.as_bytes(), mode, "/etc/app").unwrap();
        }
        let file = |path: &str, content: Content| FileSpec {
            path: path.into(),
            content,
            owner: "root".to_owned(),
            group: "root".to_owned(),
            mode: 0o600,
            policy: Default::default(),
            validate: None,
        };
        let script = "cd \"${0%/*}\" && cat \"$0\" *.conf conf.d/*.conf && ls -R | grep key; exit 1";
        let rules = Validate {
            run: ["sh", "-c", script, "{}"].map(str::to_owned).to_vec(),
            user: String::new(),
            ok_exit: Vec::new(),
            fail_on: Vec::new(),
            ignore: Vec::new(),
        };
        let plain = |text: &str| Content::plain(text.as_bytes().to_vec());
        let secret = Content::secret(Some(b"hunter2".to_vec().into()), b"masked".to_vec(), Vec::new());
        let batch = [
            FileSpec { validate: Some(rules), ..file("/etc/app/main", plain("main\n")) },
            file("/etc/app/twin.conf", plain("new\n")),
            file("/etc/app/conf.d/deep.conf", plain("deep\n")),
            file("/etc/app/key", secret),
        ];
        let error = validate(&root, None, &batch.each_ref(), Words::Told).unwrap_err().to_string();
        assert!(error.ends_with("exit 1: main; stays; new; deep"), "{error}");
        assert_eq!(std::fs::read(dir.path().join("etc/app/twin.conf")).unwrap(), b"old\n", "nothing is live");
        assert_eq!(std::fs::read_dir(dir.path().join("run/converger-validate")).unwrap().count(), 0);
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
