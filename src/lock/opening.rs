//! A session and its maintenance windows: whether they are open, and when it is worth coming back.
//!
//! `window` decides; the time comes from the session's clock, and a node that may not go does not stand in the queue. Never:
//! waits.

use std::time::Duration;

use super::protocol;
use super::quorum::Because;
use super::session::{Intent, Session};
use super::store::LockStore;
use super::window;
use crate::fleet::window::{Opening, Window, opening};
use crate::name::{ClusterName, GroupId};

impl Session<'_> {
    /// Why no window is open for this now.
    pub(super) fn closed(&self, intent: &Intent<'_>) -> Option<Because> {
        let clusters: Vec<ClusterName> = intent.groups.iter().map(GroupId::cluster).collect();
        let binds = |(cluster, _): &&(ClusterName, &[Window])| intent.takes_node || clusters.contains(cluster);
        let windows: Vec<_> = self.windows.iter().filter(binds).cloned().collect();
        window::closed(&windows, self.clock.now())
    }

    /// When it is worth looking again at what waits for a window.
    pub fn window_opens_in(&self) -> Option<Duration> {
        let now = self.clock.now();
        let windows: Vec<&[Window]> = self.windows.iter().map(|(_, windows)| *windows).collect();
        let each = windows.chunks(1).chain([windows.as_slice()]).map(|some| opening(some, now));
        let next = each.filter_map(|opening| if let Opening::At(at) = opening { Some(at) } else { None }).min()?;
        next.duration_since(now).try_into().ok()
    }

    /// What this node wanted before its window closed is not what it wants: 0 s.
    pub(super) fn wants_nothing(&self, store: &dyn LockStore, groups: &[GroupId]) -> u64 {
        let keys: Vec<String> = groups.iter().map(|group| protocol::want_key(self.me, group)).collect();
        let said = store.read(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        if said.is_ok_and(|said| !said.entries.is_empty()) {
            self.stop_wanting(store, groups);
        }
        0
    }
}
