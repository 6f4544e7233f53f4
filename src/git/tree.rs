//! Tree objects and folders, read into the files of one commit.
//!
//! Tree objects are parsed here from their bytes: what git would never write (`..`, two entries of one name) is a
//! problem with a name, not whatever a lenient reader makes of it. Never: a checkout, a filter, a followed symlink.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use git2::{ObjectType, Oid};

use super::GitError;
use super::objects::{Objects, Within};
use crate::fleet::problem::Problem;
use crate::fleet::tree::Tree;
use crate::name::{CommitId, RepoPath};
use crate::settings::Limits;

const NAME_MAX: usize = 255;
const PATH_MAX: usize = 1024;
/// In a plain folder: what tools leave there and nobody commits.
const NOT_OURS: [&str; 4] = ["target", "node_modules", "__pycache__", ".venv"];

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// As it stands there: `100644`, `40000`, …
    pub mode: String,
    pub name: Vec<u8>,
    pub id: Oid,
}

impl Entry {
    pub fn is_folder(&self) -> bool {
        self.mode == "40000"
    }

    pub fn is_file(&self) -> bool {
        self.mode == "100644" || self.mode == "100755"
    }
}

/// Entries in the order in which they are written; `None` if the bytes are no tree.
pub(super) fn parse(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let end = bytes.iter().position(|byte| *byte == 0).filter(|end| *end > space)?;
        let id = bytes.get(end + 1..end + 21)?;
        entries.push(Entry {
            mode: str::from_utf8(&bytes[..space]).ok()?.to_owned(),
            name: bytes[space + 1..end].to_vec(),
            id: Oid::from_bytes(id).ok()?,
        });
        bytes = &bytes[end + 21..];
    }
    Some(entries)
}

pub(super) fn entries(objects: &Objects<'_>, id: Oid) -> Result<Vec<Entry>, GitError> {
    let object = objects.read(id)?;
    let parsed = (object.kind == ObjectType::Tree).then(|| parse(&object.bytes)).flatten();
    parsed.ok_or_else(|| GitError::NotATree { id: id.to_string() })
}

/// Paths that differ between two trees. Names are taken as they are: a tree that cannot be loaded can still be passed
/// over on the way to one that can.
pub(super) fn changed(objects: &Objects<'_>, old: Oid, new: Oid, limits: &Limits) -> Result<Vec<RepoPath>, GitError> {
    let mut difference = Difference { objects, limits, seen: 0, paths: Vec::new() };
    difference.folders(Some(old), Some(new), "", 0)?;
    Ok(difference.paths)
}

struct Difference<'a> {
    objects: &'a Objects<'a>,
    limits: &'a Limits,
    /// Entries looked at: a small pack can hold a tree that unfolds into billions.
    seen: usize,
    paths: Vec<RepoPath>,
}

