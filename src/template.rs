//! The fleet repository, its schemas and the throw-away samples that this binary carries, for `init` and `demo`.
//!
//! Never: a key that protects anything; every sample says that it is one.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use include_dir::{Dir, DirEntry, include_dir};

use crate::disk::{self, DiskError};
use crate::fleet::schemas;

/// `repo-template/`: the whole production topology and its roles.
static TEMPLATE: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/repo-template");
/// `secrets/sample/identities/<node>.key`: private keys for the demo, published and therefore worthless.
static IDENTITIES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/secrets/sample/identities");

/// Writes the template's files below `folder`, and the schemas that they name. How many files that are.
pub fn write_fleet_repository(folder: &Path) -> Result<usize, DiskError> {
    let below = folder.join("schemas");
    disk::create_dirs(&below)?;
    let schemas = schemas::schemas();
    for (name, schema) in &schemas {
        disk::write_atomic(&below.join(name), schemas::text(schema).as_bytes(), 0o644)?;
    }
    Ok(schemas.len() + write(&TEMPLATE, folder)?)
}

fn write(dir: &Dir<'_>, folder: &Path) -> Result<usize, DiskError> {
    let mut files = 0;
    for entry in dir.entries() {
        match entry {
            DirEntry::Dir(inner) => files += write(inner, folder)?,
            DirEntry::File(file) => {
                let path = folder.join(file.path());
                if let Some(parent) = path.parent() {
                    disk::create_dirs(parent)?;
                }
                disk::write_atomic(&path, &with_own_schemas(file.contents()), 0o644)?;
                files += 1;
            }
        }
    }
    Ok(files)
}

/// The template lies beside `schemas/`, a repository has it inside: its headers lead there by one step less.
fn with_own_schemas(file: &[u8]) -> Cow<'_, [u8]> {
    match file.strip_prefix(b"#:schema ../") {
        Some(rest) => Cow::Owned([b"#:schema ", rest].concat()),
        None => Cow::Borrowed(file),
    }
}

/// The sample identity of a node of the template.
pub fn sample_identity(node: &str) -> Option<&'static [u8]> {
    IDENTITIES.get_file(format!("{node}.key")).map(include_dir::File::contents)
}

/// The public keys of all sample identities: `check` warns where they are used.
pub fn sample_recipients() -> BTreeSet<String> {
    let keys = IDENTITIES.files().filter_map(include_dir::File::contents_utf8);
    let lines = keys.flat_map(str::lines).filter_map(|line| line.strip_prefix("# public key: "));
    lines.map(|key| key.trim().to_owned()).collect()
}
