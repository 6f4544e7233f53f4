//! One TOML file: its typed content, every mistake of form in it, and where in it something stands.
//!
//! Serde stops at the first error. Here the entry that it stumbled over is reported and taken out of the parsed table,
//! and the rest is tried again, so that one bad node does not hide the others. Spans are looked up in the file's own
//! table, parsed a second time only once a problem needs one.
//! PURE. Never: decides whether a name exists; never: recurses deeper than [`NESTING_MAX`] allows.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::fleet::check::suggest;
use crate::fleet::problem::Problem;
use crate::fleet::rule;
use crate::fleet::tree::Tree;
use crate::name::RepoPath;

/// Parts of a dotted key. The parser bounds brackets itself, but not these.
const NESTING_MAX: usize = 64;
const BYTES_MAX: usize = 32 << 20;
/// Problems of form told per file; whoever has more fixes these first.
const PROBLEMS_MAX: usize = 50;

/// A TOML file of the repository.
pub struct Document<'t> {
    pub path: RepoPath,
    text: &'t str,
    table: OnceCell<DeTable<'t>>,
    /// Where its lines end.
    ends: OnceCell<Vec<usize>>,
}

/// Collects what is wrong with the form of the files it reads.
pub struct Reader<'t> {
    pub tree: &'t Tree,
    pub problems: Vec<Problem>,
    /// Names that stood in what had to be left out; that they are missing is not told again.
    pub left_out: BTreeSet<String>,
}

impl<'t> Reader<'t> {
    /// The file's content; `None` if it is not there (no problem) or cannot be used (told in `problems`).
    pub fn read<T: DeserializeOwned>(&mut self, path: impl Into<RepoPath>) -> (Document<'t>, Option<T>) {
        let path = path.into();
        let mut document = Document { path, text: "", table: OnceCell::new(), ends: OnceCell::new() };
        let Some(bytes) = self.tree.get(document.path.as_str()) else {
            return (document, None);
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                self.problems.push(document.error(rule::NOT_TEXT, format!("byte {at} is not UTF-8")));
                return (document, None);
            }
        };
        if text.len() > BYTES_MAX {
            let title = format!("{} MiB are more than the {} MiB that are read", text.len() >> 20, BYTES_MAX >> 20);
            self.problems.push(document.error(rule::TOO_LARGE, title));
            return (document, None);
        }
        document.text = text;
        if let Some(at) = too_many_dots(text) {
            let title = format!("a key of more than {NESTING_MAX} parts");
            self.problems.push(document.error(rule::TOO_DEEP, title).at(at..at + 1, "too many parts"));
            return (document, None);
        }
        let body = self.deserialize(&mut document);
        (document, body)
    }

    fn deserialize<T: DeserializeOwned>(&mut self, document: &mut Document<'t>) -> Option<T> {
        let (table, errors) = DeTable::parse_recoverable(document.text);
        if !errors.is_empty() {
            let mut told: Vec<Problem> = Vec::new();
            let mut lines = BTreeSet::new();
            for error in errors {
                let (title, label) = error.message().split_once('\n').unwrap_or((error.message(), ""));
                let problem = document.error(rule::SYNTAX, cut(title)).at(error.span().unwrap_or_default(), cut(label));
                // An open bracket makes the rest of the file wrong in the same way; a key can be said twice often.
                let same = |other: &Problem| other.title == problem.title && !title.starts_with("duplicate key");
                let line = || document.line(problem.span.as_ref().map_or(0, |span| span.start));
                if told.len() < PROBLEMS_MAX && !told.iter().any(same) && lines.insert(line()) {
                    told.push(problem);
                }
            }
            self.problems.extend(told);
            return None;
        }
        if let Some((_, format)) = table.get_ref().get_key_value("format")
            && let Some(version) = format.get_ref().as_integer().and_then(|number| number.as_str().parse::<u64>().ok())
            && version != 1
        {
            let title = format!("format {version} is not known to this converger, which reads format 1");
            let mut problem = document.error(rule::FORMAT_VERSION, title).at(format.span(), "expected 1");
            if version > 1 {
                problem = problem.note("an agent of this version would refuse it: agent-too-old");
            }
            self.problems.push(problem);
            return None;
        }
        let span = table.span();
        match T::deserialize(toml::de::Deserializer::from(table)) {
            Ok(body) => Some(body),
            Err(_) => self.deserialize_what_can_be(document, span),
        }
    }

    fn deserialize_what_can_be<T: DeserializeOwned>(
        &mut self,
        document: &mut Document<'t>,
        whole: Range<usize>,
    ) -> Option<T> {
        let mut table = document.table().clone();
        // Tables that lost a key: what they lack now they lack because of us.
        let mut robbed: Vec<Range<usize>> = Vec::new();
        for _ in 0..PROBLEMS_MAX {
            let attempt = toml::de::Deserializer::from(Spanned::new(whole.clone(), table.clone()));
            let error = match T::deserialize(attempt) {
                Ok(body) => {
                    // So that the positions of entries are those of the body.
                    document.table = OnceCell::from(table);
                    return Some(body);
                }
                Err(error) => error,
            };
            let span = error.span();
            let missing = error.message().starts_with("missing field");
            if !(missing && robbed.contains(span.as_ref().unwrap_or(&whole))) {
                let span = span.clone().filter(|span| *span != whole);
                self.problems.push(of_form(document, error.message(), span));
            }
            let lost = span.and_then(|span| take_out(&mut table, &whole, &span, &mut self.left_out));
            robbed.push(lost?);
        }
        None
    }
}

