//! What strict adds to Tera: every name that a template reads must exist for every node that renders it, in branches
//! that are not taken and loops that are empty too. `is defined`, `default` and `?.` excuse what they stand on.
//!
//! The template is walked once per node with the node's values in place of names: a loop variable is all elements of
//! its list at once, and what cannot be known (a filter's answer, a secret) is never a problem. PURE. Never: a value
//! in a problem, only names.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use tera::{Context, Kwargs, Map, Value};

use super::context::{Shared, field};
use super::functions;
use super::syntax::{Args, Expr, Filter, Item, Kind, Lost, Node, Span, parse, walk};
use crate::fleet::problem::Problem;
use crate::name::{RepoPath, SecretName};

/// A template, or a string of `role.toml` that is one.
pub struct Source {
    pub path: RepoPath,
    pub place: Place,
    pub text: String,
    pub nodes: Vec<Node>,
}

/// Where the text stands in its file.
pub enum Place {
    /// It begins there.
    At(usize),
    /// Somewhere in there, but written with escapes.
    Within(Span),
}

impl Place {
    pub fn span(&self, span: &Span) -> Span {
        match self {
            Self::At(offset) => span.start + offset..span.end + offset,
            Self::Within(whole) => whole.clone(),
        }
    }
}

impl Source {
    /// Errors: this reader cannot follow the text; Tera has to be asked first, its messages are better.
    pub fn new(path: RepoPath, place: Place, text: String) -> Result<Self, Box<Problem>> {
        match parse(&text) {
            Ok(nodes) => Ok(Self { path, place, text, nodes }),
            Err(Lost { span, expected }) => {
                let title = "this template cannot be checked";
                let problem = Problem::error("template-syntax", path, title);
                Err(Box::new(problem.at(place.span(&span), format!("expected {expected}"))))
            }
        }
    }

    pub fn span(&self, span: &Span) -> Span {
        self.place.span(span)
    }

