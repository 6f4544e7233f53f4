//! Judges an archive by its entries before anything of it is written: what would be where, and why not.
//!
//! Strict on purpose: every entry has one place, given once, inside; what is left open by the formats (a link on the way, a
//! name twice) is refused, not guessed. PURE. Never: repairs a name.

use std::collections::BTreeMap;

/// Every bound of an archive; more is refused.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub entries: usize,
    /// Of all files together, unpacked.
    pub bytes: u64,
    /// Unpacked to packed; small archives (64 MiB unpacked) are free of it.
    pub ratio: u64,
}

/// More than the largest thing that is shipped this way.
pub const LIMITS: Limits = Limits { entries: 200_000, bytes: 16 << 30, ratio: 200 };
const RATIO_FREE: u64 = 64 << 20;
const PATH_MAX: usize = 1024;
const NAME_MAX: usize = 255;
const DEPTH_MAX: usize = 64;
/// As many as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    Directory,
    File {
        bytes: u64,
        executable: bool,
    },
    /// Symbolic; the target as it is written.
    Link(String),
    /// The file, as its path in the tree.
    Hard(String),
}

/// An entry, and why the whole archive is refused for it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{entry:?}: {why}")]
pub struct Refusal {
    pub entry: String,
    pub why: String,
}

fn refused<T>(entry: &str, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { entry: entry.chars().take(200).collect(), why: why.into() })
}

/// The entries so far.
pub struct Survey {
    limits: Limits,
    packed: u64,
    nodes: BTreeMap<String, Node>,
    entries: usize,
    bytes: u64,
}

/// An archive that may be unpacked: parents before their children.
#[derive(Debug)]
pub struct Tree {
    pub nodes: BTreeMap<String, Node>,
    pub bytes: u64,
    /// The one directory that everything was in, and is not any more.
    stripped: Option<String>,
}

impl Survey {
    /// `packed`: size of the archive.
    pub fn new(packed: u64, limits: Limits) -> Self {
        Self { limits, packed, nodes: BTreeMap::new(), entries: 0, bytes: 0 }
    }

    pub fn directory(&mut self, name: &[u8]) -> Result<(), Refusal> {
        self.count(name)?;
        let path = clean(name)?;
        if path.is_empty() {
            return Ok(());
        }
        self.parents(&path)?;
        match self.nodes.insert(path.clone(), Node::Directory) {
            None | Some(Node::Directory) => Ok(()),
            Some(_) => refused(&path, "it is there twice, not as a directory both times"),
        }
    }

    /// Called before a byte of it is read.
    pub fn file(&mut self, name: &[u8], bytes: u64, executable: bool) -> Result<(), Refusal> {
        self.count(name)?;
        self.bytes = self.bytes.saturating_add(bytes);
        let Limits { bytes: most, ratio, .. } = self.limits;
        if self.bytes > most {
            return refused(&shown(name), format!("with it the archive unpacks to more than {most} bytes"));
        }
        if self.bytes > RATIO_FREE && self.bytes / ratio > self.packed {
            return refused(&shown(name), format!("with it the archive unpacks to more than {ratio} times its size"));
        }
        self.put(name, Node::File { bytes, executable })
    }

    pub fn link(&mut self, name: &[u8], target: &[u8]) -> Result<(), Refusal> {
        self.count(name)?;
        let Ok(target) = str::from_utf8(target) else { return refused(&shown(name), "its target is not UTF-8") };
        match target {
            "" => return refused(&shown(name), "a link to nothing"),
            _ if target.starts_with('/') => return refused(&shown(name), "a link to an absolute path"),
            _ if target.len() > PATH_MAX || target.contains(char::is_control) => {
                return refused(&shown(name), "no usable target of a link");
            }
            _ => {}
        }
        self.put(name, Node::Link(target.to_owned()))
    }

