//! Plans as people read them: the answer first, then the evidence.
//!
//! PURE. Never: a value that came from a secret; it works on masked text only.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use similar::{ChangeTag, DiffTag, TextDiff};

use crate::name::{HostPath, NodeName};
use crate::plan::fleetwide::{FileDiff, FleetPlan, NodeChange};
use crate::plan::{Blocked, FileWrite, HoldNeed, Plan, Why, membership};
use crate::reason;
use crate::resource::file::FileChange;

/// Marks around parts of the text; empty where there is no colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Paint {
    pub bold: &'static str,
    pub green: &'static str,
    pub red: &'static str,
    pub yellow: &'static str,
    pub dim: &'static str,
    pub off: &'static str,
}

impl Paint {
    pub const COLOUR: Self = Self {
        bold: "\x1b[1m",
        green: "\x1b[32m",
        red: "\x1b[31m",
        yellow: "\x1b[33m",
        dim: "\x1b[2m",
        off: "\x1b[0m",
    };
}

/// `68 s`, `5 min`, `1 h 20 min`.
pub fn about(secs: u64) -> String {
    match secs {
        0..=90 => format!("{secs} s"),
        91..=5400 => format!("{} min", secs.div_ceil(60)),
        _ => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
    }
}

fn clock(secs: u64) -> String {
    format!("{}:{:02}", secs / 60, secs % 60)
}