impl<'t> Document<'t> {
    pub fn error(&self, rule: &'static str, title: impl Into<String>) -> Problem {
        Problem::error(rule, self.path.clone(), title)
    }

    pub fn warning(&self, rule: &'static str, title: impl Into<String>) -> Problem {
        Problem::warning(rule, self.path.clone(), title)
    }

    /// 1-based.
    pub fn line(&self, offset: usize) -> usize {
        let ends = self.ends.get_or_init(|| self.text.match_indices('\n').map(|(at, _)| at).collect());
        1 + ends.partition_point(|end| *end < offset)
    }

    /// Where the value at this path stands; of the deepest part of the path that there is.
    pub fn value(&self, path: &[&str]) -> Range<usize> {
        self.find(path).1
    }

    /// Where the key at this path stands; the value, for an element of a list.
    pub fn key(&self, path: &[&str]) -> Range<usize> {
        self.find(path).0
    }

    /// The string at this path.
    pub fn text_at(&self, path: &[&str]) -> Option<String> {
        self.steps(path).nth(path.len() - 1)?.1.get_ref().as_str().map(str::to_owned)
    }

    fn find(&self, path: &[&str]) -> (Range<usize>, Range<usize>) {
        self.steps(path).last().map_or((0..0, 0..0), |(key, value)| (key, value.span()))
    }

    /// What the path leads through, as far as it goes: where the key is (for a list the element), and the value.
    fn steps(&self, path: &[&str]) -> impl Iterator<Item = (Range<usize>, &Spanned<DeValue<'t>>)> {
        let mut at: Option<&Spanned<DeValue<'t>>> = None;
        path.iter().map_while(move |step| {
            let table = match at {
                None => Some(self.table()),
                Some(value) => value.get_ref().as_table(),
            };
            let (key, value) = match (table, at.and_then(|value| value.get_ref().as_array())) {
                (Some(table), _) => table.get_key_value(*step).map(|(key, value)| (key.span(), value))?,
                (None, Some(list)) => {
                    step.parse().ok().and_then(|index: usize| list.get(index)).map(|v| (v.span(), v))?
                }
                (None, None) => return None,
            };
            at = Some(value);
            Some((key, value))
        })
    }

    fn table(&self) -> &DeTable<'t> {
        self.table.get_or_init(|| DeTable::parse_recoverable(self.text).0.into_inner())
    }
}

/// What serde says, said to people.
fn of_form(document: &Document<'_>, message: &str, span: Option<Range<usize>>) -> Problem {
    // serde quotes names in backticks: the offending one first, then those it would have taken.
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let first = quoted.first().copied().unwrap_or_default();
    let known = quoted.get(1..).unwrap_or_default();
    let expected = message.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
    let one_of = if expected.is_empty() { String::new() } else { format!("expected {}", plainly(expected)) };
    let (rule, title, label) = if message.starts_with("unknown field") {
        (rule::UNKNOWN_KEY, format!("\"{}\" is not a key of this table", cut(first)), one_of)
    } else if message.starts_with("missing field") {
        (rule::MISSING_KEY, format!("\"{first}\" is missing"), "in this table".to_owned())
    } else if message.starts_with("unknown variant") {
        (rule::BAD_VALUE, format!("\"{}\" is no value of this key", cut(first)), one_of)
    } else if message.starts_with("invalid type") {
        let found = message.strip_prefix("invalid type: ").unwrap_or(message);
        let found = found.rsplit_once(", expected ").map_or(found, |(found, _)| found);
        (rule::WRONG_TYPE, format!("a value of the wrong type: {}", cut(found)), one_of)
    } else if let Some(value) = message.strip_prefix("invalid value: ") {
        let value = value.rsplit_once(", expected ").map_or(value, |(value, _)| value);
        (rule::BAD_VALUE, format!("{} is no value of this key", cut(value)), one_of)
    } else {
        (rule::BAD_VALUE, cut(message), String::new())
    };
    let mut problem = document.error(rule, title).at(span.clone().unwrap_or_default(), cut(&label));
    if span.is_none() {
        problem.span = None;
    }
    match suggest(first, known.iter().copied()) {
        Some(near) if rule != rule::MISSING_KEY => problem.help(format!("did you mean \"{near}\"?")),
        _ => problem,
    }
}