    /// To a file that came before.
    pub fn hard(&mut self, name: &[u8], target: &[u8]) -> Result<(), Refusal> {
        self.count(name)?;
        let file = clean(target).ok().filter(|target| matches!(self.nodes.get(target), Some(Node::File { .. })));
        match file {
            Some(file) => self.put(name, Node::Hard(file)),
            None => {
                let target = shown(target);
                refused(&shown(name), format!("a hard link to {target:?}, which is no file of the archive before it"))
            }
        }
    }

    fn count(&mut self, name: &[u8]) -> Result<(), Refusal> {
        self.entries += 1;
        let most = self.limits.entries;
        if self.entries > most { refused(&shown(name), format!("there are more than {most} entries")) } else { Ok(()) }
    }

    fn put(&mut self, name: &[u8], node: Node) -> Result<(), Refusal> {
        let path = clean(name)?;
        if path.is_empty() || name.ends_with(b"/") {
            return refused(&shown(name), "the name is a directory's, the entry is none");
        }
        self.parents(&path)?;
        match self.nodes.insert(path.clone(), node) {
            None => Ok(()),
            Some(_) => refused(&path, "it is there twice"),
        }
    }

    /// What is not said to be a directory on the way is made one.
    fn parents(&mut self, path: &str) -> Result<(), Refusal> {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            match self.nodes.get(parent) {
                Some(Node::Directory) => {}
                Some(Node::Link(_)) => return refused(path, format!("it goes through the link {parent:?}")),
                Some(_) => return refused(path, format!("it is inside of {parent:?}, which is a file")),
                None => {
                    self.entries += 1;
                    self.nodes.insert(parent.to_owned(), Node::Directory);
                }
            }
        }
        Ok(())
    }

    /// All entries are in. One directory that has everything is taken off.
    pub fn finish(self) -> Result<Tree, Refusal> {
        if !self.nodes.values().any(|node| matches!(node, Node::File { .. })) {
            return refused("", "there is no file in the archive");
        }
        let tops: Vec<&String> = self.nodes.keys().filter(|path| !path.contains('/')).take(2).collect();
        let stripped = match tops[..] {
            [top] if self.nodes.get(top) == Some(&Node::Directory) => Some(top.clone()),
            _ => None,
        };
        let bytes = self.bytes;
        let mut tree = Tree { nodes: BTreeMap::new(), bytes, stripped };
        for (path, node) in self.nodes {
            let node = match node {
                Node::Hard(target) => Node::Hard(tree.inside(&target).unwrap_or_default().to_owned()),
                node => node,
            };
            if let Some(inside) = tree.inside(&path).map(str::to_owned) {
                if inside == super::place::MARKER {
                    return refused(&path, "a name that is converger's own");
                }
                tree.nodes.insert(inside, node);
            }
        }
        for (path, node) in &tree.nodes {
            if let Node::Link(target) = node {
                tree.stays_inside(path, target)?;
            }
        }
        Ok(tree)
    }
}

impl Tree {
    /// Where an entry of this name belongs. `None`: nowhere, it is the directory that was taken off.
    pub fn place(&self, name: &[u8]) -> Result<Option<String>, Refusal> {
        let path = clean(name)?;
        Ok(self.inside(&path).map(str::to_owned))
    }

