//! `artifact`: an archive by digest, unpacked into `into/<version>`, with `into/current` pointing at it.
//!
//! PURE. Never: downloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Content, Digest};
use crate::name::{HostPath, SecretName};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArtifactSpec {
    pub component: String,
    pub version: String,
    pub sha256: String,
    /// Tried in order: `https://`, `http://`, `file:///`, `s3://bucket/key`.
    pub urls: Vec<String>,
    /// What the archive is called: its end tells the form.
    pub file: String,
    pub into: HostPath,
    /// The buckets of its `s3://` urls.
    pub buckets: BTreeMap<String, Bucket>,
    /// PEM: the only authorities that its `https` servers are believed by. `None`: the system's.
    pub authorities: Option<Arc<str>>,
}

/// An S3-compatible bucket, and how this node may read it.
#[derive(Clone)]
pub struct Bucket {
    /// `https://s3.example.internal:9000`
    pub endpoint: String,
    pub region: String,
    pub secret: SecretName,
    /// Key id and secret key. In memory only.
    pub credentials: Content,
}

/// Of the credentials only which secret they are.
impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}) with secret {}", self.endpoint, self.region, self.secret)
    }
}

impl PartialEq for Bucket {
    fn eq(&self, other: &Self) -> bool {
        let parts = |bucket: &Self| (bucket.endpoint.clone(), bucket.region.clone(), bucket.credentials.inputs());
        parts(self) == parts(other)
    }
}

impl Eq for Bucket {}

impl ArtifactSpec {
    /// Where it comes from changes nothing of what it is.
    pub fn inputs(&self) -> Digest {
        let parts = [self.component.as_bytes(), self.version.as_bytes(), self.sha256.as_bytes()];
        Digest::of_parts(parts.into_iter().chain([self.into.as_str().as_bytes()]))
    }
}

/// What `current` points at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArtifactState {
    /// Nothing, or nothing that is whole.
    Absent,
    Current {
        version: String,
        /// Of the archive that it was unpacked from; empty: it is nothing that was unpacked here.
        sha256: String,
    },
}

impl ArtifactSpec {
    pub fn diff(&self, state: &ArtifactState) -> Option<String> {
        let Self { component, version: wanted, .. } = self;
        match state {
            ArtifactState::Absent => Some(format!("unpack {component} {wanted}")),
            ArtifactState::Current { version, .. } if version != wanted => {
                Some(format!("{component} {version} -> {wanted}"))
            }
            ArtifactState::Current { sha256, .. } if *sha256 == self.sha256 => None,
            ArtifactState::Current { sha256, .. } if sha256.is_empty() => {
                Some(format!("unpack {component} {wanted} in place of what somebody else put there"))
            }
            ArtifactState::Current { .. } => Some(format!("{component} {wanted}: another archive of the same version")),
        }
    }
}

/// What an archive is, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Tar(Packing),
    Zip,
    /// No archive to unpack: kept as it is, under its own name (`.jar`, a single binary).
    Single,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    Plain,
    Gzip,
    Xz,
    Zstd,
}

/// Ends of names that look like archives which are not unpacked here.
const FOREIGN: [&str; 10] =
    [".tar.bz2", ".tbz2", ".tbz", ".tar.lz", ".tar.lz4", ".tar.z", ".7z", ".rar", ".deb", ".rpm"];

impl Form {
    /// By the end of the name. Errors: an archive of a form that is not unpacked here.
    pub fn of(name: &str) -> Result<Self, &'static str> {
        let name = name.to_ascii_lowercase();
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        if let Some(end) = FOREIGN.into_iter().find(|end| name.ends_with(end)) {
            return Err(end);
        }
        Ok(match () {
            () if ends(&[".tar"]) => Self::Tar(Packing::Plain),
            () if ends(&[".tar.gz", ".tgz"]) => Self::Tar(Packing::Gzip),
            () if ends(&[".tar.xz", ".txz"]) => Self::Tar(Packing::Xz),
            () if ends(&[".tar.zst", ".tzst"]) => Self::Tar(Packing::Zstd),
            () if ends(&[".zip"]) => Self::Zip,
            () => Self::Single,
        })
    }
}

/// The last part of a url's path, without a query. Empty: it has none.
pub fn file_of(url: &str) -> &str {
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    path.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).unwrap_or_default()
}

/// Whether a version or a file can be the name of an entry of a folder, and is none of ours there.
pub fn is_plain_name(name: &str) -> bool {
    let odd = |c: char| c == '/' || c.is_control();
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name != CURRENT && !name.contains(odd)
}

/// The link to the version that is live.
pub const CURRENT: &str = "current";

/// `s3://bucket/key` as bucket and key.
pub fn s3_address(url: &str) -> Option<(&str, &str)> {
    let (bucket, key) = url.strip_prefix("s3://")?.split_once('/')?;
    (!bucket.is_empty() && !key.is_empty()).then_some((bucket, key))
}

/// Why a url can be no source of an archive, in words.
pub fn mistake_in_url(url: &str) -> Option<&'static str> {
    let after = |scheme: &str| url.strip_prefix(scheme);
    let odd = |c: char| c.is_control() || c.is_whitespace() || !c.is_ascii();
    match () {
        () if url.contains(odd) => Some("spaces and what is not ASCII are written with %"),
        () if url.starts_with("s3://") && s3_address(url).is_none() => Some("as in s3://bucket/key"),
        () if url.starts_with("s3://") => None,
        () if after("file://").is_some_and(|path| !path.starts_with('/')) => Some("as in file:///srv/mirror/x.tar.gz"),
        () if url.starts_with("file:///") => None,
        () => match after("https://").or_else(|| after("http://")) {
            None => Some("https://, http://, file:/// or s3://bucket/key"),
            Some(rest) if rest.split('/').next().unwrap_or_default().contains('@') => {
                Some("credentials have no place in an address")
            }
            Some(rest) if rest.starts_with('/') || !rest.contains('/') => Some("as in https://server/path"),
            Some(_) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_form() {
        for (name, form) in [
            ("kafka_2.13-3.9.0.tgz", Ok(Form::Tar(Packing::Gzip))),
            ("a.tar.xz", Ok(Form::Tar(Packing::Xz))),
            ("a.tar.zst", Ok(Form::Tar(Packing::Zstd))),
            ("A.ZIP", Ok(Form::Zip)),
            ("nessie-runner.jar", Ok(Form::Single)),
            ("a.tar.bz2", Err(".tar.bz2")),
        ] {
            assert_eq!(Form::of(name), form, "{name}");
        }
        assert_eq!(file_of("https://m.example/x/kafka.tgz?token=1#y"), "kafka.tgz");
        assert_eq!(file_of("s3://bucket/deep/key.zip"), "key.zip");
        assert_eq!(file_of("file:///srv/a.jar"), "a.jar");
        assert_eq!(file_of("https://m.example"), "");
        assert!(is_plain_name("3.9.0") && is_plain_name("2024-01-01+deb12"));
        assert!(["", ".", "..", ".x", "a/b", "current", "a\n"].iter().all(|name| !is_plain_name(name)));
    }

    #[test]
    fn urls_that_are_no_source_say_why() {
        for good in ["https://m/x", "http://m:80/x?y", "file:///srv/x", "s3://b/k/x"] {
            assert_eq!(mistake_in_url(good), None, "{good}");
        }
        for bad in [
            "ftp://m/x",
            "m/x",
            "https://m",
            "https:///x",
            "https://u:p@m/x",
            "file://host/x",
            "s3://b",
            "https://m/ x",
        ] {
            assert!(mistake_in_url(bad).is_some(), "{bad}");
        }
    }
}
