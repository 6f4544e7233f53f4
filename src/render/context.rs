//! What a template can read: the fleet as values, made once, and the parts that differ from node to node.
//!
//! The shapes are a contract with everybody who writes templates. PURE. Never: a secret, an environment variable, a
//! fact that the node says about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use tera::{Context, Value};

use crate::fleet::schema::{Membership, Quorum, Version};
use crate::fleet::selector::Selector;
use crate::fleet::{Cluster, Environment, Fleet, Node, Role, os_family};
use crate::name::{ClusterName, NodeName, RoleName};

type Table = BTreeMap<String, Value>;

/// The names that a template can begin a path with; `cluster` only in a role that a cluster brings.
pub const ROOTS: [&str; 11] =
    ["cluster", "clusters", "environment", "networks", "node", "nodes", "public", "tiers", "vars", "versions", "vips"];

/// The part of the context that all nodes share.
pub struct Shared {
    clusters: BTreeMap<ClusterName, Value>,
    /// In order of declaration, without ids.
    pub nodes: Vec<(NodeName, Value)>,
    by_name: Value,
    by_cluster: Value,
    tiers: Value,
    environment: Value,
    networks: Value,
    vips: Value,
    /// The texts of the environment's `public/` folder by file name: certificates of authorities, SSH public keys.
    public: Value,
    /// By OS.
    versions: BTreeMap<String, Value>,
    variables: Mutex<Variables>,
}

/// By role, clusters and OS: everything but the node's own, as written and as a template sees it.
type Variables = BTreeMap<(RoleName, Vec<ClusterName>, String), (toml::Table, Value)>;

impl Shared {
    pub fn new(fleet: &Fleet) -> Self {
        let environment = &fleet.environment;
        let nodes: Vec<(NodeName, Value)> =
            environment.nodes.iter().map(|node| (node.name.clone(), node_value(environment, node, None))).collect();
        let clusters: BTreeMap<ClusterName, Value> = environment
            .clusters
            .iter()
            .map(|cluster| (cluster.name.clone(), cluster_value(environment, cluster)))
            .collect();
        let tiers: Table = environment
            .tiers
            .iter()
            .map(|(name, tier)| {
                let clusters: Vec<&str> = tier.clusters.iter().map(ClusterName::as_str).collect();
                (name.clone(), table([("order", Value::from(tier.order)), ("clusters", Value::from(clusters))]))
            })
            .collect();
        let systems: BTreeSet<&str> = environment.nodes.iter().map(|node| node.os.as_str()).collect();
        Self {
            by_name: Value::from(nodes.iter().map(|(name, node)| (name.to_string(), node.clone())).collect::<Table>()),
            by_cluster: Value::from(
                clusters.iter().map(|(name, cluster)| (name.to_string(), cluster.clone())).collect::<Table>(),
            ),
            nodes,
            clusters,
            tiers: Value::from(tiers),
            environment: table([
                ("name", Value::from(environment.name.as_str())),
                ("domain", Value::from(environment.domain.as_str())),
                ("os", Value::from(environment.os.as_str())),
            ]),
            networks: strings(&environment.networks),
            vips: strings(&environment.vips),
            public: public(fleet),
            versions: systems.into_iter().map(|os| (os.to_owned(), versions_value(environment, os))).collect(),
            variables: Mutex::default(),
        }
    }

    /// What a role's templates read on one node. `clusters`: those that bring the role, for `vars`; `cluster`: the one
    /// that the templates call so.
    pub fn context(
        &self,
        environment: &Environment,
        role: &Role,
        node: &Node,
        cluster: Option<&Cluster>,
        clusters: &[ClusterName],
    ) -> Context {
        let mut context = Context::new();
        context.insert_value("node", node_value(environment, node, cluster));
        if let Some(value) = cluster.and_then(|cluster| self.clusters.get(&cluster.name)) {
            context.insert_value("cluster", value.clone());
        }
        context.insert_value("clusters", self.by_cluster.clone());
        context.insert_value("nodes", self.by_name.clone());
        context.insert_value("tiers", self.tiers.clone());
        context.insert_value("environment", self.environment.clone());
        context.insert_value("networks", self.networks.clone());
        context.insert_value("vips", self.vips.clone());
        context.insert_value("public", self.public.clone());
        context.insert_value("versions", self.versions.get(&node.os).cloned().unwrap_or_else(|| table([])));
        context.insert_value("vars", self.variables(environment, role, node, clusters));
        context
    }

