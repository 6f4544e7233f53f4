//! `converger restart CLUSTER`: a signed commit that raises the cluster's `restart_epoch`, and what it will restart.
//!
//! Touches: `topology.toml` and the branch of the work tree. Never: restarts anything itself; never: commits anything else.

use std::sync::Arc;

use toml_edit::{DocumentMut, Item, Value};

use super::access::{Access, problems_failure};
use super::operator::reason_of;
use super::plan::{live, sides, tree_at};
use super::process::output;
use super::{Done, Failure, say, secret};
use crate::disk;
use crate::fleet::check::suggest;
use crate::fleet::load;
use crate::fleet::tree::Tree;
use crate::git::Workspace;
use crate::name::{ClusterName, RepoPath};
use crate::plan::fleetwide;
use crate::plan::show::{self, Paint};
use crate::reason::{Exit, chain};

/// Restart the units of a cluster, member by member, by a signed commit
///
/// Raises `restart_epoch` of the cluster in topology.toml and commits that, with your own signature. Once it is on the branch,
/// every member restarts once, under its holds and in the order of the group, as with any other change. Pushing is left to
/// you.
#[derive(clap::Args)]
pub struct Args {
    /// A cluster of the topology
    #[arg(value_name = "CLUSTER")]
    cluster: String,
    /// Why, for the message of the commit
    #[arg(long)]
    reason: String,
}

pub fn run(args: Args, access: &Access) -> Done {
    let reason = reason_of(&args.reason)?;
    let folder = access.folder()?;
    let workspace = Workspace::open(&folder).map_err(|error| Failure::usage(chain(&error)))?;
    let head = tree_at(&workspace, "HEAD")?;
    let before = access.load(&head)?.fleet;
    let environment = &before.environment;
    let cluster = ClusterName::new(args.cluster);
    if environment.cluster(&cluster).is_none() {
        let near = suggest(cluster.as_str(), environment.clusters.iter().map(|cluster| cluster.name.as_str()));
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        return Err(Failure::usage(format!("environment {} has no cluster {cluster}{near}", environment.name)));
    }
    let path = RepoPath::new(format!("environments/{}/topology.toml", environment.name));
    let dirty = output(&folder, "git", &["status", "--porcelain", "--", path.as_str()])?;
    if !dirty.trim().is_empty() {
        return Err(Failure::usage(format!("{path} has changes that are not committed: commit or stash them first")));
    }
    let text = head.get(path.as_str()).map_or_else(String::new, |bytes| String::from_utf8_lossy(bytes).into_owned());
    let (raised, epoch) = raise(&text, &cluster)?;
    let mut files = head.files.clone();
    files.insert(path.clone(), Arc::from(raised.as_bytes()));
    let tree = Arc::new(Tree { commit: None, files });
    let after =
        load::load(&tree, Some(&environment.name)).map_err(|problems| problems_failure(&problems, &tree))?.fleet;
    let (old, new) = (sides(&before, &head, None)?, sides(&after, &tree, None)?);
    let plan = fleetwide::compare(&after.environment, &old, &new, &live(access, &after));
    if plan.changes.is_empty() {
        return Err(Failure::usage(format!("the roles of cluster {cluster} have no unit that runs: nothing restarts")));
    }
    let file = folder.join(path.as_str());
    let failed = |error: disk::DiskError| Failure::usage(chain(&error));
    disk::write_atomic(&file, raised.as_bytes(), 0o644).map_err(failed)?;
    let message = format!("restart {cluster}: {reason}");
    let commit = secret::commit(&folder, std::slice::from_ref(&path), &message).or_else(|failure| {
        // Without a key, say: everything is as it was.
        disk::write_atomic(&file, text.as_bytes(), 0o644).map_err(failed)?;
        output(&folder, "git", &["reset", "--quiet", "--", path.as_str()])?;
        Err(failure)
    })?;
    let branch = output(&folder, "git", &["symbolic-ref", "--quiet", "--short", "HEAD"]);
    let branch = branch.map_or_else(|_| "HEAD:main".to_owned(), |branch| branch.trim().to_owned());
    let name = environment.name.as_str();
    let plan = show::environment(name, &plan, Some(commit.trim()), Paint::COLOUR);
    say(format!(
        "{plan}\n{commit} {message} (restart_epoch {epoch})\nPush it: git push origin {branch}\nThen: converger status --wait {commit}\n"
    ));
    Ok(Exit::Done)
}

/// The text with the cluster's epoch one higher; nothing else moves, comments neither.
fn raise(text: &str, cluster: &ClusterName) -> Result<(String, i64), Failure> {
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| Failure::new(Exit::Repository, error.to_string()))?;
    let missing = || Failure::new(Exit::Repository, format!("topology.toml has no table for cluster {cluster}"));
    let clusters = document.get_mut("clusters").and_then(Item::as_table_like_mut).ok_or_else(missing)?;
    let entry = clusters.get_mut(cluster.as_str()).and_then(Item::as_table_like_mut).ok_or_else(missing)?;
    let epoch = entry.get("restart_epoch").and_then(Item::as_integer).unwrap_or(0).saturating_add(1);
    match entry.get_mut("restart_epoch").and_then(Item::as_value_mut) {
        Some(value) => {
            let decor = value.decor().clone();
            *value = Value::from(epoch);
            *value.decor_mut() = decor;
        }
        None => drop(entry.insert("restart_epoch", toml_edit::value(epoch))),
    }
    Ok((document.to_string(), epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_an_epoch_moves_nothing_else() {
        let text = "# who\n[clusters.a]\nroles = [\"a\"]  # its own\n\n[clusters.a.groups.a]\nquorum = \"none\"\n\n\
                    [clusters.b]\nrestart_epoch = 4   # since the fire\nroles = []\n";
        let (first, epoch) = raise(text, &ClusterName::from("a")).unwrap();
        assert_eq!(epoch, 1);
        assert_eq!(first, text.replace("# its own\n", "# its own\nrestart_epoch = 1\n"));
        let (second, epoch) = raise(text, &ClusterName::from("b")).unwrap();
        assert_eq!(epoch, 5);
        assert_eq!(second, text.replace("= 4 ", "= 5 "));
    }
}
