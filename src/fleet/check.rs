//! What the files of an environment say together: every rule of [`rule`](super::rule) that needs more than one value.
//!
//! PURE. Never: opens a secret, renders a template; never: tells of a name that is missing only because its
//! declaration could not be read.

mod addresses;
mod agents;
mod artifacts;
mod certificates;
mod roles;
mod secrets;
mod topology;
mod trust;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub use roles::{is_protected, mistake_in_path};
pub use secrets::{miscounted, plaintext};
pub(super) use trust::trust;

use super::load::{Document, Documents, Knowing};
use super::problem::Problem;
use super::schema::TopologyFile;
use super::selector::Selector;
use super::{Fleet, Node, rule};
use crate::name::{NodeName, RoleName, UnitName};
use crate::secrets::cover::Cover;

/// Every problem of a fleet whose files have their form.
pub(super) fn check(
    documents: &Documents<'_>,
    topology: &TopologyFile,
    fleet: &Fleet,
    left_out: &BTreeSet<String>,
    knowing: &Knowing,
) -> Vec<Problem> {
    let environment = &fleet.environment;
    let mut check = Check {
        documents,
        topology,
        fleet,
        left_out,
        nodes: environment.nodes.iter().map(|node| (&node.name, node)).collect(),
        cover: Cover::of(environment),
        labels: environment.nodes.iter().flat_map(|node| node.labels.keys()).map(String::as_str).collect(),
        problems: Vec::new(),
    };
    check.environment();
    check.topology();
    check.addresses();
    check.roles();
    check.secrets();
    check.recipients(&knowing.samples);
    check.shapes();
    if let Some(now) = knowing.now {
        check.expiries(now);
    }
    check.problems
}

struct Check<'a, 't> {
    documents: &'a Documents<'t>,
    /// As written; `fleet` has only what could be resolved.
    topology: &'a TopologyFile,
    fleet: &'a Fleet,
    /// Names in what could not be read: not missing, only unreadable.
    left_out: &'a BTreeSet<String>,
    nodes: BTreeMap<&'a NodeName, &'a Node>,
    cover: Cover<'a>,
    labels: BTreeSet<&'a str>,
    problems: Vec<Problem>,
}

/// How sure a selector is about the names in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// A file of this environment: its names are here or nowhere.
    Environment,
    /// A role is shared: what another environment has may be missing here.
    Role,
}

