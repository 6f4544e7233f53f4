//! Wrong repositories, wrong histories, wrong machines: one clear error, the exit code of the manual, and a host that stays
//! as it was, with its last good commit enforced.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]
#![allow(clippy::disallowed_methods, reason = "tests write files and run programs as they like")]

mod bed;
mod forge;

use std::path::Path;
use std::process::Command;

use bed::{Bed, NodeBed, Said};

/// The next run ends with `code` and says these words; nothing on the host moved, and the same commit is live.
#[track_caller]
fn refuses(node: &NodeBed, code: i32, words: &[&str]) -> Said {
    let (host, applied) = (node.host(), node.applied());
    let said = node.once().exits(code).says(words);
    assert_eq!(node.host(), host, "the host changed");
    assert_eq!(node.applied(), applied, "another commit is live");
    assert!(!said.all().contains("panicked"), "{}", said.all());
    said
}

/// A file that somebody changed is put back, whatever else is wrong.
#[track_caller]
fn still_repairs(node: &NodeBed, code: i32) {
    let good = node.text("etc/motd");
    node.put("etc/motd", "quick fix\n");
    node.once().exits(code);
    assert_eq!(node.text("etc/motd"), good, "drift was not repaired");
}

const TOPOLOGY: &str = "environments/production/topology.toml";

/// A mistake in the repository: `check` and the agent say the same of it.
#[track_caller]
fn mistake(change: impl Fn(&Bed), words: &[&str]) {
    let bed = Bed::new();
    let node = bed.node("web01");
    change(&bed);
    bed.commit("a mistake");
    bed.converger(&["check"]).exits(3).says(words);
    refuses(&node, 3, words).says(&["repository-invalid", "has problems"]);
    assert_eq!(node.report()["state"], "refused");
    still_repairs(&node, 3);
    bed.forge.signing(Some("alice"), &["revert", "--no-edit", "HEAD"]);
    node.once().exits(0);
    assert_eq!(node.applied(), bed.forge.head(), "mended by a revert");
}

#[test]
fn malformed_toml() {
    mistake(
        |bed| bed.edit(TOPOLOGY, "order = 10", "order = [10"),
        &["error[syntax]", "environments/production/topology.toml:2", "explain syntax"],
    );
}

#[test]
fn an_unknown_key() {
    mistake(
        |bed| bed.edit(TOPOLOGY, "max_unavailable = 1", "max_unavailabel = 1"),
        &["error[unknown-key]", "max_unavailabel", "topology.toml:11", "did you mean \"max_unavailable\"?"],
    );
}

#[test]
fn duplicate_addresses() {
    mistake(
        |bed| bed.edit(TOPOLOGY, "10.20.1.2", "10.20.1.1"),
        &["error[duplicate-address]", "web01 and web02 are both 10.20.1.1", "topology.toml:21"],
    );
}

#[test]
fn a_node_in_no_cluster() {
    mistake(
        |bed| {
            let text = bed.read(TOPOLOGY);
            let (before, web03) = text.split_once("[nodes.web03]").unwrap();
            let web03 = web03.replace("clusters = [\"web\"]", "clusters = []");
            bed.forge.write(TOPOLOGY, &format!("{before}[nodes.web03]{web03}"));
        },
        &["error[node-without-cluster]", "web03", "topology.toml:2"],
    );
}

#[test]
fn a_voter_that_is_no_member() {
    mistake(
        |bed| {
            bed.edit(TOPOLOGY, "members = \"all\"", "members = { nodes = [\"web01\", \"web02\", \"web03\"] }");
            bed.edit(TOPOLOGY, "[nodes.web01]", "[clusters.other]\ntier = \"front\"\nroles = []\n\n[nodes.web01]");
            let text = bed.read(TOPOLOGY);
            let (before, web03) = text.split_once("[nodes.web03]").unwrap();
            let web03 = web03.replace("clusters = [\"web\"]", "clusters = [\"other\"]");
            bed.forge.write(TOPOLOGY, &format!("{before}[nodes.web03]{web03}"));
        },
        &["error[member-not-in-cluster]", "web03", "topology.toml:9"],
    );
}

#[test]
fn an_unknown_role() {
    mistake(
        |bed| bed.edit(TOPOLOGY, "roles = [\"web\"]", "roles = [\"wbe\"]"),
        &["error[unknown-role]", "wbe", "topology.toml:6", "did you mean \"web\"?"],
    );
}

#[test]
fn a_template_with_a_typo() {
    mistake(
        |bed| bed.edit("roles/base/motd", "node.name", "node.nmae"),
        &["undefined-in-template", "node.nmae", "roles/base/motd:1", "name"],
    );
}

#[test]
fn a_typo_inside_a_condition() {
    mistake(
        |bed| bed.edit("roles/base/a.conf", "if node.name", "if node.nmae"),
        &["undefined-in-template", "node.nmae", "roles/base/a.conf:1"],
    );
}

