//! Commits with several parents: the forge's buttons, pressed rightly and wrongly, and what people merge themselves.
//!
//! Never: a commit with one parent of its own making; those are of `edits`.

use std::rc::Rc;

use git2::FileMode;

use super::generator::*;
use super::writer::Signing;

impl Making<'_> {
    /// A branch off the tracked one, and the forge's merge of it.
    pub fn button(&mut self, at: usize) -> Step {
        let authority = self.commits[at].authority.clone();
        let back = self.dice.below(4);
        let mut base = self.ancestor(at, back);
        let mut at = at;
        if self.dice.below(250) == 0 {
            // Around the limit of 200 first-parent commits.
            base = at;
            for _ in 0..self.dice.below(6) + 197 {
                at = self.child("empty", at, self.commits[at].tree, Signing::By(ALICE));
            }
        }
        let steps = self.dice.below(3) + 1;
        let flawed = if self.dice.percent(40) { Some(self.dice.below(steps)) } else { None };
        let (mut side, mut good) = (base, true);
        for n in 0..steps {
            if flawed == Some(n) {
                (side, good) = self.flaw(side, at, &authority);
            } else {
                side = self.edit_by(side, &authority);
            }
            if self.dice.percent(20) {
                side = self.update_branch(side, at, &mut good);
            }
        }
        let (merge, fine) = self.press(at, side);
        if good && fine && self.dice.percent(8) {
            // The branch lives on and is merged again: its base is not on the tracked branch.
            let more = self.edit_by(side, &authority);
            return (self.press(merge, more).0, false);
        }
        (merge, good && fine)
    }

    /// One side commit that is not as it should be (or only looks so).
    pub fn flaw(&mut self, side: usize, main: usize, authority: &Rc<Authority>) -> Step {
        match self.dice.below(10) {
            0 | 1 => self.unsigned_edit(side),
            2 | 3 => self.badly_signed_edit(side),
            4 => self.denied_edit(side),
            5 => self.malformed_edit(side),
            6 => self.authority_change(side),
            7 => {
                // trust/ changes and changes back: the merge does not show it.
                let tree = self.writer.put(self.commits[side].tree, "trust/extra", "x");
                let key = self.dice.of(&[ALICE, DAVE, CAROL]);
                let there = self.child("trust there", side, tree, Signing::By(key));
                let tree = self.commits[side].tree;
                (self.child("trust and back", there, tree, Signing::By(key)), key != DAVE)
            }
            8 => {
                let tree = self.change(self.commits[side].tree, ROLES[0]);
                let banned: Vec<usize> = authority.banned.iter().copied().collect();
                let key = if banned.is_empty() { FORGE } else { self.dice.of(&banned) };
                (self.child("edit by a banned key", side, tree, Signing::By(key)), false)
            }
            _ => {
                // Another branch merged into this one by the forge.
                let other = self.ancestor(main, 1);
                let other = self.edit_by(other, authority);
                (self.press(side, other).0, false)
            }
        }
    }

    /// The tracked branch merged into the side branch: by the forge, as it should be or not.
    pub fn update_branch(&mut self, side: usize, main: usize, good: &mut bool) -> usize {
        let back = self.dice.below(2);
        let from = self.ancestor(main, back);
        let clean = self.writer.merge(self.commits[side].id, self.commits[from].id);
        let mut tree = clean.unwrap_or(self.commits[side].tree);
        if self.dice.percent(15) {
            tree = self.change(tree, ROLES[0]);
            *good = false;
        }
        let signing = self.dice.of(&[Signing::Unsigned, Signing::By(FORGE), Signing::OpenPgp, Signing::By(ALICE)]);
        *good &= clean.is_some();
        let parents = if self.dice.percent(10) { [from, side] } else { [side, from] };
        let authority = self.commits[main].authority.clone();
        self.put("update branch", &parents, tree, authority, signing)
    }

    /// The button itself.
    pub fn press(&mut self, main: usize, side: usize) -> Step {
        let clean = self.writer.merge(self.commits[main].id, self.commits[side].id);
        let mut tree = clean.unwrap_or(self.commits[main].tree);
        let mut good = clean.is_some();
        match self.dice.below(20) {
            0 | 1 => {
                let path = self.dice.of(&[ROLES, REST].concat());
                tree = self.change(tree, path);
                good = false;
            }
            2 => {
                let path = self.dice.of(&["trust/extra", "fleet.toml"]);
                tree = self.writer.put(tree, path, "format = 1\nname = \"f\"\n#\n");
                good = false;
            }
            _ => {}
        }
        let banned: Vec<usize> = self.commits[main].authority.banned.iter().copied().collect();
        let signing = match self.dice.below(20) {
            0..=8 => Signing::Unsigned,
            9..=12 => Signing::By(FORGE),
            13..=15 => Signing::OpenPgp,
            16 => Signing::Namespace(ALICE),
            17 => Signing::By(MALLORY),
            18 if !banned.is_empty() => Signing::By(self.dice.of(&banned)),
            _ => Signing::By(self.dice.of(&[BOB, GRACE, DAVE])),
        };
        let authority = self.commits[main].authority.clone();
        (self.put("merge button", &[main, side], tree, authority, signing), good)
    }

    /// A file moves on the tracked branch while a branch from before edits it: merging carries the edit to its new place.
    pub fn moved_meanwhile(&mut self, at: usize) -> Step {
        let authority = self.commits[at].authority.clone();
        let path = self.dice.of(&ROLES);
        let tree = self.commits[at].tree;
        let Some(text) = self.writer.read(tree, path) else { return self.good_edit(at) };
        let place = self.dice.of(&[
            "environments/production/moved.toml",
            "roles/web/moved.conf",
            "roles/db/moved/defaults.toml",
        ]);
        let moved = Some((FileMode::Blob, self.writer.blob(text.as_bytes())));
        let renamed = self.writer.edit(tree, &[(path, None), (place, moved)]);
        let main = self.child("move", at, renamed, Signing::By(ALICE));
        let line = self.dice.below(20);
        let edited = text.lines().enumerate().map(|(n, old)| format!("{}\n", if n == line { "edited" } else { old }));
        let edited = self.writer.put(tree, path, &edited.collect::<String>());
        let key = self.dice.of(&[BOB, BOB, ALICE, DAVE]);
        let signing = self.good_signing(&authority, key);
        let mut side = self.child("edit of what moves", at, edited, signing);
        if self.dice.percent(40) {
            side = self.edit_by(side, &authority);
        }
        if self.dice.percent(30) {
            let mut good = true;
            side = self.update_branch(side, main, &mut good);
            let tree = self.change(self.commits[side].tree, place);
            side = self.child("edit of what moved", side, tree, Signing::By(DAVE));
        }
        (self.press(main, side).0, false)
    }

    /// Whoever signs a merge answers for what it brings, signed or not.
    pub fn signed_merge(&mut self, at: usize) -> Step {
        let back = self.dice.below(3);
        let mut side = self.ancestor(at, back);
        for _ in 0..self.dice.below(2) + 1 {
            side = if self.dice.percent(50) { self.unsigned_edit(side).0 } else { self.good_edit(side).0 };
        }
        let clean = self.writer.merge(self.commits[at].id, self.commits[side].id);
        let (tree, authority) = (clean.unwrap_or(self.commits[at].tree), self.commits[at].authority.clone());
        let key = self.dice.of(&[ALICE, ALICE, DAVE, BOB]);
        (self.put("signed merge", &[at, side], tree, authority, Signing::By(key)), key != BOB)
    }

    /// Two best common ancestors.
    pub fn criss_cross(&mut self, at: usize) -> Step {
        let authority = self.commits[at].authority.clone();
        let (main, side) = (self.edit_by(at, &authority), self.edit_by(at, &authority));
        let tree = self.writer.merge(self.commits[main].id, self.commits[side].id);
        let tree = tree.unwrap_or(self.commits[main].tree);
        let crossed = self.put("cross", &[main, side], tree, authority.clone(), Signing::By(ALICE));
        let back = self.put("cross", &[side, main], tree, authority.clone(), Signing::By(ALICE));
        let back = self.edit_by(back, &authority);
        (self.press(crossed, back).0, false)
    }

    pub fn octopus(&mut self, at: usize) -> Step {
        let authority = self.commits[at].authority.clone();
        let (one, other) = (self.edit_by(at, &authority), self.edit_by(at, &authority));
        let tree = self.commits[one].tree;
        let signing = self.dice.of(&[Signing::Unsigned, Signing::By(ALICE), Signing::By(FORGE)]);
        let merge = self.put("octopus", &[at, one, other], tree, authority, signing);
        (merge, signing == Signing::By(ALICE))
    }

    /// A merge whose second parent brings nothing, or is no relation.
    pub fn empty_merge(&mut self, at: usize) -> Step {
        let back = self.dice.below(3);
        let mut other = self.ancestor(at, back);
        let Made { tree, authority, .. } = self.commits[at].clone();
        if self.dice.percent(30) {
            other = self.put("orphan", &[], tree, authority.clone(), Signing::By(ALICE));
        }
        let signing = self.dice.of(&[Signing::Unsigned, Signing::By(FORGE), Signing::By(DAVE)]);
        (self.put("empty merge", &[at, other], tree, authority, signing), signing == Signing::By(DAVE))
    }
}
