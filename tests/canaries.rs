//! Canaries: secrets with marked values go through random templates and the real binary, and everything that leaves the
//! process is searched for them, in every form that they could take: as they are, reversed, in hex, base64, percent signs, as
//! a digest. Only the targets (0600) may have them, and of an old value nothing may be left at all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and write files as they like")]

mod bed;
mod forge;

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bed::{Bed, NODES, NodeBed, converger};
use converger::fleet::load::load;
use converger::fleet::select::select;
use converger::fleet::tree::Tree;
use converger::name::RepoPath;
use converger::render::Renderer;
use converger::resource::{Digest, Resource};
use converger::secrets::cover::recipients_digest;
use converger::secrets::identities::Identities;
use converger::secrets::{Unsealed, encrypt, unseal};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

/// What may not be found: windows of 8 bytes of every form, of hex 16 (there is much hex around).
#[derive(Default)]
struct Needles {
    short: HashSet<[u8; 8]>,
    long: HashSet<[u8; 16]>,
}

impl Needles {
    fn of<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut needles = Self::default();
        for value in values {
            for line in value.lines().filter(|line| line.len() >= 10 && !line.starts_with("-----")) {
                needles.short(line.as_bytes());
                needles.short(&line.bytes().rev().collect::<Vec<_>>());
                needles.short(percent(line).as_bytes());
                for skipped in 0..3 {
                    let text = base64(&line.as_bytes()[skipped..]);
                    needles.short(&text.as_bytes()[..text.len().saturating_sub(4)]);
                    needles.short(&text.replace('+', "-").replace('/', "_").as_bytes()[..text.len().saturating_sub(4)]);
                }
                needles.long(hex::encode(line).as_bytes());
            }
            for whole in [value, value.trim_end()] {
                needles.long(hex::encode(Sha256::digest(whole)).as_bytes());
                needles.short(&Sha256::digest(whole));
            }
            if let Ok(number) = value.parse::<u64>() {
                needles.short((number + 1).to_string().as_bytes());
                needles.short((number * 2).to_string().as_bytes());
            }
        }
        needles
    }

    fn short(&mut self, form: &[u8]) {
        self.short.extend(form.to_ascii_lowercase().windows(8).map(|window| <[u8; 8]>::try_from(window).unwrap()));
    }

    fn long(&mut self, form: &[u8]) {
        self.long.extend(form.to_ascii_lowercase().windows(16).map(|window| <[u8; 16]>::try_from(window).unwrap()));
    }

    /// The first place where one is, with what is around it.
    fn in_bytes(&self, bytes: &[u8]) -> Option<String> {
        let lower = bytes.to_ascii_lowercase();
        // Most places are ruled out by their first two bytes.
        let pair = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
        let mut begins = vec![false; 1 << 16];
        self.short.iter().for_each(|needle| begins[pair(needle)] = true);
        self.long.iter().for_each(|needle| begins[pair(needle)] = true);
        // `{% for c in … %}{{ c }}.{% endfor %}` and the like.
        let bare: Vec<u8> = lower.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
        [lower, bare].iter().find_map(|bytes| {
            let starts = (0..bytes.len().saturating_sub(7)).filter(|at| begins[pair(&bytes[*at..])]);
            let found = |at: &usize| {
                self.short.contains(&bytes[*at..at + 8])
                    || bytes.get(*at..at + 16).is_some_and(|window| self.long.contains(window))
            };
            let at = starts.into_iter().find(found)?;
            let around = &bytes[at.saturating_sub(60)..(at + 60).min(bytes.len())];
            Some(String::from_utf8_lossy(around).into_owned())
        })
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let digit = move |n: usize| char::from(ALPHABET[(bits >> (18 - 6 * n) & 63) as usize]);
        (0..=group.len()).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

fn percent(text: &str) -> String {
    let encode = |byte: u8| match byte {
        _ if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// One set of values: a password with everything that formats trip over, a key of several lines, a number.
#[derive(Clone, Debug)]
struct Values {
    password: String,
    key: String,
    pin: String,
}

impl Values {
    fn all(&self) -> [(&'static str, &str); 3] {
        [("password", &self.password), ("key", &self.key), ("pin", &self.pin)]
    }

    fn needles(&self) -> Needles {
        Needles::of(self.all().map(|(_, value)| value))
    }
}

fn values() -> impl Strategy<Value = Values> {
    // No hex digits, so that nothing that is around by chance looks like it.
    let core = |length: usize| proptest::string::string_regex(&format!("[G-Zg-z]{{{length}}}")).unwrap();
    let line = || core(64);
    (core(14), "[ &%='\"\\\\<]{0,3}", core(10), (line(), line(), line()), 300_000_000_000_u64..900_000_000_000)
        .prop_map(|(first, odd, last, (a, b, c), pin)| Values {
            password: format!("{first}{odd}{last}"),
            key: format!("-----BEGIN PRIVATE KEY-----\n{a}\n{b}\n{c}\n-----END PRIVATE KEY-----\n"),
            pin: pin.to_string(),
        })
}

/// S: the secret; F: filters; the first letters of the password are P.
const SHAPES: &[&str] = &[
    "{{ SF }}",
    "a = {{ S | json }}\nb = {{ SF }}\n",
    "{% set v = 'x' ~ S ~ 'y' %}{{ vF }}",
    "{% filter upper %}{{ SF }}{% endfilter %}",
    "{% set v %}{{ SF }}{% endset %}{{ v }}{{ v }}",
    "{{ ['a', SF] | join(sep='-') }}",
    "{{ {'k': SF} | json }}",
    "{% for c in S %}{{ c }}.{% endfor %}",
    "{% for c in [S, 'x', SF] %}{{ loop.index }}:{{ c }}\n{% endfor %}",
    "{{ S | default(value='d') }}",
    "{{ (S ~ S) | truncate(length=200) }}",
    "{{ S | split(pat='G') | last }} {{ S | split(pat='Q') | first }}",
    "{{ S | replace(from='a', to='--') }}",
    "{% include \"part\" %}{{ SF }}",
    "{% if S is starting_with(pat='P') %}thisbranchistaken {{ S }}{% else %}thatone{% endif %}",
    "{% if S == 'P' or S is containing(pat='P') %}thisbranchistaken{% endif %}",
    "{{ 'thisbranchistaken' if S is starting_with(pat='P') else 'thatone' }}",
    "{% set p = secret(name='pin') %}{% if p is ending_with(pat='»') %}none{% else %}{{ p | int + 1 }} {{ (p | int) * 2 }}{% endif %}",
    "{{ S | length }} {{ node.name }}",
];

const FILTERS: &[&str] = &[
    "upper",
    "lower",
    "reverse",
    "trim",
    "title",
    "capitalize",
    "json",
    "yaml",
    "toml",
    "properties",
    "xml",
    "shell",
    "escape_xml",
    "replace(from='k', to='_')",
    "truncate(length=300)",
    "indent(width=2)",
];

/// What renders with a placeholder and not with the value.
const UNSOUND: &[&str] = &[
    "{{ secret(name='key') | ini }}",
    "{{ throw(message=S) if S is starting_with(pat='P') else '' }}",
    "{% if S is starting_with(pat='P') %}{{ 1 + S }}{% endif %}",
    "{% if S is starting_with(pat='P') %}{{ [S] | ini }}{{ S | int }}{% endif %}",
    "{% if S is starting_with(pat='P') %}{{ node.addresses[S] }}{% endif %}",
    "{% if S is starting_with(pat='P') %}{{ secret(name=S) }}{% endif %}",
    "{% if S is starting_with(pat='P') %}{{ nodes_of(cluster=S) | length }}{% endif %}",
];

fn template() -> impl Strategy<Value = String> {
    let secret = prop::sample::select(vec!["password", "password", "key", "pin"]);
    let filters = prop::collection::vec(prop::sample::select(FILTERS), 0..4);
    (prop::sample::select(SHAPES), secret, filters).prop_map(|(shape, secret, filters)| {
        let filters: String = filters.iter().map(|filter| format!(" | {filter}")).collect();
        shape.replace('F', &filters).replace("S", &format!("secret(name='{secret}')"))
    })
}

/// A fleet with canaries, one node of it, and all that was ever said.
struct Aviary {
    bed: Bed,
    node: NodeBed,
    said: Vec<(String, Vec<u8>)>,
}

impl Aviary {
    fn new() -> Self {
        let bed = Bed::new();
        let node = bed.node("web01");
        Self { bed, node, said: Vec::new() }
    }

    fn seal(&self, version: u64, values: &Values) {
        let key = |node: &&str| std::fs::read_to_string(self.bed.dir().join("identities").join(node)).unwrap();
        let recipients = NODES.iter().map(key).map(|key| key.trim().parse::<age::x25519::Identity>().unwrap());
        let recipients: Vec<String> = recipients.map(|key| key.to_public().to_string()).collect();
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        let mut entries = self.bed.read("environments/production/secrets.toml");
        entries.truncate(entries.find("\n[secrets.password]").unwrap_or(entries.len()));
        for (name, value) in values.all() {
            let file = encrypt(value.as_bytes(), recipients.clone()).unwrap();
            std::fs::write(self.bed.forge.work.join(format!("environments/production/secrets/{name}.age")), &file)
                .unwrap();
            entries.push_str(&format!(
                "\n[secrets.{name}]\nversion = {version}\nsha256 = \"{}\"\ngrant = [{{ cluster = \"web\" }}]\nrecipients = \"{}\"\n",
                hex::encode(Sha256::digest(&file)),
                recipients_digest(recipients.iter().copied()),
            ));
        }
        self.bed.forge.write("environments/production/secrets.toml", &entries);
    }

    /// Writes the role's templates: `/etc/canary/N` each, and two files that are a secret as a whole.
    fn templates(&self, templates: &[String]) {
        let mut role = self.bed.read("roles/web/role.toml");
        role.truncate(role.find("\n# canaries").unwrap_or(role.len()));
        role.push_str("\n# canaries\n[[unit]]\nname = \"aviary.service\"\ntemplate = \"aviary.service\"\n");
        self.bed.forge.write("roles/web/aviary.service", "[Service]\nExecStart=/usr/bin/true\n");
        for (n, text) in templates.iter().enumerate() {
            self.bed.forge.write(&format!("roles/web/t{n}"), &format!("first\n{text}\nlast\n"));
            let restarts = if n == 0 { "restarts = [\"aviary.service\"]\n" } else { "" };
            role.push_str(&format!("[[file]]\npath = \"/etc/canary/{n}\"\ntemplate = \"t{n}\"\n{restarts}"));
        }
        for name in ["key", "pin"] {
            role.push_str(&format!("[[file]]\npath = \"/etc/canary/{name}\"\nsecret = \"{name}\"\n"));
        }
        self.bed.forge.write("roles/web/part", "{{ secret(name='password') }}");
        self.bed.forge.write("roles/web/role.toml", &role);
    }

    fn hear(&mut self, what: &str, command: &mut Command) -> i32 {
        let output = command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").output().unwrap();
        let code = output.status.code().unwrap_or(-1);
        self.said.push((format!("{what}: exit {code}"), [output.stdout, output.stderr].concat()));
        code
    }

    fn agent(&mut self, args: &[&str]) -> i32 {
        let mut command = converger();
        let settings = self.node.root.join("etc/converger/agent.toml");
        command.arg("agent").arg("--root").arg(&self.node.root).arg("--settings").arg(settings).args(args).arg("-vv");
        self.hear(&format!("agent {args:?}"), &mut command)
    }

    /// An engineer's command, whatever comes of it.
    fn engineer(&mut self, args: &[&str]) -> i32 {
        let mut command = converger();
        let client = self.bed.dir().join("client.toml");
        let store = self.bed.dir().join("store.db").display().to_string();
        std::fs::write(&client, format!("[store]\nkind = \"local\"\npath = \"{store}\"\n")).unwrap();
        command.current_dir(&self.bed.forge.work).arg("--client").arg(&client).args(args);
        self.hear(&format!("{args:?}"), &mut command)
    }

    fn engineers(&mut self) {
        let out = self.bed.dir().join("out").display().to_string();
        self.engineer(&["check"]);
        self.engineer(&["check", "--json"]);
        self.engineer(&["render", "--node", "web01", "--out", &out]);
        self.engineer(&["plan", "HEAD~1..HEAD"]);
        for format in ["text", "markdown", "json"] {
            self.engineer(&["plan", "HEAD~1..HEAD", "--format", format]);
        }
        for command in [&["status"][..], &["status", "--json"], &["why", "web01"], &["why", "web01", "--json"]] {
            self.engineer(command);
        }
        self.engineer(&["holds", "list"]);
        self.engineer(&["holds", "list", "--json"]);
    }

    /// What every eye gets of the rendering with values: what CI renders without a key, byte for byte, and its digest.
    #[track_caller]
    fn masks_hide(&self, needles: &Needles) {
        let work = &self.bed.forge.work;
        let ours = files(&[work]).into_iter().filter(|path| !path.starts_with(work.join(".git")));
        let read = |path: PathBuf| {
            let name = path.strip_prefix(work).unwrap().display().to_string();
            (RepoPath::new(name), Arc::from(std::fs::read(path).unwrap()))
        };
        let tree = Arc::new(Tree { commit: None, files: ours.map(read).collect() });
        let fleet = load(&tree, None).unwrap_or_else(|problems| panic!("{problems:?}")).fleet;
        let spec = select(&fleet, &"web01".into()).unwrap();
        let identities = Identities::load([self.node.root.join("etc/converger/age.key")]).unwrap();
        let rendered = |unsealed: &Unsealed| -> Vec<(String, Vec<u8>, Digest)> {
            let desired = Renderer::new(&fleet).node(&spec, unsealed);
            let desired = desired.unwrap_or_else(|problems| panic!("{problems:?}"));
            let files = desired.resources.into_iter().filter_map(|placed| match placed.resource {
                Resource::File(file) => Some((file.path.to_string(), file.content.shown().to_vec(), file.inputs())),
                _ => None,
            });
            files.collect()
        };
        let (with, without) = (rendered(&unseal(&spec, &identities)), rendered(&Unsealed::without_keys()));
        for (path, shown, _) in &with {
            assert_eq!(needles.in_bytes(shown), None, "{path} shows a secret");
            assert_eq!(branch().in_bytes(shown), None, "{path} shows what only the value takes");
        }
        assert!(with == without, "what is shown depends on the values");
    }

    /// Files that hold something that may not leave: the targets and the copies of what somebody made of them.
    fn may_hold(&self, path: &Path) -> bool {
        let name = path.strip_prefix(&self.node.root).unwrap_or(path);
        let private = name.starts_with("etc/canary") || name.starts_with("var/lib/converger/backups/etc/canary");
        if private && path.is_file() {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
        private
    }

    /// What was said since the last look, and every file of the node, of the store and of the engineer.
    #[track_caller]
    fn nothing_of(&mut self, needles: &Needles, except: impl Fn(&Self, &Path) -> bool) {
        for (what, bytes) in &self.said {
            if let Some(found) = needles.in_bytes(bytes) {
                panic!("{what} tells a secret: …{found}…");
            }
        }
        for path in files(&[&self.node.root, &self.bed.dir().join("out")]) {
            if except(self, &path) {
                continue;
            }
            if let Some(found) = needles.in_bytes(&std::fs::read(&path).unwrap()) {
                panic!("{} has a secret: …{found}…", path.display());
            }
        }
        for name in ["store.db", "store.db-wal"] {
            let found = std::fs::read(self.bed.dir().join(name)).ok().and_then(|bytes| needles.in_bytes(&bytes));
            assert_eq!(found, None, "the store has a secret");
        }
    }

    fn heard(&self, words: &str) -> bool {
        self.said.iter().any(|(_, said)| String::from_utf8_lossy(said).contains(words))
    }
}

fn files(tops: &[&Path]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = tops.iter().map(|top| top.to_path_buf()).collect();
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found
}

/// Words of a branch that only the value takes: whoever sees them has learned something of the value.
fn branch() -> Needles {
    Needles::of(["thisbranchistaken"])
}

fn a_life(old: &Values, new: &Values, templates: &[String], unsound: &str) {
    let fill = |text: &str, values: &Values| text.replace("'P'", &format!("'{}'", &values.password[..4]));
    let filled: Vec<String> = templates.iter().map(|text| fill(text, old)).collect();
    let mut aviary = Aviary::new();
    let (olds, news) = (old.needles(), new.needles());
    // They come.
    aviary.seal(1, old);
    aviary.templates(&filled);
    aviary.bed.commit("canaries");
    assert_eq!(aviary.agent(&["--once", "--dry-run"]), 5, "{:?}", lossy(&aviary));
    assert_eq!(aviary.agent(&["--once"]), 0, "{:?}", lossy(&aviary));
    let target = std::fs::read(aviary.node.root.join("etc/canary/key")).unwrap();
    assert!(olds.in_bytes(&target).is_some(), "what is searched for would be found");
    aviary.engineers();
    aviary.masks_hide(&olds);
    aviary.nothing_of(&olds, Aviary::may_hold);
    // Somebody edits a target; it is shown, put back, and a copy stays.
    for name in ["0", "key"] {
        let path = aviary.node.root.join("etc/canary").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + "edited\n").unwrap();
    }
    assert_eq!(aviary.agent(&["--once", "--dry-run"]), 5);
    assert!(aviary.heard("has secrets: lines "), "{:?}", lossy(&aviary));
    assert_eq!(aviary.agent(&["--once", "--json"]), 0);
    aviary.nothing_of(&olds, Aviary::may_hold);
    // The service does not start with them.
    aviary.node.put("run/converger/units.fail", "aviary.service start\n");
    aviary.node.meddle("aviary.service", |unit| unit["state"] = "inactive".into());
    aviary.agent(&["--once"]);
    aviary.engineers();
    std::fs::remove_file(aviary.node.root.join("run/converger/units.fail")).unwrap();
    aviary.agent(&["--once"]);
    aviary.nothing_of(&olds, Aviary::may_hold);
    // A template that their values break.
    let unsound = fill(&unsound.replace("S", "secret(name='password')"), old);
    aviary.templates(&[&filled[..], std::slice::from_ref(&unsound)].concat());
    aviary.bed.commit("broken");
    assert_eq!(aviary.agent(&["--once"]), 3, "{unsound}: {:?}", lossy(&aviary));
    assert!(aviary.heard("not with the values of its secrets"), "{:?}", lossy(&aviary));
    aviary.engineers();
    aviary.nothing_of(&olds, Aviary::may_hold);
    aviary.nothing_of(&branch(), Aviary::may_hold);
    // They rotate: of the old ones nothing stays at all.
    let filled: Vec<String> = templates.iter().map(|text| fill(text, new)).collect();
    aviary.seal(2, new);
    aviary.templates(&filled);
    aviary.bed.commit("rotated");
    aviary.agent(&["--once", "--dry-run"]);
    assert_eq!(aviary.agent(&["--once"]), 0, "{:?}", lossy(&aviary));
    aviary.engineers();
    aviary.nothing_of(&olds, |_, _| false);
    aviary.nothing_of(&news, Aviary::may_hold);
    // A silent change: refused, and not told.
    let mut silent = new.clone();
    silent.pin = old.pin.clone();
    aviary.seal(2, &silent);
    aviary.bed.commit("in silence");
    assert_eq!(aviary.agent(&["--once"]), 3);
    aviary.seal(2, new);
    // The files turn plain: what was there is shown to nobody, and no copy stays.
    let plain: Vec<String> = (0..filled.len()).map(|n| format!("plain {n}")).collect();
    aviary.templates(&plain);
    aviary.bed.commit("plain");
    assert_eq!(aviary.agent(&["--once", "--dry-run"]), 5);
    aviary.nothing_of(&news, Aviary::may_hold);
    assert_eq!(aviary.agent(&["--once"]), 0);
    aviary.engineers();
    let keys_only = |_: &Aviary, path: &Path| path.ends_with("etc/canary/key") || path.ends_with("etc/canary/pin");
    aviary.nothing_of(&news, keys_only);
    // And they leave.
    let role = aviary.bed.read("roles/web/role.toml");
    aviary.bed.forge.write("roles/web/role.toml", role.split("\n# canaries").next().unwrap());
    aviary.bed.commit("without");
    assert_eq!(aviary.agent(&["--once"]), 0, "{:?}", lossy(&aviary));
    aviary.nothing_of(&news, |_, _| false);
}

fn lossy(aviary: &Aviary) -> String {
    let (what, said) = aviary.said.last().unwrap();
    format!("{what}\n{}", String::from_utf8_lossy(said))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() })]
    /// B11, B13, F9.
    #[test]
    fn no_canary_gets_out_alive(
        old in values(),
        new in values(),
        templates in prop::collection::vec(template(), 12),
        unsound in prop::sample::select(UNSOUND),
    ) {
        a_life(&old, &new, &templates, unsound);
    }
}

/// B11: what a panic has to say could be a value; this test is run again as a process of its own that panics.
#[test]
fn a_panic_tells_its_place_and_not_its_words() {
    if std::env::var_os("CANARY").is_some() {
        converger::privacy::hush_panics();
        panic!("the value is canary-in-a-panic");
    }
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new(me);
    command.args(["--exact", "a_panic_tells_its_place_and_not_its_words", "--nocapture"]).env("CANARY", "1");
    let output = command.env("RUST_BACKTRACE", "full").output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("panic at tests/canaries.rs:"), "{said}");
    assert!(!said.contains("canary-in-a-panic"), "{said}");
}