#[test]
fn a_typo_in_a_branch_that_this_node_does_not_take() {
    mistake(
        |bed| bed.edit("roles/base/a.conf", "%}first = yes", "%}first = yes{% else %}{{ vars.nothing }}"),
        &["undefined-in-template", "vars.nothing", "roles/base/a.conf:1"],
    );
}

/// B6
#[test]
fn a_secret_that_the_node_cannot_open_blocks_what_needs_it_and_nothing_else() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.seal("token", 2, "another", &["web02", "web03"]);
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("web01 is left out");
    let (token, starts) = (node.text("etc/web/token"), node.starts("web.service"));
    node.once().exits(8).says(&[
        "secret-unreadable",
        "secret token cannot be opened by this node (age1",
        "run `converger secret rekey token`",
    ]);
    assert_eq!(node.text("etc/motd"), "web01 in production\n", "what needs no secret goes on");
    assert_eq!((node.text("etc/web/token"), node.starts("web.service")), (token, starts));
    assert_eq!(node.report()["state"], "failed");
}

#[test]
fn a_missing_signature() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.edit("roles/base/motd", "of", "in");
    let bad = bed.forge.commit(None, "quick fix");
    let said = refuses(&node, 4, &["unsigned", "quick fix", "rule", "alice@example.org", "effect", "mend"]);
    assert!(said.all().contains(&bad[..7]), "{}", said.all());
    assert_eq!(node.report()["state"], "refused");
    still_repairs(&node, 4);
}

#[test]
fn a_key_that_nobody_knows() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.edit("roles/base/motd", "of", "in");
    bed.forge.commit(Some("mallory"), "trust me");
    refuses(&node, 4, &["unknown-key", "trust me", &bed.forge.fingerprint("mallory")]);
}

#[test]
fn a_signature_over_something_else() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("reviewed");
    let forged = bed.forge.raw("HEAD").replacen("\nreviewed", "\nnot quite what was reviewed", 1);
    bed.forge.raw_commit(forged.as_bytes());
    refuses(&node, 4, &["bad-signature", "not quite what was reviewed"]);
}

#[test]
fn a_signer_beyond_the_scope() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.edit(TOPOLOGY, "order = 10", "order = 11");
    bed.forge.commit(Some("bob"), "bob may change roles only");
    refuses(&node, 4, &["scope", "environments/production/topology.toml", "bob@example.org"]);
}

#[test]
fn a_rewound_branch() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.forge.git(&["reset", "-q", "--hard", "HEAD~1"]);
    refuses(&node, 4, &["rollback", "never goes back", "git revert"]);
    still_repairs(&node, 4);
}

#[test]
fn a_sibling_pushed_by_force() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.edit("roles/base/motd", "of", "in");
    bed.forge.signing(Some("alice"), &["commit", "-q", "--all", "--amend", "-m", "rewritten"]);
    refuses(&node, 4, &["not-descendant", "rewritten", "never rewritten"]);
}

#[test]
fn an_unreachable_remote() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let away = bed.dir().join("away");
    std::fs::rename(&bed.forge.work, &away).unwrap();
    refuses(&node, 7, &["source-unreachable", "file://"]);
    assert_eq!(node.report()["state"], "unreachable");
    still_repairs(&node, 7);
    std::fs::rename(&away, &bed.forge.work).unwrap();
    node.once().exits(0);
}

#[test]
fn a_node_that_never_converged_has_nothing_to_keep() {
    let bed = Bed::new();
    bed.forge.commit(None, "quick fix");
    let node = bed.node("web02");
    node.once().exits(4).says(&["error[unsigned]", "help:", "explain unsigned"]);
    assert!(!node.root.join("etc/motd").exists());
}

#[test]
fn wrong_settings() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let good = node.text("etc/converger/agent.toml");
    let cases: [(&str, &str, &[&str]); 4] = [
        ("node = \"web01\"", "nodes = \"web01\"", &["agent.toml:1", "nodes"]),
        ("kind = \"local\"", "kind = \"lokal\"", &["agent.toml:7", "lokal"]),
        ("[store]", "[store", &["agent.toml:6"]),
        ("trust.toml", "other.toml", &["other.toml", "no such file"]),
    ];
    for (from, to, words) in cases {
        node.put("etc/converger/agent.toml", &good.replacen(from, to, 1));
        refuses(&node, 2, words).says(&["error[settings]", "help:"]);
    }
    node.put("etc/converger/agent.toml", &good);
    let good = node.text("etc/converger/trust.toml");
    let cases: [(&str, &str, &[&str]); 4] = [
        ("refs/heads/main", "main", &["trust.toml:2", "refs/heads/main"]),
        ("policy = \"standard\"", "policy = \"lax\"", &["trust.toml:3", "lax"]),
        ("commit = \"", "commit = \"x", &["trust.toml:4", "40 lower-case hex digits"]),
        ("file://", "gopher://", &["trust.toml:7", "gopher"]),
    ];
    for (from, to, words) in cases {
        node.put("etc/converger/trust.toml", &good.replacen(from, to, 1));
        refuses(&node, 2, words);
    }
    node.put("etc/converger/trust.toml", &good);
    node.once().exits(0);
}

