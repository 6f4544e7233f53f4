//! Secrets that nobody types: what openssl, ssh-keygen and age say of them, and who learns when they expire.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // helpers of tests fail by panicking

mod bed;
mod forge;

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use age::secrecy::ExposeSecret as _;
use bed::{Bed, Said};
use converger::secrets::pem::{self, Part};
use converger::secrets::shape::{Made, ssh_key};
use converger::secrets::tls::{self, Authority, GivenKind, Life, Subject, TlsError};
use jiff::Timestamp;
use proptest::prelude::*;

/// Runs a program in a folder; what it printed, and whether it was content.
fn try_run(folder: &Path, program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(args).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn run(folder: &Path, program: &str, args: &[&str]) -> String {
    let (good, text) = try_run(folder, program, args);
    assert!(good, "{program} {args:?}: {text}");
    text
}

fn openssl(folder: &Path, args: &str) -> String {
    // Versions before 3.2 write names as `CN = x`.
    run(folder, "openssl", &args.split(' ').collect::<Vec<_>>()).replace(" = ", "=")
}

fn now() -> Timestamp {
    Timestamp::now()
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).unwrap();
}

fn subject(name: &str, names: &[&str], ips: &[&str]) -> Subject {
    Subject {
        organization: "test".to_owned(),
        name: name.to_owned(),
        names: names.iter().map(|&name| name.to_owned()).collect(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>(),
    }
}

fn days(days: u32) -> Life {
    Life { now: now(), days }
}

/// Writes the parts of a bundle to NAME.key, NAME.crt and NAME.chain.
fn write(folder: &Path, name: &str, made: &Made) {
    let text = std::str::from_utf8(&made.value).unwrap();
    for (part, end) in [(Part::Key, "key"), (Part::Certificate, "crt"), (Part::Chain, "chain")] {
        std::fs::write(folder.join(format!("{name}.{end}")), pem::part(text, part).unwrap() + "\n").unwrap();
    }
}

#[test]
fn openssl_believes_what_the_authority_signs() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ca = tls::authority(&subject("ca", &[], &[]), days(30), &mut random).unwrap();
    write(at, "ca", &ca);
    assert_eq!(std::fs::read_to_string(at.join("ca.crt")).unwrap(), ca.public.as_ref().unwrap().text);
    let who = subject("web01", &["web01", "*.a.example"], &["10.0.0.1", "fd00::1"]);
    let leaf = Authority::open(&ca.value).unwrap().issue(&who, days(90), &mut random).unwrap();
    write(at, "web", &leaf);
    for purpose in ["sslserver", "sslclient"] {
        openssl(at, &format!("verify -x509_strict -CAfile ca.crt -purpose {purpose} web.crt"));
    }
    for (kind, good, bad) in [("hostname", "x.a.example", "b.example"), ("ip", "fd00::1", "10.0.0.2")] {
        openssl(at, &format!("verify -CAfile ca.crt -verify_{kind} {good} web.crt"));
        assert!(
            !try_run(at, "openssl", &["verify", "-CAfile", "ca.crt", &format!("-verify_{kind}"), bad, "web.crt"]).0
        );
    }
    assert_eq!(openssl(at, "pkey -in web.key -pubout"), openssl(at, "x509 -in web.crt -pubkey -noout"));
    let text = openssl(at, "x509 -in web.crt -noout -text");
    for said in
        ["CN=web01", "TLS Web Server Authentication, TLS Web Client Authentication", "CA:FALSE", "Digital Signature"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    // Never longer than the authority: the shorter of 90 days and its 30.
    let end = tls::expiry(&leaf.value).unwrap();
    assert_eq!(Some(end), tls::expiry(&ca.value));
    assert!(end.duration_since(now()).as_hours() / 24 >= 29);
    let openssl_says = openssl(at, "x509 -in web.crt -noout -enddate -dateopt iso_8601");
    assert_eq!(openssl_says.trim().trim_start_matches("notAfter=").replace(' ', "T"), end.to_string());
    // One certificate is not like another.
    let again = Authority::open(&ca.value).unwrap().issue(&who, days(90), &mut random).unwrap();
    write(at, "again", &again);
    assert_ne!(openssl(at, "x509 -in web.crt -noout -serial"), openssl(at, "x509 -in again.crt -noout -serial"));
    assert_ne!(openssl(at, "pkey -in web.key -pubout"), openssl(at, "pkey -in again.key -pubout"));
}

#[test]
fn only_an_authority_signs_and_only_while_it_is_valid() {
    let ca = tls::authority(&subject("ca", &[], &[]), days(1), &mut random).unwrap();
    let authority = Authority::open(&ca.value).unwrap();
    let leaf = authority.issue(&subject("a", &["a"], &[]), days(1), &mut random).unwrap();
    assert!(Authority::open(&leaf.value).err().unwrap().to_string().contains("is not an authority's"));
    let late = Life { now: now() + jiff::SignedDuration::from_hours(25), days: 1 };
    assert!(
        authority.issue(&subject("a", &["a"], &[]), late, &mut random).err().unwrap().to_string().contains("expired")
    );
    let other = tls::authority(&subject("ca", &[], &[]), days(1), &mut random).unwrap();
    let mixed = [pem::private_key(text(&other)).unwrap(), pem::certificates(text(&ca)).next().unwrap()].join("\n");
    assert!(Authority::open(mixed.as_bytes()).err().unwrap().to_string().contains("private key is not that of"));
}

fn text(made: &Made) -> &str {
    std::str::from_utf8(&made.value).unwrap()
}

#[test]
fn ssh_keygen_reads_the_key_and_agrees_with_its_public_half() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let made = ssh_key("backup@production", &mut random).unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, &*made.value).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let public = run(folder.path(), "ssh-keygen", &["-y", "-f", "key"]);
    assert_eq!(public, made.public.unwrap().text);
    assert!(public.starts_with("ssh-ed25519 ") && public.ends_with(" backup@production\n"));
}

