//! Rendering: what strict refuses, what a node gets, and that no secret shows.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail by panicking

mod fleet_of;

use std::collections::BTreeMap;

use converger::fleet::problem::Problem;
use converger::host::Observed;
use converger::name::NodeName;
use converger::plan::{self, Known, Owned};
use converger::render::{Desired, Renderer, lint_fleet};
use converger::resource::{Placed, Resource};
use converger::secrets::Unsealed;
use fleet_of::{Files, spec};

fn kafka(manifest: &str) -> Files {
    Files::new().with(
        "roles/kafka/role.toml",
        format!("format = 1\n[groups.controllers]\nunit = \"kafka.service\"\n{manifest}"),
    )
}

fn desired(files: &Files, node: &str) -> Desired {
    let fleet = files.fleet();
    let renderer = Renderer::new(&fleet);
    renderer.node(&spec(&fleet, node), &Unsealed::without_keys()).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn problems(files: &Files, node: &str) -> Vec<Problem> {
    let fleet = files.fleet();
    let renderer = Renderer::new(&fleet);
    renderer.node(&spec(&fleet, node), &Unsealed::without_keys()).err().unwrap_or_default()
}

fn find<'d>(desired: &'d Desired, name: &str) -> &'d Placed {
    let found = desired.resources.iter().find(|placed| placed.resource.id().to_string() == name);
    found.unwrap_or_else(|| panic!("no {name}"))
}

fn text(desired: &Desired, path: &str) -> String {
    match &find(desired, path).resource {
        Resource::File(file) => String::from_utf8(file.content.shown().to_vec()).unwrap(),
        _ => panic!("{path} is no file"),
    }
}

#[test]
fn strict() {
    let table = include_str!("tables/lint.txt");
    let rows: Vec<&str> = table.split("\n\n").skip(1).collect();
    assert!(rows.len() > 30);
    for row in rows {
        let row: String = row.lines().filter(|line| !line.starts_with("# ")).map(|line| format!("{line}\n")).collect();
        let (template, answer) = row.split_once("\n----\n").unwrap_or_else(|| panic!("no answer: {row}"));
        let fleet = kafka("[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n")
            .with("roles/kafka/t", template)
            .with("roles/kafka/defaults.toml", "heap = 6\nnone = []\nlist = [\"a\"]\nbroken = \"a\\nb\"\n")
            .with("environments/production/versions.toml", "[kafka]\nversion = \"3.9.0\"\n")
            .with(
                "environments/production/secrets.toml",
                "[secrets.etcd-only]\nversion = 1\nsha256 = \"\"\ngrant = { cluster = \"etcd\" }\nrecipients = \"\"\n",
            )
            .fleet();
        let said: String = lint_fleet(&fleet)
            .iter()
            .map(|problem| {
                let carets = problem.span.clone().map_or("-", |span| template.get(span).unwrap_or("?"));
                let carets = if carets.is_empty() { "-" } else { carets };
                format!("{} | {carets} | {}\n", problem.rule, problem.title)
            })
            .collect();
        let said = if said.is_empty() { "ok\n" } else { &said };
        assert_eq!(said.trim(), answer.trim(), "\n{template}");
    }
}

#[test]
fn a_problem_says_what_there_is_and_what_to_do() {
    let files = kafka("[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n")
        .with("roles/kafka/t", "\n{% if node.rak %}{% endif %}");
    let problem = lint_fleet(&files.fleet()).remove(0);
    assert_eq!(problem.path.as_str(), "roles/kafka/t");
    assert_eq!(problem.span, Some(7..15));
    assert_eq!(
        problem.label,
        "a node has: address, addresses, clusters, fqdn, labels, name, os, os_family, size, state"
    );
    assert_eq!(problem.notes, ["Tera would have taken this for false"]);
    assert_eq!(
        problem.help.as_deref(),
        Some("where it may be missing: `node.rak is defined` or `node.rak | default(value=…)`")
    );
}