#[test]
fn an_identity_that_others_can_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let bed = Bed::new();
    let node = bed.node("web01");
    let key = node.root.join("etc/converger/age.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    refuses(&node, 8, &["error[identity-permissions]", "age.key", "0644", "0600"]);
    std::fs::remove_file(&key).unwrap();
    refuses(&node, 8, &["error[identity-permissions]", "age.key", "No such file"]);
}

/// Mounted while it lives. `None`: this machine does not let us mount.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path, options: &str) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: no right to mount here; run it as root");
        }
        mounted.then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

/// A node whose whole root is a disk of its own that is `kib` large.
fn small_disk<'a>(bed: &Bed, root: &'a Path, kib: u32) -> Option<Mounted<'a>> {
    let kept = bed.dir().join("kept");
    std::fs::rename(root, &kept).unwrap();
    std::fs::create_dir(root).unwrap();
    let mounted = Mounted::tmpfs(root, &format!("size={kib}k,mode=0755"))?;
    forge::run(Command::new("cp").arg("-a").arg(format!("{}/.", kept.display())).arg(root));
    Some(mounted)
}

fn fill(root: &Path) {
    let mut file = std::fs::File::create(root.join("ballast")).unwrap();
    // Ever smaller pieces, until nothing fits any more.
    for piece in [1 << 16, 1 << 12, 1 << 8, 1] {
        while std::io::Write::write_all(&mut file, &vec![0_u8; piece]).is_ok() {}
    }
}

#[test]
fn a_full_disk() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let root = node.root.clone();
    let Some(_mounted) = small_disk(&bed, &root, 4096) else { return };
    // The commit is there already: only the host's part is left to do.
    bed.forge.write("roles/base/a.conf", &"a = 1\n".repeat(100_000));
    bed.commit("a large file");
    fill(&root);
    let motd = node.text("etc/motd");
    let (conf, applied) = (node.text("etc/tool/a.conf"), node.applied());
    let said = node.once().exits(5).says(&["disk-full"]);
    assert!(!said.all().contains("panicked"), "{}", said.all());
    assert_eq!((node.text("etc/tool/a.conf"), node.text("etc/motd"), node.applied()), (conf, motd, applied));
    std::fs::remove_file(root.join("ballast")).unwrap();
    node.once().exits(0);
    assert_eq!(node.applied(), bed.forge.head(), "recovers when there is space again");
    assert_eq!(node.text("etc/tool/a.conf").len(), 600_000);
}

#[test]
fn a_directory_that_cannot_be_written() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let tool = node.root.join("etc/tool");
    let Some(_mounted) = Mounted::tmpfs(&tool, "ro") else { return };
    let (starts, web) = (node.starts("tool.service"), node.starts("web.service"));
    node.once().exits(5).says(&["read-only", "/etc/tool/", "Read-only file system"]);
    assert_eq!((node.starts("tool.service"), node.starts("web.service")), (starts, web));
    assert_eq!(node.report()["state"], "failed");
}

#[test]
fn something_else_in_the_way() {
    let bed = Bed::new();
    let node = bed.node("web01");
    std::fs::remove_file(node.root.join("etc/motd")).unwrap();
    std::fs::create_dir_all(node.root.join("etc/motd/keep")).unwrap();
    node.put("etc/tool/b.conf", "quick fix\n");
    node.once().exits(5).says(&["unsafe-path", "/etc/motd", "directory"]);
    assert!(node.root.join("etc/motd/keep").is_dir(), "it was left alone");
    assert_eq!(node.text("etc/tool/b.conf"), "first = yes\na = 1\n", "its neighbours are kept up");
}