    /// The text of a span, on one line.
    fn quote(&self, span: &Span) -> String {
        self.text.get(span.clone()).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn problem(&self, rule: &'static str, title: String, span: &Span, label: impl Into<String>) -> Problem {
        Problem::error(rule, self.path.clone(), title).at(self.span(span), label)
    }

    pub fn calls_secret(&self) -> bool {
        self.any(&|item| matches!(item, Item::Expr(Expr { kind: Kind::Call { name, .. }, .. }) if name == "secret"))
    }

    /// The templates that this one includes or extends.
    pub fn includes(&self) -> Vec<(&str, &Span)> {
        let mut names = Vec::new();
        walk(&self.nodes, &mut |item| {
            if let Item::Node(Node::Include { name, span } | Node::Extends { name, span }) = item {
                names.push((name.as_str(), span));
            }
        });
        names
    }

    /// Whether it reads something that only a cluster gives: `cluster`, `node.id`.
    pub fn reads_cluster(&self) -> bool {
        self.any(&|item| match item {
            Item::Expr(Expr { kind: Kind::Name(name), .. }) => name == "cluster",
            Item::Expr(Expr { kind: Kind::Attr { of, name, .. }, .. }) => {
                name == "id" && matches!(&of.kind, Kind::Name(root) if root == "node")
            }
            _ => false,
        })
    }

    fn any(&self, is: &dyn Fn(&Item<'_>) -> bool) -> bool {
        let mut found = false;
        walk(&self.nodes, &mut |item| found |= is(&item));
        found
    }
}

pub const FILTERS: [&str; 44] = [
    "abs",
    "capitalize",
    "default",
    "escape",
    "escape_html",
    "escape_xml",
    "first",
    "float",
    "get",
    "group_by",
    "indent",
    "ini",
    "int",
    "join",
    "json",
    "keys",
    "last",
    "length",
    "lower",
    "newlines_to_br",
    "nth",
    "pairs",
    "pem",
    "pluralize",
    "properties",
    "replace",
    "reverse",
    "round",
    "safe",
    "shell",
    "sort",
    "split",
    "str",
    "title",
    "toml",
    "trim",
    "trim_end",
    "trim_start",
    "truncate",
    "unique",
    "upper",
    "values",
    "xml",
    "yaml",
];
pub const TESTS: [&str; 17] = [
    "array",
    "bool",
    "containing",
    "defined",
    "divisible_by",
    "ending_with",
    "even",
    "float",
    "integer",
    "iterable",
    "map",
    "none",
    "number",
    "odd",
    "starting_with",
    "string",
    "undefined",
];
pub const FUNCTIONS: [&str; 6] = ["addresses", "nodes_of", "range", "secret", "super", "throw"];

/// Names that do not depend on a node: filters, tests, functions, included files. `exists`: whether the role has a file.
pub fn names(source: &Source, exists: &dyn Fn(&str) -> bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut check = |kind: &str, name: &str, span: &Span, known: &[&str]| {
        if !known.contains(&name) {
            let label = format!("there are: {}", known.join(", "));
            let title = format!("`{name}` is no {kind}");
            problems.push(source.problem("unknown-in-template", title, span, label));
        }
    };
    walk(&source.nodes, &mut |item| match item {
        Item::Filter(Filter { name, span, .. }) => check("filter", name, span, &FILTERS),
        Item::Expr(Expr { kind: Kind::Test { name, name_span, .. }, .. }) => check("test", name, name_span, &TESTS),
        Item::Expr(Expr { kind: Kind::Call { name, name_span, .. }, .. }) => {
            check("function", name, name_span, &FUNCTIONS);
        }
        _ => {}
    });
    for (name, span) in source.includes() {
        if !exists(name) {
            let title = format!("\"{name}\" is no file of this role");
            problems.push(source.problem("unknown-in-template", title, span, "a path inside the role's folder"));
        }
    }
    problems
}

/// Components that call themselves, directly or not, could go on for ever: a problem for each.
pub fn recursion<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<Problem> {
    let mut calls: BTreeMap<&str, (BTreeSet<&str>, &Source)> = BTreeMap::new();
    for source in sources {
        walk(&source.nodes, &mut |item| {
            if let Item::Node(Node::Component { name, body, .. }) = item {
                let mut called = BTreeSet::new();
                walk(body, &mut |item| {
                    if let Item::Expr(Expr { kind: Kind::Component { name, .. }, .. }) = item {
                        called.insert(name.as_str());
                    }
                });
                calls.insert(name, (called, source));
            }
        });
    }
    let reaches_itself = |name: &str| {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = vec![name];
        while let Some((called, _)) = next.pop().and_then(|name| calls.get(name)) {
            next.extend(called.iter().filter(|called| reached.insert(called)));
        }
        reached.contains(name)
    };
    let looping = calls.iter().filter(|(name, _)| reaches_itself(name));
    looping
        .map(|(name, (_, source))| {
            Problem::error("render-limit", source.path.clone(), format!("the component {name} calls itself"))
        })
        .collect()
}

/// What an expression can be.
#[derive(Clone)]
enum Seen {
    Unknown,
    One(Value),
    /// One of these: a loop variable.
    Any(Rc<Vec<Value>>),
}

impl Seen {
    fn values(&self) -> &[Value] {
        match self {
            Self::Unknown => &[],
            Self::One(value) => std::slice::from_ref(value),
            Self::Any(values) => values,
        }
    }

    /// Nothing known is everything possible.
    fn of(mut values: Vec<Value>) -> Self {
        match values.len() {
            0 => Self::Unknown,
            1 => values.pop().map_or(Self::Unknown, Self::One),
            _ => Self::Any(Rc::new(values)),
        }
    }

    fn or(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            _ => Self::of(self.values().iter().chain(other.values()).cloned().collect()),
        }
    }
}

/// What happens where a name does not exist.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Problem,
    Excused,
}

/// The names that templates set themselves, innermost last.
type Frames = Vec<BTreeMap<String, Seen>>;

/// Steps of all loops of one template together; some 0.1 s.
const STEPS_MAX: u64 = 5_000_000;
/// A list of unknown length is taken to have this many elements.
const LENGTH_UNKNOWN: u64 = 100;

const FALSE: &str = "Tera would have taken this for false";
const EMPTY: &str = "Tera would have left this empty";

