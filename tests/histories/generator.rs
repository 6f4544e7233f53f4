//! Random histories of a fleet repository: what people, forges and attackers do to a branch, and what a node is offered of
//! it.
//!
//! Seeded: the same number is the same history. Never: a verdict; `good` only steers where the next commit goes.

use std::collections::BTreeSet;
use std::rc::Rc;

use git2::{ObjectType, Oid};

use super::reference::Root;
use super::writer::{Draft, Signing, Writer};

/// Keys by number; the last belongs to a principal that has another one.
pub const PRINCIPALS: [&str; 10] =
    ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "mallory", "forge", "alice"];
pub const ALICE: usize = 0;
pub const BOB: usize = 1;
pub const CAROL: usize = 2;
pub const DAVE: usize = 3;
pub const ERIN: usize = 4;
pub const FRANK: usize = 5;
pub const GRACE: usize = 6;
pub const MALLORY: usize = 7;
pub const FORGE: usize = 8;
pub const SECOND: usize = 9;

/// Alice and Dave may all (Dave but trust/), Bob roles/, Carol only trust/, Erin parts, Frank only freshness; Grace has a
/// key and no line here.
pub const POLICY: &str = r#"
[principals.alice]
roles = ["root", "deploy"]
[principals.bob]
roles = ["deploy"]
paths = ["roles/**"]
[principals.carol]
roles = ["root"]
[principals.dave]
roles = ["deploy"]
[principals.erin]
roles = ["deploy"]
paths = ["environments/*/v*.toml", "**/defaults.toml"]
[principals.frank]
roles = ["freshness"]
"#;
pub const FLEET: &str = "format = 1\nname = \"f\"\n";
pub const ROLES: [&str; 3] = ["roles/web/web.conf", "roles/db/defaults.toml", "roles/db/a/b/deep.conf"];
pub const REST: [&str; 3] =
    ["environments/production/variables.toml", "environments/production/topology.toml", "README.md"];

pub struct History {
    pub seed: u64,
    pub root: Root,
    pub commits: Vec<Made>,
    /// Index of the tip, and what it is.
    pub offers: Vec<(usize, &'static str)>,
}

#[derive(Clone)]
pub struct Made {
    pub id: Oid,
    pub tree: Oid,
    pub parents: Vec<usize>,
    /// For people.
    pub what: String,
    /// Whose signature it carries, if that is good.
    pub key: Option<usize>,
    pub authority: Rc<Authority>,
}

/// Which keys trust/ lists and bans.
#[derive(Clone, Default)]
pub struct Authority {
    pub listed: BTreeSet<usize>,
    pub banned: BTreeSet<usize>,
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and every seed is good.
pub struct Dice(u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }
    pub fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
    pub fn weighted<T: Copy>(&mut self, all: &[(usize, T)]) -> T {
        let mut at = self.below(all.iter().map(|(weight, _)| weight).sum());
        for (weight, what) in all {
            if at < *weight {
                return *what;
            }
            at -= weight;
        }
        unreachable!("the weights' sum was not reached")
    }
}

/// Where a step led, and whether it was meant to be accepted.
pub type Step = (usize, bool);
type Act<M> = fn(&mut M, usize) -> Step;

pub struct Making<'a> {
    pub writer: &'a Writer,
    pub dice: Dice,
    pub commits: Vec<Made>,
    seconds: u32,
}

pub fn history(writer: &Writer, seed: u64) -> History {
    let mut making = Making { writer, dice: Dice(seed), commits: Vec::new(), seconds: 1_700_000_000 };
    let (root, first) = making.introduction();
    let offers = making.offers(first);
    History { seed, root, commits: making.commits, offers }
}

