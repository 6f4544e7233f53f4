//! Rules of `[agents]` and of the component `converger`: the agent's own version, and the pace at which nodes take it.
//!
//! PURE. Never: asks whether a version is newer; a revert goes to an older one.

use super::{Check, Within, some_of};
use crate::fleet::{Node, agents, rule};

impl Check<'_, '_> {
    pub(super) fn agents(&mut self) {
        let environment = &self.fleet.environment;
        let said = &environment.agents;
        let document = &self.documents.environment;
        self.selector(document, &["agents", "canaries"], &said.canaries, Within::Environment);
        let paces =
            [("at_a_time_percent", said.at_a_time_percent, 1..=100), ("trial_secs", said.trial_secs, 10..=3600)];
        for (key, value, range) in paces {
            if !range.contains(&value) {
                let problem = document.error(rule::AGENT_PACE, format!("agents.{key} cannot be {value}"));
                let label = format!("between {} and {}", range.start(), range.end());
                self.problems.push(problem.at(document.value(&["agents", key]), label));
            }
        }
        let Some(component) = environment.versions.get(agents::COMPONENT) else { return };
        let document = &self.documents.versions;
        let mut versions = vec![(vec![agents::COMPONENT, "version"], component.version.as_str())];
        versions.extend(component.os.iter().filter_map(|(os, other)| {
            Some((vec![agents::COMPONENT, "os", os.as_str(), "version"], other.version.as_deref()?))
        }));
        for (path, version) in versions {
            if !is_version(version) {
                let problem = document
                    .error(rule::BAD_VERSION, format!("{version:?} cannot be a version of {}", agents::COMPONENT));
                self.problems.push(problem.at(document.value(&path), "as in 1.4.0 or 2.0.0-rc.1"));
            }
        }
        let nodes: Vec<&Node> = environment.nodes.iter().collect();
        let lacks = |what: &dyn Fn(&Node) -> bool| nodes.iter().copied().filter(|node| what(node)).collect::<Vec<_>>();
        for (what, lacking) in [
            ("sha256", lacks(&|node| component.on(&node.os).sha256.is_none())),
            ("urls", lacks(&|node| component.on(&node.os).urls.is_empty())),
        ] {
            if !lacking.is_empty() {
                let title = format!("{} has no {what} for {}", agents::COMPONENT, some_of(&lacking));
                let problem = document.error(rule::VERSION_WITHOUT_DIGEST, title);
                self.problems.push(problem.at(document.key(&[agents::COMPONENT]), format!("no {what}")));
            }
        }
    }
}

/// Part of a folder's name on every node, and one word of a line.
fn is_version(text: &str) -> bool {
    text.len() <= 40
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".+~-".contains(c))
}