/// A customer's root, an authority below it, and a server's certificate, by openssl.
fn customers(at: &Path) {
    std::fs::write(at.join("ca.cnf"), "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n")
        .unwrap();
    std::fs::write(
        at.join("leaf.cnf"),
        "basicConstraints=critical,CA:FALSE\nsubjectAltName=DNS:api.example,IP:10.1.1.1\n",
    )
    .unwrap();
    openssl(at, "req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.crt -days 400 -subj /O=Customer/CN=root");
    for (name, above, ext) in [("sub", "root", "ca"), ("api", "sub", "leaf")] {
        openssl(
            at,
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ),
        );
        openssl(
            at,
            &format!(
                "x509 -req -in {name}.csr -CA {above}.crt -CAkey {above}.key -CAcreateserial -days 300 -extfile {ext}.cnf -out {name}.crt"
            ),
        );
    }
}

#[test]
fn a_customers_certificates_are_taken_whole_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    customers(at);
    let file = |name: &str| std::fs::read(at.join(name)).unwrap();
    let take = |cert: &[u8], key: &str, chain: &[u8]| tls::given(cert, &file(key), chain, now());
    // The chain in any order comes out in order.
    let given = take(&file("api.crt"), "api.key", &[file("root.crt"), file("sub.crt")].concat()).unwrap();
    assert_eq!((given.kind, given.names.as_slice()), (GivenKind::Certificate, &["api.example".to_owned()][..]));
    assert_eq!(given.ips, ["10.1.1.1".parse::<IpAddr>().unwrap()]);
    let subjects: Vec<String> = pem::certificates(text(&given.made))
        .map(|one| {
            std::fs::write(at.join("one.crt"), one).unwrap();
            openssl(at, "x509 -in one.crt -noout -subject").trim().to_owned()
        })
        .collect();
    assert_eq!(subjects, ["subject=CN=api", "subject=CN=sub", "subject=O=Customer, CN=root"]);
    write(at, "given", &given.made);
    openssl(at, "verify -CAfile root.crt -untrusted given.chain given.crt");
    // An authority below a root signs, and its own certificate comes with what it signs.
    let sub = take(&file("sub.crt"), "sub.key", &file("root.crt")).unwrap();
    assert_eq!(sub.kind, GivenKind::Authority);
    assert_eq!(sub.made.public.as_ref().unwrap().text.as_bytes(), [file("sub.crt"), file("root.crt")].concat());
    let authority = Authority::open(&sub.made.value).unwrap();
    write(at, "web", &authority.issue(&subject("web", &["web.example"], &[]), days(10), &mut random).unwrap());
    openssl(at, "verify -CAfile root.crt -untrusted web.chain web.crt");
    assert_eq!(
        pem::certificates(std::str::from_utf8(&file("web.chain")).unwrap()).count(),
        1,
        "the root stays at home"
    );
    // And RSA.
    assert_eq!(take(&file("root.crt"), "root.key", b"").unwrap().kind, GivenKind::Authority);

    let refused = |cert: &[u8], key: &str, chain: &[u8]| take(cert, key, chain).err().unwrap().to_string();
    assert_eq!(refused(&file("api.crt"), "sub.key", b""), "the private key is not that of the certificate of CN=api");
    assert!(
        refused(&file("api.crt"), "api.key", &file("root.crt"))
            .starts_with("the certificate of O=Customer, CN=root did not sign")
    );
    assert!(refused(&file("api.csr"), "api.key", b"").contains("no certificate in it"));
    assert!(refused(&file("api.crt"), "api.crt", b"").contains("no private key in it"));
    openssl(at, "ec -in api.key -out sec1.key");
    assert!(refused(&file("api.crt"), "sec1.key", b"").contains("openssl pkcs8 -topk8 -nodes"));
    let later = now() + jiff::SignedDuration::from_hours(24 * 301);
    let expired = tls::given(&file("api.crt"), &file("api.key"), b"", later).err().unwrap().to_string();
    assert!(expired.starts_with("the certificate of CN=api expired at 20"), "{expired}");
    let earlier = now() - jiff::SignedDuration::from_hours(24);
    let early = tls::given(&file("api.crt"), &file("api.key"), b"", earlier).err().unwrap().to_string();
    assert!(early.contains("is valid from 20"), "{early}");
}