/// What is needed to look at one template as one node.
pub struct Scene<'a> {
    pub files: &'a BTreeMap<String, Arc<Source>>,
    pub shared: &'a Shared,
    /// Every secret of the environment.
    pub secrets: &'a BTreeSet<SecretName>,
    pub context: &'a Context,
}

/// The problems of one template for one node, without the node's name.
pub fn look(source: &Source, scene: &Scene<'_>) -> Vec<Problem> {
    let mut look = Look {
        scene,
        source,
        frames: vec![BTreeMap::new()],
        isolated: false,
        defined: Vec::new(),
        silent: None,
        weight: 1,
        steps: 0,
        problems: Vec::new(),
    };
    look.nodes(&source.nodes);
    if look.steps > STEPS_MAX {
        let title = format!("its loops take more than {STEPS_MAX} steps");
        look.problems.push(Problem::error("render-limit", source.path.clone(), title));
    }
    look.problems
}

struct Look<'a> {
    scene: &'a Scene<'a>,
    /// Changes inside an include.
    source: &'a Source,
    frames: Frames,
    /// Inside a component: only its arguments exist.
    isolated: bool,
    /// Paths that a condition around here found to be defined.
    defined: Vec<String>,
    /// What Tera would silently do with a missing name here.
    silent: Option<&'static str>,
    /// How often the loops around here run.
    weight: u64,
    steps: u64,
    problems: Vec<Problem>,
}

impl<'a> Look<'a> {
    fn nodes(&mut self, nodes: &'a [Node]) {
        for node in nodes {
            self.steps = self.steps.saturating_add(self.weight);
            if self.steps > STEPS_MAX {
                return;
            }
            self.node(node);
        }
    }

    fn node(&mut self, node: &'a Node) {
        match node {
            Node::Print(expr) => self.print(expr),
            Node::If { condition, yes, no } => {
                self.condition(condition);
                let before = self.frames.clone();
                self.assuming(condition, true, |look| look.nodes(yes));
                let after_yes = std::mem::replace(&mut self.frames, before);
                self.assuming(condition, false, |look| look.nodes(no));
                self.join(&after_yes);
            }
            Node::For { key, value, target, body, otherwise } => {
                let list = self.eval(target, Missing::Problem);
                let before = self.frames.clone();
                forget_reassigned(body, &mut self.frames);
                self.each(target, key.as_deref(), value, &list, |look| look.nodes(body));
                self.join(&before);
                self.nodes(otherwise);
            }
            Node::Set { name, value, global } => {
                let value = self.eval(value, Missing::Problem);
                self.set(name, value, *global);
            }
            Node::Capture { name, global, filters, body } => {
                self.frames.push(BTreeMap::new());
                self.nodes(body);
                self.frames.pop();
                for filter in filters {
                    self.args(&filter.args);
                }
                if let Some(name) = name {
                    self.set(name, Seen::Unknown, *global);
                }
            }
            Node::Block(body) => self.nodes(body),
            Node::Include { name, .. } | Node::Extends { name, .. } => {
                let scene = self.scene;
                if let Some(included) = scene.files.get(name) {
                    let outer = std::mem::replace(&mut self.source, included);
                    self.nodes(&included.nodes);
                    self.source = outer;
                }
            }
            Node::Component { args, body, .. } => {
                let arguments = args.iter().map(|name| (name.clone(), Seen::Unknown)).collect();
                let frames = std::mem::replace(&mut self.frames, vec![arguments]);
                let defined = std::mem::take(&mut self.defined);
                let isolated = std::mem::replace(&mut self.isolated, true);
                self.nodes(body);
                (self.frames, self.defined, self.isolated) = (frames, defined, isolated);
            }
        }
    }

    fn print(&mut self, expr: &'a Expr) {
        let seen = self.eval(expr, Missing::Problem);
        let what = self.source.quote(&expr.span);
        if let Some(value) = seen.values().iter().find(|value| value.is_map() || value.is_array()) {
            let kind = if value.is_map() { "a table" } else { "a list" };
            let problem = self.source.problem(
                "prints-a-structure",
                format!("`{what}` is {kind}, not a text"),
                &expr.span,
                has(&what, value),
            );
            self.problems
                .push(problem.help("print one of its fields, loop over it, or use a filter: join, json, yaml, toml"));
        } else if seen.values().iter().any(Value::is_none) {
            let problem =
                self.source.problem("prints-null", format!("`{what}` is null"), &expr.span, "nothing would be printed");
            self.problems.push(problem);
        }
    }

