//! Lets the owners' tools act on files that changed: systemd's own for sysusers.d, tmpfiles.d, modules-load.d and sysctl.d,
//! nft for its rules. Only the changed file is given to the tool.
//!
//! What the tools let pass is looked for here: a user whose number is another's (before the file is written), a kernel
//! setting that did not become what it should (afterwards). Never: does again what the tools do, or starts a unit.

use std::path::Path;
use std::time::Duration;

use super::command::{Output, argv};
use super::{HostError, Words, accounts, sysctl};
use crate::resource::file::Validate;
use crate::resource::{Activation, FileSpec};

pub const WITHIN: Duration = Duration::from_secs(60);
/// The two that are no commands for people live outside PATH: here, and there where /usr is not merged.
const LIBEXEC: [&str; 2] = ["/usr/lib/systemd", "/lib/systemd"];

pub fn command(what: Activation, path: &str) -> Vec<String> {
    match what {
        Activation::Sysusers => argv(["systemd-sysusers", path]),
        Activation::Tmpfiles => argv(["systemd-tmpfiles", "--create", path]),
        Activation::Modules | Activation::Sysctl => argv([&libexec(what.tool()), path]),
        Activation::Nftables => argv(["nft", "-f", path]),
    }
}

/// For all files of its kind, in their order.
pub fn everything(what: Activation) -> Vec<String> {
    argv([&libexec(what.tool())])
}

fn libexec(tool: &str) -> String {
    let at = LIBEXEC.iter().find(|directory| Path::new(directory).join(tool).exists()).unwrap_or(&LIBEXEC[0]);
    format!("{at}/{tool}")
}

/// How a candidate is checked that says nothing of it itself: rules are loaded by the kernel, but for the last step.
pub fn default_check(what: Activation) -> Option<Validate> {
    (what == Activation::Nftables).then(|| Validate {
        run: argv(["nft", "-c", "-f", "{}"]),
        user: "root".to_owned(),
        ok_exit: Vec::new(),
        fail_on: Vec::new(),
        ignore: Vec::new(),
    })
}

/// Before the file is written. Errors: what the tool would pass over in silence.
pub fn before(what: Activation, spec: &FileSpec) -> Result<(), HostError> {
    let bytes = spec.content.bytes().filter(|_| what == Activation::Sysusers);
    let conflicts = bytes.map(|bytes| accounts::conflicts(&String::from_utf8_lossy(bytes))).unwrap_or_default();
    if conflicts.is_empty() {
        return Ok(());
    }
    let command = "the accounts of this host".to_owned();
    Err(HostError::Invalid { path: spec.path.to_string(), command, output: conflicts.join("; ") })
}

/// After the tool has run. Errors: what the file says and the kernel does not.
pub fn after(
    what: Activation,
    spec: &FileSpec,
    words: Words,
    told: Result<Output, HostError>,
) -> Result<(), HostError> {
    let failed = |why: String| Err(HostError::Activation { path: spec.path.to_string(), why });
    if let (Activation::Modules, Ok(output)) = (what, &told) {
        // It exits with 0 all the same.
        let text = output.text();
        let missing: Vec<&str> = text.lines().filter(|line| line.contains("Failed to find module")).collect();
        if !missing.is_empty() {
            return failed(missing.join("; "));
        }
    }
    let bytes = spec.content.bytes().filter(|_| what == Activation::Sysctl);
    let other = bytes.map(|bytes| sysctl::unlike(&String::from_utf8_lossy(bytes), words)).unwrap_or_default();
    // What became of a setting says more than the tool does.
    if other.is_empty() { told.map(drop) } else { failed(other.join("; ")) }
}