#[test]
fn who_believes_the_former_authority_goes_on_believing_until_it_expires() {
    let made = |days_valid| {
        tls::authority(&subject("ca", &[], &[]), days(days_valid), &mut random).unwrap().public.unwrap().text
    };
    let (old, new) = (made(10), made(20));
    let both = tls::beside(&new, old.as_bytes(), now());
    assert_eq!(both, format!("{new}{old}"));
    assert_eq!(tls::beside(&new, both.as_bytes(), now()), both, "said twice, written once");
    assert_eq!(tls::beside(&new, both.as_bytes(), now() + jiff::SignedDuration::from_hours(24 * 11)), new);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// What a node reads of its own secrets is signed, and still no reason to fall over.
    #[test]
    fn damaged_certificates_take_nothing_down(at in 0..4000_usize, with in any::<u8>(), end in 0..4000_usize) {
        static MADE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let whole = MADE.get_or_init(|| tls::authority(&subject("ca", &[], &[]), days(30), &mut random).unwrap().value.to_vec());
        let mut bytes = whole.clone();
        let at = at % bytes.len();
        bytes[at] = with;
        bytes.truncate(bytes.len().saturating_sub(end % 2 * end));
        let _ = tls::expiry(&bytes);
        let _ = tls::request(&bytes);
        let _ = tls::given(&bytes, &bytes, b"", now());
        if let Ok(authority) = Authority::open(&bytes) {
            let signed = authority.issue(&subject("a", &["a"], &[]), days(1), &mut random);
            prop_assert!(signed.is_err() || signed.is_ok_and(|made| tls::expiry(&made.value).is_some()));
        }
    }
}

