//! Rules of maintenance windows: each can be read, and no node waits for two that never open together.
//!
//! PURE. Never: a clock; the week is the same each week.

use jiff::Timestamp;

use super::Check;
use crate::fleet::rule;
use crate::fleet::schema::ClusterEntry;
use crate::fleet::window::{Opening, Window, opening};

impl Check<'_, '_> {
    pub(super) fn windows_of(&mut self, cluster: &str, entry: &ClusterEntry) {
        let document = &self.documents.topology;
        for (index, said) in entry.windows.iter().enumerate() {
            let Err(why) = said.parse::<Window>() else { continue };
            let problem = document.error(rule::BAD_WINDOW, format!("{said:?} is no maintenance window"));
            let place = document.value(&["clusters", cluster, "windows", &index.to_string()]);
            self.problems.push(problem.at(place, why));
        }
    }

    /// What takes a whole node away waits for the windows of all of its clusters.
    pub(super) fn windows_together(&mut self) {
        let document = &self.documents.topology;
        let environment = &self.fleet.environment;
        for node in &environment.nodes {
            let clusters = node.clusters.iter().filter_map(|name| environment.cluster(name));
            let clusters: Vec<_> = clusters.filter(|cluster| !cluster.windows.is_empty()).collect();
            let windows: Vec<&[Window]> = clusters.iter().map(|cluster| cluster.windows.as_slice()).collect();
            if opening(&windows, Timestamp::UNIX_EPOCH) != Opening::Never {
                continue;
            }
            let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
            let title =
                format!("{} could never be rebooted: no window of its clusters opens with the others", node.name);
            let problem = document.error(rule::BAD_WINDOW, title);
            let place = document.value(&["nodes", node.name.as_str(), "clusters"]);
            self.problems.push(problem.at(place, format!("{} are never open together", names.join(" and "))));
        }
    }
}