impl<'a> Check<'a, '_> {
    fn cluster_names(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        self.topology.clusters.0.iter().map(|(name, _)| name.get_ref().as_str())
    }

    fn has_cluster(&self, name: &str) -> bool {
        self.fleet.environment.clusters.iter().any(|cluster| cluster.name.as_str() == name)
    }

    fn node_names(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        self.fleet.environment.nodes.iter().map(|node| node.name.as_str())
    }

    /// A name that nothing answers to, unless what it names could not be read.
    fn unknown<'n>(&mut self, problem: Problem, kinds: &str, name: &str, known: impl Iterator<Item = &'n str> + Clone) {
        if !self.left_out.contains(name) {
            self.problems.push(or_else(problem, kinds, name, known));
        }
    }

    fn unknown_cluster(&mut self, document: &Document<'_>, span: Range<usize>, name: &str, within: Within) {
        let title = format!("\"{name}\" is not a cluster of environment {}", self.fleet.environment.name);
        let problem = severity(document, rule::UNKNOWN_CLUSTER, title, within);
        let problem = problem.at(span, "no cluster has this name");
        self.unknown(problem, "clusters", name, self.cluster_names());
    }

    fn unknown_node(&mut self, document: &Document<'_>, span: Range<usize>, name: &str, within: Within) {
        let title = format!("\"{name}\" is not a node of environment {}", self.fleet.environment.name);
        let problem = severity(document, rule::UNKNOWN_NODE, title, within);
        let problem = problem.at(span, "no node has this name");
        self.unknown(problem, "nodes", name, self.node_names());
    }

    fn selector(&mut self, document: &Document<'_>, path: &[&str], selector: &Selector, within: Within) {
        let deeper = |step: &'static str| [path, &[step]].concat();
        match selector {
            Selector::All => {}
            Selector::Nodes(names) => {
                for (index, name) in names.iter().enumerate() {
                    if !self.nodes.contains_key(name) {
                        let index = index.to_string();
                        let span = document.value(&[path, &["nodes", &index]].concat());
                        self.unknown_node(document, span, name.as_str(), within);
                    }
                }
            }
            Selector::Cluster(name) => {
                if !self.has_cluster(name.as_str()) {
                    self.unknown_cluster(document, document.value(&deeper("cluster")), name.as_str(), within);
                }
            }
            Selector::Role(name) => {
                let known = &self.fleet.environment.role_bodies;
                if !known.contains_key(name) {
                    let title = format!("no node of environment {} has role \"{name}\"", self.fleet.environment.name);
                    let problem = severity(document, rule::UNKNOWN_ROLE, title, within);
                    let problem = problem.at(document.value(&deeper("role")), "no role here has this name");
                    self.unknown(problem, "roles", name.as_str(), known.keys().map(RoleName::as_str));
                }
            }
            Selector::Label { name, .. } => {
                if !self.labels.contains(name.as_str()) {
                    let title = format!("no node of environment {} has label \"{name}\"", self.fleet.environment.name);
                    let problem = severity(document, rule::UNKNOWN_LABEL, title, within);
                    let problem = problem.at(document.value(&deeper("label")), "selects nothing");
                    let known = self.labels.clone();
                    self.unknown(problem, "labels", name, known.iter().copied());
                }
            }
            Selector::Os(os) => self.os(document, &deeper("os"), os, Precision::Family),
            Selector::Any(selectors) => {
                for (index, selector) in selectors.iter().enumerate() {
                    self.selector(document, &[path, &[&index.to_string()]].concat(), selector, within);
                }
            }
        }
    }

    /// The name of an operating system, with its version or of a family.
    fn os(&mut self, document: &Document<'_>, path: &[&str], os: &str, precision: Precision) {
        let version = os.split_once('-').map(|(_, version)| version);
        let numeric =
            |version: &str| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let distribution = os.split('-').next().unwrap_or(os);
        let known = match (version, precision) {
            (Some(version), _) => DISTRIBUTIONS.contains(&distribution) && numeric(version),
            (None, Precision::Family) => FAMILIES.contains(&os),
            (None, Precision::Exact) => false,
        };
        if !known {
            // An OS is a value (of `os`) or a key (of tables by OS), whose value is a table or some other text.
            let (key, value) = (document.key(path), document.value(path));
            let span = if path.last() == Some(&"os") { value } else { key };
            let problem = document
                .error(rule::UNKNOWN_OS, format!("\"{os}\" is no operating system that converger knows"))
                .at(span, "family and version, as in debian-12, ubuntu-22.04, rhel-9");
            let known = ["debian-12", "ubuntu-22.04", "ubuntu-24.04", "rhel-9"].into_iter().chain(FAMILIES);
            self.unknown(problem, "operating systems", os, known);
        }
    }

    fn name(&mut self, document: &Document<'_>, path: &[&str], what: &str, name: &str) {
        if let Some(why) = mistake_in_name(name) {
            let problem = document.error(rule::BAD_NAME, format!("{name:?} cannot be the name of a {what}"));
            self.problems.push(problem.at(document.key(path), why));
        }
    }

    fn unit_name(&mut self, document: &Document<'_>, path: &[&str], name: &UnitName) {
        if !is_unit_name(name.as_str()) {
            let problem =
                document.error(rule::BAD_NAME, format!("{:?} is not a name of a systemd unit", name.as_str()));
            self.problems
                .push(problem.at(document.value(path), "as in kafka.service: letters, digits, `:-_.\\@`, and a type"));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Precision {
    Exact,
    Family,
}

const FAMILIES: [&str; 2] = ["debian", "rhel"];
const DISTRIBUTIONS: [&str; 7] = ["debian", "ubuntu", "rhel", "rocky", "almalinux", "centos", "fedora"];

fn severity(document: &Document<'_>, rule: &'static str, title: String, within: Within) -> Problem {
    match within {
        Within::Environment => document.error(rule, title),
        Within::Role => document.warning(rule, title).note("the role may be meant for another environment"),
    }
}

/// What may have been meant, else what there is.
pub(super) fn or_else<'n>(
    problem: Problem,
    kinds: &str,
    name: &str,
    known: impl Iterator<Item = &'n str> + Clone,
) -> Problem {
    const LISTED_MAX: usize = 12;
    if let Some(near) = suggest(name, known.clone()) {
        return problem.help(format!("did you mean \"{near}\"?"));
    }
    let mut listed: Vec<&str> = known.take(LISTED_MAX + 1).collect();
    match listed.len() {
        0 => problem.help(format!("there are no {kinds} yet")),
        n => {
            if n > LISTED_MAX {
                listed[LISTED_MAX] = "…";
            }
            problem.help(format!("{kinds} are {}", listed.join(", ")))
        }
    }
}

/// The known name that takes the fewest changes to get to, if that is few for its length.
pub fn suggest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    const LENGTH_MAX: usize = 64;
    let changes_max = (name.len() / 3).max(1);
    known
        .filter(|other| *other != name)
        .filter(|other| name.len() <= LENGTH_MAX && other.len().abs_diff(name.len()) <= changes_max)
        .map(|other| (distance(name, other), other))
        .filter(|(changes, _)| *changes <= changes_max)
        .min_by_key(|(changes, _)| *changes)
        .map(|(_, other)| other)
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment) between two names.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut best = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