/// Waits until it is so, on a slow machine too; what is to be proved is asserted afterwards.
fn within_a_minute(mut is_so: impl FnMut() -> bool) {
    for _ in 0..600 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// B11: killed by a signal that dumps core, with the limit lifted: the kernel says that it wrote none.
#[test]
fn a_crash_leaves_no_core() {
    let bed = Bed::new();
    let node = bed.node("web01");
    let crash = |command: &mut Command| {
        let dir = tempfile::tempdir().unwrap();
        let unlimited = || {
            let most = nix::sys::resource::RLIM_INFINITY;
            Ok(nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, most, most)?)
        };
        command.current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: setrlimit(2) is a system call and nothing else.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(unlimited)
        };
        let mut child = command.spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let limits = || {
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
            line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ")
        };
        // Long enough for it to have its identities.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let is_agent = command.get_args().any(|argument| argument == "agent");
        within_a_minute(|| !is_agent || limits() == "0 0");
        let limits = limits();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGABRT).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(6));
        (status.core_dumped(), limits)
    };
    let settings = node.root.join("etc/converger/agent.toml");
    let mut agent = converger();
    agent.arg("agent").arg("--root").arg(&node.root).arg("--settings").arg(settings);
    let (dumped, limits) = crash(&mut agent);
    assert!(!dumped, "the agent left a core");
    assert_eq!(limits, "0 0");
    if nix::unistd::geteuid().is_root() {
        let (dumped, _) = crash(Command::new("sleep").arg("60"));
        assert!(dumped, "on this machine nothing would dump core, so the test above proves nothing");
    }
}

