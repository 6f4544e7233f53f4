//! Remotes as they are in the field: files, TLS, ssh, dead ones, hostile ones.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // what fails here fails the test
#![allow(clippy::disallowed_methods)] // tests run programs and write files as they like

mod forge;
mod sshd;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use converger::git::accepted::AcceptedFiles;
use converger::git::sandbox::User;
use converger::git::{Children, GitError, Repository, Workspace};
use converger::reason;
use converger::settings::{Limits, TrustRoot};
use forge::{Forge, Node, hermetic, run};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use sshd::Sshd;

fn failures(result: Result<converger::trust::Verified, GitError>) -> String {
    match result {
        Err(error @ GitError::Unreachable(_)) => {
            assert_eq!(error.reason(), reason::SOURCE_UNREACHABLE, "{error}");
            error.to_string()
        }
        other => panic!("expected no remote to be reached, got {other:?}"),
    }
}

#[test]
fn a_file_remote_moves_on_and_an_unmoved_one_costs_nothing() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    let verified = node.verify_now(&root);
    assert!(node.repository.tree(&verified, &root.limits).unwrap().get("fleet.toml").is_some());

    // Unmoved: not even the cache is needed.
    let (state, cache) = (node.state.clone(), node.cache.clone());
    drop(node);
    std::fs::remove_dir_all(&cache).unwrap();
    let mut node = Node::open(state, cache);
    let started = std::time::Instant::now();
    let rounds = 50;
    for _ in 0..rounds {
        let verified = node.verify(&root, Some(&accepted)).unwrap();
        assert_eq!((verified.accepted(), verified.new_commits().len()), (&accepted, 0));
    }
    println!("no-op fetch and verify: {:?}", started.elapsed() / rounds);
    assert_eq!(std::fs::read_dir(node.cache.join("quarantine.git")).unwrap().count(), 0, "nobody was started");
    let tree = node.repository.tree(&node.repository.resume(&root, &accepted).unwrap(), &root.limits).unwrap();
    assert_eq!(tree.get("roles/base/role.toml").unwrap().as_ref(), b"format = 1\n");
    assert_eq!(tree.commit.as_ref(), Some(&accepted.commit));

    forge.write("roles/base/motd", "hello");
    forge.commit(Some("alice"), "motd");
    let verified = node.verify(&root, Some(&accepted)).unwrap();
    let tree = node.repository.tree(&verified, &root.limits).unwrap();
    assert_eq!(tree.get("roles/base/motd").unwrap().as_ref(), b"hello");
}

trait VerifyNow {
    fn verify_now(&mut self, root: &TrustRoot) -> converger::trust::Verified;
}

impl VerifyNow for Node {
    fn verify_now(&mut self, root: &TrustRoot) -> converger::trust::Verified {
        self.verify(root, None).unwrap()
    }
}

#[test]
fn a_dead_remote_costs_only_itself_and_all_dead_ones_are_listed() {
    let forge = Forge::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = forge.remote_table("file:///nonexistent/fleet.git");
    let dead = forge.remote_table(&format!("https://{closed}/fleet.git"));
    let root = forge.root_at(&[&gone, &dead, &forge.remote_table(&forge.url())]);
    let mut node = forge.node();
    let fetched = node.repository.fetch(&root, None).unwrap();
    assert_eq!(fetched.failures().len(), 2);
    assert_eq!(fetched.verify(&root, None).unwrap().seq(), 1);

    let root = forge.root_at(&[&gone, &dead]);
    let said = failures(node.verify(&root, None));
    assert!(said.contains("\n  file:///nonexistent/fleet.git: ") && said.contains("\n  https://127.0.0.1:"), "{said}");
}