    /// Evaluates a condition: a missing name in it would be silent.
    fn condition(&mut self, condition: &'a Expr) {
        let silent = self.silent.replace(FALSE);
        self.eval(condition, Missing::Problem);
        self.silent = silent;
    }

    /// What is inside a branch may rely on what the condition said.
    fn assuming<T>(&mut self, condition: &Expr, holds: bool, inside: impl FnOnce(&mut Self) -> T) -> T {
        let known = self.defined.len();
        facts(condition, holds, &mut self.defined);
        let answer = inside(self);
        self.defined.truncate(known);
        answer
    }

    /// Walks `inside` with the loop's names bound to all elements at once.
    fn each(&mut self, target: &Expr, key: Option<&str>, value: &str, list: &Seen, inside: impl FnOnce(&mut Self)) {
        let lists = list.values();
        let mut elements = Vec::new();
        let mut keys = Vec::new();
        for list in lists {
            elements.extend(list.as_array().unwrap_or_default().iter().cloned());
            for (key, element) in list.as_map().into_iter().flatten() {
                keys.push(key.as_value());
                elements.push(element.clone());
            }
        }
        let longest = match range_end(target) {
            Some(end) => end,
            None => lists.iter().map(|list| list.len().unwrap_or(0) as u64).max().unwrap_or(LENGTH_UNKNOWN),
        };
        let mut frame = BTreeMap::from([(value.to_owned(), Seen::of(elements)), ("loop".to_owned(), Seen::Unknown)]);
        if let Some(key) = key {
            frame.insert(key.to_owned(), Seen::of(keys));
        }
        // The loop's names hide whatever was found to be defined under the same ones.
        let defined = self.defined.clone();
        self.defined.retain(|path| path_root(path) != value && Some(path_root(path)) != key);
        let weight = self.weight;
        self.weight = weight.saturating_mul(longest.max(1));
        self.frames.push(frame);
        inside(self);
        self.frames.pop();
        self.weight = weight;
        self.defined = defined;
    }

    fn set(&mut self, name: &str, value: Seen, global: bool) {
        let frame = if global { self.frames.first_mut() } else { self.frames.last_mut() };
        if let Some(frame) = frame {
            frame.insert(name.to_owned(), value);
        }
        self.defined.retain(|path| path_root(path) != name);
    }

    /// After two ways that could have been taken: only what both have set is surely there.
    fn join(&mut self, other: &Frames) {
        for (frame, other) in self.frames.iter_mut().zip(other) {
            let ours = std::mem::take(frame);
            *frame = ours
                .into_iter()
                .filter_map(|(name, seen)| other.get(&name).map(|there| (name, seen.or(there.clone()))))
                .collect();
        }
    }

    fn args(&mut self, args: &'a Args) -> Vec<(&'a str, Seen)> {
        args.iter().map(|(name, value)| (name.as_str(), self.eval(value, Missing::Problem))).collect()
    }

    fn name(&self, name: &str) -> Option<Seen> {
        let set = self.frames.iter().rev().find_map(|frame| frame.get(name));
        set.cloned().or_else(|| {
            let value = if self.isolated { None } else { self.scene.context.get(name) };
            value.cloned().map(Seen::One)
        })
    }

