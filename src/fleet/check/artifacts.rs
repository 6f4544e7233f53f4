//! Rules of artifacts: components, urls, what archives are called, the buckets and authorities of mirrors.
//!
//! PURE. Never: asks a mirror.

use std::collections::{BTreeMap, BTreeSet};

use super::roles::Place;
use super::{Check, is_sha256, some_of};
use crate::fleet::load::Document;
use crate::fleet::schema::Membership;
use crate::fleet::{Node, rule};
use crate::name::SecretName;
use crate::resource::artifact::{Form, is_plain_name, mistake_in_url, s3_address};

/// Nodes by what they want: place, component, operating system.
pub(super) type Wanted<'a> = BTreeMap<(Place<'a>, &'a str, &'a str), Vec<&'a Node>>;

impl<'a, 't> Check<'a, 't> {
    /// What each entry of versions.toml says by itself.
    pub(super) fn versions(&mut self) {
        let document = &self.documents.versions;
        for (component, version) in &self.fleet.environment.versions {
            self.name(document, &[component], "component", component);
            let mut said = vec![(vec![component.as_str()], version.sha256.as_ref(), version.urls.as_slice())];
            said.extend(version.os.iter().map(|(os, other)| {
                let urls = other.urls.as_deref().unwrap_or_default();
                (vec![component.as_str(), "os", os.as_str()], other.sha256.as_ref(), urls)
            }));
            for os in version.os.keys() {
                self.os(document, &[component, "os", os], os, super::Precision::Family);
            }
            for (place, sha256, urls) in said {
                let at = |rest: &[&'static str]| [&place[..], rest].concat();
                if sha256.is_some_and(|sha256| !is_sha256(sha256)) {
                    let problem = document.error(rule::BAD_DIGEST, format!("sha256 of {component} is not a SHA-256"));
                    self.problems.push(problem.at(document.value(&at(&["sha256"])), "64 lowercase hex digits"));
                }
                for (index, url) in urls.iter().enumerate() {
                    let index = index.to_string();
                    let span = document.value(&[&place[..], &["urls", &index]].concat());
                    if let Some(why) = mistake_in_url(url) {
                        let title = format!("a url of {component} is no source of an archive");
                        self.problems.push(document.error(rule::BAD_URL, title).at(span, why));
                    } else if let Some((bucket, _)) = s3_address(url)
                        && !self.fleet.environment.s3.contains_key(bucket)
                    {
                        let title = format!("\"{bucket}\" is no bucket that is declared");
                        let problem = document.error(rule::UNKNOWN_BUCKET, title);
                        let problem = problem.at(span, format!("no [s3.{bucket}] in environment.toml"));
                        let known = self.fleet.environment.s3.keys().map(String::as_str);
                        self.unknown(problem, "buckets", bucket, known);
                    }
                }
            }
        }
        self.mirrors();
    }

    /// What environment.toml says of buckets and authorities.
    fn mirrors(&mut self) {
        let environment = &self.fleet.environment;
        let document = &self.documents.environment;
        for (bucket, entry) in &environment.s3 {
            let span = |key: &'static str| document.value(&["s3", bucket, key]);
            if mistake_in_url(&format!("{}/", entry.endpoint)).is_some() || entry.endpoint.matches('/').count() != 2 {
                let problem = document.error(rule::BAD_BUCKET, format!("endpoint of bucket {bucket} is no address"));
                self.problems
                    .push(problem.at(span("endpoint"), "as in https://s3.example.internal:9000, without a path"));
            }
            if entry.region.is_empty() || !entry.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                let problem = document.error(rule::BAD_BUCKET, format!("region of bucket {bucket} is no name"));
                self.problems.push(problem.at(span("region"), "as in us-east-1"));
            }
            if !environment.secrets.contains_key(&entry.secret) {
                let title = format!("there is no secret \"{}\" for bucket {bucket}", entry.secret);
                let problem = document.error(rule::UNKNOWN_SECRET, title);
                let problem = problem.at(span("secret"), format!("not in {}", self.documents.secrets.path));
                let known = environment.secrets.keys().map(SecretName::as_str);
                self.unknown(problem, "secrets", entry.secret.as_str(), known);
            }
        }
        if let Some(path) = &environment.mirror_authorities {
            let pem = self.fleet.tree.get(path.as_str()).and_then(|bytes| str::from_utf8(bytes).ok());
            if pem.is_none_or(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
                let label = match pem {
                    None => format!("no {path}"),
                    Some(_) => format!("no certificate in {path}"),
                };
                let problem = document.error(rule::BAD_AUTHORITIES, "the mirrors' authorities cannot be read");
                self.problems.push(problem.at(document.value(&["mirror_authorities"]), label));
            }
        }
    }

