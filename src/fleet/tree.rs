//! The files of one commit (or of a plain folder), by repository path.
//!
//! PURE: somebody else read them. Never: a work tree, a symlink, a submodule.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::{CommitId, RepoPath};

#[derive(Default)]
pub struct Tree {
    /// `None`: uncommitted.
    pub commit: Option<CommitId>,
    pub files: BTreeMap<RepoPath, Arc<[u8]>>,
}

impl Tree {
    pub fn get(&self, path: &str) -> Option<&Arc<[u8]>> {
        self.files.get(path)
    }

    /// Every file below `folder/`, with its path.
    pub fn below<'a>(&'a self, folder: &str) -> impl Iterator<Item = (&'a RepoPath, &'a Arc<[u8]>)> {
        let prefix = format!("{}/", folder.trim_end_matches('/'));
        let start = RepoPath::new(prefix.clone());
        self.files.range(start..).take_while(move |(path, _)| path.as_str().starts_with(&prefix))
    }
}
