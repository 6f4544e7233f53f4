//! What must hold of every parser that meets foreign bytes, whatever the bytes: the targets of `fuzz_targets/` and the
//! tests of `tests/parsers.rs` are these functions.
//!
//! A law that does not hold panics. Never: a law that asks the parser itself whether it was right.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use converger::diagnostics::{self, Style};
use converger::fleet::load::load;
use converger::fleet::schema::{CheckKind, PrincipalRole};
use converger::fleet::tree::Tree;
use converger::git::Workspace;
use converger::host::artifacts::tree::{LIMITS, Node};
use converger::host::artifacts::unpack;
use converger::name::RepoPath;
use converger::probe::{Health, of_reply};
use converger::resource::artifact::{Form, Packing};
use converger::trust::commit::Commit;
use converger::trust::policy::{Authority, TrustFiles};
use converger::trust::signature;
use converger::trust::signers::Signers;

/// Listed for alice by `policy`; it signed the other two.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBpc+Q6CveMcAXJG3F3rcjTQMv9aHykFyuIuKHQ1CzUJ";
const PAYLOAD: &str = include_str!("../seeds/commit/unsigned");
const ARMOR: &str = include_str!("../seeds/signature/ed25519");

fn header(armor: &str) -> String {
    format!("gpgsig {}\n", armor.strip_suffix('\n').expect("an armor ends its last line").replace('\n', "\n "))
}

/// `trust/allowed_signers`: one meaning per line, or a line number.
pub fn allowed_signers(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match Signers::parse(text) {
        Ok(signers) => {
            for (fingerprint, principal) in signers.iter() {
                assert_eq!(signers.principal(fingerprint), Some(principal));
                assert!(!principal.is_empty() && !principal.contains(['*', '?', '!', ',', '"', ' ', '\t', '\n']));
                assert!(fingerprint.starts_with("SHA256:"), "{fingerprint}");
                assert!(
                    text.lines().any(|line| line.trim().starts_with(principal)),
                    "{principal:?} comes from nowhere"
                );
            }
            // Order does not matter, and every line counts.
            let reversed: Vec<&str> = text.lines().rev().collect();
            assert_eq!(Signers::parse(&reversed.join("\n")).as_ref(), Ok(&signers));
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            let lines = text.lines().count();
            assert!(problems.iter().all(|problem| (1..=lines).contains(&problem.line) && !problem.what.is_empty()));
        }
    }
}

/// `trust/policy.toml`: what it permits is no more than its roles say.
pub fn policy(bytes: &[u8]) {
    let files = TrustFiles {
        allowed_signers: Some(format!("alice@example.org {KEY}\n").into_bytes().into()),
        policy: Some(bytes.into()),
        ..TrustFiles::default()
    };
    let Ok(authority) = Authority::parse(&files) else { return };
    assert_eq!(authority.principals_with(PrincipalRole::Root), ["alice@example.org"], "the only one with a key");
    assert_eq!(authority.forgiven_by(&authority), None);
    let paths = ["fleet.toml", "trust/policy.toml", "roles/kafka/role.toml", "environments/x/topology.toml", "a b/ü"];
    for path in paths.map(RepoPath::new) {
        for principal in ["alice@example.org", "bob", "nobody"] {
            let permitted = authority.permits(principal, std::slice::from_ref(&path)).is_ok();
            let root = principal == "alice@example.org";
            let guarded = path.as_str() == "fleet.toml" || path.as_str().starts_with("trust/");
            assert!(!permitted || principal != "nobody", "a principal that no line names may nothing");
            assert!(!permitted || !guarded || root || authority.principals_for(Some(&path)).is_empty());
        }
        let both = [path.clone(), RepoPath::new("roles/kafka/role.toml")];
        if authority.permits("alice@example.org", &both).is_ok() {
            assert!(both.iter().all(|one| authority.permits("alice@example.org", std::slice::from_ref(one)).is_ok()));
        }
    }
}

/// The armor of a signature over [`PAYLOAD`]: one spelling of it, for this content only.
pub fn signature(bytes: &[u8]) {
    let Ok(armor) = str::from_utf8(bytes) else { return };
    if signature::verify(armor, PAYLOAD.as_bytes()).is_ok() {
        assert_eq!(armor, ARMOR, "nobody else signed this, and there is one way to write it");
    }
    assert!(signature::verify(armor, b"").is_err(), "nobody signed nothing");
}

