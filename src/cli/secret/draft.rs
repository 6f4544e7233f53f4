//! What a secret command is about to write: new age files, and the text of `secrets.toml` with them.
//!
//! Touches: the work tree, in `write` and `commit` only. Never: half of a change; everything is encrypted before the first
//! file is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::cli::access::{Access, problems_failure};
use crate::cli::process::output;
use crate::cli::{Failure, plan};
use crate::disk;
use crate::fleet::check::{mistake_in_name, suggest};
use crate::fleet::load::load_despite;
use crate::fleet::tree::Tree;
use crate::fleet::{Fleet, Secret as Entry, rule};
use crate::name::{EnvironmentName, NodeName, RepoPath, SecretName};
use crate::plan::fleetwide::{self, Live};
use crate::plan::show::names;
use crate::reason::{Exit, chain};
use crate::secrets::cover::Cover;
use crate::secrets::document::{self, Grant, Sealed};
use crate::secrets::identities::Identities;
use crate::secrets::{Secret, SecretError, encrypt, open, tls};

/// What these commands are there to mend.
const AMISS: [&str; 9] = [
    rule::SECRET_MISSING_FILE,
    rule::SECRET_DIGEST,
    rule::BAD_DIGEST,
    rule::SECRET_RECIPIENTS,
    rule::STALE_RECIPIENT,
    rule::SECRET_COPIED,
    rule::NODE_WITHOUT_RECIPIENT,
    rule::UNKNOWN_SECRET,
    rule::SECRET_NOT_GRANTED,
];

/// The fleet of a tree in which secrets may be amiss, and nothing else.
pub fn fleet_of(tree: &Arc<Tree>, environment: Option<&EnvironmentName>) -> Result<Fleet, Failure> {
    match load_despite(tree, environment, &AMISS) {
        Ok(loaded) => Ok(loaded.fleet),
        Err(mut problems) => {
            problems.retain(|problem| !AMISS.contains(&problem.rule));
            Err(problems_failure(&problems, tree))
        }
    }
}

pub struct Draft {
    pub folder: PathBuf,
    /// As it is before anything is written.
    pub fleet: Fleet,
    /// `secrets.toml`, with every secret that was put.
    text: String,
    files: BTreeMap<RepoPath, Vec<u8>>,
}

impl Draft {
    pub fn open(access: &Access) -> Result<Self, Failure> {
        let folder = access.folder()?;
        let tree = access.work_tree()?;
        let fleet = fleet_of(&tree, access.environment()?.as_ref())?;
        let text = tree.get(document_path(&fleet).as_str());
        let text = text.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
        Ok(Self { folder, fleet, text, files: BTreeMap::new() })
    }

    /// A secret that `secrets.toml` has.
    pub fn entry(&self, name: &SecretName) -> Result<&Entry, Failure> {
        let environment = &self.fleet.environment;
        environment.secrets.get(name).ok_or_else(|| {
            let near = suggest(name.as_str(), environment.secrets.keys().map(SecretName::as_str));
            let help = near.map_or_else(
                || format!("make it with `converger secret encrypt {name}`"),
                |near| format!("did you mean \"{near}\"?"),
            );
            Failure::usage(format!("environment {} has no secret \"{name}\"; {help}", environment.name))
        })
    }

    /// The value, for those who have a key.
    pub fn value(&self, name: &SecretName, keys: &Identities) -> Result<Secret, Failure> {
        let opened = open(&self.fleet, self.entry(name)?, keys, "");
        opened.map_err(|error| match error {
            SecretError::NotARecipient { .. } => Failure::new(
                Exit::Secrets,
                format!("secret {name} is not encrypted to your key; somebody who can open it runs `converger secret rekey {name}` once you are among `operators`"),
            ),
            other => Failure::new(Exit::Secrets, chain(&other)),
        })
    }

    /// Encrypts a value to those who may read it by `grant`, else by the secret's own. What people should know of it.
    pub fn put(
        &mut self,
        name: &SecretName,
        value: &[u8],
        version: u64,
        grant: Option<&Grant>,
    ) -> Result<String, Failure> {
        // It becomes a path.
        if let Some(why) = mistake_in_name(name.as_str()) {
            return Err(Failure::usage(format!("{:?} cannot be the name of a secret: {why}", name.as_str())));
        }
        let environment = &self.fleet.environment;
        let selector = match grant {
            Some(grant) => &grant.selector,
            None => &self.entry(name)?.grant,
        };
        let wanted = Cover::of(environment).wanted(selector);
        let file = encrypt(value, wanted.recipients())
            .map_err(|error| Failure::usage(format!("secret {name}: {}", chain(&error))))?;
        let sha256 = hex::encode(Sha256::digest(&file));
        let expires = tls::expiry(value);
        let sealed = Sealed { version, sha256: &sha256, recipients: &wanted.digest(), grant, expires };
        self.text =
            document::set(&self.text, name, sealed).map_err(|error| Failure::new(Exit::Repository, chain(&error)))?;
        let mut said = format!("{name}: version {version}, encrypted to {}", wanted.count());
        let keyless: Vec<NodeName> = wanted.keyless().map(|node| node.name.clone()).collect();
        if !keyless.is_empty() {
            said +=
                &format!("\n  not to {}, which has no key yet: `converger secret rekey {name}` then", names(&keyless));
        }
        if environment.operators.is_empty() {
            said += "\n  to no operator: nobody can re-key or edit it; add `operators` to secrets.toml";
        }
        self.files.insert(RepoPath::new(format!("{}/secrets/{name}.age", folder_of(&self.fleet))), file);
        Ok(said)
    }