/// B11: the limit does not count where a program collects dumps, and keeps no debugger out. What does is that the process is
/// not dumpable: then what is in `/proc` of it belongs to root, whoever runs it (proc(5)).
#[test]
fn nobody_of_the_same_user_looks_into_an_agent() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    const NOBODY: u32 = 65534;
    let bed = Bed::new();
    let node = bed.node("web01");
    std::fs::set_permissions(bed.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    forge::run(Command::new("chown").arg("-R").arg(NOBODY.to_string()).arg(bed.dir()));
    let owner = |command: &mut Command| {
        command.uid(NOBODY).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let is_agent = command.get_args().any(|argument| argument == "agent");
        within_a_minute(|| !is_agent || std::fs::metadata(format!("/proc/{}/mem", child.id())).unwrap().uid() == 0);
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        let of = |name: &str| std::fs::metadata(format!("/proc/{}{name}", child.id())).unwrap().uid();
        let owners = (of("/mem"), of("/environ"));
        child.kill().unwrap();
        child.wait().unwrap();
        owners
    };
    let mut agent = converger();
    let settings = node.root.join("etc/converger/agent.toml");
    agent.arg("agent").arg("--root").arg(&node.root).arg("--settings").arg(settings);
    assert_eq!(owner(&mut agent), (0, 0));
    assert_eq!(owner(Command::new("sleep").arg("60")), (NOBODY, NOBODY));
}

/// The forms are really found: else the searches above could not fail.
#[test]
fn what_is_searched_for_is_found_in_every_form() {
    let value = "GhJkLmNoPq &%<RsTuVw";
    let needles = Needles::of([value]);
    let reversed: String = value.chars().rev().collect();
    let spread: String = value.chars().map(|c| format!("{c}.")).collect();
    let forms = [
        value.to_owned(),
        value.to_uppercase(),
        reversed,
        spread,
        percent(value),
        base64(value.as_bytes()),
        base64(format!("x{value}").as_bytes()),
        base64(format!("xy{value}").as_bytes()),
        hex::encode(value),
        hex::encode(value).to_uppercase(),
        hex::encode(Sha256::digest(value)),
        value[2..12].to_owned(),
    ];
    for form in forms {
        assert!(needles.in_bytes(format!("before {form} after").as_bytes()).is_some(), "{form}");
    }
    assert_eq!(needles.in_bytes(b"nothing of it"), None);
}
