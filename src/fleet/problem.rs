//! An author's mistake: where, what, and what to do about it.
//!
//! PURE. Never: prints; never: stops at the first.

use std::ops::Range;

use serde::Serialize;

use crate::name::RepoPath;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Error,
    Warning,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    pub severity: Severity,
    /// Stable, kebab-case: `unknown-cluster`.
    pub rule: &'static str,
    /// One sentence, without a full stop.
    pub title: String,
    pub path: RepoPath,
    /// Byte range in the file; `None`: the file as a whole.
    pub span: Option<Range<usize>>,
    /// What stands under the carets.
    pub label: String,
    pub notes: Vec<String>,
    /// What to do.
    pub help: Option<String>,
}

impl Problem {
    pub fn error(rule: &'static str, path: impl Into<RepoPath>, title: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            rule,
            title: title.into(),
            path: path.into(),
            span: None,
            label: String::new(),
            notes: Vec::new(),
            help: None,
        }
    }

    pub fn warning(rule: &'static str, path: impl Into<RepoPath>, title: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(rule, path, title) }
    }

    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.span = Some(span);
        self.label = label.into();
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