/// Serde's words for types, in TOML's.
fn plainly(expected: &str) -> &str {
    match expected {
        "u16" => "a number from 0 to 65535",
        "u32" | "u64" | "usize" => "a number, 0 or more",
        "i32" | "i64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list: [..]",
        "a map" | "named tables" => "a table",
        structure if structure.starts_with("struct ") => "a table",
        other => other,
    }
}

/// Messages quote values, and a value may be megabytes.
fn cut(text: &str) -> String {
    const LENGTH_MAX: usize = 160;
    match text.char_indices().nth(LENGTH_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Takes the entry out whose key or value has this span; returns the span of the table that had it.
fn take_out(
    table: &mut DeTable<'_>,
    own: &Range<usize>,
    span: &Range<usize>,
    names: &mut BTreeSet<String>,
) -> Option<Range<usize>> {
    let hit = table
        .iter()
        .find(|(key, value)| key.span() == *span || value.span() == *span)
        .map(|(key, _)| key.get_ref().clone().into_owned());
    if let Some(name) = hit {
        let value = table.remove(name.as_str())?;
        collect_names(value.get_ref(), names);
        names.insert(name);
        return Some(own.clone());
    }
    table.iter_mut().find_map(|(_, value)| take_out_of_value(value, span, names))
}

fn take_out_of_value(
    value: &mut Spanned<DeValue<'_>>,
    span: &Range<usize>,
    names: &mut BTreeSet<String>,
) -> Option<Range<usize>> {
    let own = value.span();
    match value.get_mut() {
        DeValue::Table(table) => take_out(table, &own, span, names),
        DeValue::Array(list) => match list.iter().position(|element| element.span() == *span) {
            Some(index) => {
                let (kept, out): (Vec<_>, Vec<_>) = std::mem::replace(list, toml::de::DeArray::new())
                    .into_iter()
                    .enumerate()
                    .partition(|(at, _)| *at != index);
                *list = kept.into_iter().map(|(_, element)| element).collect();
                out.iter().for_each(|(_, element)| collect_names(element.get_ref(), names));
                Some(own)
            }
            None => list.iter_mut().find_map(|element| take_out_of_value(element, span, names)),
        },
        _ => None,
    }
}

fn collect_names(value: &DeValue<'_>, names: &mut BTreeSet<String>) {
    match value {
        DeValue::String(text) => {
            names.insert(text.clone().into_owned());
        }
        DeValue::Array(list) => list.iter().for_each(|element| collect_names(element.get_ref(), names)),
        DeValue::Table(table) => {
            for (key, value) in table {
                names.insert(key.get_ref().clone().into_owned());
                collect_names(value.get_ref(), names);
            }
        }
        _ => {}
    }
}

/// Where a dotted key gets longer than [`NESTING_MAX`]: every part is a level of the parsed table, which is dropped
/// and deserialized recursively.
fn too_many_dots(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut dots = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'.' => {
                dots += 1;
                if dots > NESTING_MAX {
                    return Some(at);
                }
            }
            b'\n' | b'=' | b',' | b'{' | b'}' => dots = 0,
            b'#' => at = bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| at + end - 1),
            b'"' | b'\'' => at = string_end(bytes, at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The last byte of the string that begins here.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let quote = bytes[start];
    let long = bytes[start..].starts_with(&[quote; 3]);
    let mut at = start + if long { 3 } else { 1 };
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if quote == b'"' => at += 1,
            b'\n' if !long => return at - 1,
            _ if byte == quote && !long => return at,
            _ if byte == quote && bytes[at..].starts_with(&[quote; 3]) => return at + 2,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_of_keys_count_and_dots_of_strings_and_comments_do_not() {
        let dots = ".".repeat(NESTING_MAX + 1);
        for text in [format!("a = \"{dots}\""), format!("# {dots}\na = 1"), format!("a = '''\n{dots}\n'''")] {
            assert_eq!(too_many_dots(&text), None, "{text}");
        }
        let key = vec!["a"; NESTING_MAX + 2].join(".");
        for text in [format!("{key} = 1"), format!("[{key}]"), format!("a = {{ {key} = 1 }}"), format!("\"\" . {key}")]
        {
            assert!(too_many_dots(&text).is_some(), "{text}");
        }
        assert_eq!(too_many_dots("a = \"unterminated\n# b"), None);
        assert_eq!(too_many_dots("#"), None);
    }
}