impl Difference<'_> {
    fn folders(&mut self, old: Option<Oid>, new: Option<Oid>, path: &str, depth: usize) -> Result<(), GitError> {
        if depth > self.limits.depth {
            return Err(GitError::limit("depth", self.limits.depth, path));
        }
        // By name, everything of that name: duplicates differ as soon as one of them does.
        let mut sides: BTreeMap<Vec<u8>, [Vec<Entry>; 2]> = BTreeMap::new();
        for (side, id) in [old, new].into_iter().enumerate() {
            for entry in id.map_or(Ok(Vec::new()), |id| entries(self.objects, id))? {
                self.seen += 1;
                sides.entry(entry.name.clone()).or_default()[side].push(entry);
            }
        }
        if self.seen > self.limits.entries.saturating_mul(2) {
            return Err(GitError::limit("entries", self.limits.entries, path));
        }
        for (name, [old, new]) in sides {
            if old == new {
                continue;
            }
            let path = format!("{path}{}", String::from_utf8_lossy(&name));
            if old.iter().chain(&new).any(|entry| !entry.is_folder()) {
                self.paths.push(RepoPath::new(path.clone()));
            }
            let below = format!("{path}/");
            let folders = |side: &[Entry]| side.iter().filter(|e| e.is_folder()).map(|e| e.id).collect::<Vec<_>>();
            let (old, new) = (folders(&old), folders(&new));
            for index in 0..old.len().max(new.len()) {
                let (old, new) = (old.get(index).copied(), new.get(index).copied());
                if old != new {
                    self.folders(old, new, &below, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}

/// The one regular file at `path`, if it is there exactly once and not larger than `max` bytes.
pub(super) fn file(objects: &Objects<'_>, tree: Oid, path: &str, max: u64) -> Result<Option<Arc<[u8]>>, GitError> {
    let Some(entry) = entry_at(objects, tree, path)?.filter(Entry::is_file) else {
        return Ok(None);
    };
    match objects.read_within(entry.id, max)? {
        Within::Whole(object) if object.kind == ObjectType::Blob => Ok(Some(Arc::from(object.bytes))),
        _ => Ok(None),
    }
}

/// What stands at `path`, if exactly one thing does.
pub(super) fn entry_at(objects: &Objects<'_>, tree: Oid, path: &str) -> Result<Option<Entry>, GitError> {
    let (name, rest) = path.split_once('/').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let mut named: Vec<Entry> = entries(objects, tree)?;
    named.retain(|entry| entry.name == name.as_bytes());
    match (named.pop(), named.is_empty(), rest) {
        (Some(folder), true, Some(rest)) if folder.is_folder() => entry_at(objects, folder.id, rest),
        (Some(entry), true, None) => Ok(Some(entry)),
        _ => Ok(None),
    }
}

/// Every file of a commit's tree; all problems, not the first.
pub(super) fn load(objects: &Objects<'_>, commit: &CommitId, root: Oid, limits: &Limits) -> Result<Tree, GitError> {
    let mut loading = Loading {
        objects,
        limits,
        seen: 0,
        bytes: 0,
        blobs: HashMap::new(),
        tree: Tree { commit: Some(commit.clone()), files: BTreeMap::new() },
        problems: Vec::new(),
    };
    loading.folder(root, "", 0)?;
    if loading.problems.is_empty() { Ok(loading.tree) } else { Err(GitError::BadTree(loading.problems)) }
}

struct Loading<'a> {
    objects: &'a Objects<'a>,
    limits: &'a Limits,
    seen: usize,
    bytes: u64,
    /// The same content twice is held once.
    blobs: HashMap<Oid, Arc<[u8]>>,
    tree: Tree,
    problems: Vec<Problem>,
}

impl Loading<'_> {
    fn folder(&mut self, id: Oid, above: &str, depth: usize) -> Result<(), GitError> {
        if depth > self.limits.depth {
            return Err(GitError::limit("depth", self.limits.depth, above));
        }
        let mut names = std::collections::HashSet::new();
        for entry in entries(self.objects, id)? {
            self.seen += 1;
            if self.seen > self.limits.entries {
                return Err(GitError::limit("entries", self.limits.entries, above));
            }
            let path = format!("{above}{}", String::from_utf8_lossy(&entry.name));
            if !names.insert(entry.name.clone()) {
                self.problem("bad-tree", &path, "two entries have this name");
                continue;
            }
            if let Some(what) = bad_name(&entry.name, &path) {
                self.problem("bad-tree", &path, what);
                continue;
            }
            match entry.mode.as_str() {
                "40000" => self.folder(entry.id, &format!("{path}/"), depth + 1)?,
                "100644" | "100755" => self.blob(entry.id, path)?,
                "120000" => self.problem("symlink-source", &path, "a symbolic link is not read"),
                "160000" => self.problem("submodule", &path, "a submodule is not read"),
                mode => self.problem("bad-tree", &path, &format!("mode {mode} is none of 100644, 100755, 40000")),
            }
        }
        Ok(())
    }

    fn blob(&mut self, id: Oid, path: String) -> Result<(), GitError> {
        let bytes = match self.blobs.get(&id) {
            Some(bytes) => bytes.clone(),
            None => {
                let object = match self.objects.read_within(id, self.limits.blob_mib << 20)? {
                    Within::Whole(object) => object,
                    Within::Larger(size) => {
                        let max = self.limits.blob_mib;
                        let what = format!("{size} bytes are more than the {max} MiB of [limits] blob_mib");
                        self.problem("file-too-big", &path, &what);
                        return Ok(());
                    }
                };
                if object.kind != ObjectType::Blob {
                    self.problem("bad-tree", &path, "the object behind this file is no file");
                    return Ok(());
                }
                self.bytes += object.bytes.len() as u64;
                if self.bytes > self.limits.pack_mib << 20 {
                    return Err(GitError::limit("pack_mib", self.limits.pack_mib as usize, &path));
                }
                let bytes: Arc<[u8]> = Arc::from(object.bytes);
                self.blobs.insert(id, bytes.clone());
                bytes
            }
        };
        self.tree.files.insert(RepoPath::new(path), bytes);
        Ok(())
    }

    fn problem(&mut self, rule: &'static str, path: &str, title: &str) {
        self.problems.push(problem(rule, path, title));
    }
}

fn problem(rule: &'static str, path: &str, title: &str) -> Problem {
    Problem::error(rule, path.escape_debug().to_string(), title).help("commit plain files and folders only")
}

/// Names that mean something to a file system, to git, or to a terminal.
fn bad_name(name: &[u8], path: &str) -> Option<&'static str> {
    let Ok(text) = str::from_utf8(name) else {
        return Some("the name is not UTF-8");
    };
    // What case-folding and 8.3 file systems would take for .git: CVE-2014-9390.
    let folded = text.trim_end_matches(['.', ' ']).to_ascii_lowercase();
    match text {
        "" | "." | ".." => Some("this is not a name"),
        _ if text.contains(['/', '\\']) => Some("the name contains a slash"),
        _ if text.chars().any(char::is_control) => Some("the name contains a control character"),
        _ if folded == ".git" || folded == "git~1" => Some("this name belongs to git"),
        _ if text.len() > NAME_MAX || path.len() > PATH_MAX => Some("the path is too long"),
        _ => None,
    }
}

/// A folder as it is, committed or not: `.git`, what git ignores, and what tools leave behind are not part of it.
pub(super) fn of_folder(root: &Path, ignored: &dyn Fn(&Path) -> bool, limits: &Limits) -> Result<Tree, GitError> {
    let mut walk = Walk { root, ignored, limits, seen: 0, tree: Tree::default(), problems: Vec::new() };
    walk.folder(root, "", 0)?;
    if walk.problems.is_empty() { Ok(walk.tree) } else { Err(GitError::BadTree(walk.problems)) }
}

struct Walk<'a> {
    root: &'a Path,
    ignored: &'a dyn Fn(&Path) -> bool,
    limits: &'a Limits,
    seen: usize,
    tree: Tree,
    problems: Vec<Problem>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, above: &str, depth: usize) -> Result<(), GitError> {
        if depth > self.limits.depth {
            return Err(GitError::limit("depth", self.limits.depth, above));
        }
        let failed = |source| GitError::Folder { path: folder.to_owned(), source };
        let mut listed = std::fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        listed.sort_by_key(std::fs::DirEntry::file_name);
        for entry in listed {
            let name = entry.file_name();
            let path = format!("{above}{}", name.to_string_lossy());
            let kind = entry.file_type().map_err(failed)?;
            let tools = kind.is_dir() && NOT_OURS.iter().any(|tool| name == *tool);
            if name == ".git" || tools || (self.ignored)(&self.root.join(&path)) {
                continue;
            }
            self.seen += 1;
            if self.seen > self.limits.entries {
                return Err(GitError::limit("entries", self.limits.entries, above));
            }
            if let Some(what) = bad_name(name.as_encoded_bytes(), &path) {
                self.problems.push(problem("bad-tree", &path, what));
            } else if kind.is_dir() {
                self.folder(&entry.path(), &format!("{path}/"), depth + 1)?;
            } else if kind.is_file() {
                match crate::disk::read_bounded(&entry.path(), self.limits.blob_mib << 20)? {
                    Some(bytes) => _ = self.tree.files.insert(RepoPath::new(path), bytes.into()),
                    // It went away while we looked.
                    None => continue,
                }
            } else if kind.is_symlink() {
                self.problems.push(problem("symlink-source", &path, "a symbolic link is not read"));
            } else {
                self.problems.push(problem("bad-tree", &path, "this is no regular file"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_more_than_names_are_bad() {
        for name in ["", ".", "..", ".git", ".GIT", ".git ", ".git.", "GIT~1", "a/b", "a\\b", "a\nb", "\u{1b}[2J"] {
            assert!(bad_name(name.as_bytes(), name).is_some(), "{name:?}");
        }
        assert!(bad_name(b"\xff", "x").is_some());
        assert!(bad_name("a".repeat(256).as_bytes(), "x").is_some());
        for name in [".gitignore", "..a", "role.toml", "größe", "a b"] {
            assert!(bad_name(name.as_bytes(), name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_tree_are_not_read_as_one() {
        let id = [7; 20];
        let good = [&b"100644 a\0"[..], &id, b"40000 b\0", &id].concat();
        assert_eq!(parse(&good).unwrap().len(), 2);
        for cut in 1..good.len() {
            assert_eq!(parse(&good[..cut]).is_some(), cut == 29, "{cut}");
        }
        assert!(parse(b"\0 x").is_none());
    }
}
