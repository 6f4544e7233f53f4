//! One role's templates, compiled once for all nodes: its files, what they include, and the strings of `role.toml`.
//!
//! PURE. Never: a file outside the role's folder, an environment variable, a random number or a clock in a template.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tera::{Context, ErrorKind, Tera};
use zeroize::Zeroizing;

use super::context::Shared;
use super::filters;
use super::functions::{self, Pass};
use super::lint::{self, Place, Source};
use super::syntax::Span;
use crate::fleet::problem::Problem;
use crate::fleet::schema::Check;
use crate::fleet::{Fleet, Role};
use crate::name::RepoPath;
use crate::resource::action::Scope;

pub struct Compiled {
    tera: Tera,
    /// By path inside the role's folder.
    pub files: BTreeMap<String, Arc<Source>>,
    /// By their text; only those with something to render in them.
    pub strings: BTreeMap<String, Arc<Source>>,
    /// Whether it differs with the cluster that brings it, or acts for it.
    pub reads_cluster: bool,
    pub problems: Vec<Problem>,
}

/// A rendered file may not be larger.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

pub fn folder(role: &Role) -> String {
    format!("roles/{}/", role.name)
}

/// The strings of a check that are templates.
pub fn strings_of(check: &Check) -> impl Iterator<Item = &String> {
    let tls = check.tls.iter().flat_map(|tls| std::iter::once(&tls.ca).chain(&tls.cert).chain(&tls.key));
    tls.chain(&check.network).chain(&check.path).chain(&check.secret).chain(&check.user).chain(&check.run)
}

/// What stands in for a file's name in Tera for a string: no file can be called so.
fn string_name(text: &str) -> String {
    format!("\u{1}{text}")
}

pub fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%") || text.contains("{#")
}

impl Compiled {
    pub fn new(fleet: &Fleet, role: &Role, shared: &Arc<Shared>) -> Self {
        let mut compiled = Self {
            tera: Tera::default(),
            files: BTreeMap::new(),
            strings: BTreeMap::new(),
            reads_cluster: false,
            problems: Vec::new(),
        };
        compiled.read_files(fleet, role);
        compiled.read_strings(fleet, role);
        for source in compiled.files.values() {
            compiled.problems.extend(lint::names(source, &|name| compiled.files.contains_key(name)));
        }
        for source in compiled.strings.values() {
            compiled.problems.extend(lint::names(source, &|_| false));
        }
        let sources = || compiled.files.values().chain(compiled.strings.values());
        let speaks = role.actions.iter().any(|action| action.body.scope == Scope::Cluster);
        compiled.reads_cluster = speaks || sources().any(|source| source.reads_cluster());
        let recursion = lint::recursion(compiled.files.values().map(Arc::as_ref));
        compiled.problems.extend(recursion);
        if compiled.problems.is_empty() {
            compiled.tera.autoescape_on(Vec::<&str>::new());
            filters::register(&mut compiled.tera);
            functions::register(&mut compiled.tera, shared);
            let files = compiled.files.iter().map(|(name, source)| (name.clone(), source.text.as_str()));
            let strings = compiled.strings.keys().map(|text| (string_name(text), text.as_str()));
            if let Err(error) = compiled.tera.add_raw_templates(files.chain(strings)) {
                let path = RepoPath::new(folder(role).trim_end_matches('/'));
                compiled.problems.push(Problem::error("template-syntax", path, error.to_string()));
            }
        }
        compiled
    }

    fn read_files(&mut self, fleet: &Fleet, role: &Role) {
        let files = role.files.iter().map(|file| (file.body.template.as_ref(), &file.span));
        let units = role
            .units
            .iter()
            .flat_map(|unit| [&unit.body.template, &unit.body.dropin].map(|template| (template.as_ref(), &unit.span)));
        let declared = files.chain(units).filter_map(|(name, span)| Some((name?.clone(), span.clone())));
        for (name, span) in declared {
            if fleet.tree.get(&format!("{}{name}", folder(role))).is_none() {
                let problem =
                    Problem::error("missing-file", role.path.clone(), format!("\"{name}\" is no file of this role"));
                self.problems.push(problem.at(span, format!("looked for {}{name}", folder(role))));
            }
            self.read_file(fleet, role, name);
        }
    }

