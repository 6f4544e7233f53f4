//! Changes that can take a whole node away: what they are, what they claim, and how they are undone.
//!
//! A batch that brings news in one of these areas claims every group of its node (or a lane of the environment), is put
//! back unless the node still reaches what it reached before, and is not tried again until its content changes. Repair of
//! drift is none of it: the old content ran before. PURE. Never: asks the host; never: a reason to skip a hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Plan;
use super::batch::{Batch, Blocked, HoldNeed, UnitMove, Why};
use super::known::{Known, Owned, RanWith};
use crate::fleet::{Group, LANES};
use crate::name::{GroupId, HostPath, UnitName};
use crate::reason;
use crate::render::Desired;
use crate::resource::{Digest, Id, Kind, Resource, UnitState};

/// What a mistake in it takes away: the node from the others, or people from the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    Network,
    Firewall,
    Sysctl,
    Mounts,
    Sshd,
    Pam,
    Sudo,
    Time,
    Trust,
    Resolver,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Firewall => "firewall",
            Self::Sysctl => "sysctl",
            Self::Mounts => "mounts",
            Self::Sshd => "sshd",
            Self::Pam => "PAM",
            Self::Sudo => "sudo",
            Self::Time => "time",
            Self::Trust => "trust store",
            Self::Resolver => "resolver",
        })
    }
}

/// A path that ends with `/` or `.d` stands for all below it, any other for itself.
const PATHS: &[(Area, &[&str])] = &[
    (
        Area::Network,
        &[
            "/etc/systemd/network/",
            "/etc/systemd/networkd.conf",
            "/etc/systemd/networkd.conf.d/",
            "/etc/netplan/",
            "/etc/network/",
            "/etc/NetworkManager/",
            "/etc/sysconfig/network",
            "/etc/sysconfig/network-scripts/",
            "/etc/iproute2/",
        ],
    ),
    (
        Area::Firewall,
        &[
            "/etc/nftables.conf",
            "/etc/nftables.d/",
            "/etc/nftables/",
            "/etc/sysconfig/nftables.conf",
            "/etc/iptables/",
            "/etc/sysconfig/iptables",
            "/etc/sysconfig/ip6tables",
            "/etc/firewalld/",
            "/etc/ufw/",
        ],
    ),
    (
        Area::Sysctl,
        &["/etc/sysctl.conf", "/etc/sysctl.d/", "/usr/lib/sysctl.d/", "/usr/local/lib/sysctl.d/", "/run/sysctl.d/"],
    ),
    (Area::Mounts, &["/etc/fstab", "/etc/crypttab"]),
    (Area::Sshd, &["/etc/ssh/", "/etc/sysconfig/sshd", "/etc/default/ssh"]),
    (Area::Pam, &["/etc/pam.d/", "/etc/pam.conf", "/etc/security/"]),
    (Area::Sudo, &["/etc/sudoers", "/etc/sudoers.d/", "/etc/sudo.conf"]),
    (
        Area::Time,
        &[
            "/etc/chrony/",
            "/etc/chrony.conf",
            "/etc/chrony.d/",
            "/etc/ntp.conf",
            "/etc/ntpsec/",
            "/etc/systemd/timesyncd.conf",
            "/etc/systemd/timesyncd.conf.d/",
        ],
    ),
    (
        Area::Trust,
        &[
            "/etc/ssl/certs/",
            "/etc/ca-certificates.conf",
            "/etc/ca-certificates/",
            "/usr/local/share/ca-certificates/",
            "/etc/pki/ca-trust/",
            "/etc/pki/tls/certs/",
        ],
    ),
    (
        Area::Resolver,
        &[
            "/etc/resolv.conf",
            "/etc/resolvconf/",
            "/etc/systemd/resolved.conf",
            "/etc/systemd/resolved.conf.d/",
            "/etc/nsswitch.conf",
            "/etc/hosts",
            "/etc/gai.conf",
        ],
    ),
];

const UNITS: &[(Area, &[&str])] = &[
    (
        Area::Network,
        &["systemd-networkd.service", "systemd-networkd.socket", "NetworkManager.service", "networking.service"],
    ),
    (
        Area::Firewall,
        &["nftables.service", "iptables.service", "netfilter-persistent.service", "firewalld.service", "ufw.service"],
    ),
    (Area::Sysctl, &["systemd-sysctl.service"]),
    (Area::Sshd, &["ssh.service", "ssh.socket", "sshd.service", "sshd.socket"]),
    (Area::Time, &["chrony.service", "chronyd.service", "ntp.service", "ntpsec.service", "systemd-timesyncd.service"]),
    (Area::Resolver, &["systemd-resolved.service", "resolvconf.service", "nscd.service", "sssd.service"]),
];

const UNIT_FILES: &str = "/etc/systemd/system/";