    fn eval(&mut self, expr: &'a Expr, missing: Missing) -> Seen {
        match &expr.kind {
            Kind::Const(value) => Seen::One(value.clone()),
            Kind::Name(name) => match self.name(name) {
                Some(seen) => seen,
                None => {
                    if missing == Missing::Problem && !self.is_defined(expr) {
                        self.unknown_name(expr);
                    }
                    Seen::Unknown
                }
            },
            Kind::Attr { of, name, optional } => {
                let base = self.base(of, *optional);
                let found = |value: &Value| field(value, name).cloned();
                self.step(expr, of, &base, excused(missing, *optional), found)
            }
            Kind::Item { of, index, optional } => {
                let base = self.base(of, *optional);
                let index = self.eval(index, Missing::Problem);
                match index.values() {
                    [] => Seen::of(base.values().iter().flat_map(children).collect()),
                    [index] => self.step(expr, of, &base, excused(missing, *optional), |value| item(value, index)),
                    several => several
                        .iter()
                        .fold(None, |seen: Option<Seen>, index| {
                            let one =
                                self.step(expr, of, &base, excused(missing, *optional), |value| item(value, index));
                            Some(seen.map_or(one.clone(), |seen| seen.or(one)))
                        })
                        .unwrap_or(Seen::Unknown),
                }
            }
            Kind::Slice { of, bounds, optional } => {
                let base = self.base(of, *optional);
                for bound in bounds {
                    self.eval(bound, Missing::Problem);
                }
                base
            }
            Kind::Filter { of, filter } => self.filter(of, filter),
            Kind::Test { of, name, args, .. } => {
                let excuse = matches!(name.as_str(), "defined" | "undefined");
                self.eval(of, if excuse { Missing::Excused } else { Missing::Problem });
                self.args(args);
                Seen::Unknown
            }
            Kind::Call { name, args, .. } => self.call(expr, name, args),
            Kind::Component { args, body, .. } => {
                for value in args {
                    self.eval(value, Missing::Problem);
                }
                self.nodes(body);
                Seen::Unknown
            }
            Kind::Not(of) => {
                self.condition(of);
                Seen::Unknown
            }
            Kind::And(left, right) | Kind::Or(left, right) => {
                let holds = matches!(expr.kind, Kind::And(..));
                let silent = self.silent.replace(FALSE);
                let first = self.eval(left, Missing::Problem);
                let second = self.assuming(left, holds, |look| look.eval(right, Missing::Problem));
                self.silent = silent;
                first.or(second)
            }
            Kind::Operator(values) => {
                for value in values {
                    self.eval(value, Missing::Problem);
                }
                Seen::Unknown
            }
            Kind::Ternary { condition, yes, no } => {
                self.condition(condition);
                let first = self.assuming(condition, true, |look| look.eval(yes, Missing::Problem));
                first.or(self.assuming(condition, false, |look| look.eval(no, Missing::Problem)))
            }
            Kind::List(values) | Kind::Literal(values) => {
                let silent = self.silent.replace(EMPTY);
                let items: Vec<Seen> = values.iter().map(|value| self.eval(value, Missing::Problem)).collect();
                self.silent = silent;
                let known = items.iter().map(|item| match item {
                    Seen::One(value) => Some(value.clone()),
                    _ => None,
                });
                match known.collect::<Option<Vec<_>>>() {
                    Some(items) if matches!(expr.kind, Kind::List(_)) => Seen::One(Value::from(items)),
                    _ => Seen::Unknown,
                }
            }
            Kind::Comprehension { item, key, value, target, condition } => {
                let list = self.eval(target, Missing::Problem);
                self.each(target, key.as_deref(), value, &list, |look| match condition {
                    Some(condition) => {
                        look.condition(condition);
                        look.assuming(condition, true, |look| look.eval(item, Missing::Problem));
                    }
                    None => {
                        look.eval(item, Missing::Problem);
                    }
                });
                Seen::Unknown
            }
        }
    }

    /// What stands before a dot or bracket. Before `?.` it may be missing.
    fn base(&mut self, of: &'a Expr, optional: bool) -> Seen {
        self.eval(of, if optional { Missing::Excused } else { Missing::Problem })
    }

    /// One step into every possible base; a base that has no such thing is a problem.
    fn step(
        &mut self,
        expr: &Expr,
        of: &Expr,
        base: &Seen,
        missing: Missing,
        find: impl Fn(&Value) -> Option<Value>,
    ) -> Seen {
        let mut found = Vec::new();
        let mut without = Vec::new();
        for value in base.values() {
            match find(value) {
                Some(value) => found.push(value),
                None => without.push(value),
            }
        }
        if let Some(first) = without.first()
            && missing == Missing::Problem
            && !self.is_defined(expr)
        {
            let label = has(&self.source.quote(&of.span), first);
            let names: Vec<&str> = match base {
                Seen::Any(_) => without.iter().filter_map(|value| field(value, "name")?.as_str()).collect(),
                _ => Vec::new(),
            };
            self.undefined(expr, label, &names);
        }
        Seen::of(found)
    }