#[test]
fn a_dead_etcd_holds_back_protected_restarts_only() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["web01".to_owned()]).unwrap().self_signed(&key).unwrap();
    for name in ["ca.crt", "node.crt"] {
        node.put(&format!("etc/converger/{name}"), &certificate.pem());
    }
    node.put("etc/converger/node.key", &key.serialize_pem());
    node.settings(
        "kind = \"etcd\"\nendpoints = [\"https://127.0.0.1:1\"]\nca = \"ca.crt\"\ncert = \"node.crt\"\nkey = \"node.key\"",
    );
    bed.edit("roles/web/defaults.toml", "4", "8");
    bed.edit("roles/base/motd", "of", "in");
    bed.commit("a harmless change and one that needs a hold");
    let (starts, conf) = (node.starts("web.service"), node.text("etc/web/web.conf"));
    node.once().exits(7).says(&["store-unreachable"]);
    assert_eq!(node.text("etc/motd"), "web01 in production\n", "the harmless goes on");
    assert_eq!((node.starts("web.service"), node.text("etc/web/web.conf")), (starts, conf), "the hold does not");
    assert_eq!(node.report()["state"], "waiting");
    node.put("etc/tool/b.conf", "quick fix\n");
    node.once().exits(7);
    assert_eq!(node.text("etc/tool/b.conf"), "first = yes\na = 1\n");
}

#[test]
fn too_many_removals_need_a_word() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.forge.write("fleet.toml", &format!("{}\n[guards]\nmass_removal = 1\n", forge::FLEET));
    bed.commit("a tight guard");
    node.once().exits(0);
    let text = bed.read("roles/base/role.toml");
    let (motd, rest) = text.split_once("[[file]]\npath = \"/etc/tool/a.conf\"").unwrap();
    let unit = rest.split_once("[[unit]]").unwrap().1;
    bed.forge.write("roles/base/role.toml", &format!("{motd}[[unit]]{unit}"));
    std::fs::remove_file(bed.forge.work.join("roles/base/a.conf")).unwrap();
    bed.commit("the tool's configuration goes");
    let trailer = "Converger-Allow: mass-removal web01";
    refuses(&node, 3, &["guarded", "2 resources would be removed from web01", "/etc/tool/a.conf", trailer]);
    still_repairs(&node, 3);
    bed.commit("it is meant\n\nConverger-Allow: mass-removal web02");
    refuses(&node, 3, &["guarded", "web01"]);
    bed.commit(&format!("it is meant\n\n{trailer}"));
    node.once().exits(0);
    assert!(!node.root.join("etc/tool/a.conf").exists() && !node.root.join("etc/tool/b.conf").exists());
    assert_eq!(node.applied(), bed.forge.head());
}

#[test]
fn a_node_leaves_the_topology_only_when_it_was_retired() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let whole = bed.read(TOPOLOGY);
    let (rest, _) = whole.split_once("\n[nodes.web03]").unwrap();
    bed.forge.write(TOPOLOGY, rest);
    // Neither who is gone nor who is retired is granted it.
    bed.seal_as("token", 1, "open sesame", &bed::NODES[..2], &bed::NODES[..2]);
    bed.commit("web03 is gone");
    refuses(&node, 3, &["guarded", "web03 leaves the topology", "Converger-Allow: node-removal web03"]);
    still_repairs(&node, 3);
    bed.forge.write(TOPOLOGY, &format!("{whole}state = \"retired\"\n"));
    bed.commit("retired first");
    node.once().exits(0);
    bed.forge.write(TOPOLOGY, rest);
    bed.commit("and gone then");
    node.once().exits(0);
    assert_eq!(node.applied(), bed.forge.head());
}

#[test]
fn secrets_do_not_go_back_or_change_in_silence() {
    let bed = Bed::new();
    let node = bed.node("web01");
    bed.seal("token", 1, "swordfish", &bed::NODES);
    bed.commit("edited by hand");
    let said = refuses(&node, 3, &["repository-invalid", "secret token", "still version 1", "secrets.toml"]);
    assert!(!said.all().contains("swordfish"), "{}", said.all());
    bed.seal("token", 1, "open sesame", &bed::NODES);
    bed.commit("the old value, encrypted again");
    let starts = node.starts("web.service");
    node.once().exits(0);
    assert_eq!(node.starts("web.service"), starts, "a re-key restarts nothing");
    bed.forge.write("fleet.toml", forge::FLEET);
    bed.edit("environments/production/secrets.toml", "version = 1", "version = 0");
    bed.commit("an older version");
    let trailer = "Converger-Allow: secret-rollback token";
    refuses(&node, 3, &["guarded", "from version 1 to version 0", trailer]);
}

/// The first of 1, 2, 3, 4, 8, 5, 7, 6, 0.
#[test]
fn of_several_failures_the_first_of_the_list_counts() {
    let bed = Bed::new();
    let node = bed.node("web01");
    std::fs::remove_file(node.root.join("etc/motd")).unwrap();
    std::fs::create_dir(node.root.join("etc/motd")).unwrap();
    node.once().exits(5);
    let away = bed.dir().join("away");
    std::fs::rename(&bed.forge.work, &away).unwrap();
    node.once().exits(5).says(&["unsafe-path", "source-unreachable"]);
    std::fs::rename(&away, &bed.forge.work).unwrap();
    bed.forge.commit(None, "quick fix");
    node.once().exits(4).says(&["unsafe-path", "unsigned"]);
}