#[test]
fn a_string_of_the_manifest_is_looked_at_too() {
    let files = kafka("[[action]]\nname = \"a\"\nrun = [\"/bin/true\", \"{{ vars.nope }}\"]\n");
    let problem = problems(&files, "kafka02").remove(0);
    let manifest = files.fleet().tree.get("roles/kafka/role.toml").unwrap().to_vec();
    assert_eq!(problem.title, "`vars.nope` does not exist for kafka02");
    assert_eq!(&manifest[problem.span.unwrap()], b"vars.nope");
}

#[test]
fn a_broken_role_touches_only_the_nodes_that_have_it() {
    let files = kafka("[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n").with("roles/kafka/t", "{{ node.name");
    assert_eq!(problems(&files, "kafka01")[0].rule, "template-syntax");
    assert!(problems(&files, "etcd01").is_empty());
}

const EVERYTHING: &str = r#"
[[package]]
name = { debian = "openjdk-17", rhel = "java-17" }
restarts = ["kafka.service"]
[[artifact]]
component = "kafka"
into = "/opt/kafka"
restarts = ["kafka.service"]
[[file]]
path = "/etc/kafka/{{ cluster.name }}.properties"
template = "server.properties"
mode = "0640"
group = "kafka"
validate = { run = ["check", "{{ node.name }}", "{}"], ok_exit = [0, 1] }
restarts = ["kafka.service"]
[[file]]
path = "/etc/kafka/raw"
source = "raw"
[[file]]
path = "/etc/kafka/controller"
source = "raw"
only = { label = "controller" }
[[unit]]
name = "kafka.service"
template = "kafka.service"
before_stop = [["drain", "{{ node.id }}"]]
[[unit]]
name = "vendor.service"
dropin = "vendor"
enabled = true
[[check]]
name = "quorum"
kind = "kafka-quorum"
port = 9092
tls = { ca = "/etc/{{ cluster.name }}/ca.crt" }
[[action]]
name = "format"
run = ["format", "{{ vars.cluster_id }}"]
creates = "/data/{{ node.name }}"
before = ["kafka.service"]
"#;

fn everything() -> Files {
    kafka(EVERYTHING)
        .with("roles/kafka/raw", b"{{ not a template }}\0\xff")
        .with("roles/kafka/vendor", "[Service]\nLimitNOFILE={{ vars.limits.files }}\n")
        .with("roles/kafka/kafka.service", "[Service]\nExecStart=/opt/kafka/current/run {{ node.fqdn }}\n")
        .with(
            "roles/kafka/server.properties",
            "{% include \"head\" %}\nid={{ node.id }}\nvoters={% for n in cluster.nodes %}{{ n.id }}@{{ n.fqdn }}{% if not loop.last %},{% endif %}{% endfor %}\n\
             etcd={{ addresses(of=\"etcd\", port=2379) }}\nracks={{ nodes_of(cluster=\"kafka\", label=\"rack=a\") | length }}\n\
             {% for k, v in vars.limits %}{{ k }}={{ v }};{% endfor %}\n{{ versions.kafka.version }} {{ node.address }} {{ vips.internal }} {{ environment.domain }}\n",
        )
        .with("roles/kafka/head", "# {{ node.name }} of {{ cluster.name }} in {{ environment.name }}")
        .with("roles/kafka/defaults.toml", "cluster_id = \"default\"\nlimits = { files = 1, procs = 2, z = 1, b = 1 }\n")
        .with(
            "environments/production/variables.toml",
            "[all]\nlimits = { files = 2 }\n[os.debian]\nlimits = { procs = 3 }\n[os.debian-12]\nlimits = { procs = 4 }\n\
             [cluster.kafka]\ncluster_id = \"of-kafka\"\n[node.kafka02]\nlimits = { files = 5 }\n",
        )
        .with(
            "environments/production/versions.toml",
            "[kafka]\nversion = \"3.9.0\"\nsha256 = \"ab\"\nurls = [\"https://m/k.tgz\"]\n[kafka.os.debian]\nversion = \"3.9.1\"\n",
        )
}