    fn variables(&self, environment: &Environment, role: &Role, node: &Node, clusters: &[ClusterName]) -> Value {
        let variables = &environment.variables;
        let key = (role.name.clone(), clusters.to_vec(), node.os.clone());
        let mut cached = self.variables.lock().expect("no holder panics");
        let base = cached.entry(key).or_insert_with(|| {
            let mut base = role.defaults.clone();
            let by_cluster = clusters.iter().filter_map(|cluster| variables.cluster.get(cluster));
            let by_os = [os_family(&node.os), node.os.as_str()].into_iter().filter_map(|os| variables.os.get(os));
            for layer in std::iter::once(&variables.all).chain(by_os).chain(by_cluster) {
                merge(&mut base, layer);
            }
            let value = table_value(&base);
            (base, value)
        });
        match variables.node.get(&node.name) {
            Some(own) => {
                let mut all = base.0.clone();
                merge(&mut all, own);
                table_value(&all)
            }
            None => base.1.clone(),
        }
    }

    /// The function `nodes_of`. Errors: in words.
    pub fn nodes_of(&self, cluster: Option<&str>, label: Option<&str>, state: Option<&str>) -> Result<Value, String> {
        let all = match cluster {
            None => self.nodes.iter().map(|(_, node)| node.clone()).collect(),
            Some(name) => {
                let cluster = self.clusters.get(name).ok_or_else(|| format!("no cluster is called \"{name}\""))?;
                match field(cluster, "nodes").and_then(Value::as_array) {
                    Some(nodes) => nodes.to_vec(),
                    None => Vec::new(),
                }
            }
        };
        let labelled = |node: &Value| match label.map(|label| label.split_once('=').unwrap_or((label, "true"))) {
            None => true,
            Some((name, wanted)) => field(node, "labels")
                .and_then(|labels| field(labels, name))
                .is_some_and(|value| value.to_string() == wanted),
        };
        let in_state = |node: &Value| {
            let is = field(node, "state").and_then(Value::as_str).unwrap_or_default();
            state.map_or(is != "retired", |wanted| is == wanted)
        };
        Ok(Value::from(all.into_iter().filter(|node| labelled(node) && in_state(node)).collect::<Vec<_>>()))
    }

    /// The function `addresses`. Errors: in words.
    pub fn addresses(
        &self,
        of: &Value,
        network: Option<&str>,
        port: Option<u64>,
        separator: &str,
    ) -> Result<String, String> {
        let nodes = match of.as_str() {
            Some(cluster) => self.nodes_of(Some(cluster), None, None)?,
            None => of.clone(),
        };
        let nodes = nodes.as_array().ok_or("`of` must be the name of a cluster or a list of nodes")?;
        let address = |node: &Value| -> Result<String, String> {
            let name = field(node, "name").and_then(Value::as_str).ok_or("`of` must be a list of nodes")?;
            let found = match network {
                None => field(node, "address"),
                Some(network) => field(node, "addresses").and_then(|addresses| field(addresses, network)),
            };
            let address = found.and_then(Value::as_str);
            let address = address.ok_or_else(|| match network {
                None => format!("{name} has no address"),
                Some(network) => format!("{name} has no address in network \"{network}\""),
            })?;
            Ok(match port {
                None => address.to_owned(),
                Some(port) if address.contains(':') => format!("[{address}]:{port}"),
                Some(port) => format!("{address}:{port}"),
            })
        };
        Ok(nodes.iter().map(address).collect::<Result<Vec<_>, _>>()?.join(separator))
    }
}

/// The address of a node on a network; without one, on the first network that it is in.
pub fn address<'a>(environment: &Environment, node: &'a Node, network: Option<&str>) -> Option<&'a str> {
    let named = match network {
        Some(network) => return node.addresses.get(network).map(String::as_str),
        None => environment.networks.keys().find_map(|network| node.addresses.get(network)),
    };
    named.or_else(|| node.addresses.values().next()).map(String::as_str)
}