pub fn area_of_path(path: &HostPath) -> Option<Area> {
    let path = path.as_str();
    if path.ends_with("/.ssh/authorized_keys") {
        return Some(Area::Sshd);
    }
    if let Some(file) = path.strip_prefix(UNIT_FILES) {
        let unit = file.split('/').next().unwrap_or_default();
        return area_of_unit(&UnitName::new(unit.strip_suffix(".d").unwrap_or(unit)));
    }
    let is = |place: &&str| if place.ends_with('/') { path.starts_with(place) } else { path == *place };
    PATHS.iter().find(|(_, places)| places.iter().any(is)).map(|(area, _)| *area)
}

pub fn area_of_unit(unit: &UnitName) -> Option<Area> {
    let name = unit.as_str();
    if [".mount", ".automount", ".swap"].iter().any(|end| name.ends_with(end)) {
        return Some(Area::Mounts);
    }
    UNITS.iter().find(|(_, units)| units.contains(&name)).map(|(area, _)| *area)
}

/// What a batch brings that is new in these areas.
fn areas(batch: &Batch<'_>, known: &Known) -> BTreeSet<Area> {
    let files = batch.files.iter().filter(|file| file.why == Why::Intended).map(|file| &file.spec.path);
    let files = files.chain(batch.removals.iter().map(|(path, _)| path)).filter_map(area_of_path);
    let moves = batch.moves.iter().filter_map(|action| match action {
        UnitMove::Stop(unit) | UnitMove::Restart(unit) | UnitMove::Reload(unit) | UnitMove::Mask(unit) => {
            area_of_unit(&unit.name)
        }
        // With what it last ran with, it may start at any time.
        UnitMove::Start(unit) if !known.units.contains_key(&unit.name) => area_of_unit(&unit.name),
        _ => None,
    });
    files.chain(moves).chain(batch.retire.iter().filter_map(area_of_unit)).collect()
}

/// Of what belongs to no unit: takes what is risky into a batch of its own, with the role's actions, which come last. A
/// wait for a hold must not hold up the harmless.
pub fn split<'a>(batch: &mut Batch<'a>) -> Option<Batch<'a>> {
    if !batch.units.is_empty() {
        return None;
    }
    let mut risky = Batch::named(batch.name.clone(), batch.role.clone(), batch.phase);
    let is_risky = |file: &super::FileWrite<'_>| file.why == Why::Intended && area_of_path(&file.spec.path).is_some();
    (risky.files, batch.files) = std::mem::take(&mut batch.files).into_iter().partition(is_risky);
    (risky.removals, batch.removals) =
        std::mem::take(&mut batch.removals).into_iter().partition(|(path, _)| area_of_path(path).is_some());
    (risky.retire, batch.retire) =
        std::mem::take(&mut batch.retire).into_iter().partition(|unit| area_of_unit(unit).is_some());
    (risky.activations, batch.activations) = std::mem::take(&mut batch.activations)
        .into_iter()
        .partition(|(_, spec)| risky.files.iter().any(|file| file.spec.path == spec.path));
    if risky.is_empty() {
        return None;
    }
    risky.actions = std::mem::take(&mut batch.actions);
    risky.secrets_near = batch.secrets_near;
    Some(risky)
}

/// Says what is risky in a batch, what it must hold for that, and whether it was rolled back before.
pub fn judge(batch: &mut Batch<'_>, node: &BTreeSet<GroupId>, known: &Known) {
    batch.risk = areas(batch, known);
    if batch.risk.is_empty() {
        return;
    }
    if batch.units.is_empty() {
        let areas: Vec<String> = batch.risk.iter().map(ToString::to_string).collect();
        batch.name = format!("{}: {}", batch.name, areas.join(", "));
    }
    claim_node(batch, node, known);
    let before = std::iter::once(digest(batch)).chain(contents(batch));
    let why = before.filter_map(|digest| known.rolled_back.get(&digest.to_string())).next();
    if let Some(why) = why {
        let id = first(batch);
        batch.blocked.push(Blocked { id, reason: reason::ROLLED_BACK, why: why.clone() });
    }
}

/// Every group of the node, or a lane of the environment; nothing while nothing on the node ever settled.
pub fn claim_node(batch: &mut Batch<'_>, node: &BTreeSet<GroupId>, known: &Known) {
    if known.has_settled {
        batch.groups.extend(node.iter().cloned());
        batch.hold = HoldNeed::Required;
    }
}

/// All groups that the node is a member of, by the target commit and as its units run now; the environment's lanes where
/// there is none.
pub fn groups_of_node(groups: &[&Group], known: &Known) -> BTreeSet<GroupId> {
    let target = groups.iter().flat_map(|group| group.ids());
    let live = known.units.values().flat_map(|ran| &ran.groups);
    let all: BTreeSet<GroupId> = target.chain(live).cloned().collect();
    if all.is_empty() { [GroupId::from(LANES)].into() } else { all }
}

fn first(batch: &Batch<'_>) -> Id {
    let file = |path: &HostPath| Id { kind: Kind::File, name: path.to_string() };
    let risky = batch.files.iter().map(|file| &file.spec.path).find(|path| area_of_path(path).is_some());
    let path = risky.or(batch.removals.first().map(|(path, _)| path));
    path.map(file).unwrap_or_else(|| Id { kind: Kind::Unit, name: batch.name.clone() })
}