/// A commit object: payload and signature are the whole of it, and the payload is a commit that says the same.
pub fn commit(bytes: &[u8]) {
    let Ok(commit) = Commit::parse(bytes) else { return };
    let text = str::from_utf8(bytes).expect("a commit that was read is UTF-8");
    match &commit.signature {
        None => assert_eq!(commit.payload, bytes),
        Some(armor) => {
            let header = header(armor);
            let line = format!("\n{header}");
            let mut cut = text.match_indices(&line).map(|(at, _)| at + 1);
            let payload = |at: usize| [&bytes[..at], &bytes[at + header.len()..]].concat();
            assert!(cut.any(|at| payload(at) == commit.payload), "the payload is the commit without one header");
        }
    }
    let again = Commit::parse(&commit.payload).expect("without its signature it is a commit still");
    assert_eq!(again, Commit { signature: None, ..commit.clone() });
    let tree = text.strip_prefix("tree ").and_then(|rest| rest.get(..40));
    assert_eq!(tree, Some(commit.tree.as_str()), "git reads this tree");
    let headers = text.split("\n\n").next().unwrap_or_default();
    let parents: Vec<&str> = headers.lines().filter_map(|line| line.strip_prefix("parent ")).collect();
    let read: Vec<&str> = commit.parents.iter().map(|parent| parent.as_str()).collect();
    assert_eq!(read, parents, "git reads these parents");
    for shown in [&commit.subject, &commit.author, &commit.email] {
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }
}

/// `secrets.toml` of a small fleet: read, checked, and every problem shown.
pub fn secrets(bytes: &[u8]) {
    let mut files: BTreeMap<RepoPath, Arc<[u8]>> = BTreeMap::new();
    for (path, text) in FLEET {
        files.insert(RepoPath::new(*path), Arc::from(text.as_bytes()));
    }
    files.insert(RepoPath::new("environments/production/secrets.toml"), Arc::from(bytes));
    let tree = Arc::new(Tree { commit: None, files });
    if let Err(problems) = load(&tree, None) {
        assert!(!problems.is_empty());
        let shown = diagnostics::render(&problems, &tree, Style::default());
        assert!(problems.iter().all(|problem| shown.contains(problem.rule)));
        diagnostics::to_json(&problems, &tree);
    }
}

const FLEET: &[(&str, &str)] = &[
    ("fleet.toml", "format = 1\nname = \"f\"\ndefault_environment = \"production\"\n"),
    (
        "environments/production/environment.toml",
        "format = 1\ndomain = \"example.internal\"\nos = \"debian-12\"\nroles = [\"base\"]\n[networks]\napp = \"10.0.0.0/8\"\n",
    ),
    (
        "environments/production/topology.toml",
        "[clusters.web]\nroles = [\"base\"]\n[nodes.lb01]\nclusters = [\"web\"]\naddresses = { app = \"10.0.0.1\" }\n\
         size = { vcpu = 1, memory_gib = 1, disk_gib = 1 }\nlabels = { rack = \"a\" }\n",
    ),
    ("environments/production/variables.toml", ""),
    ("environments/production/versions.toml", ""),
    ("environments/production/secrets/password.age", "age-encryption.org/v1\n"),
    ("roles/base/role.toml", "format = 1\n[[file]]\npath = \"/etc/p\"\nsecret = \"password\"\n"),
];

/// Where [`tree`] keeps its objects.
struct Store {
    path: PathBuf,
    repository: git2::Repository,
    blob: git2::Oid,
    folder: git2::Oid,
}

thread_local! {
    static STORE: Store = Store::new();
}

impl Store {
    fn new() -> Self {
        // Lives as long as the process, like the thread that uses it.
        let path = tempfile::tempdir().expect("a temporary directory").keep();
        let repository = git2::Repository::init_bare(&path).expect("a bare repository");
        let (blob, folder) = {
            let odb = repository.odb().expect("an object store");
            let blob = odb.write(git2::ObjectType::Blob, b"content").expect("a blob");
            let entry = [&b"100644 inside\0"[..], blob.as_bytes()].concat();
            (blob, odb.write(git2::ObjectType::Tree, &entry).expect("a tree"))
        };
        Self { path, repository, blob, folder }
    }

    /// A commit of these bytes taken for a tree.
    fn commit(&self, tree: &[u8]) -> git2::Oid {
        let odb = self.repository.odb().expect("an object store");
        let tree = odb.write(git2::ObjectType::Tree, tree).expect("any bytes can be written");
        let commit = format!("tree {tree}\nauthor a <a> 1 +0000\ncommitter a <a> 1 +0000\n\nx\n");
        odb.write(git2::ObjectType::Commit, commit.as_bytes()).expect("a commit")
    }
}