    /// Reads a file and what it includes. One that does not exist is reported where it is named.
    fn read_file(&mut self, fleet: &Fleet, role: &Role, name: String) {
        let path = format!("{}{name}", folder(role));
        let Some(bytes) = fleet.tree.get(&path).filter(|_| !self.files.contains_key(&name)) else { return };
        let Ok(text) = std::str::from_utf8(bytes) else {
            self.problems.push(Problem::error("template-syntax", path, "a template must be UTF-8 text"));
            return;
        };
        if let Some(source) = self.source(path.into(), Place::At(0), text) {
            let includes: Vec<String> = source.includes().into_iter().map(|(name, _)| name.to_owned()).collect();
            self.files.insert(name, Arc::new(source));
            for include in includes {
                self.read_file(fleet, role, include);
            }
        }
    }

    fn read_strings(&mut self, fleet: &Fleet, role: &Role) {
        let manifest = fleet.tree.get(role.path.as_str()).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let manifest = manifest.unwrap_or_default();
        let mut strings: Vec<(&String, Span)> = Vec::new();
        for file in &role.files {
            let validate = file.body.validate.iter().flat_map(|validate| &validate.run);
            let all = std::iter::once(&file.body.path).chain(&file.body.secret).chain(validate);
            strings.extend(all.map(|text| (text, file.span.clone())));
        }
        for unit in &role.units {
            let steps = [&unit.body.before_stop, &unit.body.transfer, &unit.body.after_start];
            strings.extend(steps.into_iter().flatten().flatten().map(|text| (text, unit.span.clone())));
        }
        for action in &role.actions {
            let all = action.body.run.iter().chain(&action.body.creates).chain(&action.body.unless);
            strings.extend(all.map(|text| (text, action.span.clone())));
        }
        for check in role.checks.values() {
            strings.extend(strings_of(check).map(|text| (text, 0..manifest.len())));
        }
        for (text, span) in strings.into_iter().filter(|(text, _)| is_template(text)) {
            if self.strings.contains_key(text) {
                continue;
            }
            let found = manifest.get(span.start..).and_then(|declared| declared.find(text.as_str()));
            let place = found.map_or(Place::Within(span.clone()), |at| Place::At(span.start + at));
            let Some(source) = self.source(role.path.clone(), place, text) else { continue };
            if source.calls_secret() {
                let problem = Problem::error("secret-in-argv", role.path.clone(), "secret() is not allowed here")
                    .at(source.span(&(0..text.len())), "arguments and paths can be seen by every process");
                self.problems.push(problem.help("write the secret into a file and pass the file's path"));
            }
            self.strings.insert(text.clone(), Arc::new(source));
        }
    }

    /// Tera is asked for mistakes first: its messages are the better ones.
    fn source(&mut self, path: RepoPath, place: Place, text: &str) -> Option<Source> {
        if let Err(error) = Tera::default().add_raw_template("t", text)
            && let ErrorKind::SyntaxError(report) = error.kind()
        {
            let title = report.message().trim_end_matches('.');
            let span = place.span(&report.span().range);
            self.problems.push(Problem::error("template-syntax", path, title).at(span, "here"));
            return None;
        }
        Source::new(path, place, text.to_owned()).map_err(|problem| self.problems.push(*problem)).ok()
    }

    /// One rendering of a file. The pass comes back with the secrets that were used.
    pub fn render_file(
        &self,
        name: &str,
        context: &Context,
        pass: Pass,
        bytes_hint: usize,
    ) -> (Result<Zeroizing<Vec<u8>>, Box<Problem>>, Pass) {
        let (outcome, pass) = functions::during(pass, || self.run(name, context, bytes_hint));
        let source = self.files.get(name);
        (outcome.map_err(|failure| self.problem(failure, source, pass.refused)), pass)
    }

