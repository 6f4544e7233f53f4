//! The trust rules a second time, written from their text: an opinion that shares no line with `src/trust` and `src/git`.
//!
//! Objects come from `git cat-file --batch`, merges from `git merge-tree`, ed25519 from ring. It is slow and plain on
//! purpose: whoever doubts the real one reads this. Never: a shortcut, a cache that a rule depends on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use ring::digest::{SHA256, digest};

use super::formats::{Commit, FILE_MAX, headers, hex, parse, policy_of, signed_by, signer};

/// A merge base lies at most this many first-parent steps below the merge's first parent.
pub const STALE_STEPS: usize = 200;

/// What a node's trust.toml says.
#[derive(Clone, Debug)]
pub struct Root {
    pub fleet: String,
    pub introduction: String,
    pub signer: String,
    pub seq: u64,
    pub bans: Vec<String>,
}

/// What a node accepted last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Floor {
    pub commit: String,
    pub payload: String,
    pub seq: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The new commits, oldest first, and why each is good.
    Accepted {
        floor: Floor,
        new: Vec<(String, By)>,
    },
    Refused {
        reason: String,
        commit: String,
    },
}

/// Principal and fingerprint of whoever signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum By {
    Signed(String),
    /// A merge that follows from what these signed, in the order in which they first did.
    Recomputed(Vec<String>),
}

