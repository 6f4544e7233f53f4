//! Unpacks an archive of a `file://` mirror below a root and makes it live, for tests that kill it in the middle.
//!
//! `artifact ROOT CACHE URL SHA256 VERSION (unpack|switch|both)`. Never: the machine's own directories.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;

use converger::clock::SystemClock;
use converger::git::Children;
use converger::host::artifacts::{self, Store};
use converger::host::root::Root;
use converger::resource::ArtifactSpec;
use converger::resource::artifact::file_of;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [root, cache, url, sha256, version, what] = &words[..] else { unreachable!("six words") };
    let root = Root::open(Path::new(root)).unwrap();
    let spec = ArtifactSpec {
        component: "app".to_owned(),
        version: version.clone(),
        sha256: sha256.clone(),
        urls: vec![url.clone()],
        file: file_of(url).to_owned(),
        into: "/opt/app".into(),
        buckets: Default::default(),
        authorities: None,
    };
    let clock = SystemClock;
    let store = Store::new(Path::new(cache), Children::as_we_are(), &clock);
    if what != "switch" {
        artifacts::unpack(&root, &store, &spec).unwrap();
    }
    if what != "unpack" {
        artifacts::switch(&root, &spec).unwrap();
    }
    println!("done");
}
