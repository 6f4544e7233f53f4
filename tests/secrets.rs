//! Secrets: read and written as the `age` command does, refused when anything is wrong, and never shown.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail by panicking

mod fleet_of;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use converger::clock::{Clock as _, SystemClock};
use converger::fleet::Fleet;
use converger::name::SecretName;
use converger::render::Renderer;
use converger::resource::{Content, Resource};
use converger::secrets::cover::recipients_digest;
use converger::secrets::identities::Identities;
use converger::secrets::{Opened, Unsealed, encrypt, unseal};
use fleet_of::{Files, spec};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

/// A folder with a fresh age key in it.
struct Keys {
    folder: tempfile::TempDir,
    age: PathBuf,
    recipient: String,
}

#[allow(clippy::disallowed_methods)] // the real commands are what is compared with
fn run(program: &str, args: &[&str], stdin: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // From a thread of its own: it writes back while it still reads.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || pipe.write_all(stdin).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program} {args:?}");
    output.stdout
}

#[allow(clippy::disallowed_methods)]
fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

impl Keys {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = age::x25519::Identity::generate();
        let path = folder.path().join("age.key");
        write(&path, format!("# a comment\n{}\n", age::secrecy::ExposeSecret::expose_secret(&key.to_string())));
        Self { age: path, recipient: key.to_public().to_string(), folder }
    }

    fn load(&self) -> Identities {
        Identities::load([&self.age]).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn with_secret(files: Files, name: &str, file: &[u8]) -> Files {
    let entry = format!(
        "[secrets.{name}]\nversion = 7\nsha256 = \"{}\"\ngrant = {{ cluster = \"kafka\" }}\nrecipients = \"\"\n",
        hex::encode(Sha256::digest(file))
    );
    files
        .with("environments/production/secrets.toml", entry)
        .with(&format!("environments/production/secrets/{name}.age"), file)
}

fn opened(fleet: &Fleet, keys: &Identities) -> Result<Vec<u8>, String> {
    match unseal(&spec(fleet, "kafka01"), keys).get(&SecretName::from("s")) {
        Opened::Value(secret) => Ok(secret.expose().to_vec()),
        Opened::Sealed(reason) => Err(reason.to_owned()),
        Opened::NoKey => panic!("there was a key"),
    }
}

fn open_file(file: &[u8], keys: &Keys) -> Result<Vec<u8>, String> {
    opened(&with_secret(Files::new(), "s", file).fleet(), &keys.load())
}

#[test]
fn the_age_command_writes_and_we_read() {
    let keys = Keys::new();
    let plain = b"from age\n\0\xff".repeat(40_000);
    for armor in [&[][..], &["-a"][..]] {
        let args: Vec<&str> = [armor, &["-r", keys.recipient.as_str()]].concat();
        assert_eq!(open_file(&run("age", &args, &plain), &keys).as_deref(), Ok(plain.as_slice()));
    }
}

#[test]
fn we_write_and_the_age_command_reads() {
    let keys = Keys::new();
    let other = Keys::new();
    let file = encrypt(b"from us", [keys.recipient.as_str(), other.recipient.as_str()]).unwrap();
    for keys in [&keys, &other] {
        assert_eq!(run("age", &["-d", "-i", keys.age.to_str().unwrap()], &file), b"from us");
        assert_eq!(open_file(&file, keys).as_deref(), Ok(&b"from us"[..]));
    }
}

#[test]
fn ssh_keys_are_recipients_and_identities() {
    let keys = Keys::new();
    for (kind, bits) in [("ed25519", "256"), ("rsa", "2048")] {
        let path = keys.path(kind);
        run("ssh-keygen", &["-q", "-t", kind, "-b", bits, "-N", "", "-f", path.to_str().unwrap()], b"");
        let public = String::from_utf8(std::fs::read(path.with_extension("pub")).unwrap()).unwrap();
        let ours = encrypt(b"over ssh", [public.trim()]).unwrap();
        assert_eq!(run("age", &["-d", "-i", path.to_str().unwrap()], &ours), b"over ssh");
        let theirs = run("age", &["-r", public.trim()], b"over ssh");
        let fleet = with_secret(Files::new(), "s", &theirs).fleet();
        assert_eq!(opened(&fleet, &Identities::load([&path]).unwrap()).as_deref(), Ok(&b"over ssh"[..]));
    }
}

/// B6
#[test]
fn another_key_is_told_what_to_do() {
    let (keys, other) = (Keys::new(), Keys::new());
    let file = encrypt(b"x", [keys.recipient.as_str()]).unwrap();
    let topology = fleet_of::TOPOLOGY
        .replace("[nodes.kafka01]\n", &format!("[nodes.kafka01]\nrecipient = \"{}\"\n", other.recipient));
    let fleet = with_secret(Files::new().with("environments/production/topology.toml", topology), "s", &file).fleet();
    assert_eq!(
        opened(&fleet, &other.load()).unwrap_err(),
        format!(
            "secret s cannot be opened by this node ({}): run `converger secret rekey s` in the fleet repository; if that \
             has nothing to do, the topology's recipient is not that of this node's key",
            other.recipient
        )
    );
}

/// B4
#[test]
fn a_file_that_is_not_intact_opens_to_nothing() {
    let keys = Keys::new();
    let plain = b"canary".repeat(30_000);
    let file = encrypt(&plain, [keys.recipient.as_str()]).unwrap();
    for at in [0, 30, 120, 250, 70_000, file.len() - 1] {
        let mut flipped = file.clone();
        flipped[at] ^= 1;
        let reason = open_file(&flipped, &keys).unwrap_err();
        assert!(reason.starts_with("secret s") && !reason.contains("canary"), "{at}: {reason}");
    }
    for length in [0, 10, 150, 200, 70_000, file.len() - 17] {
        assert!(open_file(&file[..length], &keys).is_err(), "{length}");
    }
    // Another file than the one that secrets.toml describes: the key is not tried.
    let swapped = with_secret(Files::new(), "s", &file)
        .with("environments/production/secrets/s.age", encrypt(b"y", [keys.recipient.as_str()]).unwrap());
    assert!(
        opened(&swapped.fleet(), &keys.load()).unwrap_err().contains("is not the file that secrets.toml describes")
    );
}

/// B10
#[test]
fn work_is_refused_before_it_is_done() {
    let keys = Keys::new();
    let passphrase = {
        let mut recipient = age::scrypt::Recipient::new(age::secrecy::SecretString::from("p".to_owned()));
        recipient.set_work_factor(2);
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _)).unwrap();
        let mut file = Vec::new();
        encryptor.wrap_output(&mut file).unwrap().finish().unwrap();
        file
    };
    assert!(open_file(&passphrase, &keys).unwrap_err().contains("passphrase"));
    let stanza =
        b"-> X25519 TEiF0ypqr+bpvcqXNyCVJpL7OuwPdVwPL7KQEbFDOCc\nEmECAEcKN+n/Vs9SbWiV+Hu0r+E8R77DdWYyd83nw7U\n";
    let mut crowded = b"age-encryption.org/v1\n".to_vec();
    crowded.extend(stanza.repeat(5_000));
    crowded.extend(b"--- Vn+54jqiiUCE+WZcEVY3f1sqHjlu/z1LCQ/T7Xm7qI0\n");
    assert!(open_file(&crowded, &keys).unwrap_err().contains("header is too large"));
    assert!(open_file(&vec![b'x'; 2 << 20], &keys).unwrap_err().contains("larger than 1 MiB"));
    // 2^30 rounds of scrypt would take minutes and all memory, 10^5 stanzas half a minute: neither is begun.
    let dear = b"age-encryption.org/v1\n-> scrypt rF0/NwblUHHTpgQgRpe5CQ 30\n\
        gUjEymFKMVXQEKdMMHL24oYexjE3TIC0O0zGSqJ2aUY\n--- qEB3oXwSKmqMQJFsXV7hQIKE+vPPRB8SDlcCn7bZN6M\n";
    let many = [&b"age-encryption.org/v1\n"[..], &stanza.repeat(100_000), b"--- Vn+54jqiiUCE+WZcEVY3\n"].concat();
    let began = SystemClock.awake();
    assert!(open_file(dear, &keys).unwrap_err().contains("passphrase"));
    assert!(many.len() > 9_000_000 && open_file(&many, &keys).unwrap_err().contains("larger than 1 MiB"));
    let took = SystemClock.awake().saturating_sub(began);
    assert!(took.as_secs() < 5, "{took:?}");
}