    /// A string of `role.toml`, rendered. There are no secrets in it.
    pub fn render_string(&self, text: &str, context: &Context) -> Result<String, Box<Problem>> {
        let Some(source) = self.strings.get(text) else { return Ok(text.to_owned()) };
        let bytes = self.run(&string_name(text), context, text.len());
        let mut bytes = bytes.map_err(|failure| self.problem(failure, Some(source), None))?;
        Ok(String::from_utf8(std::mem::take(&mut *bytes)).expect("Tera writes UTF-8"))
    }

    fn run(&self, name: &str, context: &Context, bytes_hint: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut output = Limited { bytes: Zeroizing::new(Vec::with_capacity(bytes_hint)), full: false };
        match catch_unwind(AssertUnwindSafe(|| self.tera.render_to(name, context, &mut output))) {
            Err(_) => Err(Failure::Panic),
            Ok(Err(_)) if output.full => Err(Failure::Limit),
            Ok(Err(error)) => Err(Failure::Tera(error)),
            Ok(Ok(())) => Ok(output.bytes),
        }
    }

    fn problem(&self, failure: Failure, source: Option<&Arc<Source>>, refused: Option<&'static str>) -> Box<Problem> {
        let whole = |rule, title: String| {
            let path = source.map_or_else(|| RepoPath::new("roles"), |source| source.path.clone());
            Problem::error(rule, path, title)
        };
        Box::new(match failure {
            Failure::Panic => whole("render-panic", "the template engine failed".to_owned()),
            Failure::Limit => whole("render-limit", format!("it renders to more than {} MiB", OUTPUT_BYTES_MAX >> 20)),
            Failure::Tera(error) => match error.kind() {
                ErrorKind::RenderingError(report) => {
                    let text = report.filename().strip_prefix('\u{1}');
                    let inner = text.map_or_else(|| self.files.get(report.filename()), |text| self.strings.get(text));
                    let title = report.message().trim_end_matches('.').to_owned();
                    let rule = refused.unwrap_or("render-failed");
                    match inner {
                        Some(source) => Problem::error(rule, source.path.clone(), title)
                            .at(source.span(&report.span().range), "here"),
                        None => whole(rule, title),
                    }
                }
                _ => whole("render-failed", error.to_string()),
            },
        })
    }
}

enum Failure {
    Tera(tera::Error),
    Limit,
    Panic,
}

/// Takes no more than the limit.
struct Limited {
    bytes: Zeroizing<Vec<u8>>,
    full: bool,
}

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let length = self.bytes.len() + bytes.len();
        if length > self.bytes.capacity() {
            // A vector that grows by itself leaves its old bytes behind.
            let mut larger = Zeroizing::new(Vec::with_capacity(length.max(2 * self.bytes.capacity())));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C12: whatever a flaw of the template engine has to say when it panics, it may be a value.
    #[test]
    fn a_panic_of_the_template_engine_is_a_problem_without_its_words() {
        let mut tera = Tera::default();
        tera.register_function("boom", |_: tera::Kwargs, _: &tera::State<'_>| -> tera::TeraResult<String> {
            panic!("a canary")
        });
        tera.add_raw_template("t", "{{ boom() }}").unwrap();
        let (files, strings, problems) = Default::default();
        let compiled = Compiled { tera, files, strings, reads_cluster: false, problems };
        let values = BTreeMap::from([("s".into(), Zeroizing::new("a canary".to_owned()))]);
        let pass = Pass { values: Some(values), ..Pass::default() };
        let (outcome, pass) = compiled.render_file("t", &Context::new(), pass, 0);
        let problem = outcome.unwrap_err();
        assert_eq!(problem.rule, "render-panic");
        assert!(!format!("{problem:?}").contains("canary"), "{problem:?}");
        assert!(pass.values.is_none(), "wiped all the same");
    }
}
