//! One way to say "which nodes", everywhere.
//!
//! PURE. Never: knows the topology; it is asked about one node at a time.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Node;
use crate::name::{ClusterName, NodeName, RoleName};

/// `"all"`, `{ nodes = [..] }`, `{ cluster = ".." }`, `{ role = ".." }`, `{ label = "controller" }` (is true),
/// `{ label = "rack=a" }`, `{ os = "rhel" }`; a list of these is a union.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Selector {
    #[default]
    All,
    Nodes(Vec<NodeName>),
    Cluster(ClusterName),
    Role(RoleName),
    Label {
        name: String,
        value: Option<String>,
    },
    Os(String),
    Any(Vec<Selector>),
}

impl Selector {
    /// Whether it means this node. `has_role` tells whether the node has a role (through any cluster).
    pub fn selects(&self, node: &Node, has_role: &dyn Fn(&RoleName) -> bool) -> bool {
        match self {
            Self::All => true,
            Self::Nodes(names) => names.contains(&node.name),
            Self::Cluster(cluster) => node.clusters.contains(cluster),
            Self::Role(role) => has_role(role),
            Self::Label { name, value: None } => node.labels.get(name).and_then(toml::Value::as_bool) == Some(true),
            Self::Label { name, value: Some(value) } => {
                node.labels.get(name).is_some_and(|label| plain(label) == *value)
            }
            Self::Os(os) => node.os == *os || node.os_family() == os,
            Self::Any(selectors) => selectors.iter().any(|selector| selector.selects(node, has_role)),
        }
    }
}

/// A label's value as a selector writes it: without quotes.
fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

const EXPECTED: &str = r#""all", { nodes = [..] }, { cluster = ".." }, { role = ".." }, { label = ".." }, { os = ".." } or a list of these"#;

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SelectorVisitor)
    }
}

struct SelectorVisitor;

impl<'de> Visitor<'de> for SelectorVisitor {
    type Value = Selector;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Selector, E> {
        match text {
            "all" => Ok(Selector::All),
            other => Err(E::custom(format!("\"{other}\" is no selector; expected {EXPECTED}"))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Selector, A::Error> {
        let mut selectors = Vec::new();
        while let Some(selector) = list.next_element()? {
            selectors.push(selector);
        }
        Ok(Selector::Any(selectors))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Selector, A::Error> {
        let Some(key) = map.next_key::<String>()? else {
            return Err(de::Error::custom(format!("an empty table selects nothing; expected {EXPECTED}")));
        };
        let selector = match key.as_str() {
            "nodes" => Selector::Nodes(map.next_value()?),
            "cluster" => Selector::Cluster(map.next_value()?),
            "role" => Selector::Role(map.next_value()?),
            "os" => Selector::Os(map.next_value()?),
            "label" => {
                let text: String = map.next_value()?;
                match text.split_once('=') {
                    Some((name, value)) => Selector::Label { name: name.to_owned(), value: Some(value.to_owned()) },
                    None => Selector::Label { name: text, value: None },
                }
            }
            _ => return Err(de::Error::unknown_field(&key, &["nodes", "cluster", "role", "label", "os"])),
        };
        match map.next_key::<String>()? {
            None => Ok(selector),
            Some(_) => Err(de::Error::custom("one condition per table; put several into a list: it is a union")),
        }
    }
}

impl JsonSchema for Selector {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Selector".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let list = generator.subschema_for::<Vec<Selector>>();
        let one = |key: &str, value: serde_json::Value| {
            json_schema!({
                "type": "object", "properties": { key: value }, "required": [key], "additionalProperties": false
            })
        };
        let text = || serde_json::json!({ "type": "string" });
        json_schema!({
            "description": "Which nodes; a list is a union.",
            "anyOf": [
                { "const": "all" },
                one("nodes", serde_json::json!({ "type": "array", "items": { "type": "string" } })),
                one("cluster", text()),
                one("role", text()),
                one("label", text()),
                one("os", text()),
                list,
            ]
        })
    }
}