/// Where we differ, knowingly, as the library does.
const DIFFERENT: [(&str, &str); 3] = [
    ("armor_whitespace_outside", "a file that does not begin with its mark is none to `check` either"),
    ("stanza_missing_body", "files of its early versions, which nothing can be gained from"),
    ("stanza_missing_final_line", "the same"),
];

/// C2SP's vectors of the format, which the `age` crate carries: <https://github.com/C2SP/CCTV/tree/main/age>
#[test]
fn the_test_vectors_of_the_format_come_out_as_they_should() {
    let (mut opened, mut refused, mut wrong) = (0, 0, Vec::new());
    for entry in std::fs::read_dir(of_crate("age").join("tests/testdata/testkit")).unwrap() {
        let path = entry.unwrap().path();
        let vector = std::fs::read(&path).unwrap();
        let end = vector.windows(2).position(|window| window == b"\n\n").unwrap();
        let (head, file) = (std::str::from_utf8(&vector[..end]).unwrap(), &vector[end + 2..]);
        let said =
            |key: &str| head.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).collect::<Vec<_>>();
        if !said("compressed").is_empty() {
            continue; // Larger than a secret may be.
        }
        let keys = Keys::new();
        if !said("identity").is_empty() {
            write(&keys.age, said("identity").join("\n"));
        }
        let result = open_file(file, &keys);
        // What only a passphrase opens is refused, right or wrong.
        let good = said("expect") == ["success"] && said("passphrase").is_empty();
        let right = match &result {
            Ok(value) => good && said("payload") == [hex::encode(Sha256::digest(value))],
            Err(_) => !good,
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = !DIFFERENT.iter().any(|(other, _)| *other == name);
        if right != expected {
            wrong.push(format!("{}: {:?}", name, result.map(|value| value.len())));
        }
        *(if good { &mut opened } else { &mut refused }) += 1;
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(opened > 10 && refused > 70, "{opened} to open, {refused} to refuse");
}

/// The source folder of a crate that this one depends on.
fn of_crate(name: &str) -> PathBuf {
    let here = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &here];
    let json: serde_json::Value = serde_json::from_slice(&run(env!("CARGO"), &args, b"")).unwrap();
    let found = json["packages"].as_array().unwrap().iter().find(|package| package["name"] == name).unwrap();
    Path::new(found["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

#[test]
fn only_granted_secrets_are_opened() {
    let keys = Keys::new();
    let file = encrypt(b"x", [keys.recipient.as_str()]).unwrap();
    let fleet = with_secret(Files::new(), "s", &file).fleet();
    let unsealed = unseal(&spec(&fleet, "etcd01"), &keys.load());
    assert!(matches!(unsealed.get(&"s".into()), Opened::Sealed(_)));
}

/// B9, B14
#[test]
fn identities_that_others_can_read_are_refused() {
    let keys = Keys::new();
    let refused = |path: &Path| Identities::load([path]).err().unwrap().to_string();
    for mode in [0o640, 0o604, 0o644, 0o660] {
        std::fs::set_permissions(&keys.age, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(refused(&keys.age).contains(&format!("has mode {mode:04o}")));
    }
    std::fs::set_permissions(&keys.age, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(Identities::load([&keys.age]).is_ok());
    std::os::unix::fs::symlink(&keys.age, keys.path("link")).unwrap();
    assert!(refused(&keys.path("link")).contains("cannot read"));
    assert!(refused(&keys.path("missing")).contains("cannot read"));
    assert!(refused(keys.folder.path()).contains("is no regular file"));
    write(&keys.path("plugin"), "AGE-PLUGIN-../X-1QQPQ\n");
    assert!(refused(&keys.path("plugin")).contains("plugins are not run"));
    write(&keys.path("password"), "hunter2\n");
    assert!(!refused(&keys.path("password")).contains("hunter2"));
    write(&keys.path("empty"), "# nothing\n");
    assert!(refused(&keys.path("empty")).contains("no key"));
}

#[test]
fn the_digest_of_recipients_is_a_set_s() {
    let digest = recipients_digest(["b", "a", "b"]);
    assert_eq!(digest, hex::encode(Sha256::digest(b"a\nb\n")));
    assert!(encrypt(b"x", []).is_err());
    assert!(encrypt(b"x", ["nobody"]).is_err());
}

fn kafka(template: &str) -> Files {
    let manifest =
        "format = 1\n[[file]]\npath = \"/etc/t\"\ntemplate = \"t\"\n[[file]]\npath = \"/etc/s\"\nsecret = \"s\"\n";
    Files::new().with("roles/kafka/role.toml", manifest).with("roles/kafka/t", template)
}

fn contents(fleet: &Fleet, unsealed: &Unsealed) -> Vec<(Content, u32)> {
    let renderer = Renderer::new(fleet);
    let desired = renderer.node(&spec(fleet, "kafka01"), unsealed).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let files = desired.resources.iter().filter_map(|placed| match &placed.resource {
        Resource::File(file) => Some((file.content.clone(), file.mode)),
        _ => None,
    });
    files.collect()
}

#[test]
fn values_go_to_the_disk_and_placeholders_to_the_eye() {
    let keys = Keys::new();
    let file = encrypt(b"pa\"ss\n", [keys.recipient.as_str()]).unwrap();
    let fleet = with_secret(kafka("a={{ secret(name='s') }} {{ secret(name='s') | toml }}\n"), "s", &file).fleet();
    let with_key = contents(&fleet, &unseal(&spec(&fleet, "kafka01"), &keys.load()));
    let without = contents(&fleet, &Unsealed::without_keys());
    let (template, mode) = &with_key[0];
    assert_eq!(template.bytes(), Some(&b"a=pa\"ss \"pa\\\"ss\"\n"[..]));
    assert_eq!(template.shown(), "a=«secret:s» \"«secret:s»\"\n".as_bytes());
    assert_eq!(*mode, 0o600);
    assert_eq!((template.secrets()[0].name.as_str(), template.secrets()[0].version), ("s", 7));
    // A secret as a file: its bytes as they are.
    assert_eq!(with_key[1].0.bytes(), Some(&b"pa\"ss\n"[..]));
    for (ours, ci) in with_key.iter().zip(&without) {
        assert_eq!(ours.0.shown(), ci.0.shown());
        assert_eq!(ours.0.inputs(), ci.0.inputs());
        assert_eq!(ci.0.bytes(), None);
    }
}

#[test]
fn one_sealed_secret_leaves_the_rest_of_the_node() {
    let (keys, other) = (Keys::new(), Keys::new());
    let file = encrypt(b"x", [other.recipient.as_str()]).unwrap();
    let fleet = with_secret(kafka("{{ node.name }}{{ secret(name='s') }}"), "s", &file).fleet();
    let renderer = Renderer::new(&fleet);
    let unsealed = unseal(&spec(&fleet, "kafka01"), &keys.load());
    let desired = renderer.node(&spec(&fleet, "kafka01"), &unsealed).ok().unwrap();
    let sealed: Vec<String> = desired.sealed.iter().map(|sealed| sealed.resource.to_string()).collect();
    assert_eq!(sealed, ["/etc/t", "/etc/s"]);
    assert!(desired.sealed[0].reason.contains("run `converger secret rekey s`"));
    assert_eq!(desired.resources.len(), 2);
}

#[test]
fn what_fails_only_with_values_does_not_quote_them() {
    let keys = Keys::new();
    for template in [
        "{{ secret(name='s') | ini }}",
        "{{ throw(message=secret(name='s')) if secret(name='s') is starting_with(pat='can') else '' }}",
        "{% if secret(name='s') is starting_with(pat='can') %}{{ 1 + secret(name='s') }}{% endif %}",
    ] {
        let file = encrypt(b"canary\nx=1", [keys.recipient.as_str()]).unwrap();
        let fleet = with_secret(kafka(template), "s", &file).fleet();
        let renderer = Renderer::new(&fleet);
        let unsealed = unseal(&spec(&fleet, "kafka01"), &keys.load());
        let problems = renderer.node(&spec(&fleet, "kafka01"), &unsealed).err().unwrap();
        assert_eq!(problems[0].rule, "render-failed");
        assert!(!format!("{problems:?}").contains("canary"), "{problems:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_value_is_ever_shown(
        value in "[ -~]{0,12}CANARY[ -~\\n\"'\\\\]{0,12}",
        filters in prop::collection::vec(prop::sample::select(vec![
            "upper", "lower", "reverse", "trim", "title", "capitalize", "json", "yaml", "toml", "ini", "properties",
            "xml", "shell", "escape", "escape_xml", "replace(from='A', to='-')", "truncate(length=9)", "str", "indent",
            "split(pat='N') | first", "split(pat='N') | last", "default(value='x')", "length",
        ]), 0..4),
        shape in prop::sample::select(vec![
            "{{ secret(name='s')FILTERS }}", "{% set x = 'a' ~ secret(name='s') ~ 'b' %}{{ xFILTERS }}",
            "{% filter upper %}{{ secret(name='s')FILTERS }}{% endfilter %}",
            "{% set x %}{{ secret(name='s')FILTERS }}{% endset %}{{ x }}{{ x }}",
            "{{ ['a', secret(name='s')FILTERS] | join(sep='-') }}",
            "{{ {'k': secret(name='s')FILTERS} | json }}",
            "{% for c in secret(name='s') %}{{ cFILTERS }}{% endfor %}",
            "{{ 1 + secret(name='s')FILTERS }}", "{{ nodes_of(cluster=secret(name='s')FILTERS) | length }}",
            "{{ node[secret(name='s')FILTERS] }}", "{{ throw(message=secret(name='s')FILTERS) }}",
        ]),
    ) {
        let keys = Keys::new();
        let piped: String = filters.iter().map(|filter| format!(" | {filter}")).collect();
        let file = encrypt(value.as_bytes(), [keys.recipient.as_str()]).unwrap();
        let fleet = with_secret(kafka(&shape.replace("FILTERS", &piped)), "s", &file).fleet();
        let renderer = Renderer::new(&fleet);
        let unsealed = unseal(&spec(&fleet, "kafka01"), &keys.load());
        let keyless = renderer.node(&spec(&fleet, "kafka01"), &Unsealed::without_keys());
        let seen = match renderer.node(&spec(&fleet, "kafka01"), &unsealed) {
            Err(problems) => format!("{problems:?}"),
            Ok(desired) => {
                let Ok(ci) = keyless else { panic!("what renders with values renders without") };
                desired.resources.iter().zip(&ci.resources).map(|(placed, ci)| match (&placed.resource, &ci.resource) {
                    (Resource::File(file), Resource::File(ci)) => {
                        assert_eq!(file.content.shown(), ci.content.shown());
                        format!("{} {:?}", String::from_utf8_lossy(file.content.shown()), file.content.secrets())
                    }
                    _ => String::new(),
                }).collect()
            }
        };
        let seen = seen.to_lowercase();
        for trace in ["canary", "yranac", "c-n-ry"] {
            prop_assert!(!seen.contains(trace), "{trace} in {seen}");
        }
    }
}