/// Names become file names, keys of the store and labels of host names (RFC 1123).
pub fn mistake_in_name(name: &str) -> Option<&'static str> {
    const LENGTH_MAX: usize = 63;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() {
        Some("empty")
    } else if name.len() > LENGTH_MAX {
        Some("longer than 63 characters")
    } else if let Some(odd) = name.chars().find(|c| !plain(*c)) {
        match odd {
            _ if !odd.is_ascii() => Some("not ASCII; some letters only look like those of the Latin alphabet"),
            _ => Some("lowercase letters, digits and dashes only"),
        }
    } else if name.starts_with('-') || name.ends_with('-') {
        Some("a dash only between other characters")
    } else {
        None
    }
}

/// systemd.unit(5): at most 255 characters, a set of ASCII, and a type for a suffix.
fn is_unit_name(name: &str) -> bool {
    const TYPES: [&str; 9] = ["service", "socket", "timer", "mount", "automount", "path", "target", "slice", "swap"];
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    name.len() <= 255
        && name.chars().all(plain)
        && name
            .rsplit_once('.')
            .is_some_and(|(stem, kind)| !stem.is_empty() && !stem.starts_with('@') && TYPES.contains(&kind))
}

/// `kafka01`, `kafka01 and kafka02`, `kafka01 and 4 more nodes`.
fn some_of(nodes: &[&Node]) -> String {
    match nodes {
        [] => "no node".to_owned(),
        [one] => one.name.to_string(),
        [one, other] => format!("{} and {}", one.name, other.name),
        [one, rest @ ..] => format!("{} and {} more nodes", one.name, rest.len()),
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let known = ["kafka", "etcd", "schema-registry"];
        for (name, meant) in [
            ("kakfa", Some("kafka")),
            ("ectd", Some("etcd")),
            ("schema-registri", Some("schema-registry")),
            ("broker", None),
            ("", None),
        ] {
            assert_eq!(suggest(name, known.into_iter()), meant, "{name}");
        }
    }

    #[test]
    fn names_that_only_look_right_are_wrong() {
        for good in ["kafka01", "schema-registry", "a", "3"] {
            assert_eq!(mistake_in_name(good), None, "{good}");
        }
        for bad in ["", "Kafka01", "k\u{430}fka01", "kafka_01", "-a", "a-", "a.b", "a/b", "..", "a b", &"a".repeat(64)]
        {
            assert!(mistake_in_name(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn unit_names_are_those_of_systemd() {
        for good in ["kafka.service", "systemd-fsck@dev-sda1.service", "data-kafka.mount", "a@.timer"] {
            assert!(is_unit_name(good), "{good}");
        }
        for bad in [
            "kafka",
            ".service",
            "kafka.servise",
            "ka fka.service",
            "../x.service",
            "@x.service",
            "kafk\u{430}.service",
        ] {
            assert!(!is_unit_name(bad), "{bad}");
        }
    }
}