type Refused = (&'static str, String);

/// `trust/` of one tree.
struct Trust {
    /// Fingerprint -> principal.
    keys: BTreeMap<String, String>,
    /// Principal -> roles, paths.
    principals: BTreeMap<String, (Vec<String>, Vec<String>)>,
    banned: BTreeSet<String>,
}

/// Path -> mode and id of each entry there: a tree may have two of one name.
type Files = Rc<BTreeMap<Vec<u8>, Vec<(String, String)>>>;

/// A store as git lists it.
pub struct Reference {
    objects: HashMap<String, Vec<u8>>,
    files: HashMap<String, Files>,
    /// First and second parent -> tree, where the merge is clean.
    pub merges: HashMap<(String, String), String>,
}

impl Reference {
    /// Reads every object that is there now.
    pub fn of(store: &Path) -> Self {
        let listed = crate::forge::hermetic(&mut Command::new("git"))
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .arg("-C")
            .arg(store)
            .args(["cat-file", "--batch-all-objects", "--batch", "--buffer", "--unordered"])
            .output()
            .unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let mut objects = HashMap::new();
        let mut rest = &listed.stdout[..];
        // For each: id, type and size; the bytes; a newline.
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let head: Vec<&str> = std::str::from_utf8(&rest[..end]).unwrap().split(' ').collect();
            let size: usize = head[2].parse().unwrap();
            objects.insert(head[0].to_owned(), rest[end + 1..][..size].to_vec());
            rest = &rest[end + 1 + size + 1..];
        }
        Self { objects, files: HashMap::new(), merges: HashMap::new() }
    }

    /// Verdict on one offer.
    pub fn verify(&mut self, root: &Root, floor: Option<&Floor>, tip: &str) -> Verdict {
        match self.judge_offer(root, floor, tip) {
            Ok((floor, new)) => Verdict::Accepted { floor, new },
            Err((reason, commit)) => Verdict::Refused { reason: reason.to_owned(), commit },
        }
    }

    fn judge_offer(
        &mut self,
        root: &Root,
        floor: Option<&Floor>,
        tip: &str,
    ) -> Result<(Floor, Vec<(String, By)>), Refused> {
        // R1: first parents lead to what was accepted, or to the introduction.
        let chain = self.first_parents(tip);
        let start = chain.iter().position(|id| match floor {
            Some(floor) => *id == floor.commit || self.identity(id) == floor.payload,
            None => *id == root.introduction,
        });
        let Some(start) = start else {
            let Some(floor) = floor else { return Err(("introduction-missing", tip.to_owned())) };
            let reason = if self.reaches(&floor.commit, tip) {
                "rollback"
            } else if self.reaches(tip, &floor.commit) {
                "foxtrot"
            } else {
                "not-descendant"
            };
            return Err((reason, tip.to_owned()));
        };
        let mut new = Vec::new();
        let mut reached = match floor {
            Some(floor) => floor.clone(),
            None => {
                let principal = self.judge_introduction(root)?;
                let payload = self.identity(&root.introduction);
                new.push((root.introduction.clone(), By::Signed(format!("{principal} {}", root.signer))));
                Floor { commit: root.introduction.clone(), payload, seq: root.seq }
            }
        };
        for id in chain[..start].iter().rev() {
            let by = self.judge(root, id)?;
            reached = Floor { commit: id.clone(), payload: self.identity(id), seq: reached.seq + 1 };
            new.push((id.clone(), by));
        }
        Ok((reached, new))
    }

    fn judge_introduction(&mut self, root: &Root) -> Result<String, Refused> {
        let id = &root.introduction;
        let (commit, key) = self.signature(id)?;
        let key = key.map_err(|reason| (reason, id.clone()))?;
        if key != root.signer {
            return Err(("introduction-missing", id.clone()));
        }
        let trust = self.trust(&commit.tree).ok_or(("trust-removed", id.clone()))?;
        self.same_fleet(root, &commit.tree, id)?;
        Ok(trust.keys.get(&key).cloned().unwrap_or_else(|| "the introduction's signer".to_owned()))
    }

    /// One commit of the first-parent chain, by the trust/ of its first parent.
    fn judge(&mut self, root: &Root, id: &str) -> Result<By, Refused> {
        let (commit, key) = self.signature(id)?;
        let parent_tree = self.tree_of(&commit.parents[0]);
        let trust = self.trust(&parent_tree).ok_or(("trust-removed", id.to_owned()))?;
        match trusted(&trust, root, key) {
            Ok((principal, key)) => {
                let own = self.trust(&commit.tree).ok_or(("trust-removed", id.to_owned()))?;
                let unbanned = trust.banned.iter().any(|key| !own.banned.contains(key));
                let mut listed = own.keys.keys().filter(|key| !trust.keys.contains_key(*key));
                if unbanned || listed.any(|key| own.banned.contains(key)) {
                    return Err(("reauthorises-banned-key", id.to_owned()));
                }
                self.same_fleet(root, &commit.tree, id)?;
                let changed = self.changed(&parent_tree, &commit.tree);
                permits(&trust, &principal, &changed).map_err(|why| (why, id.to_owned()))?;
                Ok(By::Signed(format!("{principal} {key}")))
            }
            Err(fault) if fault != "banned-key" && commit.parents.len() == 2 => {
                self.recompute(root, &trust, id, &commit, fault).map(By::Recomputed)
            }
            Err(fault) => Err((fault, id.to_owned())),
        }
    }

    /// The forge's merge button: what the merge says must follow from what authorised keys signed.
    fn recompute(
        &mut self,
        root: &Root,
        trust: &Trust,
        id: &str,
        merge: &Commit,
        fault: &'static str,
    ) -> Result<Vec<String>, Refused> {
        let refuse = |reason| Err((reason, id.to_owned()));
        let (first, second) = (&merge.parents[0], &merge.parents[1]);
        let first_tree = self.tree_of(first);
        let changed = self.changed(&first_tree, &merge.tree);
        if changed.iter().any(|path| guarded(path)) {
            return refuse("root-required");
        }
        let tracked = self.first_parents(first);
        match self.merge_bases(first, second).as_slice() {
            [base] if tracked.iter().take(STALE_STEPS + 1).any(|id| id == base) => {}
            _ => return refuse("stale-merge"),
        }
        let side = self.side_commits(first, second);
        if side.is_empty() {
            return refuse(fault);
        }
        // Principal and key, in the order in which they first signed; and what they changed by their own hand.
        let (mut signers, mut touched) = (Vec::new(), BTreeSet::new());
        for id in &side {
            let (commit, key) = self.signature(id)?;
            let Some(parent) = commit.parents.first() else { return Err(("not-descendant", id.clone())) };
            if self.has_twin(first, id) {
                return Err(("stale-merge", id.clone()));
            }
            // A merge that git makes like this is an edit of its first parent, another one decides against each of them.
            let again = match commit.parents.as_slice() {
                [ours, theirs] => {
                    self.merge_bases(ours, theirs).len() == 1
                        && self.merges.get(&(ours.clone(), theirs.clone())) == Some(&commit.tree)
                }
                _ => false,
            };
            let against = if again { &commit.parents[..1] } else { &commit.parents[..] };
            let mut edited = Vec::new();
            for parent in against {
                let parent_tree = self.tree_of(parent);
                edited.extend(self.changed(&parent_tree, &commit.tree));
            }
            let signed =
                trusted(trust, root, key).and_then(|signer| permits(trust, &signer.0, &edited).map(|()| signer));
            let updated = match commit.parents.as_slice() {
                [_, theirs] => again && tracked.contains(theirs),
                _ => false,
            };
            match signed {
                Ok(signer) => {
                    touched.extend(edited);
                    if !signers.contains(&signer) {
                        signers.push(signer);
                    }
                }
                // A rename may have carried an edit here, and somebody may edit that file next.
                Err(_) if updated => {
                    let tracked_tree = self.tree_of(&commit.parents[1]);
                    let brought = self.changed(&tracked_tree, &commit.tree);
                    carried_by(trust, &signers, &touched, brought).map_err(|why| (why, id.clone()))?;
                    let moved = self.moved(parent, &commit.parents[1], &commit.tree);
                    carried_by(trust, &signers, &BTreeSet::new(), moved).map_err(|why| (why, id.clone()))?;
                    if !self.moved(&commit.parents[1], parent, &commit.tree).is_empty() {
                        return Err(("scope", id.clone()));
                    }
                }
                Err(fault) => return Err((fault, id.clone())),
            }
        }
        if self.merges.get(&(first.clone(), second.clone())) != Some(&merge.tree) {
            return refuse("merge-altered");
        }
        carried_by(trust, &signers, &touched, changed).map_err(|why| (why, id.to_owned()))?;
        let moved = self.moved(second, first, &merge.tree);
        carried_by(trust, &signers, &BTreeSet::new(), moved).map_err(|why| (why, id.to_owned()))?;
        if !self.moved(first, second, &merge.tree).is_empty() {
            return refuse("scope");
        }
        Ok(signers.into_iter().map(|(principal, key)| format!("{principal} {key}")).collect())
    }

    /// Paths at which what was made of both has a change of `from` that `from` did not make there.
    fn moved(&mut self, from: &str, into: &str, made: &str) -> Vec<String> {
        let bases = self.merge_bases(from, into);
        let [base, from, into] = [&bases[0], from, into].map(|commit| self.tree_of(commit));
        let own = self.changed(&base, &from);
        self.changed(&into, made).into_iter().filter(|path| !own.contains(path)).collect()
    }

    /// Whether the branch has what was signed here already, under another signature.
    fn has_twin(&mut self, branch: &str, id: &str) -> bool {
        let same = self.identity(id);
        let ancestors = self.ancestors(branch);
        ancestors.into_iter().any(|ancestor| ancestor != id && self.identity(&ancestor) == same)
    }

    /// The commit and the key that signed it, or why none did.
    #[allow(clippy::type_complexity)]
    fn signature(&mut self, id: &str) -> Result<(Commit, Result<String, &'static str>), Refused> {
        let commit = parse(self.object(id)).ok_or(("malformed-commit", id.to_owned()))?;
        let key = match &commit.armor {
            None => Err("unsigned"),
            Some(armor) => signed_by(armor, &commit.payload).ok_or("bad-signature"),
        };
        Ok((commit, key))
    }

    /// Fingerprint of the key that signed a commit, whoever's it is.
    pub fn signer(&mut self, id: &str) -> Option<String> {
        self.signature(id).ok()?.1.ok()
    }

    fn same_fleet(&mut self, root: &Root, tree: &str, id: &str) -> Result<(), Refused> {
        let named = self.file(tree, "fleet.toml").and_then(|bytes| {
            let table: toml::Table = toml::from_str(std::str::from_utf8(&bytes).ok()?).ok()?;
            let policy = table.get("trust").map_or(Some("standard"), |value| value.as_str())?;
            Some(table.get("name")?.as_str()? == root.fleet && policy == "standard")
        });
        if named == Some(true) { Ok(()) } else { Err(("fleet-mismatch", id.to_owned())) }
    }

    /// `None`: not sound.
    fn trust(&mut self, tree: &str) -> Option<Trust> {
        let signers = String::from_utf8(self.file(tree, "trust/allowed_signers")?).ok()?;
        let mut keys = BTreeMap::new();
        for line in signers.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some((fingerprint, principal)) = signer(line)?
                && keys.insert(fingerprint, principal).is_some()
            {
                return None;
            }
        }
        let policy = String::from_utf8(self.file(tree, "trust/policy.toml")?).ok()?;
        let (principals, banned) = policy_of(&policy.parse().ok()?)?;
        let roots = keys.iter().filter(|(key, _)| !banned.contains(*key));
        let mut roots =
            roots.filter_map(|(_, name)| principals.get(name)).filter(|(roles, _)| roles.contains(&"root".into()));
        roots.next()?;
        Some(Trust { keys, principals, banned })
    }

    /// The one regular file at a path.
    fn file(&mut self, tree: &str, path: &str) -> Option<Vec<u8>> {
        let mut at = ("40000".to_owned(), tree.to_owned());
        for name in path.split('/') {
            if at.0 != "40000" {
                return None;
            }
            let entries = self.entries(&at.1);
            let mut named = entries.iter().filter(|(_, one, _)| one == name.as_bytes());
            let (mode, _, id) = named.next()?;
            if named.next().is_some() {
                return None;
            }
            at = (mode.clone(), id.clone());
        }
        let bytes = if at.0 == "100644" || at.0 == "100755" { self.object(&at.1) } else { return None };
        (bytes.len() <= FILE_MAX).then(|| bytes.to_vec())
    }

    /// Paths whose mode or content differs.
    fn changed(&mut self, old: &str, new: &str) -> Vec<String> {
        let (old, new) = (self.flat(old), self.flat(new));
        let paths: BTreeSet<&Vec<u8>> = old.keys().chain(new.keys()).collect();
        let differ = paths.into_iter().filter(|path| old.get(*path) != new.get(*path));
        differ.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    fn flat(&mut self, tree: &str) -> Files {
        if let Some(files) = self.files.get(tree) {
            return files.clone();
        }
        let mut files: BTreeMap<Vec<u8>, Vec<(String, String)>> = BTreeMap::new();
        for (mode, name, id) in self.entries(tree).iter() {
            if mode == "40000" {
                for (path, what) in self.flat(id).iter() {
                    let path = [name, &b"/"[..], path].concat();
                    files.entry(path).or_default().extend(what.iter().cloned());
                }
            } else {
                files.entry(name.clone()).or_default().push((mode.clone(), id.clone()));
            }
        }
        self.files.entry(tree.to_owned()).or_insert(Rc::new(files)).clone()
    }

    /// Mode, name, id.
    fn entries(&self, tree: &str) -> Vec<(String, Vec<u8>, String)> {
        let bytes = self.object(tree);
        let mut entries = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let nul = rest.iter().position(|byte| *byte == 0).unwrap();
            let mut head = rest[..nul].splitn(2, |byte| *byte == b' ');
            let mode = String::from_utf8(head.next().unwrap().to_vec()).unwrap();
            entries.push((mode, head.next().unwrap().to_vec(), hex(&rest[nul + 1..nul + 21])));
            rest = &rest[nul + 21..];
        }
        entries
    }

    /// Common ancestors that no other common ancestor has among its own.
    pub fn merge_bases(&mut self, one: &str, other: &str) -> Vec<String> {
        let (one, other) = (self.ancestors(one), self.ancestors(other));
        let common: BTreeSet<String> = one.intersection(&other).cloned().collect();
        let mut below = HashSet::new();
        for id in &common {
            below.extend(self.parents(id).iter().flat_map(|parent| self.ancestors(parent)));
        }
        common.into_iter().filter(|id| !below.contains(id)).collect()
    }

    /// Reachable from `second` and not from `first`, parents before children, first parents first.
    fn side_commits(&mut self, first: &str, second: &str) -> Vec<String> {
        let known = self.ancestors(first);
        let (mut order, mut seen, mut open) = (Vec::new(), HashSet::new(), vec![(second.to_owned(), false)]);
        while let Some((id, done)) = open.pop() {
            if done {
                order.push(id);
            } else if !known.contains(&id) && seen.insert(id.clone()) {
                let parents = self.parents(&id);
                open.push((id, true));
                open.extend(parents.into_iter().rev().map(|parent| (parent, false)));
            }
        }
        order
    }

    /// Whether `what`, or the same commit signed otherwise, is `from` or an ancestor of it.
    fn reaches(&mut self, from: &str, what: &str) -> bool {
        let wanted = self.identity(what);
        self.ancestors(from).iter().any(|id| self.identity(id) == wanted)
    }

    /// Itself included.
    fn ancestors(&mut self, id: &str) -> HashSet<String> {
        let (mut seen, mut open) = (HashSet::new(), vec![id.to_owned()]);
        while let Some(id) = open.pop() {
            if seen.insert(id.clone()) {
                open.extend(self.parents(&id));
            }
        }
        seen
    }

    /// From the commit itself downwards.
    fn first_parents(&mut self, id: &str) -> Vec<String> {
        let mut chain = vec![id.to_owned()];
        while let Some(parent) = self.parents(chain.last().unwrap()).into_iter().next() {
            chain.push(parent);
        }
        chain
    }

    /// R8: SHA-256 of the commit without its signature; of what is no commit to us, its id.
    fn identity(&mut self, id: &str) -> String {
        parse(self.object(id)).map_or(id.to_owned(), |commit| hex(digest(&SHA256, &commit.payload).as_ref()))
    }

    fn tree_of(&mut self, id: &str) -> String {
        headers(self.object(id), "tree").remove(0)
    }

    fn parents(&mut self, id: &str) -> Vec<String> {
        headers(self.object(id), "parent")
    }

    fn object(&self, id: &str) -> &[u8] {
        &self.objects[id]
    }
}