impl Making<'_> {
    fn introduction(&mut self) -> (Root, usize) {
        let mut authority =
            Authority { listed: [ALICE, BOB, CAROL, DAVE, FRANK, GRACE].into(), ..Authority::default() };
        if self.dice.percent(30) {
            authority.banned.insert(self.dice.of(&[GRACE, MALLORY, ERIN]));
        }
        let empty = self.writer.write(ObjectType::Tree, b"");
        let mut tree = self.writer.put(empty, "fleet.toml", FLEET);
        tree = self.with_trust(tree, &authority);
        for path in [ROLES, REST].concat() {
            tree = self.writer.put(tree, path, &(1..30).map(|n| format!("{path} {n}\n")).collect::<String>());
        }
        let authority = Rc::new(authority);
        let mut signing = Signing::By(ALICE);
        if self.dice.percent(3) {
            signing =
                self.dice.of(&[Signing::Unsigned, Signing::By(BOB), Signing::Content(ALICE), Signing::Twice(ALICE)]);
        }
        if self.dice.percent(2) {
            let (damaged, what) = self.damaged_trust(tree);
            // Nobody merges a tree with two entries of a name, and git and libgit2 each do it in their own way.
            tree = if what == "trust twice" { tree } else { damaged };
        }
        let mut first = self.put("introduction", &[], tree, authority, signing);
        let mut introduced = first;
        // The node may have been introduced later than the repository was made.
        for _ in 0..self.dice.weighted(&[(6, 0), (1, 1), (1, 3)]) {
            first = self.good_edit(first).0;
            introduced = first;
        }
        let mut root = Root {
            fleet: if self.dice.percent(1) { "other" } else { "f" }.to_owned(),
            introduction: self.commits[introduced].id.to_string(),
            signer: String::new(),
            seq: self.dice.below(5) as u64 + 1,
            bans: Vec::new(),
        };
        // The first one should be Alice's, whoever signed it; later ones are in order.
        let signer = if introduced == 0 { ALICE } else { self.commits[introduced].key.unwrap_or(ALICE) };
        root.signer = self.writer.keys[if self.dice.percent(1) { MALLORY } else { signer }].fingerprint.clone();
        if self.dice.percent(6) {
            root.bans.push(self.writer.keys[self.dice.of(&[BOB, DAVE, ERIN, SECOND])].fingerprint.clone());
        }
        (root, first)
    }

    fn offers(&mut self, first: usize) -> Vec<(usize, &'static str)> {
        let (mut good, mut tip, mut clean) = (first, first, true);
        let mut offers = Vec::new();
        if self.dice.percent(40) {
            offers.push((first, "introduction"));
        }
        for _ in 0..self.dice.below(6) + 2 {
            if self.dice.percent(18) {
                let (offer, what) = self.attack(good);
                offers.push((offer, what));
                continue;
            }
            for _ in 0..self.dice.below(3) + 1 {
                let (next, fine) = self.step(tip);
                (tip, clean) = (next, clean && fine);
            }
            offers.push((tip, "onward"));
            if clean {
                good = tip;
            } else {
                match self.dice.below(10) {
                    // The bad part becomes a second parent that brings nothing.
                    0 | 1 => {
                        let (tree, authority) = (self.commits[good].tree, self.commits[good].authority.clone());
                        let signing = self.good_signing(&authority, ALICE);
                        (tip, clean) = (self.put("mend", &[good, tip], tree, authority, signing), true);
                    }
                    2 => {}
                    _ => (tip, clean) = (good, true),
                }
            }
        }
        offers
    }

    fn step(&mut self, at: usize) -> Step {
        let steps: [(usize, Act<Self>); 16] = [
            (42, Self::good_edit),
            (5, Self::denied_edit),
            (4, Self::unsigned_edit),
            (5, Self::badly_signed_edit),
            (3, Self::malformed_edit),
            (10, Self::authority_change),
            (3, Self::authority_change_without_root),
            (3, Self::trust_damage),
            (2, Self::fleet_change),
            (3, Self::revert),
            (44, Self::button),
            (4, Self::moved_meanwhile),
            (6, Self::signed_merge),
            (2, Self::criss_cross),
            (2, Self::octopus),
            (2, Self::empty_merge),
        ];
        self.dice.weighted(&steps)(self, at)
    }

    /// Tips that are not simply the next ones.
    fn attack(&mut self, good: usize) -> (usize, &'static str) {
        let back = self.dice.below(4);
        let earlier = self.ancestor(good, back);
        match self.dice.below(8) {
            0 => (earlier, "rewind"),
            1 => {
                let fork = self.good_edit(earlier).0;
                (self.good_edit(fork).0, "fork")
            }
            2 => {
                let side = self.good_edit(earlier).0;
                let tree = self.writer.merge(self.commits[side].id, self.commits[good].id);
                let (tree, authority) = (tree.unwrap_or(self.commits[side].tree), self.commits[good].authority.clone());
                (self.put("foxtrot", &[side, good], tree, authority, Signing::By(ALICE)), "foxtrot")
            }
            3 => {
                let Made { tree, authority, .. } = self.commits[good].clone();
                (self.put("orphan", &[], tree, authority, Signing::By(ALICE)), "orphan")
            }
            4 => (self.twin(good), "twin"),
            5 => (self.twin(earlier), "twin of an earlier one"),
            6 => {
                let twin = self.twin(good);
                (self.good_edit(twin).0, "child of a twin")
            }
            _ => {
                // The accepted commit signed anew, on the side of another chain.
                let (side, twin) = (self.good_edit(earlier).0, self.twin(good));
                let Made { tree, authority, .. } = self.commits[side].clone();
                (self.put("foxtrot", &[side, twin], tree, authority, Signing::By(ALICE)), "foxtrot of a twin")
            }
        }
    }

    /// The same payload with another signature.
    fn twin(&mut self, of: usize) -> usize {
        let raw = self.writer.repository.odb().unwrap().read(self.commits[of].id).unwrap().data().to_vec();
        let Ok(text) = String::from_utf8(raw) else { return of };
        let payload = match (text.find("gpgsig "), text.find("-----END SSH SIGNATURE-----\n")) {
            (Some(start), Some(end)) => format!("{}{}", &text[..start], &text[end + 28..]),
            _ => text,
        };
        let key = self.dice.of(&[ALICE, DAVE, BOB, MALLORY]);
        let signing = self.dice.of(&[
            Signing::By(key),
            Signing::By(key),
            Signing::Sha256(key),
            Signing::Rewrapped(key),
            Signing::CarriageReturns(key),
            Signing::Malleable(key),
            Signing::Unsigned,
        ]);
        let id = self.writer.write(ObjectType::Commit, self.writer.signed(&payload, signing).as_bytes());
        let what = format!("twin of {of} {signing:?}");
        self.commits.push(Made { id, what, ..self.commits[of].clone() });
        self.commits.len() - 1
    }

    pub fn ancestor(&self, of: usize, steps: usize) -> usize {
        let parent = |at: &usize| self.commits[*at].parents.first().copied();
        std::iter::successors(Some(of), parent).take(steps + 1).last().unwrap_or(of)
    }

    /// Mostly later than the one before, sometimes any time at all: dates decide nothing.
    pub fn tick(&mut self) -> u32 {
        self.seconds += self.dice.below(100) as u32;
        if self.dice.percent(15) { (self.dice.next() as u32) >> 1 } else { self.seconds }
    }

    pub fn child(&mut self, what: &str, parent: usize, tree: Oid, signing: Signing) -> usize {
        let authority = self.commits[parent].authority.clone();
        self.put(what, &[parent], tree, authority, signing)
    }

    pub fn put(
        &mut self,
        what: &str,
        parents: &[usize],
        tree: Oid,
        authority: Rc<Authority>,
        signing: Signing,
    ) -> usize {
        let ids: Vec<Oid> = parents.iter().map(|parent| self.commits[*parent].id).collect();
        let (seconds, number) = (self.tick(), self.commits.len());
        let message = format!("{what} {number}");
        let id = self.writer.commit(&Draft { tree, parents: &ids, seconds, message: &message }, signing);
        let what = format!("{what} {signing:?}");
        let key = match signing {
            Signing::By(key) | Signing::Sha256(key) => Some(key),
            _ => None,
        };
        self.commits.push(Made { id, tree, parents: parents.to_vec(), what, key, authority });
        number
    }
}
