//! How commits lie to each other: merge bases, the side of a merge, first-parent steps. By git's definitions, from the
//! commits' own bytes.
//!
//! Every ancestor is read once and numbered so that a commit comes after all of its ancestors; walking by these numbers
//! is exact. Git walks by date, which is faster and wrong as soon as a clock was. Never: a date; a graft, a replace ref
//! or a commit-graph file.

use std::cell::RefCell;
use std::collections::{BinaryHeap, HashMap};

use git2::Oid;

use super::GitError;
use super::objects::{Objects, parents};
use super::relation::identity;

/// The ancestors of the commits that were asked about.
pub(super) struct Graph<'a> {
    objects: &'a Objects<'a>,
    /// More commits than this are not read.
    max: usize,
    known: RefCell<HashMap<Oid, Known>>,
    /// Commits by what was signed: signed again, one has another id and is still the same.
    same: RefCell<HashMap<String, Vec<Oid>>>,
}

struct Known {
    parents: Vec<Oid>,
    /// Higher than that of any ancestor.
    rank: usize,
}

/// Two commits, and where their histories meet.
pub(super) struct Meeting {
    /// Common ancestors that no other common ancestor descends from.
    pub bases: Vec<Oid>,
    /// What the second has and the first has not: ancestors before descendants, of several parents the first one's first.
    pub side: Vec<Oid>,
}

const OURS: u8 = 1;
const THEIRS: u8 = 2;
const BOTH: u8 = OURS | THEIRS;
/// An ancestor of a base: nothing below it matters.
const STALE: u8 = 4;

impl<'a> Graph<'a> {
    pub fn new(objects: &'a Objects<'a>, max: usize) -> Self {
        Self { objects, max, known: RefCell::default(), same: RefCell::default() }
    }

    pub fn meet(&self, ours: Oid, theirs: Oid) -> Result<Meeting, GitError> {
        self.learn(ours)?;
        self.learn(theirs)?;
        let known = self.known.borrow();
        let mut front = Front { known: &known, marks: HashMap::new(), heap: BinaryHeap::new(), fresh: 0 };
        front.mark(ours, OURS);
        front.mark(theirs, THEIRS);
        let mut meeting = Meeting { bases: Vec::new(), side: Vec::new() };
        while let Some((id, marks)) = front.next() {
            let inherited = match marks {
                BOTH => {
                    meeting.bases.push(id);
                    BOTH | STALE
                }
                THEIRS => {
                    meeting.side.push(id);
                    THEIRS
                }
                marks => marks,
            };
            for parent in &known[&id].parents {
                front.mark(*parent, inherited);
            }
        }
        meeting.side.reverse();
        Ok(meeting)
    }

    /// How many first parents lie between the two; `None`: `down` is not on the first-parent chain of `from`.
    pub fn steps(&self, from: Oid, down: Oid) -> Result<Option<usize>, GitError> {
        self.learn(from)?;
        let known = self.known.borrow();
        let Some(end) = known.get(&down).map(|it| it.rank) else { return Ok(None) };
        let chain = std::iter::successors(Some(from), |id| known[id].parents.first().copied());
        let found = chain.take_while(|id| known[id].rank >= end).enumerate().find(|(_, id)| *id == down);
        Ok(found.map(|(steps, _)| steps))
    }

    /// Reads and numbers `tip` and all of its ancestors.
    fn learn(&self, tip: Oid) -> Result<(), GitError> {
        let mut known = self.known.borrow_mut();
        if known.contains_key(&tip) {
            return Ok(());
        }
        self.objects.history_ahead(tip, self.max)?;
        // From the tip down to where we are: a commit, its parents, and how many of them were looked at.
        let mut path = vec![(tip, self.parents(tip)?, 0)];
        while let Some((id, parents, at)) = path.last_mut() {
            if let Some(next) = parents.get(*at).copied() {
                *at += 1;
                if !known.contains_key(&next) {
                    path.push((next, self.parents(next)?, 0));
                }
            } else {
                let node = Known { parents: std::mem::take(parents), rank: known.len() };
                known.insert(*id, node);
                path.pop();
            }
            if known.len() + path.len() > self.max {
                return Err(GitError::limit("commits", self.max, ""));
            }
        }
        Ok(())
    }

    fn parents(&self, id: Oid) -> Result<Vec<Oid>, GitError> {
        let raw = self.objects.commit(id)?;
        self.same.borrow_mut().entry(identity(id, &raw)).or_default().push(id);
        parents(&raw)
    }