    /// Nodes that need a bucket and are not granted its secret.
    pub(super) fn buckets(&mut self, found: &Wanted<'a>) {
        let environment = &self.fleet.environment;
        let mut lacking: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
        for ((_, component, os), nodes) in found {
            let Some(version) = environment.versions.get(*component) else { continue };
            let urls = version.on(os).urls;
            let buckets: BTreeSet<&str> = urls.iter().filter_map(|url| Some(s3_address(url)?.0)).collect();
            for bucket in buckets {
                let secret = environment.s3.get(bucket).and_then(|entry| environment.secrets.get(&entry.secret));
                let Some(secret) = secret else { continue };
                let granted = self.cover.granted(&secret.grant);
                let needs = |node: &&&'a Node| {
                    node.state != Membership::Retired && !granted.iter().any(|granted| granted.name == node.name)
                };
                lacking.entry(bucket).or_default().extend(nodes.iter().filter(needs));
            }
        }
        for (bucket, nodes) in lacking.into_iter().filter(|(_, nodes)| !nodes.is_empty()) {
            let document = &self.documents.environment;
            let secret = &environment.s3[bucket].secret;
            let title = format!("secret \"{secret}\" is not granted to {}", some_of(&nodes));
            let problem = document.error(rule::SECRET_NOT_GRANTED, title);
            let problem = problem.at(document.value(&["s3", bucket, "secret"]), "they read this bucket with it");
            let grant =
                self.documents.secrets.line(self.documents.secrets.value(&["secrets", secret.as_str(), "grant"]).start);
            self.problems.push(problem.help(format!(
                "widen the grant in {}:{grant}, then `converger secret rekey {secret}`",
                self.documents.secrets.path
            )));
        }
    }

    pub(super) fn artifacts(
        &mut self,
        found: &Wanted<'a>,
        place_of: impl Fn(&Place<'a>) -> (&'a Document<'t>, std::ops::Range<usize>),
    ) {
        let versions = &self.fleet.environment.versions;
        let document = &self.documents.versions;
        let mut told: BTreeSet<(Place<'_>, &str)> = BTreeSet::new();
        let mut lacking: BTreeMap<(&str, &'static str), Vec<&Node>> = BTreeMap::new();
        let mut unnamed: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
        let mut unplaced: BTreeSet<&str> = BTreeSet::new();
        for ((place, component, os), nodes) in found {
            let Some(version) = versions.get(*component) else {
                if told.insert((*place, component)) {
                    let (role, span) = place_of(place);
                    let problem = role
                        .error(rule::UNKNOWN_COMPONENT, format!("\"{component}\" is not a component"))
                        .at(span, format!("not in {}", document.path));
                    self.unknown(problem, "components", component, versions.keys().map(String::as_str));
                }
                continue;
            };
            let pinned = version.on(os);
            if !pinned.urls.is_empty() && (!is_plain_name(pinned.file) || Form::of(pinned.file).is_err()) {
                unnamed.entry(component).or_default().extend(nodes);
            }
            if !is_plain_name(pinned.version) {
                unplaced.insert(component);
            }
            if pinned.sha256.is_none() {
                lacking.entry((component, "sha256")).or_default().extend(nodes);
            }
            if pinned.urls.is_empty() {
                lacking.entry((component, "urls")).or_default().extend(nodes);
            }
        }
        for ((component, what), nodes) in lacking {
            let title = format!("{component} has no {what} for {}", some_of(&nodes));
            let problem = document.error(rule::VERSION_WITHOUT_DIGEST, title);
            self.problems.push(problem.at(document.key(&[component]), format!("no {what}")));
        }
        for (component, nodes) in unnamed {
            let title = format!("what the archive of {component} is called tells no form, for {}", some_of(&nodes));
            let problem = document.error(rule::UNKNOWN_ARCHIVE, title);
            let label = ".tar.gz, .tgz, .tar.xz, .tar.zst, .zip, or a single file such as .jar";
            self.problems.push(problem.at(document.key(&[component]), label));
        }
        for component in unplaced {
            let title = format!("the version of {component} cannot be the name of a directory");
            let span = document.value(&[component, "version"]);
            self.problems.push(document.error(rule::BAD_NAME, title).at(span, "its archive is unpacked into one"));
        }
    }
}
