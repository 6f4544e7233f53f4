//! Problems as people read them (the look of rustc) and as scripts do (JSON with lines and columns).
//!
//! PURE. Never: shows a line that holds a private key; never: passes a terminal's control characters on.

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet, normalize_untrusted_str};
use serde_json::{Value, json};

use crate::fleet::problem::{Problem, Severity};
use crate::fleet::tree::Tree;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Color {
    On,
    #[default]
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    pub color: Color,
    /// Columns of the terminal.
    pub width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self { color: Color::Off, width: 120 }
    }
}

/// Every problem, by file and position, with the line it is in; a blank line after each.
pub fn render(problems: &[Problem], tree: &Tree, style: Style) -> String {
    let renderer = match style.color {
        Color::On => Renderer::styled(),
        Color::Off => Renderer::plain(),
    };
    let renderer = renderer.term_width(style.width);
    sorted(problems).into_iter().map(|problem| one(problem, tree, &renderer) + "\n\n").collect()
}

/// `2 errors, 1 warning in 3 files`; `no problems`.
pub fn count(problems: &[Problem]) -> String {
    let of = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let some = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let found = [some(of(Severity::Error), "error"), some(of(Severity::Warning), "warning")];
    let mut paths: Vec<_> = problems.iter().map(|problem| &problem.path).collect();
    paths.sort();
    paths.dedup();
    match some(paths.len(), "file") {
        None => "no problems".to_owned(),
        Some(files) => format!("{} in {files}", found.into_iter().flatten().collect::<Vec<_>>().join(", ")),
    }
}

/// A list: severity, rule, title, path, line and column (1-based, in characters; null for a whole file), label, notes,
/// help.
pub fn to_json(problems: &[Problem], tree: &Tree) -> Value {
    let one = |problem: &Problem| {
        let place = excerpt(problem, tree);
        json!({
            "severity": problem.severity,
            "rule": problem.rule,
            "title": problem.title,
            "path": problem.path,
            "line": place.as_ref().map(|place| place.line),
            "column": place.as_ref().map(|place| place.column),
            "label": problem.label,
            "notes": problem.notes,
            "help": problem.help,
        })
    };
    sorted(problems).into_iter().map(one).collect()
}

fn sorted(problems: &[Problem]) -> Vec<&Problem> {
    let mut sorted: Vec<&Problem> = problems.iter().collect();
    let start = |problem: &Problem| problem.span.as_ref().map(|span| span.start);
    sorted.sort_by(|a, b| (&a.path, start(a), a.rule, &a.title).cmp(&(&b.path, start(b), b.rule, &b.title)));
    sorted
}

fn one(problem: &Problem, tree: &Tree, renderer: &Renderer) -> String {
    let level = match problem.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let path = normalize_untrusted_str(problem.path.as_str());
    let label = normalize_untrusted_str(&problem.label);
    let title = level.primary_title(problem.title.as_str()).id(problem.rule);
    let place = excerpt(problem, tree);
    let group = match &place {
        Some(place) if !place.secret => {
            let annotation = AnnotationKind::Primary.span(place.span.clone());
            let annotation = if label.is_empty() { annotation } else { annotation.label(label) };
            let snippet = Snippet::source(place.text).line_start(place.line).path(path).annotation(annotation);
            title.element(snippet)
        }
        Some(place) => title.element(Origin::path(path).line(place.line)),
        None => title.element(Origin::path(path)),
    };
    let notes = problem.notes.iter().map(|note| Level::NOTE.message(normalize_untrusted_str(note)));
    let explain = format!("(converger explain {})", problem.rule);
    let help = match &problem.help {
        Some(help) => format!("{} {explain}", normalize_untrusted_str(help)),
        None => explain,
    };
    let group = group.elements(notes).element(Level::HELP.message(help));
    renderer.render(&[group])
}

/// The one line that a problem is about, cut to what can be shown.
struct Excerpt<'t> {
    text: &'t str,
    span: std::ops::Range<usize>,
    line: usize,
    /// In characters.
    column: usize,
    /// The line must not be shown.
    secret: bool,
}