/// `1 file`, `2 files`.
pub fn plural(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// The whole environment: what changes where, and the restarts in their order.
pub fn environment(name: &str, plan: &FleetPlan, rollback: Option<&str>, paint: Paint) -> String {
    let mut out = String::new();
    let Paint { bold, dim, off, .. } = paint;
    let files: usize = plan.changes.iter().map(|change| change.files.len()).sum();
    let restarts = plan.changes.iter().flat_map(|c| &c.units).filter(|(verb, _)| *verb == "restart").count();
    let reloads = plan.changes.iter().flat_map(|c| &c.units).filter(|(verb, _)| *verb == "reload").count();
    if plan.changes.is_empty() && plan.joined.is_empty() && plan.left.is_empty() {
        return format!("{bold}{name}{off}: nothing changes on any of its {} nodes.\n", plan.nodes);
    }
    let mut counts = vec![plural(files, "file")];
    for (count, what) in [(restarts, "restart"), (reloads, "reload")] {
        if count > 0 {
            counts.push(plural(count, what));
        }
    }
    let time = if plan.steps.is_empty() { String::new() } else { format!(", about {}", about(plan.total_secs)) };
    let downloads =
        plan.changes.iter().flat_map(|change| &change.others).filter(|other| !other.starts_with("action")).count();
    let secrets = plan.changes.iter().flat_map(|c| &c.files).filter(|file| !file.secrets.is_empty()).count();
    let mut nothing = Vec::new();
    if downloads == 0 {
        nothing.push("Nothing to download");
    }
    if secrets == 0 {
        nothing.push(if nothing.is_empty() { "No secret touched" } else { "no secret touched" });
    }
    let nothing = if nothing.is_empty() { String::new() } else { format!(" {}.", nothing.join(", ")) };
    let _ = writeln!(
        out,
        "{bold}{name}{off}: {} of {} nodes change: {}{time}.{nothing}",
        plan.changes.len(),
        plan.nodes,
        counts.join(", ")
    );
    for (nodes, what) in [(&plan.joined, "new"), (&plan.left, "gone from the topology")] {
        if !nodes.is_empty() {
            let _ = writeln!(out, "{what}: {}", names(nodes));
        }
    }
    let _ = writeln!(out);
    // The same change of files that differ otherwise is still the same change.
    let mut by_change: BTreeMap<(&HostPath, &str, String), Vec<NodeName>> = BTreeMap::new();
    for change in &plan.changes {
        for file in &change.files {
            let key = (&file.path, mark(file), file_diff(file, paint));
            by_change.entry(key).or_default().push(change.node.clone());
        }
    }
    for ((path, mark, text), nodes) in &by_change {
        let same = if nodes.len() > 1 { ", the same change" } else { "" };
        let _ = writeln!(out, "{mark} {bold}{path}{off}   {}{same}", names(nodes));
        out.push_str(text);
    }
    let mut others: BTreeMap<String, Vec<NodeName>> = BTreeMap::new();
    for change in &plan.changes {
        for other in &change.others {
            others.entry(other.clone()).or_default().push(change.node.clone());
        }
        for (verb, unit) in &change.units {
            let disrupts = plan.steps.iter().any(|step| step.node == change.node && step.unit == *unit);
            if !disrupts {
                others.entry(format!("{verb} {unit} (needs no hold)")).or_default().push(change.node.clone());
            }
        }
    }
    for (other, nodes) in others {
        let _ = writeln!(out, "* {other}   {}", names(&nodes));
    }
    if !plan.steps.is_empty() {
        let _ = writeln!(out, "\n{bold}Restarts, one at a time in each group:{off}");
        let rows: Vec<[String; 5]> = plan
            .steps
            .iter()
            .enumerate()
            .map(|(at, step)| {
                let stays: Vec<String> = step
                    .stays
                    .iter()
                    .map(|stays| {
                        let need = if stays.need > 0 { format!(" (need {})", stays.need) } else { String::new() };
                        format!("{} {} of {}{need}", stays.group.short(), stays.up, stays.of)
                    })
                    .collect();
                let from = clock(step.from_secs);
                let from = if step.leads { format!("{from}   leads now: last") } else { from };
                let unit =
                    if step.verb == "restart" { step.unit.to_string() } else { format!("{} {}", step.verb, step.unit) };
                [(at + 1).to_string(), step.node.to_string(), unit, stays.join(", "), from]
            })
            .collect();
        let head = ["#", "node", "unit", "what stays up", "from"].map(str::to_owned);
        out.push_str(&table(&head, &rows, "  "));
        for (cluster, windows) in &plan.windows {
            let _ = writeln!(out, "  {cluster} moves in its windows only: {} (UTC).", windows.join(", "));
        }
        let _ = write!(out, "  {dim}A gate that fails at any step stops the rest.");
        if let Some(commit) = rollback {
            let _ = write!(out, " Rollback: git revert {commit}");
        }
        let _ = writeln!(out, "{off}");
    }
    out
}

/// One node of an environment, file by file.
pub fn node_change(change: &NodeChange, paint: Paint) -> String {
    let Paint { bold, off, .. } = paint;
    let mut out = String::new();
    for file in &change.files {
        let _ = writeln!(out, "{} {bold}{}{off}\n{}", mark(file), file.path, file_diff(file, paint).trim_end());
    }
    for other in &change.others {
        let _ = writeln!(out, "* {other}");
    }
    for (verb, unit) in &change.units {
        let _ = writeln!(out, "* {verb} {unit}");
    }
    out
}

/// Columns as wide as their widest cell.
pub fn table<const N: usize>(head: &[String; N], rows: &[[String; N]], indent: &str) -> String {
    let mut widths = [0; N];
    for row in std::iter::once(head).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(head).chain(rows) {
        let mut line = indent.to_owned();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// `kafka01, kafka02 and kafka03`, or `kafka01 … kafka05 (5 nodes)`.
pub fn names(nodes: &[NodeName]) -> String {
    match nodes {
        [] => String::new(),
        [one] => one.to_string(),
        [first, .., last] if nodes.len() > 4 => format!("{first} … {last} ({} nodes)", nodes.len()),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(|node| node.as_str()).collect();
            format!("{} and {last}", most.join(", "))
        }
    }
}

/// Changed lines shown of one file; the rest is counted.
const LINES_MAX: usize = 40;
/// Characters shown of a line.
const COLUMNS_MAX: usize = 300;

fn mark(file: &FileDiff) -> &'static str {
    match (&file.before, &file.after) {
        (None, _) => "+",
        (_, None) => "-",
        _ => "~",
    }
}

/// What changes in a file, without its name.
fn file_diff(file: &FileDiff, paint: Paint) -> String {
    let Paint { dim, off, .. } = paint;
    let mut out = String::new();
    for (name, from, to) in &file.secrets {
        let _ = writeln!(out, "    secret {name}: version {from} -> {to}");
        if to < from {
            let trailer = format!("Converger-Allow: secret-rollback {name}");
            let _ =
                writeln!(out, "    nodes refuse an older version, unless a signed commit has the trailer `{trailer}`");
        }
    }
    if let Some((from, to)) = &file.attributes {
        let _ = writeln!(out, "    {from} -> {to}");
    }
    match (&file.before, &file.after) {
        (Some(before), Some(after)) => out.push_str(&text_diff(before, after, paint)),
        (None, Some(after)) => {
            let _ =
                writeln!(out, "    {dim}new, {}{off}", plural(String::from_utf8_lossy(after).lines().count(), "line"));
        }
        _ => {
            let _ = writeln!(out, "    {dim}removed; a backup stays on the node{off}");
        }
    }
    out
}

/// Only the changed lines with one line of context, masked text only.
pub fn text_diff(before: &[u8], after: &[u8], paint: Paint) -> String {
    let Paint { green, red, dim, off, .. } = paint;
    let (Ok(before), Ok(after)) = (std::str::from_utf8(before), std::str::from_utf8(after)) else {
        return format!("    {dim}binary, {} -> {} bytes{off}\n", before.len(), after.len());
    };
    let diff = TextDiff::from_lines(before, after);
    let mut out = String::new();
    let mut lines = 0;
    for group in diff.grouped_ops(1) {
        for op in &group {
            for change in diff.iter_changes(op) {
                lines += 1;
                if lines > LINES_MAX {
                    continue;
                }
                let (mark, colour) = match change.tag() {
                    ChangeTag::Delete => ("-", red),
                    ChangeTag::Insert => ("+", green),
                    ChangeTag::Equal => (" ", dim),
                };
                let _ = writeln!(out, "  {colour}{mark} {}{off}", harmless(change.value().trim_end_matches('\n')));
            }
        }
    }
    if lines > LINES_MAX {
        let _ = writeln!(out, "    {dim}… {} more lines{off}", lines - LINES_MAX);
    }
    out
}

/// A line of somebody else's file must not steer a terminal, nor fill a log.
fn harmless(line: &str) -> Cow<'_, str> {
    let is_odd = |c: char| c.is_control() && c != '\t';
    if line.chars().count() <= COLUMNS_MAX && !line.contains(is_odd) {
        return Cow::Borrowed(line);
    }
    let more = if line.chars().count() > COLUMNS_MAX { "…" } else { "" };
    let shown: String = line.chars().take(COLUMNS_MAX).collect();
    Cow::Owned(shown.replace(is_odd, "\u{fffd}") + more)
}

