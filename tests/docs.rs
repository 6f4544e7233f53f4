//! The manual is true: pages about commands, reasons and files are what the code says (`CONVERGER_BLESS=1` writes them
//! anew), every link leads somewhere, and no text names a command that does not exist.
#![allow(clippy::disallowed_methods, reason = "blessing writes the pages")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, also outside of the test functions themselves")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory as _};
use converger::cli::Cli;
use converger::fleet::{rule, schemas};
use converger::reason::{self, Exit};
use serde_json::Value;

const GENERATED: &str = "<!-- Made by tests/docs.rs from the code: CONVERGER_BLESS=1 cargo test --test docs -->\n\n";

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

// The generated pages.

fn is_current(page: &str, text: &str) {
    let path = top().join("docs").join(page);
    if std::env::var_os("CONVERGER_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "{} is out of date: CONVERGER_BLESS=1 cargo test --test docs", path.display());
}

#[test]
fn the_page_of_commands_is_what_the_commands_say() {
    is_current("commands.md", &commands_page());
}

#[test]
fn the_page_of_reasons_is_the_list() {
    is_current("reasons.md", &reasons_page());
}

#[test]
fn the_page_of_the_fleet_repository_is_what_the_types_say() {
    is_current("fleet-repository.md", &fleet_repository_page());
}

fn commands_page() -> String {
    let mut converger = Cli::command();
    converger.build();
    let mut out = format!("{GENERATED}# Commands\n\n");
    let about = converger.get_long_about().unwrap().to_string();
    out.push_str(&format!("{}\n\n| command | |\n| --- | --- |\n", paragraphs(&about)));
    for command in subcommands(&converger) {
        let name = command.get_name();
        let about = escaped(&command.get_about().unwrap().to_string());
        writeln!(out, "| [`{name}`](#converger-{name}) | {about} |").unwrap();
    }
    out.push_str("\n## Options of every command\n\nCommands that work on no fleet repository leave them unused.\n\n");
    options(&mut out, converger.get_arguments().filter(|arg| arg.is_global_set()));
    out.push_str(
        "\n`-h` prints a command's help in short, `--help` in full. Colours are left out where nobody sees them: in a pipe, \
         or if `NO_COLOR` is set.\n\n## Exit codes\n\n",
    );
    let codes = converger.get_after_help().unwrap().to_string();
    write!(out, "```text\n{}\n```\n", codes.trim_start_matches("Exit codes:\n")).unwrap();
    for command in subcommands(&converger) {
        command_section(&mut out, command, "converger");
    }
    out
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set())
}

fn command_section(out: &mut String, command: &Command, above: &str) {
    let name = format!("{above} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).unwrap().to_string();
    write!(out, "\n## {name}\n\n{}\n\n", paragraphs(&about)).unwrap();
    let usage = command.clone().render_usage().to_string();
    write!(out, "```text\n{}\n```\n", usage.trim_start_matches("Usage: ")).unwrap();
    let own: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_global_set() && arg.get_id() != "help" && !arg.is_hide_set())
        .collect();
    if !own.is_empty() {
        out.push('\n');
        options(out, own.into_iter());
    }
    for below in subcommands(command) {
        command_section(out, below, &name);
    }
}

fn options<'a>(out: &mut String, args: impl Iterator<Item = &'a Arg>) {
    out.push_str("| option | default | |\n| --- | --- | --- |\n");
    for arg in args {
        let value =
            arg.get_value_names().unwrap_or_default().iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ");
        let mut names: Vec<String> = arg.get_short().map(|short| format!("`-{short}`")).into_iter().collect();
        names.extend(arg.get_long().map(|long| format!("`--{long}`")));
        if names.is_empty() {
            names.push(format!("`{value}`"));
        } else if arg.get_action().takes_values() {
            let last = names.last_mut().unwrap();
            *last = format!("{} {value}`", last.trim_end_matches('`'));
        }
        let default: Vec<String> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        let default = match arg.is_required_set() {
            true => "required".to_owned(),
            false if arg.get_action().takes_values() => default.join(", "),
            false => String::new(),
        };
        let mut help = arg
            .get_long_help()
            .or(arg.get_help())
            .unwrap_or_else(|| panic!("{} has no help", arg.get_id()))
            .to_string();
        let choices: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|_| arg.get_action().takes_values())
            .map(|choice| format!("`{}`", choice.get_name()))
            .collect();
        if !choices.is_empty() {
            help.push_str(&format!(": {}", choices.join(", ")));
        }
        if let Some(variable) = arg.get_env() {
            help.push_str(&format!("; or the variable `{}`", variable.to_string_lossy()));
        }
        writeln!(out, "| {} | {default} | {} |", names.join(", "), escaped(&help)).unwrap();
    }
}