    /// A file beside the secrets that everybody may read.
    pub fn publish(&mut self, path: RepoPath, bytes: Vec<u8>) {
        self.files.insert(path, bytes);
    }

    /// Says in `secrets.toml` how a secret is made (`None`: not by us), and who may read it unless that stays as it is.
    pub fn declare(
        &mut self,
        name: &SecretName,
        grant: Option<&Grant>,
        shape: Option<toml_edit::Value>,
    ) -> Result<(), Failure> {
        self.text = document::declare(&self.text, name, grant, shape)
            .map_err(|error| Failure::new(Exit::Repository, chain(&error)))?;
        Ok(())
    }

    /// As declared so far: what was declared since it was opened is in its fleet, and checked.
    pub fn reloaded(self) -> Result<Self, Failure> {
        let tree = self.tree();
        let fleet = fleet_of(&tree, Some(&self.fleet.environment.name))?;
        Ok(Self { fleet, ..self })
    }

    /// The work tree as it will be.
    fn tree(&self) -> Arc<Tree> {
        let mut files = self.fleet.tree.files.clone();
        files.extend(self.files.iter().map(|(path, bytes)| (path.clone(), Arc::from(bytes.as_slice()))));
        files.insert(document_path(&self.fleet), Arc::from(self.text.as_bytes()));
        Arc::new(Tree { commit: None, files })
    }

    /// What restarts where once this is merged; `None` where that cannot be rendered (`converger check` says why).
    pub fn restarts(&self) -> Option<String> {
        let tree = self.tree();
        let after = fleet_of(&tree, Some(&self.fleet.environment.name)).ok()?;
        let old = plan::sides(&self.fleet, &self.fleet.tree, None).ok()?;
        let new = plan::sides(&after, &tree, None).ok()?;
        let plan = fleetwide::compare(&after.environment, &old, &new, &Live::default());
        let mut units: BTreeMap<(&str, &str), Vec<NodeName>> = BTreeMap::new();
        for change in &plan.changes {
            for (verb, unit) in &change.units {
                units.entry((verb, unit.as_str())).or_default().push(change.node.clone());
            }
        }
        let lines = units.iter().map(|((verb, unit), nodes)| format!("  {verb}s {unit} on {}\n", names(nodes)));
        let lines: String = lines.collect();
        Some(if !lines.is_empty() {
            lines
        } else if plan.changes.is_empty() {
            "  changes no file of any node\n".to_owned()
        } else {
            let nodes: BTreeSet<NodeName> = plan.changes.iter().map(|change| change.node.clone()).collect();
            format!("  changes files of {}, restarts nothing\n", names(&Vec::from_iter(nodes)))
        })
    }

    /// Every file, `secrets.toml` last. The paths that changed.
    pub fn write(self) -> Result<Vec<RepoPath>, Failure> {
        let document = document_path(&self.fleet);
        let failed = |error: disk::DiskError| Failure::usage(chain(&error));
        let mut paths = Vec::new();
        let document = (document, self.text.into_bytes());
        for (path, bytes) in self.files.into_iter().chain([document]) {
            let file = self.folder.join(path.as_str());
            if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
                disk::create_dirs(folder).map_err(failed)?;
            }
            disk::write_atomic(&file, &bytes, 0o644).map_err(failed)?;
            paths.push(path);
        }
        Ok(paths)
    }
}

fn folder_of(fleet: &Fleet) -> String {
    format!("environments/{}", fleet.environment.name)
}

fn document_path(fleet: &Fleet) -> RepoPath {
    RepoPath::new(format!("{}/secrets.toml", folder_of(fleet)))
}

/// One signed commit of exactly these paths, with the engineer's own Git settings. Its short id.
pub fn commit(folder: &Path, paths: &[RepoPath], message: &str) -> Result<String, Failure> {
    let paths: Vec<&str> = paths.iter().map(RepoPath::as_str).collect();
    let git = |args: &[&str]| output(folder, "git", &[args, &["--"], &paths].concat());
    git(&["add"])?;
    git(&["commit", "--quiet", "--gpg-sign", "--message", message, "--only"])?;
    Ok(output(folder, "git", &["rev-parse", "--short", "HEAD"])?.trim().to_owned())
}

/// The same for people to type.
pub fn commit_yourself(paths: &[RepoPath], subject: &str) -> String {
    const LISTED: usize = 4;
    let mut paths: Vec<&str> = paths.iter().map(RepoPath::as_str).collect();
    if paths.len() > LISTED {
        // `secrets.toml` lies above the folders of all the others.
        let folders = paths[..paths.len() - 1].iter().filter_map(|path| Some(path.rsplit_once('/')?.0));
        let folders: BTreeSet<&str> = folders.collect();
        paths = folders.into_iter().chain(paths.last().copied()).collect();
    }
    let paths = paths.join(" ");
    format!("Commit it: git add {paths} && git commit --gpg-sign --message \"{subject}\" -- {paths}\n")
}