#[test]
fn a_node_gets_what_its_role_says() {
    let desired = desired(&everything(), "kafka02");
    assert_eq!(
        text(&desired, "/etc/kafka/kafka.properties"),
        "# kafka02 of kafka in production\nid=2\nvoters=1@kafka01.data.example.internal,2@kafka02.data.example.internal,\
         3@kafka03.data.example.internal\netcd=10.20.30.11:2379\nracks=1\nfiles=5;procs=4;z=1;b=1;\n\
         3.9.1 10.20.20.12 10.20.0.10 data.example.internal\n"
    );
    let Resource::File(file) = &find(&desired, "/etc/kafka/kafka.properties").resource else { panic!() };
    assert_eq!((file.mode, file.group.as_str()), (0o640, "kafka"));
    assert_eq!(file.validate.as_ref().unwrap().run, ["check", "kafka02", "{}"]);
    let Resource::File(raw) = &find(&desired, "/etc/kafka/raw").resource else { panic!() };
    assert_eq!((raw.content.bytes().unwrap(), raw.mode), (&b"{{ not a template }}\0\xff"[..], 0o644));
    let dropin = find(&desired, "/etc/systemd/system/vendor.service.d/50-converger.conf");
    assert_eq!(dropin.restarts, ["vendor.service".into()]);
    let Resource::Unit(unit) = &find(&desired, "kafka.service").resource else { panic!() };
    assert_eq!((unit.restart_epoch, &unit.before_stop), (2, &vec![vec!["drain".to_owned(), "2".to_owned()]]));
    let Resource::Action(action) = &find(&desired, "action format").resource else { panic!() };
    assert_eq!((&action.run[1], action.creates.as_deref()), (&"of-kafka".to_owned(), Some("/data/kafka02")));
    let Resource::Package(package) = &find(&desired, "package openjdk-17").resource else { panic!() };
    assert_eq!(package.version, "");
    let Resource::Artifact(artifact) = &find(&desired, "artifact /opt/kafka").resource else { panic!() };
    assert_eq!((artifact.version.as_str(), artifact.sha256.as_str()), ("3.9.1", "ab"));
    let origin = &find(&desired, "/etc/kafka/raw").origin;
    assert_eq!((origin.path.as_str(), origin.cluster.as_ref().unwrap().as_str()), ("roles/kafka/role.toml", "kafka"));
    find(&desired, "/etc/kafka/controller");
    let other = self::desired(&everything(), "kafka03");
    assert!(other.resources.iter().all(|placed| placed.resource.id().to_string() != "/etc/kafka/controller"));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let all = |files: &Files| -> BTreeMap<String, Vec<u8>> {
        let desired = desired(files, "kafka01");
        let files = desired.resources.iter().filter_map(|placed| match &placed.resource {
            Resource::File(file) => Some((file.path.to_string(), file.content.shown().to_vec())),
            _ => None,
        });
        files.collect()
    };
    let files = everything();
    let first = all(&files);
    for _ in 0..20 {
        assert_eq!(first, all(&files));
    }
}

#[test]
fn checks_become_questions_to_every_member() {
    let fleet = everything().fleet();
    let renderer = Renderer::new(&fleet);
    let spec = spec(&fleet, "kafka02");
    let group = fleet.environment.group(&"kafka.controllers".into()).unwrap();
    let questions = renderer.questions(&spec, group, "quorum", &Unsealed::without_keys()).unwrap();
    let asked: Vec<(&NodeName, &str, bool)> =
        questions.iter().map(|q| (&q.member, q.address.as_str(), q.own)).collect();
    assert_eq!(asked, [(&"kafka01".into(), "10.20.20.11", false), (&"kafka02".into(), "10.20.20.12", true)]);
    assert_eq!(questions[0].tls.as_ref().unwrap().ca, "/etc/kafka/ca.crt");
    assert_eq!(questions[0].members.len(), 2);
}

