//! `schemas/*.json` are what the types say; `CONVERGER_BLESS=1 cargo test --test schemas` writes them anew.
#![allow(clippy::disallowed_methods, reason = "blessing writes the schemas")]

use std::path::Path;

use converger::fleet::schemas;

#[test]
fn the_schemas_on_disk_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let bless = std::env::var_os("CONVERGER_BLESS").is_some();
    for (name, schema) in schemas::schemas() {
        let path = folder.join(name);
        let text = schemas::text(&schema);
        if bless {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "{} is out of date: CONVERGER_BLESS=1 cargo test --test schemas", path.display());
    }
}