/// The help's first sentence has no full stop.
fn paragraphs(about: &str) -> String {
    escaped(
        &about.split("\n\n").map(|text| format!("{}.", text.trim_end_matches('.'))).collect::<Vec<_>>().join("\n\n"),
    )
}

/// Angle brackets and pipes outside of code mean something to Markdown.
fn escaped(text: &str) -> String {
    let quiet = |(index, part): (usize, &str)| {
        if index % 2 == 0 { part.replace('<', "&lt;").replace('>', "&gt;") } else { part.to_owned() }
    };
    let parts: Vec<String> = text.split('`').enumerate().map(quiet).collect();
    parts.join("`").replace('|', "\\|")
}

fn reasons_page() -> String {
    let given = reasons_that_are_given();
    let mut out = format!("{GENERATED}# Reasons and exit codes\n\n");
    out.push_str(
        "Whatever waits, refuses or fails names one of these reasons: in text, in reports, in JSON and in the journal \
         (`F_REASON`). `converger explain ID` prints the same.\n\n\
         When several apply the exit code is the first of 1, 2, 3, 4, 8, 5, 7, 6, 0.\n",
    );
    let kinds = [
        (Exit::Trust, "trust refused"),
        (Exit::Repository, "the repository has problems"),
        (Exit::Host, "the host is not (wholly) converged"),
        (Exit::Waiting, "waiting"),
        (Exit::Unreachable, "source or store unreachable"),
        (Exit::Secrets, "secrets"),
        (Exit::Usage, "usage or local settings"),
        (Exit::Internal, "a bug"),
    ];
    for (exit, title) in kinds {
        write!(out, "\n## {}: {title}\n", exit.code()).unwrap();
        for reason in reason::ALL.iter().filter(|reason| reason.exit == exit) {
            write!(out, "\n### {}\n\n{}\n\n*What to do:* {}\n", reason.id, reason.sentence, reason.mend).unwrap();
            if !given.contains(reason.id) {
                out.push_str("\nReserved: this version never says so.\n");
            }
        }
    }
    out.push_str(
        "\n## Rules of a fleet repository\n\nWhat `converger check` finds (exit code 3). A node that is touched by one stays at \
         its last good commit: [`repository-invalid`](#repository-invalid).\n\n\
         | rule | what is wrong | what to do |\n| --- | --- | --- |\n",
    );
    for rule in rule::ALL {
        writeln!(out, "| `{}` | {} | {} |", rule.id, escaped(rule.sentence), escaped(rule.mend)).unwrap();
    }
    out
}