#[test]
fn a_role_that_reads_no_cluster_is_there_once() {
    let topology = fleet_of::TOPOLOGY
        .replace("roles = [\"etcd\"]", "roles = [\"etcd\", \"shared\"]\nrestart_epoch = 3")
        .replace("roles = [\"kafka\"]", "roles = [\"kafka\", \"shared\"]")
        .replace("[nodes.etcd01]\nclusters = [\"etcd\"]", "[nodes.etcd01]\nclusters = [\"etcd\", \"kafka\"]");
    let role = "format = 1\n[[unit]]\nname = \"x.service\"\n[[file]]\npath = \"/etc/x\"\ntemplate = \"x\"\n";
    let files = Files::new()
        .with("environments/production/topology.toml", topology)
        .with("environments/production/variables.toml", "[cluster.kafka]\na = 1\n[cluster.etcd]\nb = 2\n")
        .with("roles/shared/role.toml", role);
    let once = desired(&files.clone().with("roles/shared/x", "{{ vars.a }}{{ vars.b }}"), "etcd01");
    assert_eq!(text(&once, "/etc/x"), "12");
    let Resource::Unit(unit) = &find(&once, "x.service").resource else { panic!() };
    assert_eq!(unit.restart_epoch, 5);

    let twice = problems(&files.with("roles/shared/x", "{{ cluster.name }}"), "etcd01");
    let titles: Vec<&str> = twice.iter().map(|problem| problem.title.as_str()).collect();
    assert_eq!(titles, ["/etc/x is declared twice for etcd01", "x.service is declared twice for etcd01"]);
    assert_eq!(twice[0].rule, "conflict");
    assert!(twice[0].notes[0].ends_with("(cluster etcd)") && twice[0].notes[1].ends_with("(cluster kafka)"));
}

#[test]
fn manifests_that_cannot_be_kept() {
    let rules = |manifest: &str| -> Vec<&'static str> {
        let files = kafka(manifest).with("roles/kafka/x", "x").with(
            "environments/production/secrets.toml",
            "[secrets.s]\nversion = 1\nsha256 = \"\"\ngrant = \"all\"\nrecipients = \"\"\n",
        );
        problems(&files, "kafka01").iter().map(|problem| problem.rule).collect()
    };
    let file = |rest: &str| format!("[[file]]\npath = \"/etc/x\"\n{rest}");
    assert_eq!(rules(&file("source = \"x\"\n")), [""; 0]);
    assert_eq!(rules(&file("")), ["one-content"]);
    assert_eq!(rules(&file("source = \"x\"\ntemplate = \"x\"\n")), ["one-content"]);
    assert_eq!(rules(&file("source = \"y\"\n")), ["missing-file"]);
    assert_eq!(rules(&file("template = \"y\"\n")), ["missing-file"]);
    assert_eq!(rules(&file("source = \"x\"\nmode = \"9\"\n")), ["bad-mode"]);
    assert_eq!(rules(&file("secret = \"nope\"\n")), ["unknown-secret"]);
    assert_eq!(rules("[[file]]\npath = \"/etc/../x\"\nsource = \"x\"\n"), ["bad-path"]);
    assert_eq!(rules("[[file]]\npath = \"{{ 'etc' }}\"\nsource = \"x\"\n"), ["bad-path"]);
    assert_eq!(rules("[[action]]\nname = \"a\"\nrun = [\"{{ secret(name='s') }}\"]\n"), ["secret-in-argv"]);
    assert_eq!(rules("[[package]]\nname = { rhel = \"x\" }\n"), ["no-package-name"]);
    assert_eq!(rules("[[artifact]]\ncomponent = \"x\"\ninto = \"/opt/x\"\n"), ["unknown-component"]);
    assert_eq!(rules("[[unit]]\nname = \"x.service\"\ntemplate = \"x\"\ndropin = \"x\"\n"), ["one-content"]);
}

#[test]
fn output_is_limited() {
    let bomb = "{% for a in range(end=1000) %}{% for b in range(end=500) %}{{ vars.x }}{% endfor %}{% endfor %}";
    let files = kafka("[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n")
        .with("roles/kafka/t", bomb)
        .with("roles/kafka/defaults.toml", format!("x = \"{}\"\n", "x".repeat(100)));
    let problems = problems(&files, "kafka01");
    assert_eq!(
        (problems[0].rule, problems[0].title.as_str()),
        ("render-limit", "it renders to more than 16 MiB for kafka01")
    );
}

/// What an expression makes of a path is judged like a path that is written out.
#[test]
fn no_expression_leads_to_what_the_node_believes_in() {
    let paths = ["/etc/{{ 'converger/trust.toml' }}", "/var/lib/{{ 'converger' }}/accepted.a", "/{{ 'proc' }}/x"];
    for path in paths {
        let role = format!("format = 1\n[[file]]\npath = \"{path}\"\ntemplate = \"x\"\n");
        let files = Files::new().with("roles/base/role.toml", role).with("roles/base/x", "x\n");
        let problems = lint_fleet(&files.fleet());
        assert!(problems.iter().any(|problem| problem.rule == "protected-path"), "{path}: {problems:?}");
    }
}