/// A tree object: what is loaded from it has only names that are names. Bytes with a leading `\x01` are the object as it
/// is; of others each line `MODE NAME` becomes an entry whose object exists.
/// What a server answers: its kind in the first line.
pub fn replies(bytes: &[u8]) {
    let (kind, reply) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let kind = match kind {
        b"keeper" => CheckKind::Keeper,
        b"patroni" => CheckKind::Patroni,
        b"kafka-quorum" => CheckKind::KafkaQuorum,
        b"kafka-isr" => CheckKind::KafkaIsr,
        _ => CheckKind::Redis,
    };
    let evidence = of_reply(kind, reply.strip_prefix(b"\n").unwrap_or(reply));
    // It stands in a report: one line, and not as long as a server likes.
    if let Health::Unhealthy(why) | Health::Unknown(why) = &evidence.health {
        assert!(!why.contains(char::is_control), "{why:?}");
        assert!(why.chars().count() <= 600, "{} characters", why.chars().count());
    }
    if evidence.leads == Some(true) {
        assert!(evidence.health == Health::Healthy || kind != CheckKind::Keeper, "{evidence:?}");
    }
}

pub fn tree(bytes: &[u8]) {
    STORE.with(|store| {
        let raw = match bytes.strip_prefix(b"\x01") {
            Some(raw) => raw.to_vec(),
            None => bytes
                .split(|byte| *byte == b'\n')
                .flat_map(|line| {
                    let id = if line.starts_with(b"40000 ") { store.folder } else { store.blob };
                    [line, &b"\0"[..], id.as_bytes()].concat()
                })
                .collect(),
        };
        let commit = store.commit(&raw);
        let Ok(read) = Workspace::open(&store.path).and_then(|opened| opened.tree_at(&commit.to_string())) else {
            return;
        };
        for path in read.files.keys() {
            let path = path.as_str();
            assert!(!path.contains(char::is_control) && !path.contains('\\') && path.len() <= 1024, "{path:?}");
            let odd = |name: &str| matches!(name, "" | "." | "..") || name.eq_ignore_ascii_case(".git");
            assert!(!path.split('/').any(odd), "{path:?}");
        }
    });
}

/// An archive: the first byte says which form, the rest is taken for one. What is judged good is inside, once each, and
/// unpacks to exactly what was judged.
pub fn archive(bytes: &[u8]) {
    let Some((form, bytes)) = bytes.split_first() else { return };
    let form = match form % 5 {
        0 => Form::Tar(Packing::Plain),
        1 => Form::Tar(Packing::Gzip),
        2 => Form::Tar(Packing::Xz),
        3 => Form::Tar(Packing::Zstd),
        _ => Form::Zip,
    };
    let mut file = tempfile::tempfile().expect("a temporary file");
    std::io::Write::write_all(&mut file, bytes).expect("it can be written");
    // As large as anybody would wait for here.
    let small = converger::host::artifacts::tree::Limits { bytes: 1 << 20, entries: 200, ..LIMITS };
    let Ok(tree) = unpack::survey(&file, form, "x", small) else { return };
    for (path, node) in &tree.nodes {
        assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path:?}");
        assert!(!path.contains(char::is_control), "{path:?}");
        if let Some((parent, _)) = path.rsplit_once('/') {
            assert_eq!(tree.nodes.get(parent), Some(&Node::Directory), "{path:?}");
        }
        if let Node::Link(target) = node {
            assert!(!target.starts_with('/'), "{path:?} -> {target:?}");
        }
    }
    let room = tempfile::tempdir().expect("a temporary directory");
    let inside = room.path().join("a/b");
    std::fs::create_dir_all(&inside).expect("two directories");
    let into = std::fs::File::open(&inside).expect("it is there");
    if unpack::unpack(&file, form, "x", std::os::fd::AsFd::as_fd(&into)).is_err() {
        // A name that this file system does not take.
        return;
    }
    let names = |path: &std::path::Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).expect("it is there");
        entries.map(|entry| entry.expect("it can be read").path()).collect()
    };
    assert_eq!((names(room.path()).len(), names(&room.path().join("a")).len()), (1, 1), "nothing is beside it");
    let mut open = vec![inside.clone()];
    let mut found = 0;
    while let Some(at) = open.pop() {
        for path in names(&at) {
            found += 1;
            let name = path.strip_prefix(&inside).expect("below it").to_str().expect("only UTF-8 is unpacked");
            let meta = path.symlink_metadata().expect("it is there");
            match &tree.nodes[name] {
                Node::Directory => open.push(path),
                Node::File { bytes, .. } => assert!(meta.is_file() && meta.len() == *bytes),
                Node::Hard(_) => assert!(meta.is_file()),
                Node::Link(_) => {
                    assert!(meta.is_symlink());
                    // The kernel agrees about where it leads.
                    if let Ok(real) = path.canonicalize() {
                        let inside = inside.canonicalize().expect("it is there");
                        assert!(real.starts_with(inside), "{real:?}");
                    }
                }
            }
        }
    }
    assert_eq!(found, tree.nodes.len());
}