    /// Whether `of` has this commit under another signature.
    pub fn has_twin(&self, of: Oid, id: Oid) -> Result<bool, GitError> {
        let same = identity(id, &self.objects.commit(id)?);
        let twins = self.same.borrow().get(&same).cloned().unwrap_or_default();
        for twin in twins.into_iter().filter(|twin| *twin != id) {
            if self.meet(of, twin)?.bases == [twin] {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Commits that were reached and not looked at yet.
struct Front<'g> {
    known: &'g HashMap<Oid, Known>,
    marks: HashMap<Oid, u8>,
    heap: BinaryHeap<(usize, Oid)>,
    /// How many in the heap are not stale.
    fresh: usize,
}

impl Front<'_> {
    fn mark(&mut self, id: Oid, marks: u8) {
        let before = self.marks.get(&id).copied();
        let after = before.unwrap_or_default() | marks;
        self.marks.insert(id, after);
        if before.is_none() {
            self.heap.push((self.known[&id].rank, id));
        }
        let stale = |marks: u8| marks & STALE != 0;
        self.fresh += usize::from(before.is_none() && !stale(after));
        self.fresh -= usize::from(before.is_some_and(|before| !stale(before)) && stale(after));
    }

    /// The highest one; all of its descendants were looked at before it, so its marks are final.
    fn next(&mut self) -> Option<(Oid, u8)> {
        if self.fresh == 0 {
            return None;
        }
        let (_, id) = self.heap.pop()?;
        let marks = self.marks[&id];
        self.fresh -= usize::from(marks & STALE == 0);
        Some((id, marks))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // asks the real git
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;

    use super::*;

    /// A commit of these parents; its date says nothing about its place.
    fn commit(repository: &git2::Repository, parents: &[Oid], n: u64) -> Oid {
        let seconds = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 34;
        let who = git2::Signature::new("a", "a@example.org", &git2::Time::new(seconds as i64, 0)).unwrap();
        let tree = repository.treebuilder(None).unwrap().write().unwrap();
        let tree = repository.find_tree(tree).unwrap();
        let parents: Vec<git2::Commit<'_>> = parents.iter().map(|id| repository.find_commit(*id).unwrap()).collect();
        repository.commit(None, &who, &who, &n.to_string(), &tree, &parents.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn histories_meet_where_git_says_whatever_the_dates_are() {
        let dir = tempfile::tempdir().unwrap();
        let repository = git2::Repository::init_bare(dir.path()).unwrap();
        let mut seed = 1;
        let mut random = |below: usize| {
            seed = u64::wrapping_add(u64::wrapping_mul(seed, 6364136223846793005), 1442695040888963407);
            (seed >> 33) as usize % below
        };
        let mut several = 0;
        for round in 0..25 {
            let mut all: Vec<Oid> = Vec::new();
            let mut ancestors: HashMap<Oid, BTreeSet<Oid>> = HashMap::new();
            for n in 0..16 {
                let parents: BTreeSet<Oid> = match (all.len(), random(40)) {
                    (0, _) | (_, 0) => BTreeSet::new(),
                    (len, more) => (0..=more % 3).map(|_| all[len - 1 - random(len.min(5))]).collect(),
                };
                let parents: Vec<Oid> = parents.into_iter().collect();
                let id = commit(&repository, &parents, round * 100 + n);
                let mut own: BTreeSet<Oid> = parents.iter().flat_map(|parent| ancestors[parent].clone()).collect();
                own.insert(id);
                ancestors.insert(id, own);
                all.push(id);
            }
            let objects = Objects::of(&repository).unwrap();
            let graph = Graph::new(&objects, 1000);
            for _ in 0..10 {
                let (ours, theirs) = (all[random(16)], all[random(16)]);
                let meeting = graph.meet(ours, theirs).unwrap();
                let bases: BTreeSet<String> = meeting.bases.iter().map(Oid::to_string).collect();
                let mut git = Command::new("git");
                git.arg("--git-dir").arg(dir.path()).args(["merge-base", "--all"]);
                let said = git.args([ours.to_string(), theirs.to_string()]).output().unwrap().stdout;
                assert_eq!(bases, String::from_utf8(said).unwrap().lines().map(str::to_owned).collect());
                assert_eq!(bases.len(), meeting.bases.len());
                several += usize::from(bases.len() > 1);

                let side: BTreeSet<Oid> = meeting.side.iter().copied().collect();
                assert_eq!(side, ancestors[&theirs].difference(&ancestors[&ours]).copied().collect());
                for (at, id) in meeting.side.iter().enumerate() {
                    assert!(meeting.side[at + 1..].iter().all(|later| !ancestors[id].contains(later)));
                }
                let chain = std::iter::successors(Some(ours), |id| graph.known.borrow()[id].parents.first().copied());
                let steps = chain.enumerate().find(|(_, id)| *id == theirs).map(|(steps, _)| steps);
                assert_eq!(graph.steps(ours, theirs).unwrap(), steps);
            }
        }
        assert!(several > 5, "{several} of several bases");
    }

    #[test]
    fn a_history_longer_than_the_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let repository = git2::Repository::init_bare(dir.path()).unwrap();
        let tip = (0..10).fold(None, |parent: Option<Oid>, n| Some(commit(&repository, parent.as_slice(), n))).unwrap();
        let objects = Objects::of(&repository).unwrap();
        assert!(Graph::new(&objects, 10).meet(tip, tip).is_ok());
        assert!(matches!(Graph::new(&objects, 9).meet(tip, tip), Err(GitError::Limit { what: "commits", .. })));
    }
}
