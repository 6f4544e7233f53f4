//! A merge made again from its two sides and their base, as a forge's merge button makes it: git's defaults, nothing
//! asked of the repository.
//!
//! Everything happens in memory, over an object store of its own: no configuration, no attribute, no merge driver can
//! have a say, and nothing is written to the disk. Never: a conflict resolved; a decision about what the result means.

use git2::{MergeOptions, Odb, Oid, Repository};

/// Git's `merge.renameLimit`, `-X find-renames` and no recursion, as there is one base.
const RENAME_LIMIT: u32 = 7000;
const RENAME_THRESHOLD: u32 = 50;

/// The tree that merging the commit `theirs` into the commit `ours` gives, or `None` if people must decide something.
/// Objects are read from `repository`; the tree is not kept anywhere, its id is all there is to compare.
pub fn recompute(repository: &Repository, ours: Oid, theirs: Oid, base: Oid) -> Result<Option<Oid>, git2::Error> {
    let odb = Odb::new()?;
    let objects = repository.commondir().join("objects");
    let objects = objects.to_str().ok_or_else(|| git2::Error::from_str("the store's path is not UTF-8"))?;
    odb.add_disk_alternate(objects)?;
    odb.add_new_mempack_backend(i32::MAX)?;
    let memory = Repository::from_odb(odb)?;

    let tree = |commit: Oid| memory.find_commit(commit)?.tree();
    let mut options = MergeOptions::new();
    options
        .find_renames(true)
        .rename_threshold(RENAME_THRESHOLD)
        .target_limit(RENAME_LIMIT)
        .skip_reuc(true)
        .no_recursive(true);
    let mut merged = memory.merge_trees(&tree(base)?, &tree(ours)?, &tree(theirs)?, Some(&options))?;
    if merged.has_conflicts() { Ok(None) } else { merged.write_tree_to(&memory).map(Some) }
}