fn contents<'b>(batch: &'b Batch<'_>) -> impl Iterator<Item = Digest> + use<'b> {
    let news = batch.files.iter().filter(|file| file.why == Why::Intended);
    news.filter(|file| area_of_path(&file.spec.path).is_some()).map(|file| file.spec.inputs())
}

/// What the batch would make live: the same again after it was put back, another one as soon as the repository wants
/// something else.
pub fn digest(batch: &Batch<'_>) -> Digest {
    let files = batch.files.iter().filter(|file| file.why == Why::Intended).map(|file| file.spec.inputs());
    let gone = batch.removals.iter().map(|(path, _)| Digest::of(path.as_str().as_bytes()));
    let retired = batch.retire.iter().map(|unit| Digest::of(unit.as_str().as_bytes()));
    let units = batch.units.values().flat_map(|part| [part.restart, part.reload]);
    let parts: Vec<Digest> = files.chain(gone).chain(retired).chain(units).collect();
    Digest::of_parts(parts.iter().map(|part| part.bytes().as_slice()))
}

/// What the repository wants now, by the digests under which it would have been put back.
pub fn wanted(plan: &Plan<'_>, desired: &Desired) -> BTreeSet<String> {
    let batches = plan.batches.iter().filter(|batch| !batch.risk.is_empty()).map(digest);
    let files = desired.resources.iter().filter(|placed| matches!(placed.resource, Resource::File(_)));
    batches.chain(files.map(|placed| placed.resource.inputs())).map(|digest| digest.to_string()).collect()
}

/// What was reached before and is not any more. What was not reached before is not asked for: a store that was down
/// proves nothing against a change.
pub fn lost(before: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    before.difference(now).cloned().collect()
}

/// How a batch is undone by whoever does it: the agent, a timer when the agent is dead, a boot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Undo {
    pub batch: String,
    /// Of the content that is not to be tried again.
    pub digest: Digest,
    /// Of each file in it that can take the node away: whatever else comes with it, that one is not tried again either.
    #[serde(default)]
    pub contents: Vec<Digest>,
    /// What will be written or removed, and whether a secret is in it.
    pub files: Vec<(HostPath, bool)>,
    /// After the files are back, in this order.
    pub redo: Vec<Redo>,
    /// The ledger's rows as they were.
    pub owned: Vec<(Id, Option<Owned>)>,
    pub units: Vec<(UnitName, Option<RanWith>)>,
}

/// One call of `systemctl`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Redo {
    pub argv: Vec<String>,
    /// Also after a reboot: what it changes is on the disk.
    pub lasting: bool,
}

impl Undo {
    pub fn of(batch: &Batch<'_>, units: &BTreeMap<UnitName, UnitState>, known: &Known) -> Self {
        let written = batch.files.iter().map(|file| (file.spec.path.clone(), file.is_secret()));
        let removed = batch.removals.iter().map(|(path, _)| (path.clone(), false));
        let files: Vec<(HostPath, bool)> = written.chain(removed).collect();
        let of_files = files.iter().map(|(path, _)| Id { kind: Kind::File, name: path.to_string() });
        let names = || batch.units.keys().chain(&batch.retire);
        let of_units = names().map(|unit| Id { kind: Kind::Unit, name: unit.to_string() });
        let owned = of_files.chain(of_units).map(|id| (id.clone(), known.owned.get(&id).cloned())).collect();
        let running = |unit: &UnitName| units.get(unit).is_some_and(UnitState::is_running);
        let enabled = |unit: &UnitName| units.get(unit).is_some_and(|state| state.enabled);
        let mut redo = Vec::new();
        let mut call = |verb: &str, unit: &UnitName, lasting: bool| {
            let argv = ["systemctl", verb, unit.as_str()].map(str::to_owned).to_vec();
            redo.push(Redo { argv, lasting });
        };
        for action in &batch.moves {
            let unit = &action.spec().name;
            match action {
                UnitMove::Start(_) => call("stop", unit, false),
                UnitMove::Stop(_) => call("start", unit, false),
                UnitMove::Restart(_) => call("restart", unit, false),
                UnitMove::Reload(_) => call("reload-or-restart", unit, false),
                UnitMove::Enable(_) => call("disable", unit, true),
                UnitMove::Disable(_) => call("enable", unit, true),
                UnitMove::Mask(_) => call("unmask", unit, true),
                UnitMove::Unmask(_) => call("mask", unit, true),
            }
        }
        for unit in &batch.retire {
            if enabled(unit) {
                call("enable", unit, true);
            }
            if running(unit) {
                call("start", unit, false);
            }
        }
        let units = names().map(|unit| (unit.clone(), known.units.get(unit).cloned())).collect();
        // What is on the disk first: a unit that is masked does not start.
        redo.sort_by_key(|redo| !redo.lasting);
        let (digest, contents) = (digest(batch), contents(batch).collect());
        Self { batch: batch.name.clone(), digest, contents, files, redo, owned, units }
    }
}