    fn is_defined(&self, expr: &Expr) -> bool {
        !self.defined.is_empty() && path(expr).is_some_and(|path| self.defined.contains(&path))
    }

    fn unknown_name(&mut self, expr: &Expr) {
        let set = self.frames.iter().flat_map(|frame| frame.keys().map(String::as_str));
        let roots = super::context::ROOTS.into_iter();
        let given = roots.filter(|name| !self.isolated && self.scene.context.get(name).is_some());
        let names: BTreeSet<&str> = set.chain(given).filter(|name| *name != "loop").collect();
        let label = format!("there are: {}", names.into_iter().collect::<Vec<_>>().join(", "));
        self.undefined(expr, label, &[]);
    }

    fn undefined(&mut self, expr: &Expr, label: String, elements: &[&str]) {
        let what = self.source.quote(&expr.span);
        let title = format!("`{what}` does not exist");
        let mut problem = self.source.problem("undefined-in-template", title, &expr.span, label);
        if !elements.is_empty() {
            problem = problem.note(format!("missing in {}", super::several(elements)));
        }
        if let Some(silent) = self.silent {
            problem = problem.note(silent);
        }
        let problem =
            problem.help(format!("where it may be missing: `{what} is defined` or `{what} | default(value=…)`"));
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn filter(&mut self, of: &'a Expr, filter: &'a Filter) -> Seen {
        let excused = filter.name == "default";
        let seen = self.eval(of, if excused { Missing::Excused } else { Missing::Problem });
        let args = self.args(&filter.args);
        let first = || seen.values().first().filter(|_| seen.values().len() == 1);
        match filter.name.as_str() {
            "default" => {
                let fallback = args.into_iter().find(|(name, _)| *name == "value");
                fallback.map_or(Seen::Unknown, |(_, fallback)| seen.or(fallback))
            }
            "sort" | "reverse" | "unique" => seen,
            "first" | "last" | "nth" => Seen::of(seen.values().iter().flat_map(children).collect()),
            "values" => match first().and_then(Value::as_map) {
                Some(map) => Seen::One(Value::from(map.values().cloned().collect::<Vec<_>>())),
                None => Seen::Unknown,
            },
            "keys" => match first().and_then(Value::as_map) {
                Some(map) => Seen::One(Value::from(map.keys().map(|key| key.as_value()).collect::<Vec<_>>())),
                None => Seen::Unknown,
            },
            _ => Seen::Unknown,
        }
    }

    fn call(&mut self, expr: &Expr, name: &str, args: &'a Args) -> Seen {
        let args = self.args(args);
        let mut known = Map::new();
        for (name, seen) in &args {
            let Seen::One(value) = seen else { return Seen::Unknown };
            known.insert((*name).to_owned().into(), value.clone());
        }
        let known = Kwargs::new(Arc::new(known));
        let answer = match name {
            "nodes_of" => functions::nodes_of(self.scene.shared, &known),
            "addresses" => functions::addresses(self.scene.shared, &known),
            "secret" => {
                let name = known.get::<&str>("name").ok().flatten().map(SecretName::from);
                if let Some(name) = name.filter(|name| !self.scene.secrets.contains(name)) {
                    let title = format!("secrets.toml has no secret {name}");
                    let problem = self.source.problem("unknown-secret", title, &expr.span, "read here");
                    self.problems.push(problem);
                }
                return Seen::Unknown;
            }
            _ => return Seen::Unknown,
        };
        match answer {
            Ok(value) => Seen::One(value),
            Err(error) => {
                let title = format!("{name}: {error}");
                self.problems.push(self.source.problem("bad-call", title, &expr.span, "called here"));
                Seen::Unknown
            }
        }
    }
}

fn excused(missing: Missing, optional: bool) -> Missing {
    if optional { Missing::Excused } else { missing }
}

fn children(value: &Value) -> Vec<Value> {
    let elements = value.as_array().unwrap_or_default().iter();
    elements.chain(value.as_map().into_iter().flat_map(Map::values)).cloned().collect()
}

fn item(value: &Value, index: &Value) -> Option<Value> {
    match (index.as_str(), index.as_i64()) {
        (Some(key), _) => field(value, key).cloned(),
        (None, Some(at)) => {
            let list = value.as_array()?;
            let at =
                if at < 0 { list.len().checked_sub(at.unsigned_abs() as usize)? } else { at.unsigned_abs() as usize };
            list.get(at).cloned()
        }
        _ => None,
    }
}

/// What a value has, for the label under a name that it has not.
fn has(what: &str, value: &Value) -> String {
    let Some(map) = value.as_map() else { return format!("`{what}` is no table: {}", value.name()) };
    let mut keys: Vec<String> = map.keys().map(ToString::to_string).collect();
    keys.sort();
    let what = match (field(value, "fqdn"), field(value, "groups")) {
        (Some(_), _) => "a node".to_owned(),
        (_, Some(_)) => "a cluster".to_owned(),
        _ => format!("`{what}`"),
    };
    if keys.is_empty() { format!("{what} is empty") } else { format!("{what} has: {}", keys.join(", ")) }
}

/// Names that are assigned for all in a loop's body: on the second turn they may be anything.
fn forget_reassigned(body: &[Node], frames: &mut Frames) {
    walk(body, &mut |item| {
        if let Item::Node(Node::Set { name, global: true, .. } | Node::Capture { name: Some(name), global: true, .. }) =
            item
            && let Some(seen) = frames.first_mut().and_then(|frame| frame.get_mut(name))
        {
            *seen = Seen::Unknown;
        }
    });
}

/// The paths that are defined where the condition is (or is not) true.
fn facts(condition: &Expr, holds: bool, defined: &mut Vec<String>) {
    match &condition.kind {
        Kind::Not(inner) => facts(inner, !holds, defined),
        Kind::And(left, right) if holds => {
            facts(left, true, defined);
            facts(right, true, defined);
        }
        Kind::Or(left, right) if !holds => {
            facts(left, false, defined);
            facts(right, false, defined);
        }
        Kind::Test { of, name, .. } if (name == "defined" && holds) || (name == "undefined" && !holds) => {
            defined.extend(path(of));
        }
        _ => {}
    }
}

/// `a.b.c` however it is written; `None` for what is no plain path.
fn path(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Name(name) => Some(name.clone()),
        Kind::Attr { of, name, .. } => Some(format!("{}.{name}", path(of)?)),
        Kind::Item { of, index, .. } => match &index.kind {
            Kind::Const(value) => Some(format!("{}.{}", path(of)?, value.as_str()?)),
            _ => Some(format!("{}[{}]", path(of)?, path(index)?)),
        },
        _ => None,
    }
}

fn path_root(path: &str) -> &str {
    path.split(['.', '[']).next().unwrap_or(path)
}

fn range_end(target: &Expr) -> Option<u64> {
    let Kind::Call { name, args, .. } = &target.kind else { return None };
    let end = args.iter().find(|(name, _)| name == "end").map(|(_, value)| &value.kind);
    match end {
        // Tera stops a single range there.
        _ if name != "range" => None,
        Some(Kind::Const(end)) => Some(end.as_u64().unwrap_or(0).min(100_000)),
        _ => Some(100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tera::Tera;

    /// A name that is listed here but not in Tera would fail at rendering; the other way round it could not be used.
    #[test]
    fn the_names_are_those_that_tera_has() {
        let mut tera = Tera::default();
        super::super::filters::register(&mut tera);
        for name in FILTERS {
            tera.add_raw_template("t", &format!("{{{{ x | {name} }}}}")).unwrap();
        }
        for name in TESTS {
            tera.add_raw_template("t", &format!("{{{{ x is {name} }}}}")).unwrap();
        }
        let answer = tera.add_raw_template("t", "{{ x | nope }}{{ x is nope }}{{ nope() }}");
        assert!(answer.unwrap_err().to_string().contains("Unknown filter"));
    }
}
