//! Rules of secrets that are made and not typed: their shapes, their authorities, and when certificates expire.
//!
//! PURE: the time is handed in. Never: an error about a date that passes, it would take effect without a commit.

use std::net::IpAddr;

use jiff::Timestamp;

use super::Check;
use crate::fleet::schema::{Shape, ShapeKind};
use crate::fleet::{Secret, public_path, rule};
use crate::secrets::shape;
use crate::secrets::tls::{SOON, from_now};

impl Check<'_, '_> {
    pub(super) fn shapes(&mut self) {
        let secrets = self.fleet.environment.secrets.values();
        for (secret, shape) in secrets.filter_map(|secret| Some((secret, secret.generate.as_ref()?))) {
            self.shape(secret, shape);
        }
    }

    fn shape(&mut self, secret: &Secret, shape: &Shape) {
        let document = &self.documents.secrets;
        let name = secret.name.as_str();
        let bad = |key: &str, why: String| {
            let title = format!("secret {name} cannot be generated like this");
            document.error(rule::BAD_SHAPE, title).at(document.value(&["secrets", name, "generate", key]), why)
        };
        if let Some((key, why)) = shape::mistake(shape) {
            self.problems.push(bad(key, why));
            return;
        }
        // Retired ones too: what a node leaves behind is no mistake.
        let readers = self.cover.granted(&secret.grant).len();
        match shape.kind {
            ShapeKind::Ca if readers > 0 => {
                let title = format!("the key of authority {name} is granted to {readers} nodes");
                let problem = document.error(rule::AUTHORITY_GRANTED, title);
                self.problems.push(problem.at(document.value(&["secrets", name, "grant"]), "grant = []"));
            }
            ShapeKind::Tls => {
                if readers != 1 && shape.names.is_empty() && shape.ips.is_empty() {
                    let why = format!("granted to {readers} nodes: say for which names, names = [\"..\"]");
                    self.problems.push(bad("kind", why));
                }
                let environment = &self.fleet.environment;
                let unknown = |ip: &&String| ip.parse::<IpAddr>().is_err() && !environment.vips.contains_key(*ip);
                if let Some(ip) = shape.ips.iter().find(unknown) {
                    self.problems.push(bad("ips", format!("{ip:?} is neither an IP address nor one of the vips")));
                }
                let Some(ca) = &shape.ca else { return };
                match environment.secrets.get(ca) {
                    None => {
                        let problem = document
                            .error(rule::UNKNOWN_SECRET, format!("secrets.toml has no secret {ca}"))
                            .at(document.value(&["secrets", name, "generate", "ca"]), "no secret has this name");
                        let known = environment.secrets.keys().map(crate::name::SecretName::as_str);
                        self.unknown(problem, "secrets", ca.as_str(), known);
                    }
                    Some(authority) => {
                        let imported = public_path(&environment.name, ca, "crt");
                        let there = |path: &str| self.fleet.tree.get(path).is_some();
                        let signs = match &authority.generate {
                            Some(shape) => shape.kind == ShapeKind::Ca,
                            // One that has no file yet may still be imported; that it has none is told.
                            None => there(imported.as_str()) || !there(authority.path.as_str()),
                        };
                        if !signs {
                            let why = format!("neither kind = \"ca\" nor imported with its certificate, {imported}");
                            self.problems.push(bad("ca", why));
                        }
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn expiries(&mut self, now: Timestamp) {
        let document = &self.documents.secrets;
        for secret in self.fleet.environment.secrets.values() {
            let name = &secret.name;
            let Some(at) = secret.expires else { continue };
            if at.duration_since(now) < SOON {
                let verb = if at < now { "expired" } else { "expires" };
                let title = format!("the certificate of secret {name} {verb} {}", from_now(at, now));
                let problem = document.warning(rule::CERTIFICATE_EXPIRES, title);
                let problem = problem.at(document.value(&["secrets", name.as_str(), "expires"]), "");
                self.problems.push(problem.help(match secret.generate {
                    Some(_) => "`converger secret generate --due 30` makes new ones".to_owned(),
                    None => format!("`converger secret import {name}` brings its successor"),
                }));
            }
        }
    }
}