/// B11: what programs of a role say is kept on the node as soon as one of its files has a secret, and stays so while the
/// last one written had it.
#[test]
fn secrets_are_near_everything_of_their_role() {
    let manifest = "[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n[[file]]\npath = \"/etc/u\"\ntemplate = \"u\"\n\
                    restarts = [\"kafka.service\"]\n[[unit]]\nname = \"kafka.service\"\n\
                    [[action]]\nname = \"a\"\nrun = [\"true\"]\nbefore = [\"kafka.service\"]\n";
    let secrets = "[secrets.s]\nversion = 1\nsha256 = \"\"\ngrant = \"all\"\nrecipients = \"\"\n";
    let files = |text: &str| {
        kafka(manifest)
            .with("environments/production/secrets.toml", secrets)
            .with("roles/kafka/t", text)
            .with("roles/kafka/u", "u\n")
            .with("roles/base/role.toml", "format = 1\n[[file]]\npath = \"/etc/base\"\nsource = \"x\"\n")
            .with("roles/base/x", "x\n")
    };
    let near = |text: &str, known: &Known| -> Vec<(String, bool)> {
        let desired = desired(&files(text), "kafka01");
        let plan = plan::plan(&desired, &Observed::default(), known, &[]);
        plan.batches.iter().map(|batch| (batch.name.clone(), batch.secrets_near)).collect()
    };
    let all = |near| vec![("base".to_owned(), false), ("kafka".to_owned(), near), ("kafka.service".to_owned(), near)];
    assert_eq!(near("plain", &Known::default()), all(false));
    assert_eq!(near("{{ secret(name='s') }}", &Known::default()), all(true));
    let desired = desired(&files("{{ secret(name='s') }}"), "kafka01");
    let placed = find(&desired, "/etc/t");
    let inputs = placed.resource.inputs();
    for (secret, secret_comes) in [(true, false), (false, true)] {
        let owned =
            Owned { inputs, content: None, stamp: None, written: true, secret, secret_comes, owed: false, keep: false };
        let known = Known { owned: [(placed.resource.id(), owned)].into(), ..Known::default() };
        assert_eq!(near("plain", &known), all(true), "it was there when this was last written, or may be");
    }
}

#[test]
fn templates_read_the_public_halves_of_secrets() {
    let files = kafka("[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n")
        .with(
            "environments/production/public/internal.crt",
            "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
        )
        .with("environments/staging/public/other.crt", "x");
    let good = files.clone().with("roles/kafka/t", "{{ public[\"internal.crt\"] | pem(part=\"certificate\") }}\n");
    let text = text(&desired(&good, "kafka01"), "/etc/t");
    assert_eq!(text, "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n");
    for missing in ["{{ public[\"other.crt\"] }}", "{{ public[\"internal.crt\"] | pem(part=\"key\") }}"] {
        assert_eq!(problems(&files.clone().with("roles/kafka/t", missing), "kafka01").len(), 1, "{missing}");
    }
}

#[test]
fn a_pem_is_taken_apart_behind_its_placeholder() {
    let files = kafka("[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n")
        .with(
            "roles/kafka/t",
            "{{ secret(name=\"tls\") | pem(part=\"key\") }}\n{{ secret(name=\"tls\") | pem(part=\"chain\") }}\n",
        )
        .with(
            "environments/production/secrets.toml",
            "[secrets.tls]\nversion = 1\nsha256 = \"\"\ngrant = { cluster = \"kafka\" }\nrecipients = \"\"\n",
        );
    let desired = desired(&files, "kafka01");
    assert_eq!(text(&desired, "/etc/t"), "«secret:tls»\n«secret:tls»\n");
    let Resource::File(file) = &find(&desired, "/etc/t").resource else { panic!("no file") };
    assert_eq!(file.content.secrets()[0].name.as_str(), "tls");
}