/// Ids whose constant is named anywhere but in the list itself.
fn reasons_that_are_given() -> BTreeSet<&'static str> {
    let code: Vec<String> = files_below(&top().join("src"), "rs")
        .into_iter()
        .filter(|path| !path.ends_with("src/reason.rs"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let named = |constant: &str| {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        code.iter().any(|text| {
            text.match_indices(constant)
                .any(|(at, _)| !text[..at].ends_with(letter) && !text[at + constant.len()..].starts_with(letter))
        })
    };
    reason::ALL.iter().map(|reason| reason.id).filter(|id| named(&id.to_uppercase().replace('-', "_"))).collect()
}

fn fleet_repository_page() -> String {
    let titles = BTreeMap::from([
        ("fleet.json", "fleet.toml"),
        ("policy.json", "trust/policy.toml"),
        ("environment.json", "environments/ENV/environment.toml"),
        ("topology.json", "environments/ENV/topology.toml"),
        ("versions.json", "environments/ENV/versions.toml"),
        ("variables.json", "environments/ENV/variables.toml"),
        ("secrets.json", "environments/ENV/secrets.toml"),
        ("role.json", "roles/ROLE/role.toml"),
    ]);
    let mut out = format!("{GENERATED}{}", read("tests/docs/fleet-repository.intro.md"));
    for (name, schema) in schemas::schemas() {
        let title = titles[name];
        write!(out, "\n## {title}\n\n").unwrap();
        if let Some(about) = schema["description"].as_str() {
            write!(out, "{}\n\n", escaped(&about.replace('\n', " "))).unwrap();
        }
        let short = title.rsplit('/').next().unwrap();
        match schema.get("properties") {
            Some(_) => keys(&mut out, short, "", &schema, &schema),
            None => {
                let entry = resolved(&schema["additionalProperties"], &schema);
                keys(&mut out, short, "NAME.", entry, &schema);
            }
        }
    }
    out
}

/// One table of a file: its keys, then the tables inside it.
fn keys(out: &mut String, file: &str, above: &str, table: &Value, root: &Value) {
    let required: BTreeSet<&str> =
        table["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut inside = Vec::new();
    out.push_str("| key | type | default | |\n| --- | --- | --- | --- |\n");
    for (key, value) in table["properties"].as_object().unwrap() {
        let kind = Kind::of(value, root, format!("{above}{key}"));
        let default = match &value["default"] {
            _ if required.contains(key.as_str()) => "required".to_owned(),
            Value::Null | Value::Object(_) => "–".to_owned(),
            default => format!("`{default}`"),
        };
        let text = value["description"].as_str().unwrap_or(&kind.about);
        assert!(!text.is_empty(), "{file}: {above}{key} has no doc comment in src/fleet/schema.rs");
        let text = format!("{text} {}", kind.choices).trim_end().replace('\n', " ");
        let shown = match &kind.inside {
            Some((path, _)) => format!("[{}](#{})", kind.text, slug(&heading(file, path))),
            None => kind.text,
        };
        writeln!(out, "| `{key}` | {shown} | {default} | {} |", escaped(&text)).unwrap();
        inside.extend(kind.inside);
    }
    for (path, table) in inside {
        write!(out, "\n### {}\n\n", heading(file, &path)).unwrap();
        if let Some(about) = table["description"].as_str() {
            write!(out, "{}\n\n", escaped(&about.replace('\n', " "))).unwrap();
        }
        let above = format!("{}.", path.trim_matches(['[', ']']));
        keys(out, file, &above, table, root);
    }
}

fn heading(file: &str, path: &str) -> String {
    format!("{file}: `{path}`")
}

fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(name) => &root["definitions"][name.trim_start_matches("#/definitions/")],
        None => schema,
    }
}

/// What a key takes, in words.
struct Kind<'a> {
    text: String,
    about: String,
    /// What the words mean that it may be.
    choices: String,
    /// A table with keys of its own: how its header is written, and its schema.
    inside: Option<(String, &'a Value)>,
}

impl<'a> Kind<'a> {
    fn of(schema: &'a Value, root: &'a Value, path: String) -> Self {
        let about = schema["description"].as_str().unwrap_or_default().to_owned();
        let plain =
            |text: &str| Self { text: text.to_owned(), about: about.clone(), choices: String::new(), inside: None };
        if schema["$ref"] == "#/definitions/Selector" {
            return plain("[selector](#selectors)");
        }
        if schema.get("$ref").is_some() {
            return Self::of(resolved(schema, root), root, path);
        }
        if let Some(one) = schema["allOf"].as_array().or(schema["anyOf"].as_array()) {
            return Self::of(&one[0], root, path);
        }
        if let Some(cases) = schema["oneOf"].as_array() {
            let word = |case: &Value| case.get("const").unwrap_or(&case["enum"][0]).to_string();
            let words: Vec<String> = cases.iter().map(|case| format!("`{}`", word(case))).collect();
            let meant = |case: &Value| Some(format!("`{}`: {}", word(case), case["description"].as_str()?));
            let choices: Vec<String> = cases.iter().filter_map(meant).collect();
            return Self { choices: choices.join(" "), ..plain(&words.join(", ")) };
        }
        if let Some(words) = schema["enum"].as_array() {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            return plain(&words.join(", "));
        }
        if schema.get("properties").is_some() {
            return Self { inside: Some((format!("[{path}]"), schema)), ..plain("table") };
        }
        let kind = &schema["type"];
        match kind.as_str().or(kind[0].as_str()) {
            Some("object") if schema["additionalProperties"].is_object() => {
                let value = Self::of(&schema["additionalProperties"], root, format!("{path}.NAME"));
                let text = format!("{} by name", if value.inside.is_some() { "tables" } else { &value.text });
                Self { text, about, ..value }
            }
            Some("object") => plain("any keys"),
            Some("array") => {
                let item = Self::of(&schema["items"], root, path.clone());
                let inside = item.inside.map(|(_, table)| (format!("[[{path}]]"), table));
                let text = match item.text.as_str() {
                    _ if inside.is_some() => "list of tables".to_owned(),
                    "string" | "integer" => format!("list of {}s", item.text),
                    text => format!("list of {}", text.replace("list of", "lists of")),
                };
                Self { text, about, choices: item.choices, inside }
            }
            Some(name) => plain(name),
            None => plain("any value"),
        }
    }
}

