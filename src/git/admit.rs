//! What a verified commit consists of, collected for the verified store.
//!
//! Never: an object that no verified commit leads to.

use std::collections::HashSet;

use git2::{Odb, Oid};

use super::objects::{Objects, tree_id};
use super::{GitError, tree};

/// Objects of verified commits that the verified store lacks.
pub(super) struct Wanted<'a> {
    from: &'a Objects<'a>,
    to: &'a Odb<'a>,
    seen: HashSet<Oid>,
    /// What an object leads to comes before it: what is in the store is there with all below it.
    pub ids: Vec<Oid>,
}

impl<'a> Wanted<'a> {
    pub fn new(from: &'a Objects<'a>, to: &'a Odb<'a>) -> Self {
        Self { from, to, seen: HashSet::new(), ids: Vec::new() }
    }

    pub fn commit(&mut self, id: Oid) -> Result<(), GitError> {
        if self.is_new(id) {
            self.tree(tree_id(&self.from.commit(id)?)?)?;
            self.ids.push(id);
        }
        Ok(())
    }

    fn tree(&mut self, id: Oid) -> Result<(), GitError> {
        if !self.is_new(id) {
            return Ok(());
        }
        for entry in tree::entries(self.from, id)? {
            match entry.mode.as_str() {
                "40000" => self.tree(entry.id)?,
                // A submodule's commit is not in this repository.
                "160000" => {}
                _ if self.is_new(entry.id) => self.ids.push(entry.id),
                _ => {}
            }
        }
        self.ids.push(id);
        Ok(())
    }

    fn is_new(&mut self, id: Oid) -> bool {
        !self.to.exists(id) && self.seen.insert(id)
    }
}