/// Whose key it is, and the key, unless it is banned or nobody's.
fn trusted(trust: &Trust, root: &Root, key: Result<String, &'static str>) -> Result<(String, String), &'static str> {
    let key = key?;
    if root.bans.contains(&key) || trust.banned.contains(&key) {
        return Err("banned-key");
    }
    trust.keys.get(&key).map(|principal| (principal.clone(), key)).ok_or("unknown-key")
}

/// Whether a signature of this principal is enough to change these paths.
fn permits(trust: &Trust, principal: &str, changed: &[String]) -> Result<(), &'static str> {
    let (roles, paths) = trust.principals.get(principal).cloned().unwrap_or_default();
    let has = |role: &str| roles.iter().any(|one| one == role);
    if changed.iter().any(|path| guarded(path)) && !has("root") {
        return Err("root-required");
    }
    let inside = |path: &String| has("deploy") && paths.iter().any(|glob| fits(glob, path));
    let elsewhere = changed.iter().filter(|path| !guarded(path)).all(inside);
    if elsewhere && (has("root") || has("deploy")) { Ok(()) } else { Err("scope") }
}

/// What no hand changed a rename carried there: every signer must be one who might change it.
fn carried_by(
    trust: &Trust,
    signers: &[(String, String)],
    touched: &BTreeSet<String>,
    changed: Vec<String>,
) -> Result<(), &'static str> {
    let carried: Vec<String> = changed.into_iter().filter(|path| !touched.contains(path)).collect();
    signers.iter().try_for_each(|(principal, _)| permits(trust, principal, &carried))
}

fn guarded(path: &str) -> bool {
    path == "fleet.toml" || path == "trust" || path.starts_with("trust/")
}

/// `**` stands for any folders, `*` and `?` for any and one character of a name.
fn fits(glob: &str, path: &str) -> bool {
    fn parts(glob: &[&str], path: &[&str]) -> bool {
        match (glob, path) {
            ([], []) => true,
            (["**", glob @ ..], _) => (0..=path.len()).any(|skip| parts(glob, &path[skip..])),
            ([glob, globs @ ..], [name, names @ ..]) => {
                let (glob, name): (Vec<char>, Vec<char>) = (glob.chars().collect(), name.chars().collect());
                letters(&glob, &name) && parts(globs, names)
            }
            _ => false,
        }
    }
    fn letters(glob: &[char], name: &[char]) -> bool {
        match (glob, name) {
            ([], []) => true,
            (['*', glob @ ..], _) => (0..=name.len()).any(|skip| letters(glob, &name[skip..])),
            (['?', glob @ ..], [_, name @ ..]) => letters(glob, name),
            ([g, glob @ ..], [n, name @ ..]) => g == n && letters(glob, name),
            _ => false,
        }
    }
    parts(&glob.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}
