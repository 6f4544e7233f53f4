//! JSON Schemas of every file that people write, made from the types that read them.
//!
//! PURE. Never: a schema that is edited by hand.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::schema;

/// File name below `schemas/` and content.
pub fn schemas() -> Vec<(&'static str, Value)> {
    vec![
        ("fleet.json", of::<schema::FleetFile>()),
        ("policy.json", of::<schema::PolicyFile>()),
        ("environment.json", of::<schema::EnvironmentFile>()),
        ("topology.json", of::<schema::TopologyFile>()),
        ("versions.json", of::<BTreeMap<String, schema::Version>>()),
        ("variables.json", of::<schema::Variables>()),
        ("secrets.json", of::<schema::SecretsFile>()),
        ("role.json", of::<schema::RoleFile>()),
    ]
}

/// Draft 7: what editors' TOML language servers know.
fn of<T: schemars::JsonSchema>() -> Value {
    SchemaSettings::draft07().into_generator().into_root_schema_for::<T>().to_value()
}

/// As it stands in the file: indented, with a newline at the end.
pub fn text(schema: &Value) -> String {
    format!("{schema:#}\n")
}
