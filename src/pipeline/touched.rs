//! Whether touched files are as the last run left them: an agent is told of its own writes too.
//!
//! Never: a repair; whatever is not as it was left is for a whole run.

use super::PipelineError;
use crate::host::{FileQuery, Host, Query};
use crate::ledger::Ledger;
use crate::name::HostPath;
use crate::resource::file::FileState;
use crate::resource::{Digest, Id, Kind};

/// `unseen`: a digest that no file here has.
pub fn are_as_left(
    host: &dyn Host,
    ledger: &Ledger,
    unseen: Digest,
    files: &[HostPath],
) -> Result<bool, PipelineError> {
    let mut left = Vec::new();
    for path in files {
        let owned = ledger.owned(&Id { kind: Kind::File, name: path.to_string() })?;
        let Some((content, stamp)) = owned.filter(|owned| owned.written).and_then(|o| o.content.zip(o.stamp)) else {
            return Ok(false);
        };
        left.push((path, content, stamp));
    }
    // With the same stamp the file is not read.
    let files = left.iter().map(|(path, _, stamp)| {
        let known = Some((*stamp, unseen));
        FileQuery { path, known, bytes_unless: None }
    });
    let observed = host.observe(&Query { files: files.collect(), ..Query::default() })?;
    Ok(left.iter().all(|(path, content, stamp)| match observed.files.get(*path) {
        Some(FileState::Regular(now)) => {
            let same = now.digest == unseen || ledger.fingerprints().of(now.digest) == *content;
            same && (now.stamp.mode, now.stamp.uid, now.stamp.gid) == (stamp.mode, stamp.uid, stamp.gid)
        }
        _ => false,
    }))
}