fn node_value(environment: &Environment, node: &Node, cluster: Option<&Cluster>) -> Value {
    let clusters: Vec<&str> = node.clusters.iter().map(ClusterName::as_str).collect();
    let labels: Table = node.labels.iter().map(|(name, value)| (name.clone(), toml_value(value))).collect();
    let state = match node.state {
        Membership::Joining => "joining",
        Membership::Active => "active",
        Membership::Draining => "draining",
        Membership::Retired => "retired",
    };
    let mut value = Table::from([
        ("name".to_owned(), Value::from(node.name.as_str())),
        ("fqdn".to_owned(), Value::from(format!("{}.{}", node.name, environment.domain))),
        ("addresses".to_owned(), strings(&node.addresses)),
        (
            "size".to_owned(),
            table([
                ("vcpu", Value::from(node.size.vcpu)),
                ("memory_gib", Value::from(node.size.memory_gib)),
                ("disk_gib", Value::from(node.size.disk_gib)),
            ]),
        ),
        ("labels".to_owned(), Value::from(labels)),
        ("os".to_owned(), Value::from(node.os.as_str())),
        ("os_family".to_owned(), Value::from(node.os_family())),
        ("clusters".to_owned(), Value::from(clusters)),
        ("state".to_owned(), Value::from(state)),
    ]);
    if let Some(address) = address(environment, node, None) {
        value.insert("address".to_owned(), Value::from(address));
    }
    if let Some(id) = cluster.and_then(|cluster| cluster.ids.get(&node.name)) {
        value.insert("id".to_owned(), Value::from(*id));
    }
    Value::from(value)
}

fn cluster_value(environment: &Environment, cluster: &Cluster) -> Value {
    let nodes: Vec<Value> = cluster
        .members
        .iter()
        .filter_map(|name| environment.node(name))
        .map(|node| node_value(environment, node, Some(cluster)))
        .collect();
    let groups: Table = cluster
        .groups
        .iter()
        .map(|group| {
            let members: Vec<&str> = group.members.iter().map(NodeName::as_str).collect();
            let quorum = match group.quorum {
                Quorum::Majority => "majority",
                Quorum::None => "none",
            };
            let value = table([
                ("members", Value::from(members)),
                ("quorum", Value::from(quorum)),
                ("max_unavailable", Value::from(group.max_unavailable)),
            ]);
            (group.id.short().to_owned(), value)
        })
        .collect();
    table([
        ("name", Value::from(cluster.name.as_str())),
        ("tier", Value::from(cluster.tier.as_str())),
        ("nodes", Value::from(nodes)),
        ("groups", Value::from(groups)),
    ])
}

/// A component's version as this OS has it: family first, then the exact OS.
pub fn version_for(version: &Version, os: &str) -> Version {
    let mut merged = version.clone();
    for over in [os_family(os), os].into_iter().filter_map(|os| version.os.get(os)) {
        merged.version = over.version.clone().unwrap_or(merged.version);
        merged.sha256 = over.sha256.clone().or(merged.sha256);
        merged.urls = over.urls.clone().unwrap_or(merged.urls);
        merged.file = over.file.clone().or(merged.file);
    }
    merged
}

fn versions_value(environment: &Environment, os: &str) -> Value {
    let versions = environment.versions.iter().map(|(component, version)| {
        let version = version_for(version, os);
        let mut value = Table::from([
            ("version".to_owned(), Value::from(version.version)),
            ("urls".to_owned(), Value::from(version.urls)),
        ]);
        value.extend(version.sha256.map(|sha256| ("sha256".to_owned(), Value::from(sha256))));
        (component.clone(), Value::from(value))
    });
    Value::from(versions.collect::<Table>())
}

/// Tables merge, everything else is replaced.
fn merge(base: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Whether a selector of a role (`only`) or a grant means this node, which has these roles.
pub fn selects(selector: &Selector, node: &Node, roles: &BTreeSet<&RoleName>) -> bool {
    selector.selects(node, &|role| roles.contains(role))
}

/// A field of a value that is a table.
pub fn field<'a>(value: &'a Value, name: &'a str) -> Option<&'a Value> {
    value.as_map()?.get(&tera::value::Key::Str(name))
}

fn table<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
    Value::from(BTreeMap::from(fields))
}

fn public(fleet: &Fleet) -> Value {
    let folder = format!("environments/{}/public/", fleet.environment.name);
    let files = fleet.tree.below(&folder).filter_map(|(path, bytes)| {
        let name = path.as_str().strip_prefix(&folder)?;
        Some((name.to_owned(), Value::from(std::str::from_utf8(bytes).ok()?)))
    });
    Value::from(files.collect::<Table>())
}

fn strings(values: &BTreeMap<String, String>) -> Value {
    Value::from(values.clone())
}

fn table_value(table: &toml::Table) -> Value {
    let mut map = tera::Map::new();
    for (key, value) in table {
        map.insert(key.clone().into(), toml_value(value));
    }
    Value::from(map)
}

fn toml_value(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text.as_str()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::from(*number),
        toml::Value::Boolean(flag) => Value::from(*flag),
        toml::Value::Datetime(time) => Value::from(time.to_string()),
        toml::Value::Array(items) => Value::from(items.iter().map(toml_value).collect::<Vec<_>>()),
        toml::Value::Table(table) => table_value(table),
    }
}
