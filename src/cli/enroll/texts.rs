//! The texts of enrolment: agent.toml, trust.toml, and what a person has to carry elsewhere.
//!
//! Never: a value that is not quoted.

use serde_json::{Value, json};

use super::super::Failure;
use super::{Args, Merge};
use crate::name::EnvironmentName;
use crate::trust::Verified;

pub const DEPLOY_KEY: &str = "deploy.key";
pub const TOKEN: &str = "forge.token";
pub const FORGE_CA: &str = "forge-ca.crt";
pub const STORE_CA: &str = "store-ca.crt";

pub fn agent(args: &Args, environment: &EnvironmentName) -> Result<String, Failure> {
    let store = match &args.store_file {
        None => format!(
            "kind = \"etcd\"\nendpoints = [{}]\nca = \"{STORE_CA}\"\ncert = \"node.crt\"\nkey = \"node.key\"\n",
            args.store_endpoint.iter().map(|url| quoted(url)).collect::<Vec<_>>().join(", ")
        ),
        Some(file) => {
            let file = std::path::absolute(file).map_err(|error| Failure::usage(format!("--store-file: {error}")))?;
            format!("kind = \"local\"\npath = {}\n", quoted(&file.display().to_string()))
        }
    };
    Ok(format!(
        "# Who this node is, and where its store is. Written by `converger enroll`.\n\
         node = {}\nenvironment = {}\ntrust = \"trust.toml\"\nidentities = [\"age.key\"]\n\n[store]\n{store}",
        quoted(args.node.as_str()),
        quoted(environment.as_str()),
    ))
}

pub fn trust(args: &Args) -> Result<String, Failure> {
    let mut remote = format!("[[remotes]]\nurl = {}\n", quoted(&args.remote));
    let ssh = args.remote.starts_with("ssh://");
    if ssh && args.host_key.is_none() {
        return Err(Failure::usage(
            "--host-key is missing: a host is not believed because it answers first. Take the line of \
             `ssh-keyscan -t ed25519 HOST` without the name, and compare it with what the forge's owner says",
        ));
    }
    let keys = [
        ("host_key", args.host_key.as_deref()),
        ("key_file", (ssh || args.key_file.is_some()).then_some(DEPLOY_KEY)),
        ("ca", args.ca.as_ref().map(|_| FORGE_CA)),
        ("token_file", args.token_file.as_ref().map(|_| TOKEN)),
    ];
    for (key, value) in keys {
        if let Some(value) = value {
            remote.push_str(&format!("{key} = {}\n", quoted(value)));
        }
    }
    Ok(format!(
        "# What this node believes before it has read anything; the repository cannot change it. Written by `converger enroll`.\n\
         fleet = {}\nref = {}\npolicy = \"standard\"\n\
         introduction = {{ commit = {}, signer = {}, seq = {} }}\nbans = []\n\n{remote}",
        quoted(&args.fleet),
        quoted(&format!("refs/heads/{}", args.branch)),
        quoted(args.introduction.as_str()),
        quoted(&args.signer),
        args.seq,
    ))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

impl Merge {
    /// For people: what to do elsewhere, in this order.
    pub fn text(&self, args: &Args) -> String {
        let mut out = String::new();
        if let Some(key) = &self.deploy_key {
            out.push_str(&format!("\nRegister at the forge, as a deploy key that may only read:\n\n{key}\n"));
        }
        let (environment, node, recipient) = (&self.environment, &args.node, &self.recipient);
        out.push_str(&format!(
            "\nMerge into environments/{environment}/topology.toml, in [nodes.{node}], and encrypt its secrets to it:\n\n\
             recipient = \"{recipient}\"\n"
        ));
        if let Some(request) = &self.certificate_request {
            out.push_str(&format!(
                "\nLet the store's CA sign this (CN = {node}, for clients), put the certificate at /etc/converger/node.crt and\n\
                 restart the agent:\n\n{}\n",
                request.trim_end()
            ));
        }
        out
    }

    /// For scripts. `head`: `None` if nothing was verified.
    pub fn json(&self, args: &Args, head: Option<&Verified>) -> Value {
        let head = head.map(|head| {
            let (commit, subject) = (head.commit(), head.subject());
            json!({ "commit": commit, "seq": head.seq(), "subject": subject, "acceptance": head.acceptance() })
        });
        json!({
            "node": args.node,
            "fleet": args.fleet,
            "environment": self.environment,
            "head": head,
            "recipient": self.recipient,
            "deploy_key": self.deploy_key,
            "certificate_request": self.certificate_request,
        })
    }
}