/// `None`: the problem is about the whole file.
fn excerpt<'t>(problem: &Problem, tree: &'t Tree) -> Option<Excerpt<'t>> {
    const SHOWN_MAX: usize = 400;
    let bytes = tree.get(problem.path.as_str())?;
    let span = problem.span.clone()?;
    let text = std::str::from_utf8(bytes).ok()?;
    let start = boundary(text, span.start.min(text.len()));
    let first = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let last = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let end = boundary(text, span.end.min(last)).clamp(start, last);
    let whole = &text[first..last];
    let line = 1 + text[..first].matches('\n').count();
    let column = 1 + text[first..start].chars().count();
    let secret = ["AGE-SECRET-KEY-", "PRIVATE KEY-----"].into_iter().any(|mark| whole.contains(mark));
    // A line may be megabytes: what comes after the place goes first, then what stands before it.
    let from = if start - first > SHOWN_MAX { boundary(text, start - SHOWN_MAX / 4) } else { first };
    let to = boundary(text, last.min(from + SHOWN_MAX));
    let span = start - from..end.min(to).max(start) - from;
    Some(Excerpt { text: &text[from..to], span, line, column, secret })
}

/// The beginning of the character that this byte is in.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Tree {
        let mut tree = Tree::default();
        tree.files.insert("a.toml".into(), text.as_bytes().into());
        tree
    }

    #[test]
    fn a_problem_shows_its_line() {
        let problem = Problem::error("unknown-cluster", "a.toml", "\"broker\" is not a cluster")
            .at(17..25, "no cluster has this name")
            .help("did you mean \"kafka\"?");
        let shown = render(&[problem], &tree("[x]\n  # y\nafter=[\"broker\"]\n"), Style::default());
        let expected = "\
error[unknown-cluster]: \"broker\" is not a cluster
 --> a.toml:3:8
  |
3 | after=[\"broker\"]
  |        ^^^^^^^^ no cluster has this name
  |
  = help: did you mean \"kafka\"? (converger explain unknown-cluster)

";
        assert_eq!(shown, expected);
    }

    #[test]
    fn keys_and_escapes_stay_inside() {
        let key = format!("AGE-SECRET-{}-1{}", "KEY", "Q".repeat(58));
        let problem =
            Problem::error("syntax", "a.toml", "bad \u{1b}[31m title").at(2..5, "x\u{1b}[0m").note("\u{1b}]0;n");
        let shown = render(std::slice::from_ref(&problem), &tree(&format!("a = \"{key}")), Style::default());
        assert!(!shown.contains("QQQ") && !shown.contains('\u{1b}'), "{shown}");
        assert!(shown.contains("a.toml:1"), "{shown}");
        let colored = render(&[problem], &tree("a = 1"), Style { color: Color::On, width: 80 });
        assert!(colored.contains("\u{1b}[") && !colored.contains("\u{1b}]0;"), "{colored}");
    }

    #[test]
    fn spans_that_do_not_fit_are_shown_as_well_as_they_can_be() {
        let text = format!("ä = \"{}\"\nb = 1\n", "ö".repeat(3_000_000));
        for span in [0..1, 1..2, 5..6_000_000, 3_000_001..3_000_002, 9_999_999..10_000_000, 6_000_006..6_000_020] {
            let shown =
                render(&[Problem::error("syntax", "a.toml", "t").at(span, "l")], &tree(&text), Style::default());
            assert!(shown.len() < 4_000, "{}", shown.len());
        }
        assert!(
            render(&[Problem::error("syntax", "b.toml", "t").at(0..1, "l")], &tree(""), Style::default())
                .contains("b.toml")
        );
    }

    #[test]
    fn the_count_is_a_sentence() {
        let error = || Problem::error("syntax", "a.toml", "t");
        assert_eq!(count(&[]), "no problems");
        assert_eq!(
            count(&[error(), error(), Problem::warning("syntax", "b.toml", "t")]),
            "2 errors, 1 warning in 2 files"
        );
    }

    #[test]
    fn json_has_lines_and_columns() {
        let problem = Problem::warning("syntax", "a.toml", "t").at(5..6, "l");
        let json = to_json(&[problem], &tree("a\näbc\n"));
        assert_eq!((json[0]["line"].as_u64(), json[0]["column"].as_u64()), (Some(2), Some(3)));
        assert_eq!(json[0]["severity"], "warning");
    }
}
