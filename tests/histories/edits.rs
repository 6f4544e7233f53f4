//! Commits with one parent: edits of the fleet, of `trust/` and of the fleet's identity, by those who may and by others.
//!
//! Never: a merge.

use std::rc::Rc;

use git2::{FileMode, ObjectType, Oid};

use super::generator::*;
use super::writer::{Draft, Signing};

impl Making<'_> {
    pub fn good_edit(&mut self, at: usize) -> Step {
        let authority = self.commits[at].authority.clone();
        (self.edit_by(at, &authority), true)
    }

    /// Somebody whom this authority lets do it changes something.
    pub fn edit_by(&mut self, at: usize, authority: &Authority) -> usize {
        let usable = |key: &usize| authority.listed.contains(key) && !authority.banned.contains(key);
        let able: Vec<usize> = [ALICE, ALICE, DAVE, DAVE, BOB, BOB, ERIN, SECOND].into_iter().filter(usable).collect();
        let key = if able.is_empty() { ALICE } else { self.dice.of(&able) };
        let path = match key {
            BOB => self.dice.of(&ROLES),
            ERIN => self.dice.of(&[ROLES[1], REST[0]]),
            _ => self.dice.of(&[ROLES, REST].concat()),
        };
        let tree = self.change(self.commits[at].tree, path);
        let signing = self.good_signing(authority, key);
        self.child("edit", at, tree, signing)
    }

    pub fn denied_edit(&mut self, at: usize) -> Step {
        let key = self.dice.of(&[BOB, CAROL, ERIN, FRANK, GRACE]);
        let path = self.dice.of(&[REST[1], REST[2]]);
        let tree = self.change(self.commits[at].tree, path);
        (self.child("denied edit", at, tree, Signing::By(key)), false)
    }

    pub fn unsigned_edit(&mut self, at: usize) -> Step {
        let path = self.dice.of(&ROLES);
        let tree = self.change(self.commits[at].tree, path);
        (self.child("unsigned edit", at, tree, Signing::Unsigned), false)
    }

    pub fn badly_signed_edit(&mut self, at: usize) -> Step {
        let path = self.dice.of(&ROLES);
        let tree = self.change(self.commits[at].tree, path);
        let signing = self.bad_signing();
        (self.child("badly signed edit", at, tree, signing), false)
    }

    pub fn malformed_edit(&mut self, at: usize) -> Step {
        let path = self.dice.of(&ROLES);
        let tree = self.change(self.commits[at].tree, path);
        if self.dice.percent(25) {
            return (self.child("edit", at, tree, Signing::Twice(ALICE)), false);
        }
        let parents = [self.commits[at].id];
        let seconds = self.tick();
        let payload = self.writer.payload(&Draft { tree, parents: &parents, seconds, message: "malformed" });
        let signed = self.writer.signed(&payload, Signing::By(ALICE));
        let long = format!("\n\n{}", "x".repeat(1 << 20));
        let (from, to) = self.dice.of(&[
            ("committer A U Thor <author@example.org> ", "committer A U Thor <author@example.org>  "),
            (" +0000\n", "\n"),
            ("author A U Thor <", "author A U Thor "),
            ("author A U Thor", "author A > U Thor"),
            ("\ngpgsig ", "\nencoding latin-1\ngpgsig "),
            ("\ngpgsig ", "\ngpgsig-sha256 x\ngpgsig "),
            ("\ngpgsig ", "\ngpgsig\ngpgsig "),
            ("\ngpgsig ", "\n=\ngpgsig "),
            ("\n\nmalformed", "\n\nmal\0formed"),
            ("\n\nmalformed", "\nauthor A <a> 1 +0000\n\nmalformed"),
            ("\n\nmalformed", &long),
        ]);
        let raw = signed.replacen(from, to, 1);
        let id = self.writer.write(ObjectType::Commit, raw.as_bytes());
        let authority = self.commits[at].authority.clone();
        let what = format!("malformed {:?}", &to[..to.len().min(40)]);
        self.commits.push(Made { id, tree, parents: vec![at], what, key: None, authority });
        (self.commits.len() - 1, false)
    }

    pub fn authority_change_without_root(&mut self, at: usize) -> Step {
        let mut authority = (*self.commits[at].authority).clone();
        authority.listed.insert(ERIN);
        let tree = self.with_trust(self.commits[at].tree, &authority);
        let tree = self.writer.put(tree, "trust/extra", "x");
        let key = self.dice.of(&[DAVE, BOB, FRANK, GRACE]);
        (self.put("authority without root", &[at], tree, Rc::new(authority), Signing::By(key)), false)
    }

    /// A root principal lists, unlists or bans a key, or does something to the folder that changes nothing.
    pub fn authority_change(&mut self, at: usize) -> Step {
        let mut authority = (*self.commits[at].authority).clone();
        let mut good = true;
        match self.dice.below(14) {
            0..=2 => _ = authority.listed.insert(self.dice.of(&[ERIN, SECOND, BOB, DAVE])),
            3 | 4 => _ = authority.listed.remove(&self.dice.of(&[BOB, DAVE, ERIN, GRACE])),
            5..=7 => {
                let key = self.dice.of(&[BOB, ERIN, SECOND, MALLORY, GRACE, DAVE]);
                authority.banned.insert(key);
                if self.dice.percent(50) {
                    authority.listed.remove(&key);
                }
            }
            8..=10 => {
                let banned: Vec<usize> = authority.banned.iter().copied().collect();
                if !banned.is_empty() {
                    let key = self.dice.of(&banned);
                    if self.dice.percent(50) {
                        authority.banned.remove(&key);
                    }
                    good = false;
                    authority.listed.insert(key);
                }
            }
            11 => {
                authority.listed.insert(MALLORY);
                good = false;
            }
            _ => {}
        }
        let before = self.commits[at].authority.clone();
        let mut tree = self.with_trust(self.commits[at].tree, &authority);
        if self.dice.percent(10) {
            tree = self.writer.put(tree, "trust/README", "who may\n");
        }
        let by = if authority.listed.contains(&MALLORY) { MALLORY } else { self.dice.of(&[ALICE, ALICE, CAROL]) };
        if self.dice.percent(10) {
            let path = self.dice.of(&ROLES);
            tree = self.change(tree, path);
        }
        let signing = self.good_signing(&before, by);
        (self.put("authority", &[at], tree, Rc::new(authority), signing), good)
    }

    pub fn trust_damage(&mut self, at: usize) -> Step {
        let (tree, what) = self.damaged_trust(self.commits[at].tree);
        let key = self.dice.of(&[ALICE, ALICE, CAROL, DAVE]);
        (self.child(what, at, tree, Signing::By(key)), false)
    }

    pub fn damaged_trust(&mut self, tree: Oid) -> (Oid, &'static str) {
        let (signers, policy) = ("trust/allowed_signers", "trust/policy.toml");
        let writer = self.writer;
        let appended = |path: &str, text: String| {
            let before = writer.read(tree, path).unwrap_or_default();
            writer.put(tree, path, &(before + &text))
        };
        let dave = &writer.keys[DAVE].line;
        match self.dice.below(18) {
            0 => (writer.edit(tree, &[("trust", None)]), "trust removed"),
            1 => (writer.edit(tree, &[(signers, None)]), "signers removed"),
            2 => (writer.put(tree, signers, ""), "signers emptied"),
            3 => (writer.put(tree, policy, ""), "policy emptied"),
            4 => (writer.put(tree, policy, "[principals"), "policy garbled"),
            5 => (appended(policy, "[x]\n".into()), "policy with a key nobody knows"),
            6 => (writer.put(tree, policy, &POLICY.replace("\"root\"", "\"freshness\"")), "nobody is root"),
            7 => (writer.put(tree, policy, &POLICY.replace("roles/**", "roles//x")), "a glob that is none"),
            8 => (appended(policy, "[principals.x]\nroles = [\"king\"]\n".into()), "a role that is none"),
            9 => (appended(signers, format!("*@example.org {dave}\n")), "a pattern"),
            10 => (appended(signers, format!("other {dave}\nmore {dave}\n")), "a key twice"),
            11 => (appended(signers, format!("zoe {}\n", &dave[..dave.len() - 4])), "a cut key"),
            12 => (appended(signers, format!("zoe valid-before=\"20300101\" {dave}\n")), "a date"),
            13 => (appended(signers, format!("zoe cert-authority {dave}\n")), "an authority"),
            14 => {
                let link = Some((FileMode::Link, writer.blob(b"../policy.toml")));
                (writer.edit(tree, &[(policy, link)]), "policy is a link")
            }
            15 => {
                let bytes = Some((FileMode::Blob, writer.blob(b"\xff\n")));
                (writer.edit(tree, &[(signers, bytes)]), "signers are not UTF-8")
            }
            16 => (appended(policy, format!("#{}\n", "x".repeat(1 << 20))), "policy too large"),
            _ => {
                // Two entries of one name.
                let mut raw = writer.repository.odb().unwrap().read(tree).unwrap().data().to_vec();
                if let Some(folder) = writer.entry(tree, "trust") {
                    raw.extend([&b"40000 trust\0"[..], folder.as_bytes()].concat());
                }
                (writer.write(ObjectType::Tree, &raw), "trust twice")
            }
        }
    }

    pub fn fleet_change(&mut self, at: usize) -> Step {
        let (text, good) = self.dice.of(&[
            ("format = 1\nname = \"f\"\ntrust = \"standard\"\n", true),
            ("format = 1\nname = \"f\"\n# more\n", true),
            ("format = 1\nname = \"g\"\n", false),
            ("format = 1\nname = \"f\"\ntrust = \"strict\"\n", false),
            ("format = 1\nname = 5\n", false),
            ("", false),
            ("name = ", false),
        ]);
        let key = self.dice.of(&[ALICE, CAROL, CAROL, DAVE]);
        let tree = match self.dice.percent(10) {
            true => self.writer.edit(self.commits[at].tree, &[("fleet.toml", None)]),
            false => self.writer.put(self.commits[at].tree, "fleet.toml", text),
        };
        (self.child("fleet", at, tree, Signing::By(key)), good && key != DAVE)
    }

    /// Everything as it was before a recent commit, a ban included.
    pub fn revert(&mut self, at: usize) -> Step {
        let back = self.dice.below(3) + 1;
        let Made { tree, authority, .. } = self.commits[self.ancestor(at, back)].clone();
        let good = authority.banned.is_superset(&self.commits[at].authority.banned);
        (self.put("revert", &[at], tree, authority, Signing::By(ALICE)), good)
    }

    pub fn bad_signing(&mut self) -> Signing {
        self.dice.of(&[
            Signing::By(MALLORY),
            Signing::By(FORGE),
            Signing::Namespace(ALICE),
            Signing::Content(ALICE),
            Signing::Rewrapped(ALICE),
            Signing::CarriageReturns(ALICE),
            Signing::Trailing(ALICE),
            Signing::Bits(ALICE),
            Signing::Longer(ALICE),
            Signing::Malleable(ALICE),
            Signing::OpenPgp,
        ])
    }

    /// This key, or where the same principal has a second one, that.
    pub fn good_signing(&mut self, authority: &Authority, key: usize) -> Signing {
        let second = key == ALICE && authority.listed.contains(&SECOND) && !authority.banned.contains(&SECOND);
        let key = if second && self.dice.percent(30) { SECOND } else { key };
        if self.dice.percent(15) { Signing::Sha256(key) } else { Signing::By(key) }
    }

    pub fn with_trust(&self, tree: Oid, authority: &Authority) -> Oid {
        let line = |key: &usize| format!("{} {}\n", PRINCIPALS[*key], self.writer.keys[*key].line);
        let signers: String = authority.listed.iter().map(line).collect();
        let banned: Vec<&str> =
            authority.banned.iter().map(|key| self.writer.keys[*key].fingerprint.as_str()).collect();
        let policy = format!("{POLICY}[banned]\nkeys = {banned:?}\n");
        self.writer.put(self.writer.put(tree, "trust/allowed_signers", &signers), "trust/policy.toml", &policy)
    }

    /// One line of a file, or the file.
    pub fn change(&mut self, tree: Oid, path: &str) -> Oid {
        let text = self.writer.read(tree, path);
        let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let (kind, number) = (self.dice.below(20), self.dice.next() as u16);
        match (kind, text) {
            (0, Some(_)) => self.writer.edit(tree, &[(path, None)]),
            (1, Some(text)) if path.starts_with("roles/web/") => {
                let moved = format!("{folder}moved.conf");
                let blob = Some((FileMode::Blob, self.writer.blob(text.as_bytes())));
                self.writer.edit(tree, &[(path, None), (&moved, blob)])
            }
            // Of files that nobody moves: git and libgit2 disagree on a rename by both sides with a change of mode.
            (2, Some(text)) if REST.contains(&path) => {
                let blob = Some((FileMode::BlobExecutable, self.writer.blob(text.as_bytes())));
                self.writer.edit(tree, &[(path, blob)])
            }
            (3, _) if path.starts_with("roles/web/") => {
                self.writer.put(tree, &format!("{folder}new{}.conf", number % 8), &format!("{number}\n"))
            }
            (_, text) => {
                let text = text.unwrap_or_default();
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                let at = self.dice.below(lines.len() + 1);
                let line = format!("changed {number}");
                if at < lines.len() {
                    lines[at] = line
                } else {
                    lines.push(line)
                }
                self.writer.put(tree, path, &(lines.join("\n") + "\n"))
            }
        }
    }
}