/// Where two texts differ, and nothing of what is there: `lines 2, 5-7 of 9 differ`, by the numbers of the first one.
pub fn changed_lines(before: &[u8], after: &[u8]) -> String {
    let (Ok(before), Ok(after)) = (std::str::from_utf8(before), std::str::from_utf8(after)) else {
        return "it differs, and is no text".to_owned();
    };
    let diff = TextDiff::from_lines(before, after);
    let ranges = diff.ops().iter().filter(|op| op.tag() != DiffTag::Equal).map(|op| {
        let old = op.old_range();
        match old.len() {
            0 => format!("after {}", old.start),
            1 => old.end.to_string(),
            _ => format!("{}-{}", old.start + 1, old.end),
        }
    });
    let ranges: Vec<String> = ranges.collect();
    format!("lines {} of {} differ", ranges.join(", "), before.lines().count())
}

/// One node's plan against its host (`--dry-run`).
pub fn node(plan: &Plan<'_>, paint: Paint) -> String {
    let Paint { bold, dim, off, .. } = paint;
    let commit = plan.commit.map_or("the work tree", |commit| commit.short());
    let left = plan.audit.len() + plan.resting.len() + plan.outgrown.len();
    if plan.is_empty() && left == 0 {
        return format!("{} is as {commit} wants it: nothing to do\n", plan.node);
    }
    let mut out = format!("{bold}{}{off} -> {commit}\n", plan.node);
    for (files, why) in [(&plan.audit, "policy = \"audit\""), (&plan.resting, reason::DRIFT_FIGHT.id)] {
        for file in files {
            let _ = writeln!(out, "left as it is ({why})");
            out.push_str(&node_file(file, paint));
        }
    }
    for spec in &plan.outgrown {
        let _ =
            writeln!(out, "left as it is (policy = \"seed\")\n  {}   its template is another one by now", spec.path);
    }
    for batch in &plan.batches {
        let hold = match batch.hold {
            HoldNeed::None => String::new(),
            HoldNeed::Required | HoldNeed::RequiredIfHealthy => {
                let groups: Vec<&str> = batch.groups.iter().map(|group| group.as_str()).collect();
                format!("   {dim}under a hold of {}{off}", groups.join(", "))
            }
        };
        let risk = if batch.risk.is_empty() {
            ""
        } else {
            "   node-risk: put back unless the node still reaches what it reached"
        };
        let _ = writeln!(out, "{bold}{}{off}{hold}{dim}{risk}{off}", batch.name);
        for (package, what) in &batch.packages {
            let _ = writeln!(out, "  + package {}: {what}", package.name);
        }
        for into in &batch.discards {
            let _ = writeln!(out, "  - artifact {into}");
        }
        for artifact in &batch.artifacts {
            let _ = writeln!(out, "  + {} in {}", artifact.what, artifact.spec.into);
        }
        for file in &batch.files {
            out.push_str(&node_file(file, paint));
        }
        for (path, _) in &batch.removals {
            let _ = writeln!(out, "  - {path}");
        }
        for (tool, file) in batch.not_acted_on() {
            let _ = writeln!(out, "  * {} {}", tool.tool(), file.path);
        }
        for name in &batch.uninstall {
            let _ = writeln!(out, "  - package {name}: remove, if nothing else needs it");
        }
        for action in &batch.actions {
            let _ = writeln!(out, "  * action {}", action.name);
        }
        if let Some(change) = membership::told(batch, plan.node) {
            let _ = writeln!(out, "  * {change}");
        }
        for (_, action) in &batch.membership {
            let _ = writeln!(out, "  * action {} (on {})", action.name, action.on);
        }
        for action in &batch.moves {
            let _ = writeln!(out, "  * {} {}", action.verb(), action.spec().name);
        }
        for unit in &batch.retire {
            let _ = writeln!(out, "  - {unit}: stop, disable");
        }
        for unit in &batch.again {
            let _ = writeln!(out, "  * {unit}: stopped along by systemd, started again");
        }
        if !batch.reboot.is_empty() {
            let _ = writeln!(out, "  * reboot the machine for {}", batch.reboot.join(", "));
        }
        for Blocked { id, why, .. } in &batch.blocked {
            let _ = writeln!(out, "  ! {id}: {why}");
        }
    }
    out
}