#[test]
fn the_newest_valid_tip_wins_over_stale_and_hostile_mirrors() {
    let forge = Forge::new();
    let stale = forge.dir.path().join("stale.git");
    forge.git(&["clone", "-q", "--bare", ".", stale.to_str().unwrap()]);
    forge.commit(Some("alice"), "new");
    let hostile = forge.dir.path().join("hostile.git");
    forge.git(&["clone", "-q", "--bare", ".", hostile.to_str().unwrap()]);
    let unsigned = forge.commit(None, "evil");
    forge.git(&["push", "-q", hostile.to_str().unwrap(), "main"]);
    forge.git(&["reset", "-q", "--hard", "HEAD~"]);
    let of = |path: &Path| forge.remote_table(&format!("file://{}", path.display()));
    let root = forge.root_at(&[&of(&stale), &of(&hostile), &forge.remote_table(&forge.url())]);
    let verified = forge.node().verify(&root, None).unwrap();
    assert_eq!((verified.seq(), verified.subject()), (2, "new"));
    assert_ne!(verified.commit().as_str(), unsigned);
}

#[test]
fn a_branch_that_is_gone_is_unreachable_not_empty() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    forge.git(&["branch", "-q", "-m", "main", "other"]);
    failures(node.verify(&root, Some(&accepted)));
    assert!(node.repository.resume(&root, &accepted).is_some());
}

#[test]
fn only_the_one_branch_is_fetched_and_replace_refs_are_not_honoured() {
    let forge = Forge::new();
    let good = forge.git(&["rev-parse", "HEAD:roles/base/role.toml"]);
    let evil = forge.git_with(&["hash-object", "-w", "--stdin"], b"evil\n");
    forge.git(&["update-ref", &format!("refs/replace/{good}"), &evil]);
    forge.git(&["tag", "-a", "-m", "t", "v1"]);
    forge.git(&["branch", "secret"]);
    let (root, mut node) = (forge.root(), forge.node());
    let verified = node.verify_now(&root);
    let tree = node.repository.tree(&verified, &root.limits).unwrap();
    assert_eq!(tree.get("roles/base/role.toml").unwrap().as_ref(), b"format = 1\n");
    let quarantine = node.cache.join("quarantine.git");
    let refs = run(hermetic(&mut Command::new("git"))
        .arg("-C")
        .arg(&quarantine)
        .args(["for-each-ref", "--format=%(refname)"]));
    assert_eq!(refs, "refs/quarantine/0");
}