// The written pages.

/// Path and text of README and every page, generated ones included.
fn pages() -> Vec<(String, String)> {
    let mut paths: Vec<String> =
        ["README.md", "secrets/README.md", "systemd/README.md"].into_iter().map(str::to_owned).collect();
    let of_manual = files_below(&top().join("docs"), "md");
    paths.extend(of_manual.iter().map(|path| path.strip_prefix(top()).unwrap().to_str().unwrap().to_owned()));
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

fn files_below(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, end));
        } else if path.extension().is_some_and(|have| have == end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// As mdbook and the forges make anchors.
fn slug(heading: &str) -> String {
    let keep = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
    heading.trim().chars().filter(|c| keep(*c)).collect::<String>().to_lowercase().replace(' ', "-")
}

/// Without fenced code.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut out = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn anchors(text: &str) -> BTreeSet<String> {
    let title = |line: &str| line.starts_with('#').then(|| slug(line.trim_start_matches('#')));
    prose(text).lines().filter_map(title).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut links = 0;
    for (page, text) in pages() {
        let folder = top().join(&page).parent().unwrap().to_owned();
        for (at, _) in prose(&text).match_indices("](") {
            let prose = prose(&text);
            let target = prose[at + 2..].split([')', '\n']).next().unwrap_or_default().to_owned();
            if target.starts_with("https://") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let to = if file.is_empty() { top().join(&page) } else { folder.join(file) };
            let there =
                to.exists() && (anchor.is_empty() || anchors(&std::fs::read_to_string(&to).unwrap()).contains(anchor));
            if !there {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(links > 50, "only {links} links found");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_summary_has_every_page_and_every_page_is_in_it() {
    let summary = read("docs/SUMMARY.md");
    let listed: BTreeSet<String> =
        summary.lines().filter_map(|line| Some(line.split_once("](")?.1.trim_end_matches(')').to_owned())).collect();
    let there: BTreeSet<String> = files_below(&top().join("docs"), "md")
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "SUMMARY.md")
        .collect();
    assert_eq!(listed, there);
}

/// Code of a Markdown text: spans, and lines of fenced blocks without their prompt.
fn code(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut out = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            out.push(line.trim().trim_start_matches("$ ").to_owned());
        }
    }
    out.extend(prose(text).split('`').skip(1).step_by(2).map(str::to_owned));
    out
}

/// What is wrong with `converger …` as somebody would type it.
fn fault(line: &str) -> Option<String> {
    let mut command = &Cli::command();
    let mut words = line.split('#').next()?.split_whitespace().skip(1).peekable();
    if !words.peek()?.starts_with(|c: char| c.is_ascii_lowercase()) {
        return None;
    }
    let of_all: Vec<String> = command.get_arguments().filter_map(|arg| Some(arg.get_long()?.to_owned())).collect();
    for word in words {
        if ["|", ">", "&&", ";"].contains(&word) {
            break;
        }
        if let Some(option) = word.strip_prefix("--") {
            let option = option.trim_end_matches([',', ';', '.', ':']).split('=').next()?;
            let known = command.get_arguments().any(|arg| arg.get_long() == Some(option)) || option == "help";
            if !known && !of_all.iter().any(|name| name == option) {
                return Some(format!("{} has no option --{option}: {line}", command.get_name()));
            }
        } else if command.has_subcommands() && !word.starts_with(['-', '[', '<', '…']) {
            let Some(below) = command.find_subcommand(word) else {
                return Some(format!("{} has no command {word}: {line}", command.get_name()));
            };
            command = below;
        }
    }
    None
}

/// `converger WORD…` between backticks of one line; what a format string fills in ends it.
fn quoted_commands(text: &str) -> Vec<String> {
    let spans = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let spans = spans.filter(|span| span.starts_with("converger "));
    spans.map(|span| span.split(['{', '\\']).next().unwrap_or_default().trim().to_owned()).collect()
}

/// Paths and texts of what people read outside of the manual: the template, the units, our own messages and doc comments.
fn other_texts() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for end in ["toml", "md", "service", "conf", "sh", "yml", "yaml", "cfg"] {
        paths.extend(files_below(&top().join("repo-template"), end));
        paths.extend(files_below(&top().join("systemd"), end));
    }
    paths.extend(files_below(&top().join("src"), "rs"));
    let name = |path: &Path| path.strip_prefix(top()).unwrap().display().to_string();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn every_command_that_a_text_names_exists() {
    let mut texts: Vec<(String, String)> = pages();
    texts.extend(
        reason::ALL.iter().map(|reason| (reason.id.to_owned(), format!("{} {}", reason.sentence, reason.mend))),
    );
    texts.extend(rule::ALL.iter().map(|rule| (rule.id.to_owned(), format!("{} {}", rule.sentence, rule.mend))));
    let makefile = read("Makefile");
    let target = |name: &str| makefile.lines().any(|line| line.split(':').next() == Some(name));
    let mut faults = Vec::new();
    let mut seen = 0;
    for (place, text) in texts {
        for line in code(&text) {
            if line.starts_with("converger ") {
                seen += 1;
                faults.extend(fault(&line).map(|fault| format!("{place}: {fault}")));
            }
            if let Some(name) = line.strip_prefix("make ").and_then(|rest| rest.split_whitespace().next())
                && name.starts_with(|c: char| c.is_ascii_lowercase())
                && !target(name)
            {
                faults.push(format!("{place}: make has no target {name}"));
            }
        }
    }
    assert!(seen > 30, "only {seen} commands found");
    let mut elsewhere = 0;
    for (place, text) in other_texts() {
        for line in quoted_commands(&text) {
            elsewhere += 1;
            faults.extend(fault(&line).map(|fault| format!("{place}: {fault}")));
        }
    }
    assert!(elsewhere > 20, "only {elsewhere} commands found outside of the manual");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_text_that_names_a_command_that_is_not_there_is_found() {
    assert_eq!(fault("converger holds release --dead kafka04 --reason \"off\""), None);
    assert_eq!(fault("converger plan main..topic --env dr"), None);
    assert!(fault("converger unplug").is_some());
    assert!(fault("converger holds grab").is_some());
    assert!(fault("converger status --wiat COMMIT").is_some());
    assert_eq!(quoted_commands("/// See `converger holds grab`, {} and `x`."), ["converger holds grab"]);
}

#[test]
fn the_readme_begins_with_the_two_commands() {
    let readme = read("README.md");
    let code = code(&readme);
    for command in ["make demo", "make test"] {
        assert!(code.iter().any(|line| line.starts_with(command)), "README.md does not show `{command}`");
    }
    assert!(readme.lines().count() <= 150, "README.md is longer than anybody reads");
}

#[test]
fn the_page_of_dependencies_is_complete_and_each_is_used() {
    let cargo: toml::Table = read("Cargo.toml").parse().unwrap();
    let names = |table: &str| cargo[table].as_table().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    let ours: BTreeSet<String> = names("dependencies").union(&names("dev-dependencies")).cloned().collect();
    let explained: BTreeSet<String> = read("docs/dependencies.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|cell| cell.split(" (").next().unwrap_or_default().split(", "))
        .filter_map(|name| Some(name.strip_prefix('`')?.strip_suffix('`')?.to_owned()))
        .collect();
    assert_eq!(ours, explained);

    let product: String =
        files_below(&top().join("src"), "rs").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let used = |name: &String| {
        let name = name.replace('-', "_");
        product.contains(&format!("{name}::")) || product.contains(&format!("use {name}"))
    };
    let unused: Vec<String> = names("dependencies").into_iter().filter(|name| !used(name)).collect();
    assert!(unused.is_empty(), "not used in src/: {unused:?}");
}

#[test]
fn every_case_names_a_test_that_there_is() {
    let page = read("docs/threats.md");
    let mut named = 0;
    for name in page.split('`').filter(|word| word.contains("::") && !word.contains(' ')) {
        let Some((file, function)) = name.split_once("::") else { continue };
        if file == "file" {
            continue;
        }
        named += 1;
        let of_tests = !file.starts_with("src/") && !file.starts_with("examples/");
        let text = read(&format!("{}{file}.rs", if of_tests { "tests/" } else { "" }));
        assert!(text.contains(&format!("fn {function}(")), "docs/threats.md names {name}, which does not exist");
    }
    assert!(named > 70, "{named}");
}