fn node_file(file: &FileWrite<'_>, paint: Paint) -> String {
    let why = if file.why == Why::Drift { "   drift: changed by somebody else" } else { "" };
    match &file.change {
        FileChange::Create => format!("  + {}{why}\n", file.spec.path),
        FileChange::Attributes { from, to } => format!("  ~ {} {from} -> {to}{why}\n", file.spec.path),
        FileChange::Content | FileChange::Blocked(_) | FileChange::Unsafe(_) => {
            format!("  ~ {}{why}\n{}", file.spec.path, content_diff(file, paint))
        }
    }
}

/// What drift was, for the log: of a file that not everybody may read, only which lines.
pub fn drift_diff(file: &FileWrite<'_>) -> String {
    const OTHERS_READ: u32 = 0o004;
    match &file.before {
        Some(before) if file.spec.mode & OTHERS_READ == 0 && !file.is_secret() => {
            format!("    {}\n", changed_lines(before.bytes(), file.spec.content.shown()))
        }
        _ => content_diff(file, Paint::default()),
    }
}

/// What is there against what comes, line by line; where a secret is or was, only which lines. Empty: it was not read.
pub fn content_diff(file: &FileWrite<'_>, paint: Paint) -> String {
    match &file.before {
        // What is there may hold a secret, ours or somebody's.
        Some(before) if file.is_secret() => {
            let after = file.spec.content.bytes().unwrap_or_default();
            format!("    has secrets: {}\n", changed_lines(before.bytes(), after))
        }
        Some(before) => text_diff(before.bytes(), file.spec.content.shown(), paint),
        None => String::new(),
    }
}