    fn inside<'p>(&self, path: &'p str) -> Option<&'p str> {
        let path = match &self.stripped {
            Some(top) => path.strip_prefix(top.as_str())?.strip_prefix('/')?,
            None => path,
        };
        (!path.is_empty()).then_some(path)
    }

    /// Follows a link as the kernel would, through the links of the archive. A target that is not there is no harm.
    fn stays_inside(&self, link: &str, target: &str) -> Result<(), Refusal> {
        let mut here: Vec<&str> = link.split('/').collect();
        here.pop();
        // Last first.
        let mut rest: Vec<&str> = target.split('/').rev().collect();
        let mut followed = 0;
        while let Some(part) = rest.pop() {
            match part {
                "" | "." => continue,
                ".." if here.pop().is_none() => return refused(link, format!("its target {target:?} is outside")),
                ".." => continue,
                part => here.push(part),
            }
            if let Some(Node::Link(next)) = self.nodes.get(&here.join("/")) {
                followed += 1;
                if followed > LINKS_MAX {
                    return refused(link, "it leads round in a circle, or through too many links");
                }
                here.pop();
                rest.extend(next.split('/').rev());
            }
        }
        Ok(())
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// `./a//b/` as `a/b`; `.` as nothing.
fn clean(name: &[u8]) -> Result<String, Refusal> {
    let Ok(text) = str::from_utf8(name) else { return refused(&shown(name), "its name is not UTF-8") };
    if text.starts_with('/') {
        return refused(text, "an absolute path");
    }
    if text.is_empty() || text.len() > PATH_MAX || text.contains(char::is_control) {
        return refused(text, "no usable name");
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    match () {
        () if parts.contains(&"..") => refused(text, "\"..\" in its path"),
        () if parts.len() > DEPTH_MAX => refused(text, format!("deeper than {DEPTH_MAX} directories")),
        () if parts.iter().any(|part| part.len() > NAME_MAX) => refused(text, "a name that is too long"),
        () => Ok(parts.join("/")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey() -> Survey {
        Survey::new(1000, Limits { entries: 10, bytes: 100 << 20, ratio: 2 })
    }

    #[test]
    fn one_common_directory_is_taken_off_and_two_are_not() {
        let mut one = survey();
        one.directory(b"./kafka-3.9.0/").unwrap();
        one.file(b"kafka-3.9.0/bin/run.sh", 3, true).unwrap();
        one.hard(b"kafka-3.9.0/bin/again.sh", b"kafka-3.9.0/bin/run.sh").unwrap();
        let tree = one.finish().unwrap();
        assert_eq!(tree.nodes.keys().collect::<Vec<_>>(), ["bin", "bin/again.sh", "bin/run.sh"]);
        assert_eq!(tree.nodes["bin/again.sh"], Node::Hard("bin/run.sh".to_owned()));
        assert_eq!(tree.place(b"kafka-3.9.0/").unwrap(), None);

        let mut two = survey();
        two.file(b"etcd/etcd", 1, true).unwrap();
        two.file(b"README", 1, false).unwrap();
        assert_eq!(two.finish().unwrap().nodes.keys().collect::<Vec<_>>(), ["README", "etcd", "etcd/etcd"]);
    }

    #[test]
    fn links_are_followed_through_links_before_they_are_believed() {
        let links = |links: &[(&str, &str)]| {
            let mut survey = survey();
            survey.file(b"a/b/file", 1, false).unwrap();
            survey.file(b"other", 1, false).unwrap();
            for (name, target) in links {
                survey.link(name.as_bytes(), target.as_bytes())?;
            }
            survey.finish().map(drop)
        };
        for good in [("a/l", "b/file"), ("a/l", "../other"), ("l", "a/b/../../other"), ("l", "nowhere")] {
            assert_eq!(links(&[good]), Ok(()), "{good:?}");
        }
        for bad in [("l", "../x"), ("a/l", "../../x"), ("l", "/etc/passwd"), ("l", "a/b/../../../x"), ("l", "")] {
            assert!(links(&[bad]).is_err(), "{bad:?}");
        }
        // By its letters the second one stays inside.
        assert!(links(&[("a/up", ".."), ("l", "a/up/..")]).is_err());
        assert!(links(&[("l", "m"), ("m", "l")]).is_err());
    }

    #[test]
    fn bounds_are_bounds() {
        let mut survey = survey();
        survey.file(b"a", 60 << 20, false).unwrap();
        assert!(survey.file(b"b", 10 << 20, false).unwrap_err().why.contains("times its size"));
        let mut survey = Survey::new(u64::MAX, Limits { entries: 3, bytes: 10, ratio: 2 });
        survey.file(b"a/a", 10, false).unwrap();
        assert!(survey.file(b"b", 1, false).unwrap_err().why.contains("more than 10 bytes"));
        assert!(survey.directory(b"c").unwrap_err().why.contains("more than 3 entries"));
    }
}