#[test]
fn hostile_trees_verify_but_are_never_loaded() {
    let blob = |forge: &Forge| forge.git_with(&["hash-object", "-w", "--stdin"], b"x");
    let raw = |id: &str| -> Vec<u8> {
        (0..20).map(|index| u8::from_str_radix(&id[2 * index..2 * index + 2], 16).unwrap()).collect()
    };
    type Entry = (&'static str, &'static [u8]);
    let cases: [(&str, &[Entry], &str); 9] = [
        ("symlink", &[("120000", b"link")], "symlink-source"),
        ("gitlink", &[("160000", b"sub")], "submodule"),
        ("parent", &[("100644", b"..")], "bad-tree"),
        ("git", &[("40000", b".git")], "bad-tree"),
        ("slash", &[("100644", b"a/../../x")], "bad-tree"),
        ("twice", &[("100644", b"same"), ("100644", b"same")], "bad-tree"),
        ("setuid", &[("104755", b"run")], "bad-tree"),
        ("bytes", &[("100644", b"\xff\xfe")], "bad-tree"),
        ("control", &[("100644", b"a\nb")], "bad-tree"),
    ];
    for (what, extra, rule) in cases {
        let forge = Forge::new();
        let mut bytes = Vec::new();
        for line in forge.git(&["ls-tree", "HEAD"]).lines() {
            let (meta, name) = line.split_once('\t').unwrap();
            let mut meta = meta.split(' ');
            let mode = meta.next().unwrap().trim_start_matches('0').to_owned();
            bytes.extend([mode.as_bytes(), b" ", name.as_bytes(), b"\0", &raw(meta.nth(1).unwrap())].concat());
        }
        let file = raw(&if what == "git" { forge.git(&["rev-parse", "HEAD:roles"]) } else { blob(&forge) });
        for (mode, name) in extra {
            bytes.extend([mode.as_bytes(), b" ", name, b"\0", &file].concat());
        }
        let tree = forge.git_with(&["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &bytes);
        let head = forge.head();
        let key = format!("user.signingkey={}", forge.key("alice").display());
        let args = ["-c", "gpg.format=ssh", "-c", &key, "commit-tree", "-S", "-p", &head, "-m", what, &tree];
        let commit = forge.git(&args);
        forge.git(&["update-ref", "refs/heads/main", &commit]);

        let (root, mut node) = (forge.root(), forge.node());
        let verified = node.verify_now(&root);
        match node.repository.tree(&verified, &root.limits) {
            Err(GitError::BadTree(problems)) => {
                assert_eq!(problems.iter().map(|problem| problem.rule).collect::<Vec<_>>(), [rule], "{what}")
            }
            other => panic!("{what}: {:?}", other.map(|_| ())),
        }
        // The floor moves over it, and the next commit is the fix.
        forge.git(&["read-tree", "--reset", &head]);
        forge.commit_with(Some("alice"), &["-m", "fix"]);
        let fixed = node.verify(&root, Some(verified.accepted())).unwrap();
        node.repository.tree(&fixed, &root.limits).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// A22: what Git would do to a file on its way to a work tree, and we do not have one.
#[test]
fn attributes_and_filters_change_no_byte() {
    let forge = Forge::new();
    let text = "$Id$\none\r\ntwo\n";
    forge.write("roles/base/file", text);
    forge.commit(Some("alice"), "as it is");
    forge.write(
        ".gitattributes",
        "roles/** ident eol=crlf working-tree-encoding=UTF-16 filter=lfs diff=lfs merge=union\n",
    );
    forge.write(".lfsconfig", "[lfs]\nurl = https://127.0.0.1:1/\n");
    forge.git(&["add", ".gitattributes", ".lfsconfig"]);
    forge.commit_with(Some("alice"), &["-m", "attributes"]);
    let (root, mut node) = (forge.root(), forge.node());
    node.accept(&root);
    let verified = node.verify(&root, None).unwrap();
    let tree = node.repository.tree(&verified, &root.limits).unwrap();
    assert_eq!(tree.get("roles/base/file").map(|bytes| &bytes[..]), Some(text.as_bytes()));
    assert!(tree.get(".gitattributes").is_some());
}

#[test]
fn a_tree_that_unfolds_without_end_meets_the_limit() {
    let forge = Forge::new();
    let mut id = forge.git_with(&["hash-object", "-w", "--stdin"], b"x");
    for level in 0..8 {
        let kind = if level == 0 { "100644 blob" } else { "040000 tree" };
        let lines: String = (0..10).map(|n| format!("{kind} {id}\tn{n}\n")).collect();
        id = forge.git_with(&["mktree"], lines.as_bytes());
    }
    let head = forge.git(&["ls-tree", "HEAD"]);
    let tree = forge.git_with(&["mktree"], format!("{head}\n040000 tree {id}\tzbomb\n").as_bytes());
    let key = format!("user.signingkey={}", forge.key("alice").display());
    let parent = forge.head();
    let args = ["-c", "gpg.format=ssh", "-c", &key, "commit-tree", "-S", "-p", &parent, "-m", "bomb", &tree];
    let commit = forge.git(&args);
    forge.git(&["update-ref", "refs/heads/main", &commit]);
    let error = forge.node().verify(&forge.root(), None).unwrap_err();
    assert_eq!(error.reason(), reason::LIMIT, "{error}");
}

#[test]
fn a_remote_that_sends_more_than_the_limits_is_cut_off() {
    let forge = Forge::new();
    let mut root = forge.root();
    root.limits.objects = 3;
    let error = forge.node().verify(&root, None).unwrap_err();
    assert_eq!(error.reason(), reason::LIMIT, "{error}");
    assert!(error.to_string().contains("objects, more than 3"), "{error}");

    let mut noise = vec![0u8; 3 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    std::fs::write(forge.work.join("noise"), noise).unwrap();
    forge.commit(Some("alice"), "noise");
    let mut root = forge.root();
    root.limits.pack_mib = 1;
    assert_eq!(forge.node().verify(&root, None).unwrap_err().reason(), reason::LIMIT);
    root.limits = Limits { blob_mib: 2, ..Limits::default() };
    let mut node = forge.node();
    let verified = node.verify_now(&root);
    let tree = node.repository.tree(&verified, &root.limits);
    assert!(matches!(tree, Err(GitError::BadTree(problems)) if problems[0].rule == "file-too-big"));
}

#[test]
fn a_damaged_store_is_noticed_and_read_around() {
    let forge = Forge::new();
    let (root, mut node) = (forge.root(), forge.node());
    let accepted = node.accept(&root);
    let packs = node.state.join("objects.git/objects/pack");
    let pack = std::fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().path());
    let pack = pack.into_iter().find(|path| path.extension().is_some_and(|end| end == "pack")).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[12..middle].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    let (state, cache) = (node.state.clone(), node.cache.clone());
    drop(node);
    let mut node = Node::open(state, cache);
    let verified = node.verify(&root, Some(&accepted)).unwrap();
    assert!(node.repository.tree(&verified, &root.limits).unwrap().get("fleet.toml").is_some());
}

#[test]
fn state_that_is_lost_begins_again_at_the_introduction() {
    let forge = Forge::new();
    forge.commit(Some("alice"), "two");
    let (root, mut node) = (forge.root(), forge.node());
    let verified = node.verify_now(&root);
    node.repository.admit(&verified).unwrap();
    let mut files = AcceptedFiles::open(&node.state).unwrap();
    files.keep(verified.accepted()).unwrap();
    let (state, cache) = (node.state.clone(), node.cache.clone());
    drop(node);
    assert_eq!(AcceptedFiles::open(&state).unwrap().accepted(), Some(verified.accepted()));

    std::fs::remove_dir_all(&state).unwrap();
    std::fs::remove_dir_all(&cache).unwrap();
    let mut node = Node::below(&forge.dir.path().join("node"));
    assert!(AcceptedFiles::open(&state).unwrap().accepted().is_none());
    assert!(node.repository.resume(&root, verified.accepted()).is_none());
    assert_eq!(node.verify_now(&root).accepted(), verified.accepted());
}

#[test]
fn earlier_trees_come_from_the_verified_chain_only() {
    let forge = Forge::new();
    let first = forge.head();
    forge.write("roles/base/role.toml", "format = 1\n# two\n");
    forge.commit(Some("alice"), "two");
    forge.commit(Some("alice"), "three");
    let (root, mut node) = (forge.root(), forge.node());
    let verified = node.verify_now(&root);
    node.repository.admit(&verified).unwrap();
    let limits = &root.limits;
    let tree = node.repository.tree_of_earlier(&verified, &first.as_str().into(), limits).unwrap().unwrap();
    assert_eq!(tree.get("roles/base/role.toml").unwrap().as_ref(), b"format = 1\n");
    forge.git(&["switch", "-q", "-c", "side"]);
    let side = forge.commit(Some("alice"), "side");
    assert!(node.repository.tree_of_earlier(&verified, &side.as_str().into(), limits).unwrap().is_none());
}

#[test]
fn a_workspace_is_read_committed_or_not() {
    let forge = Forge::new();
    forge.write("roles/base/new", "uncommitted");
    forge.write("roles/base/ignored.log", "x");
    forge.write("target/built", "x");
    forge.write(".gitignore", "*.log\n");
    let workspace = Workspace::open(&forge.work).unwrap();
    let tree = workspace.tree_of_worktree().unwrap();
    let names: Vec<&str> = tree.files.keys().map(|path| path.as_str()).collect();
    let expected = [
        ".gitignore",
        "fleet.toml",
        "roles/base/new",
        "roles/base/role.toml",
        "trust/allowed_signers",
        "trust/policy.toml",
    ];
    assert_eq!((names, tree.commit), (expected.to_vec(), None));
    assert!(workspace.tree_at("HEAD").unwrap().get("roles/base/new").is_none());
    let roles = Workspace::open(&forge.work.join("roles")).unwrap();
    assert!(roles.tree_at("HEAD").unwrap().get("base/role.toml").is_some());

    forge.commit(Some("bob"), "second");
    forge.commit(None, "third");
    let between = workspace.between("HEAD~2", "HEAD").unwrap();
    let seen: Vec<_> = between.iter().map(|commit| (commit.subject.as_str(), commit.signer.clone())).collect();
    assert_eq!(seen, [("third", None), ("second", Some(forge.fingerprint("bob")))]);
    assert_eq!(workspace.summary("HEAD").unwrap().author, "A U Thor <author@example.org>");
    assert!(matches!(workspace.tree_at("nope"), Err(GitError::NoRevision { .. })));

    std::os::unix::fs::symlink("/etc/shadow", forge.work.join("roles/base/link")).unwrap();
    let plain = forge.dir.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    std::fs::write(plain.join("fleet.toml"), "x").unwrap();
    assert_eq!(Workspace::open(&plain).unwrap().tree_of_worktree().unwrap().files.len(), 1);
    let bad = workspace.tree_of_worktree();
    assert!(matches!(bad, Err(GitError::BadTree(problems)) if problems[0].rule == "symlink-source"));
}

// ---- https

/// A git server behind TLS: `git http-backend`, one request per connection.
struct Https {
    port: u16,
    ca: String,
}

impl Https {
    fn serve(project_root: &Path, authorization: Option<&'static str>) -> Self {
        Self::serve_to(project_root, authorization, None)
    }

    /// `client`: the one certificate that a client must show.
    fn serve_to(project_root: &Path, authorization: Option<&'static str>, client: Option<CertificateDer<'_>>) -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = match client {
            Some(certificate) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(certificate.into_owned()).unwrap();
                let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
                clients.build().unwrap()
            }
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (config, root) = (Arc::new(config), project_root.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                // A client that does not trust us ends here.
                let _ = answer(rustls::StreamOwned::new(connection, stream.unwrap()), &root, authorization);
            }
        });
        Self { port, ca: key.cert.pem() }
    }
}

fn answer(
    stream: rustls::StreamOwned<rustls::ServerConnection, TcpStream>,
    root: &Path,
    authorization: Option<&str>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let request: Vec<String> = lines.first().cloned().unwrap_or_default().split(' ').map(str::to_owned).collect();
    let [method, target, _] = request.as_slice() else { return Ok(()) };
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    if target.starts_with("/moved/") {
        let target = target.replacen("/moved", "", 1);
        return write!(stream.get_mut(), "HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n");
    }
    if authorization.is_some() && header("authorization").as_deref() != authorization {
        return write!(stream.get_mut(), "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    }
    let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut backend = hermetic(&mut Command::new("/usr/lib/git-core/git-http-backend"))
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    backend.stdin.take().unwrap().write_all(&body)?;
    let output = backend.wait_with_output()?.stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let headers = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = headers.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    let content = &output[end + 4..];
    let out = stream.get_mut();
    write!(out, "HTTP/1.1 {status}\r\n{headers}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len())?;
    out.write_all(content)?;
    out.conn.send_close_notify();
    out.flush()
}

#[test]
fn https_with_the_right_ca_fetches_more_than_once() {
    let forge = Forge::new();
    let server = Https::serve(forge.dir.path(), None);
    std::fs::write(forge.dir.path().join("ca.crt"), &server.ca).unwrap();
    let remote = format!("[[remotes]]\nurl = \"https://localhost:{}/fleet/.git\"\nca = \"ca.crt\"\n", server.port);
    let (root, mut node) = (forge.root_at(&[&remote]), forge.node());
    let accepted = node.accept(&root);
    for n in 0..40 {
        forge.write("roles/base/motd", &n.to_string());
        forge.commit(Some("bob"), "motd");
    }
    let verified = node.verify(&root, Some(&accepted)).unwrap();
    assert_eq!(verified.seq(), 41);
    assert_eq!(node.verify(&root, Some(verified.accepted())).unwrap().seq(), 41);
}

#[test]
fn https_with_another_ca_a_redirect_or_no_repository_is_refused() {
    let forge = Forge::new();
    let (server, other) = (Https::serve(forge.dir.path(), None), Https::serve(forge.dir.path(), None));
    std::fs::write(forge.dir.path().join("ca.crt"), &server.ca).unwrap();
    std::fs::write(forge.dir.path().join("other.crt"), &other.ca).unwrap();
    let said = |path: &str, ca: &str| {
        let url = format!("https://localhost:{}{path}", server.port);
        let ca = if ca.is_empty() { String::new() } else { format!("ca = \"{ca}\"\n") };
        failures(forge.node().verify(&forge.root_at(&[&format!("{}{ca}", forge.remote_table(&url))]), None))
    };
    assert!(said("/fleet/.git", "other.crt").to_lowercase().contains("certificate"));
    assert!(said("/fleet/.git", "").to_lowercase().contains("certificate"));
    assert!(said("/moved/fleet/.git", "ca.crt").contains("redirects are not followed"));
    assert!(said("/nothing.git", "ca.crt").contains("404"));
}

#[test]
fn https_sends_the_token_as_the_file_says_and_never_shows_it() {
    let forge = Forge::new();
    // user:s3cret
    let server = Https::serve(forge.dir.path(), Some("Basic dXNlcjpzM2NyZXQ="));
    std::fs::write(forge.dir.path().join("ca.crt"), &server.ca).unwrap();
    let url = format!("https://localhost:{}/fleet/.git", server.port);
    let root = forge.root_at(&[&format!("[[remotes]]\nurl = \"{url}\"\nca = \"ca.crt\"\ntoken_file = \"token\"\n")]);
    let token = |text: &str| std::fs::write(forge.dir.path().join("token"), text).unwrap();
    token("user:s3cret\n");
    assert_eq!(forge.node().verify(&root, None).unwrap().seq(), 1);
    token("user:wr0ng\n");
    let said = failures(forge.node().verify(&root, None));
    assert!(said.contains("401: the credential is not accepted") && !said.contains("wr0ng"), "{said}");
    std::fs::remove_file(forge.dir.path().join("token")).unwrap();
    assert!(failures(forge.node().verify(&root, None)).contains("token is not there"));
}

/// A31: a forge that wants a client certificate gets the one of this remote, and no other gets in.
#[test]
fn https_shows_the_client_certificate_of_this_remote() {
    let forge = Forge::new();
    let certified = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec![format!("{name}.example.internal")]).unwrap();
        std::fs::write(forge.dir.path().join(format!("{name}.crt")), made.cert.pem()).unwrap();
        std::fs::write(forge.dir.path().join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    };
    let (known, _) = (certified("node"), certified("stranger"));
    let server = Https::serve_to(forge.dir.path(), None, Some(known));
    std::fs::write(forge.dir.path().join("ca.crt"), &server.ca).unwrap();
    let url = format!("https://localhost:{}/fleet/.git", server.port);
    let as_whom = |name: &str| {
        let files = format!("ca = \"ca.crt\"\ncert_file = \"{name}.crt\"\nkey_file = \"{name}.key\"\n");
        forge.node().verify(&forge.root_at(&[&format!("{}{files}", forge.remote_table(&url))]), None)
    };
    assert_eq!(as_whom("node").unwrap().seq(), 1);
    failures(as_whom("stranger"));
}

// ---- ssh

/// With the key `deploy` let in.
fn serve_deploy_key(forge: &Forge) -> Sshd {
    forge.keygen("deploy", &["-t", "ed25519"]);
    std::fs::write(forge.dir.path().join("authorized"), forge.public("deploy")).unwrap();
    Sshd::serve(forge)
}

fn ssh_root(forge: &Forge, port: u16, host_key: &str, path: &str) -> TrustRoot {
    let user = run(Command::new("id").arg("-un"));
    forge.root_at(&[&format!(
        "[[remotes]]\nurl = \"ssh://{user}@127.0.0.1:{port}{path}\"\nhost_key = \"{host_key}\"\nkey_file = \"key-deploy\"\n"
    )])
}

#[test]
fn ssh_with_the_pinned_host_key_fetches_and_another_is_refused() {
    let forge = Forge::new();
    let sshd = serve_deploy_key(&forge);
    let path = format!("{}/.git", forge.work.display());
    let root = ssh_root(&forge, sshd.port, &forge.public("host"), &path);
    let mut node = forge.node();
    let accepted = node.accept(&root);
    forge.write("roles/base/motd", "x");
    forge.commit(Some("bob"), "motd");
    assert_eq!(node.verify(&root, Some(&accepted)).unwrap().seq(), 2);

    let wrong = ssh_root(&forge, sshd.port, &forge.public("mallory"), &path);
    let said = failures(node.verify(&wrong, Some(&accepted)));
    assert!(said.contains("Host key verification failed") || said.contains("IDENTIFICATION HAS CHANGED"), "{said}");
    let missing = ssh_root(&forge, sshd.port, &forge.public("host"), "/nothing.git");
    let said = failures(node.verify(&missing, Some(&accepted)));
    assert!(said.contains("/nothing.git"), "{said}");
    std::fs::write(forge.dir.path().join("authorized"), forge.public("mallory")).unwrap();
    let said = failures(node.verify(&root, Some(&accepted)));
    assert!(said.contains("Permission denied"), "{said}");
}

/// R14: as on a machine, where root fetches as somebody else, who must be able to read the key and nothing more.
#[test]
fn ssh_and_https_work_for_another_user_who_can_read_their_keys() {
    if !nix::unistd::geteuid().is_root() {
        println!("not root: nobody to become");
        return;
    }
    let forge = Forge::new();
    let mode = |name: &str, mode| {
        let path = forge.dir.path().join(name);
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode("", 0o711);
    let (sshd, https) = (serve_deploy_key(&forge), Https::serve(forge.dir.path(), Some("Bearer t0ken")));
    std::fs::write(forge.dir.path().join("ca.crt"), &https.ca).unwrap();
    std::fs::write(forge.dir.path().join("token"), "t0ken").unwrap();
    let path = format!("{}/.git", forge.work.display());
    let url = format!("https://localhost:{}/fleet/.git", https.port);
    let https = format!("[[remotes]]\nurl = \"{url}\"\nca = \"ca.crt\"\ntoken_file = \"token\"\n");
    let roots = [
        ("key-deploy", ssh_root(&forge, sshd.port, &forge.public("host"), &path)),
        ("token", forge.root_at(&[&https])),
    ];
    let children = Children { user: Some(User { uid: 65534, gid: 65534 }), ..forge::children() };
    for (credential, root) in roots {
        let (state, cache) = (forge.dir.path().join("state"), forge.dir.path().join("cache"));
        let mut node = Node { repository: Repository::open(&state, &cache, &children).unwrap(), state, cache };
        mode(credential, 0o600);
        let said = failures(node.verify(&root, None));
        assert!(said.contains(&format!("{credential} cannot be read by converger-fetch: `chown")), "{said}");
        mode(credential, 0o644);
        assert_eq!(node.verify(&root, None).unwrap().seq(), 1, "{credential}");
    }
}

#[test]
fn a_remote_that_stalls_costs_its_time_and_no_more() {
    let forge = Forge::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    forge.keygen("deploy", &["-t", "ed25519"]);
    let port = silent.local_addr().unwrap().port();
    let mut root = ssh_root(&forge, port, &forge.public("alice"), "/x.git");
    root.limits.time_secs = 1;
    let https = forge.root_at(&[&forge.remote_table(&format!("https://127.0.0.1:{port}/x.git"))]);
    root.remotes.extend(https.remotes);
    let started = std::time::Instant::now();
    failures(forge.node().verify(&root, None));
    assert!(started.elapsed().as_secs() < 60, "without a limit it is for ever");
}

#[test]
#[ignore = "a measurement: cargo test --release --test git -- --ignored --nocapture"]
fn a_long_chain_is_verified_quickly() {
    let forge = Forge::new();
    let commits = 2000;
    for n in 0..commits {
        forge.write("roles/base/motd", &n.to_string());
        forge.commit(Some("bob"), "motd");
    }
    let (root, mut node) = (forge.root(), forge.node());
    let fetched = node.repository.fetch(&root, None).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(fetched.verify(&root, None).unwrap().seq(), commits + 1);
    println!("{:.0} commits/s", commits as f64 / started.elapsed().as_secs_f64());
}