/// What is signed carries the authority's name, and its writer panics at kinds of attributes that its reader lets pass.
#[test]
fn an_authority_whose_name_cannot_be_written_is_refused() {
    let made = tls::authority(&subject("ca", &[], &[]), days(30), &mut random).unwrap().value;
    let text = std::str::from_utf8(&made).unwrap();
    let key = pem::private_key(text).unwrap();
    let der = x509_parser::pem::parse_x509_pem(pem::certificates(text).next().unwrap().as_bytes()).unwrap().1.contents;
    let organization = [6, 3, 0x55, 4, 10];
    let at = der.windows(5).rposition(|five| five == organization).unwrap();
    for first in [0x55, 0x78, 0x7f] {
        let mut damaged = der.clone();
        damaged[at + 2] = first;
        let body = data_encoding::BASE64_MIME.encode(&damaged);
        let bundle = format!("{key}\n-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        match Authority::open(bundle.as_bytes()) {
            Ok(_) => assert_eq!(first, 0x55),
            Err(error) => assert!(first != 0x55 && matches!(error, TlsError::Name { .. }), "{error}"),
        }
    }
}

/// `converger` on a copy of the template, as an engineer runs it.
fn on_template(folder: &Path, args: &[&str]) -> Said {
    let output = bed::converger().arg("--repo").arg(folder).args(args).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// What a real age says is in a file.
fn opened(folder: &Path, key: &Path, file: &Path) -> Option<String> {
    let (good, text) = try_run(folder, "age", &["-d", "-i", key.to_str().unwrap(), file.to_str().unwrap()]);
    good.then_some(text)
}

#[test]
fn a_new_environment_gets_all_its_secrets_by_one_command() {
    let dir = tempfile::tempdir().unwrap();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let at = dir.path();
    run(at, "cp", &["-r", top.join("repo-template/.").to_str().unwrap(), at.to_str().unwrap()]);
    let environment = at.join("environments/production");
    std::fs::remove_dir_all(environment.join("secrets")).unwrap();
    std::fs::remove_dir_all(environment.join("public")).unwrap();
    let made_before = ["version", "sha256", "recipients", "expires"];
    let text = std::fs::read_to_string(environment.join("secrets.toml")).unwrap();
    let text: Vec<&str> =
        text.lines().filter(|line| !made_before.iter().any(|key| line.starts_with(&format!("{key} = ")))).collect();
    std::fs::write(environment.join("secrets.toml"), text.join("\n") + "\n").unwrap();
    on_template(at, &["check", "--quiet"]).exits(3).says(&["converger secret generate internal"]);

    let said = on_template(at, &["secret", "generate"]).exits(0);
    on_template(at, &["check", "--quiet"]).exits(0);
    on_template(at, &["secret", "generate"]).exits(0).says(&["nothing to generate"]);

    let sample = top.join("secrets/sample");
    let value = |name: &str, key: &str| opened(at, &sample.join(key), &environment.join(format!("secrets/{name}.age")));
    let files: Vec<_> =
        std::fs::read_dir(environment.join("secrets")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 19);
    for file in &files {
        let value = opened(at, &sample.join("operator.key"), file).unwrap();
        assert!(
            value.lines().all(|line| line.starts_with("-----") || !said.all().contains(line)),
            "{}",
            file.display()
        );
    }
    assert_eq!(value("vrrp-password", "operator.key").unwrap().len(), 8);
    assert_eq!(value("redis-password", "identities/redis02.key").unwrap().len(), 32);
    let bundle = value("tls-lb01", "identities/lb01.key").unwrap();
    assert_eq!(value("tls-lb01", "identities/lb02.key"), None);
    assert_eq!(value("internal", "identities/lb01.key"), None);
    let labels: Vec<&str> = pem::blocks(&bundle).map(|block| block.label).collect();
    assert_eq!(labels, ["PRIVATE KEY", "CERTIFICATE"], "as the roles expect it");
    std::fs::write(at.join("lb01.pem"), &bundle).unwrap();
    for (kind, name) in [
        ("hostname", "lb01.data.example.internal"),
        ("hostname", "grafana.data.example.internal"),
        ("ip", "10.20.1.100"),
    ] {
        openssl(
            at,
            &format!("verify -CAfile environments/production/public/internal.crt -verify_{kind} {name} lb01.pem"),
        );
    }
    assert!(openssl(at, "x509 -in lb01.pem -noout -subject").contains("CN=lb01\n"));
}

/// A bed whose nodes have a certificate each, signed by an authority of the environment; the operator's key beside it.
fn bed_with_certificates(days: &str) -> (Bed, String) {
    let bed = Bed::new();
    // Nobody restarts while the others of its group are down.
    for node in bed::NODES {
        bed.node(node).once().exits(0);
    }
    let key = age::x25519::Identity::generate();
    let path = bed.dir().join("operator.key");
    std::fs::write(&path, key.to_string().expose_secret()).unwrap();
    run(bed.dir(), "chmod", &["600", "operator.key"]);
    let entries = bed.read("environments/production/secrets.toml");
    let operators = format!("operators = [\"{}\"]\n\n{entries}\n[secrets.internal]\ngrant = []\n", key.to_public());
    bed.forge.write("environments/production/secrets.toml", &(operators + "generate = { kind = \"ca\" }\n"));
    let token = bed.dir().join("token");
    std::fs::write(&token, "open sesame").unwrap();
    bed.converger(&["secret", "encrypt", "token", "--from", token.to_str().unwrap()]).exits(0);
    bed.converger(&["secret", "generate"]).exits(0).says(&["internal: version 1"]);
    let each = ["--each", "{ cluster = \"web\" }", "--name", "tls-{node}", "--kind", "tls", "--ca", "internal"];
    let keys = ["--identity", path.to_str().unwrap(), "--days", days];
    let said = bed.converger(&[&["secret", "generate"][..], &each, &keys].concat()).exits(0);
    said.says(&["tls-web01: version 1", "tls-web02: version 1", "tls-web03: version 1"]);
    let file =
        "\n[[file]]\npath = \"/etc/web/tls.pem\"\nsecret = \"tls-{{ node.name }}\"\nrestarts = [\"web.service\"]\n";
    bed.forge.write("roles/web/role.toml", &(bed.read("roles/web/role.toml") + file));
    bed.converger(&["check"]).exits(0);
    bed.commit("certificates");
    (bed, path.to_str().unwrap().to_owned())
}

fn certificates_in(report: &serde_json::Value) -> Vec<&str> {
    report["certificates"].as_array().unwrap().iter().map(|one| one["secret"].as_str().unwrap()).collect()
}

#[test]
fn who_is_about_to_expire_is_told_by_check_report_status_and_why_and_renewed_by_a_commit() {
    let (bed, operator) = bed_with_certificates("10");
    let node = bed.node("web01");
    node.once().exits(0);
    std::fs::write(bed.dir().join("internal.crt"), bed.read("environments/production/public/internal.crt")).unwrap();
    let installed = |day: u32| {
        std::fs::write(bed.dir().join("tls.pem"), node.text("etc/web/tls.pem")).unwrap();
        openssl(bed.dir(), "verify -CAfile internal.crt -verify_hostname web01.web.example.internal tls.pem");
        let secs = (day * 86_400).to_string();
        try_run(bed.dir(), "openssl", &["x509", "-in", "tls.pem", "-noout", "-checkend", &secs]).0
    };
    assert!(installed(9) && !installed(11));
    bed.converger(&["check"]).exits(0).says(&["warning[certificate-expires]", "tls-web02 expires in 9 days"]);
    assert_eq!(certificates_in(&node.report()), ["tls-web01"], "its own, and not those of others");
    assert_eq!(node.report()["state"], "converged");
    bed.converger(&["status"]).says(&["tls-web01", "in 9 days"]);
    bed.converger(&["why", "web01"]).exits(0).says(&["The certificate of secret tls-web01 expires in 9 days"]);

    bed.converger(&["secret", "generate", "--due", "5"]).exits(0).says(&["nothing to generate"]);
    bed.converger(&["secret", "generate", "--due", "30"]).exits(2).says(&["--identity"]);
    let due = ["secret", "generate", "--due", "30", "--identity", &operator];
    bed.converger(&due).exits(0).says(&[
        "tls-web01: version 2",
        "tls-web03: version 2",
        "restarts web.service on web01, web02 and web03",
    ]);
    assert!(!bed.converger(&["check"]).exits(0).all().contains("certificate-expires"));
    bed.commit("renewed");
    bed.converger(&["plan", "HEAD~1..HEAD"]).exits(0).says(&["3 restarts"]);
    let (web, tool) = (node.starts("web.service"), node.starts("tool.service"));
    node.once().exits(0).says(&["hold web.web: claimed", "restart web.service"]);
    assert_eq!((node.starts("web.service"), node.starts("tool.service")), (web + 1, tool));
    assert!(installed(300));
    assert!(certificates_in(&node.report()).is_empty());
    assert!(!bed.converger(&["status"]).all().contains("tls-web01"));
}

#[test]
fn an_authority_is_replaced_in_one_commit_and_what_it_signed_in_the_next() {
    let (bed, operator) = bed_with_certificates("100");
    let node = bed.node("web01");
    node.once().exits(0);
    let at = bed.dir();
    let verify = |bundle: &str| {
        std::fs::write(at.join("ca.crt"), bed.read("environments/production/public/internal.crt")).unwrap();
        std::fs::write(at.join("tls.pem"), bundle).unwrap();
        openssl(at, "verify -CAfile ca.crt tls.pem");
    };
    let both = ["secret", "generate", "internal", "tls-web01", "--identity", &operator];
    let said = bed.converger(&both).exits(0).says(&["internal: version 2", "not tls-web01: the authority is new"]);
    assert!(!said.all().contains("tls-web01: version"));
    assert_eq!(bed.read("environments/production/public/internal.crt").matches("BEGIN").count(), 2);
    verify(&node.text("etc/web/tls.pem"));
    bed.commit("the new authority");
    bed.converger(&["secret", "generate", "tls-web01", "--identity", &operator])
        .exits(0)
        .says(&["tls-web01: version 2"]);
    bed.commit("what it signs");
    let before = node.text("etc/web/tls.pem");
    node.once().exits(0);
    let after = node.text("etc/web/tls.pem");
    assert_ne!(before, after);
    verify(&after);
    // Only the new one is needed now.
    let public = bed.read("environments/production/public/internal.crt");
    std::fs::write(at.join("ca.crt"), pem::certificates(&public).next().unwrap()).unwrap();
    openssl(at, "verify -CAfile ca.crt tls.pem");
}

/// B19
#[test]
fn one_rotated_secret_of_ten_restarts_exactly_what_uses_it() {
    let bed = Bed::new();
    let (mut secrets, mut role) = (bed.read("environments/production/secrets.toml"), bed.read("roles/base/role.toml"));
    for n in 0..10 {
        secrets += &format!("\n[secrets.s{n}]\ngrant = \"all\"\ngenerate = {{ kind = \"hex\" }}\n");
        role += &format!(
            "\n[[file]]\npath = \"/etc/s{n}\"\nsecret = \"s{n}\"\nrestarts = [\"u{n}.service\"]\n\
             \n[[unit]]\nname = \"u{n}.service\"\ntemplate = \"tool.service\"\nenabled = true\n"
        );
    }
    bed.forge.write("environments/production/secrets.toml", &secrets);
    bed.forge.write("roles/base/role.toml", &role);
    bed.converger(&["secret", "generate"]).exits(0).says(&["s0: version 1", "s9: version 1"]);
    bed.commit("ten secrets");
    let node = bed.node("web01");
    node.once().exits(0);
    let units: Vec<String> = (0..10).map(|n| format!("u{n}.service")).collect();
    let starts = || units.iter().map(|unit| node.starts(unit)).collect::<Vec<u64>>();
    let (before, value) = (starts(), node.text("etc/s3"));
    bed.converger(&["secret", "rotate", "s3"])
        .exits(0)
        .says(&["s3: version 2", "  restarts u3.service on web01, web02 and web03\n"]);
    bed.commit("rotated");
    let plan = bed.converger(&["plan", "HEAD~1..HEAD"]).exits(0);
    for unit in &units {
        assert_eq!(plan.all().contains(unit.as_str()), unit == "u3.service", "{}", plan.all());
    }
    node.once().exits(0);
    let changed: Vec<u64> = starts().iter().zip(&before).map(|(now, then)| now - then).collect();
    assert_eq!(changed, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_ne!(node.text("etc/s3"), value);
    assert!(!plan.all().contains(value.trim()) && !plan.all().contains(node.text("etc/s3").trim()));
}

#[test]
fn what_was_made_elsewhere_is_imported_checked_and_signs() {
    let (bed, operator) = bed_with_certificates("100");
    let at = bed.dir();
    customers(at);
    let path = |name: &str| at.join(name).to_str().unwrap().to_owned();
    let import = |name: &str, cert: &str, key: &str, more: &[&str]| {
        let (cert, key) = (path(cert), path(key));
        bed.converger(&[&["secret", "import", name, "--cert", &cert, "--key", &key], more].concat())
    };
    let entries = bed.read("environments/production/secrets.toml");
    let awaited = "\n[secrets.awaited]\ngrant = []\n\n[secrets.tls-x]\ngrant = []\n\
                   generate = { kind = \"tls\", ca = \"awaited\", names = [\"x\"] }\n";
    bed.forge.write("environments/production/secrets.toml", &(entries.clone() + awaited));
    bed.converger(&["secret", "generate"]).exits(2).says(&["converger secret import awaited"]);
    bed.forge.write("environments/production/secrets.toml", &entries);
    import("corporate", "sub.crt", "root.key", &[]).exits(2).says(&["the private key is not that of"]);
    import("corporate", "sub.crt", "sub.key", &["--grant", "all"]).exits(2).says(&["granted to nobody"]);
    import("api", "api.crt", "api.key", &[]).exits(2).says(&["--grant"]);
    let (root, sub) = (path("root.crt"), path("sub.crt"));
    import("corporate", "sub.crt", "sub.key", &["--chain", &root])
        .exits(0)
        .says(&["corporate: version 1", "0 nodes and 1 operator"]);
    let entries = bed.read("environments/production/secrets.toml");
    assert!(entries.contains("[secrets.corporate]") && entries.contains("grant = []\n"));
    assert_eq!(
        bed.read("environments/production/public/corporate.crt"),
        std::fs::read_to_string(&sub).unwrap() + &std::fs::read_to_string(&root).unwrap()
    );
    bed.edit("environments/production/secrets.toml", "ca = \"internal\"", "ca = \"corporate\"");
    bed.converger(&["secret", "rotate", "tls-web01", "--identity", &operator]).exits(0).says(&["tls-web01: version 2"]);
    bed.converger(&["check"]).exits(0);
    bed.commit("signed by the customer's authority");
    let node = bed.node("web01");
    node.once().exits(0);
    std::fs::write(at.join("tls.pem"), node.text("etc/web/tls.pem")).unwrap();
    openssl(at, "verify -CAfile root.crt -untrusted tls.pem tls.pem");

    let said = import("tls-web01", "api.crt", "api.key", &["--chain", &sub]).exits(0);
    said.says(&[
        "tls-web01: version 3",
        "for api.example, 10.1.1.1",
        "not for web01.web.example.internal",
        "taken out",
    ]);
    let entries: toml::Table = bed.read("environments/production/secrets.toml").parse().unwrap();
    let entry = &entries["secrets"]["tls-web01"];
    assert!(entry.get("generate").is_none() && entry["expires"].as_str().unwrap().starts_with("20"));
    bed.commit("made elsewhere");
    node.once().exits(0);
    assert_eq!(pem::certificates(&node.text("etc/web/tls.pem")).count(), 2);
    bed.converger(&["secret", "generate", "tls-web01"]).exits(2).says(&["does not say how it is made"]);
    let due = bed.converger(&["secret", "generate", "--due", "365", "--identity", &operator]).exits(0);
    due.says(&[
        "tls-web02: version 2",
        "not tls-web01: it does not say how it is made",
        "converger secret import tls-web01",
    ]);
}

#[test]
fn another_authority_signs_for_the_key_that_is_there() {
    let (bed, operator) = bed_with_certificates("100");
    let at = bed.dir();
    customers(at);
    let keys = ["--identity", operator.as_str()];
    let asked = bed.converger(&[&["secret", "request", "tls-web01"][..], &keys].concat()).exits(0).out;
    assert!(!asked.contains("PRIVATE"));
    std::fs::write(at.join("web01.csr"), asked).unwrap();
    let said = openssl(at, "req -in web01.csr -noout -verify -text");
    assert!(
        said.contains("CN=web01") && said.contains("DNS:web01.web.example.internal, IP Address:10.20.1.1"),
        "{said}"
    );
    openssl(
        at,
        "x509 -req -in web01.csr -CA sub.crt -CAkey sub.key -CAcreateserial -days 50 -copy_extensions copy -out web01.crt",
    );
    let (cert, chain) = (at.join("web01.crt"), at.join("sub.crt"));
    let import =
        ["secret", "import", "tls-web01", "--cert", cert.to_str().unwrap(), "--chain", chain.to_str().unwrap()];
    bed.converger(&import).exits(2).says(&["--identity"]);
    let said = bed.converger(&[&import[..], &keys].concat()).exits(0).says(&["tls-web01: version 2"]);
    assert!(!said.all().contains("not for"));
    let file = bed.forge.work.join("environments/production/secrets/tls-web01.age");
    std::fs::write(at.join("tls.pem"), opened(at, &at.join("identities/web01"), &file).unwrap()).unwrap();
    openssl(at, "verify -CAfile root.crt -untrusted tls.pem -verify_hostname web01.web.example.internal tls.pem");
    assert_eq!(openssl(at, "pkey -in tls.pem -pubout"), openssl(at, "x509 -in tls.pem -pubkey -noout"));
    // Of another secret's key it is not.
    let other = ["secret", "import", "tls-web02", "--cert", cert.to_str().unwrap()];
    bed.converger(&[&other[..], &keys].concat()).exits(2).says(&["the private key is not that of"]);
}

#[test]
fn a_template_writes_the_parts_and_nobody_else_sees_them() {
    let (bed, _) = bed_with_certificates("100");
    let bundle = "secret(name=\"tls-\" ~ node.name)";
    let template = format!(
        "{{{{ {bundle} | pem(part=\"key\") }}}}\n--\n{{{{ {bundle} | pem(part=\"certificate\") }}}}\n--{{{{ {bundle} | pem(part=\"chain\") }}}}\n"
    );
    bed.forge.write("roles/web/parts", &template);
    let file = "\n[[file]]\npath = \"/etc/web/parts\"\ntemplate = \"parts\"\nrestarts = [\"web.service\"]\n";
    bed.forge.write("roles/web/role.toml", &(bed.read("roles/web/role.toml") + file));
    let commit = bed.commit("parts");
    let node = bed.node("web01");
    let dry = node.agent(&["--once", "--dry-run"]).all();
    let said = node.once().exits(0).all();
    let (parts, whole) = (node.text("etc/web/parts"), node.text("etc/web/tls.pem"));
    let expected = [Part::Key, Part::Certificate].map(|part| pem::part(&whole, part).unwrap());
    assert_eq!(parts, format!("{}\n--\n{}\n--\n", expected[0], expected[1]));
    let seen = [
        dry,
        said,
        node.report().to_string(),
        bed.converger(&["plan", &format!("{commit}~1..{commit}")]).exits(0).all(),
        bed.converger(&["render", "--node", "web01", "--out", bed.dir().join("out").to_str().unwrap()]).exits(0).all(),
        std::fs::read_to_string(bed.dir().join("out/web01/etc/web/parts")).unwrap(),
    ];
    assert_eq!(seen[5], "«secret:tls-web01»\n--\n«secret:tls-web01»\n--«secret:tls-web01»\n");
    for line in expected[0].lines().filter(|line| !line.starts_with("-----")) {
        assert!(seen.iter().all(|text| !text.contains(line)));
    }
}
