//! Gets an archive: mirror after mirror, until bytes with the right digest are there.
//!
//! What was received stays in `<cache>/artifacts/<sha256>.part` and is gone on with, at the next mirror or in the next run.
//! No validator of a server is remembered for that (every mirror has its own): the digest judges the whole, and where what
//! was gone on with turns out wrong, that mirror is asked again from the first byte. The bytes come from a child without
//! root ([`super::download`]); here they are counted, hashed and written. Never: trust on first use, a redirect from https
//! to http, a credential that follows a redirect.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use ureq::http::Uri;

use super::download::{Frame, Head, Order, PIECE};
use super::s3;
use crate::clock::Clock;
use crate::disk::{self, DiskError};
use crate::git::Children;
use crate::git::child::ChildError;
use crate::git::sandbox::Profile;
use crate::reason::chain;
use crate::resource::ArtifactSpec;
use crate::resource::artifact::{mistake_in_url, s3_address};
use crate::settings;

/// What one archive may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub bytes: u64,
    /// One mirror, from connecting to the last byte.
    pub secs: u64,
    /// Without a single byte.
    pub silent_secs: u64,
}

/// A quarter of an hour for each mirror in each run: what is missing then comes in the next one.
pub const BOUNDS: Bounds = Bounds { bytes: 8 << 30, secs: 900, silent_secs: 60 };
const REDIRECTS_MAX: usize = 5;
/// A mirror that breaks off is asked again as long as each time brings something.
const BROKEN_OFF_MAX: usize = 10;
/// Parts of archives that nobody wants any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no mirror gave it:{}", listed(.0))]
    Mirrors(Vec<(String, MirrorError)>),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("cannot keep what is downloaded in {path}", path = .path.display())]
    Part { path: PathBuf, source: io::Error },
    #[error("its sha256 is no SHA-256")]
    NoDigest,
}

fn listed(failures: &[(String, MirrorError)]) -> String {
    failures.iter().map(|(url, why)| format!("\n  {url}: {}", chain(why))).collect()
}

/// Why one mirror gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("what it gave has the sha256 {found}, versions.toml says another")]
    Digest { found: String },
    #[error("{0}")]
    Said(String),
    #[error("it broke off after {have} bytes ({why})")]
    BrokeOff { have: u64, why: String },
    #[error("it sends more than {max} bytes")]
    TooLarge { max: u64 },
    #[error("it needs {needed} bytes, and {free} are free")]
    NoRoom { needed: u64, free: u64 },
    #[error("it redirects to {to}, which is not followed: {why}")]
    Redirect { to: String, why: &'static str },
    #[error("cannot read it")]
    File(#[source] io::Error),
    #[error("cannot be written down")]
    Write(#[source] io::Error),
    #[error(transparent)]
    Child(#[from] ChildError),
}

pub struct Fetch<'a> {
    /// Where parts are kept: ours, 0700.
    pub folder: &'a Path,
    pub children: &'a Children,
    pub clock: &'a dyn Clock,
    pub bounds: Bounds,
}

/// What was received so far.
struct Part {
    file: File,
    hash: Sha256,
    have: u64,
}

impl Part {
    /// With what an earlier attempt left.
    fn open(path: &Path) -> io::Result<Self> {
        const NOFOLLOW: i32 = nix::libc::O_NOFOLLOW;
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(NOFOLLOW);
        let mut part = Self { file: how.open(path)?, hash: Sha256::new(), have: 0 };
        let mut piece = vec![0; PIECE];
        loop {
            match part.file.read(&mut piece)? {
                0 => return Ok(part),
                read => {
                    part.hash.update(&piece[..read]);
                    part.have += read as u64;
                }
            }
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.hash, self.have) = (Sha256::new(), 0);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }
}

/// One request, ready to be sent.
struct Request {
    url: Uri,
    headers: Vec<(String, String)>,
    /// It carries a signature.
    signed: bool,
}

/// What became of one request.
enum Got {
    Whole,
    /// Nothing of what is there can be gone on with.
    NotThatRange,
    Elsewhere(String),
}

impl Fetch<'_> {
    /// The whole archive, with the digest that the spec says. It stays in the folder until [`Self::forget`].
    pub fn fetch(&self, spec: &ArtifactSpec) -> Result<File, FetchError> {
        disk::create_dirs(self.folder)?;
        self.tidy();
        let wanted = wanted(spec)?;
        let path = self.part(spec);
        let failed = |source| FetchError::Part { path: path.clone(), source };
        let mut part = Part::open(&path).map_err(failed)?;
        if part.digest() == wanted {
            return Ok(part.file);
        }
        let mut failures = Vec::new();
        for url in &spec.urls {
            match self.from(url, spec, &mut part, &wanted) {
                Ok(()) => return Ok(part.file),
                Err(error) => {
                    tracing::warn!(component = spec.component, url, "{}", chain(&error));
                    failures.push((url.clone(), error));
                }
            }
        }
        Err(FetchError::Mirrors(failures))
    }

    /// The archive is unpacked.
    pub fn forget(&self, spec: &ArtifactSpec) -> Result<(), FetchError> {
        Ok(disk::remove(&self.part(spec))?)
    }

    fn part(&self, spec: &ArtifactSpec) -> PathBuf {
        self.folder.join(format!("{}.part", spec.sha256.to_ascii_lowercase()))
    }

    fn tidy(&self) {
        for entry in std::fs::read_dir(self.folder).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|meta| meta.modified());
            let now = std::time::SystemTime::from(self.clock.now());
            let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > FORGOTTEN_AFTER) {
                let _ = disk::remove(&entry.path());
            }
        }
    }

    /// One mirror, until the digest is right or it has shown that it does not have it.
    fn from(&self, url: &str, spec: &ArtifactSpec, part: &mut Part, wanted: &[u8; 32]) -> Result<(), MirrorError> {
        loop {
            let gone_on = part.have > 0;
            match mistake_in_url(url) {
                Some(why) => return Err(MirrorError::Said(format!("no usable address: {why}"))),
                None => match url.strip_prefix("file://") {
                    Some(path) => self.copy(path, part)?,
                    None => self.download(url, spec, part)?,
                },
            }
            if part.digest() == *wanted {
                return Ok(());
            }
            let found = hex::encode(part.digest());
            part.begin_anew().map_err(MirrorError::Write)?;
            // What was there before may have been another mirror's, and wrong.
            if !gone_on {
                return Err(MirrorError::Digest { found });
            }
        }
    }

    /// A folder of this machine, or one that is mounted here.
    fn copy(&self, path: &str, part: &mut Part) -> Result<(), MirrorError> {
        const NONBLOCK: i32 = nix::libc::O_NONBLOCK;
        let mut from = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path).map_err(MirrorError::File)?;
        let meta = from.metadata().map_err(MirrorError::File)?;
        if !meta.is_file() {
            return Err(MirrorError::File(io::Error::other("it is no regular file")));
        }
        part.begin_anew().map_err(MirrorError::Write)?;
        self.room(meta.len(), part)?;
        let mut piece = vec![0; PIECE];
        loop {
            match from.read(&mut piece).map_err(MirrorError::File)? {
                0 => return Ok(()),
                read => self.append(part, &piece[..read])?,
            }
        }
    }

    fn download(&self, url: &str, spec: &ArtifactSpec, part: &mut Part) -> Result<(), MirrorError> {
        let until = self.clock.awake() + Duration::from_secs(self.bounds.secs);
        let mut broken_off = 0;
        loop {
            let before = part.have;
            match self.through_redirects(url, spec, part, until) {
                Ok(Got::NotThatRange) if before > 0 => part.begin_anew().map_err(MirrorError::Write)?,
                Ok(_) => return Ok(()),
                Err(MirrorError::BrokeOff { .. }) if part.have > before && broken_off < BROKEN_OFF_MAX => {
                    broken_off += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn through_redirects(
        &self,
        url: &str,
        spec: &ArtifactSpec,
        part: &mut Part,
        until: Duration,
    ) -> Result<Got, MirrorError> {
        let mut request = self.request(url, spec, part.have)?;
        for _ in 0..=REDIRECTS_MAX {
            match self.ask(&request, spec, part, until)? {
                Got::Elsewhere(to) => {
                    let url = redirect(&request, &to)?;
                    request = Request { url, headers: range(part.have), signed: false };
                }
                got => return Ok(got),
            }
        }
        Err(MirrorError::Said(format!("more than {REDIRECTS_MAX} redirects")))
    }

    fn request(&self, url: &str, spec: &ArtifactSpec, have: u64) -> Result<Request, MirrorError> {
        let said = |why: String| MirrorError::Said(why);
        let Some((bucket, key)) = s3_address(url) else {
            let url = url.parse().map_err(|_| said("no usable address".to_owned()))?;
            return Ok(Request { url, headers: range(have), signed: false });
        };
        let Some(declared) = spec.buckets.get(bucket) else {
            return Err(said(format!("environment.toml has no [s3.{bucket}]")));
        };
        let Some(credentials) = declared.credentials.bytes() else {
            return Err(said(format!("secret {} cannot be opened on this node", declared.secret)));
        };
        let Some(credentials) = s3::Key::parse(credentials) else {
            return Err(said(format!("secret {} is not `id:key`, nor a line each", declared.secret)));
        };
        let path = s3::path(bucket, key);
        let url: Uri = format!("{}{path}", declared.endpoint.trim_end_matches('/'))
            .parse()
            .map_err(|_| said(format!("endpoint {} is no usable address", declared.endpoint)))?;
        let host = match (url.host(), url.port_u16()) {
            (Some(host), Some(port)) if Some(port) != port_of(&url) => format!("{host}:{port}"),
            (Some(host), _) => host.to_owned(),
            (None, _) => return Err(said(format!("endpoint {} is no usable address", declared.endpoint))),
        };
        let headers = range(have);
        let headers: Vec<(&str, String)> = headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let get = s3::Get { host: &host, path: &path, region: &declared.region, headers: &headers };
        Ok(Request { headers: s3::sign(&get, &credentials, self.clock.now()), url, signed: true })
    }

    /// One request in one child.
    fn ask(
        &self,
        request: &Request,
        spec: &ArtifactSpec,
        part: &mut Part,
        until: Duration,
    ) -> Result<Got, MirrorError> {
        let left = until.saturating_sub(self.clock.awake());
        if left.is_zero() {
            return Err(MirrorError::Said(format!("it took more than {} s", self.bounds.secs)));
        }
        let secs = left.as_secs().max(1);
        let Some(port) = request.url.port_u16().or_else(|| port_of(&request.url)) else {
            return Err(MirrorError::Said("neither http nor https".to_owned()));
        };
        // What a child of git's may take, without its packs.
        let limits = settings::Limits { pack_mib: 64, time_secs: secs, ..settings::Limits::default() };
        let order = Order {
            profile: Profile::to_download(port, self.children.user, &limits),
            url: request.url.to_string(),
            headers: request.headers.clone(),
            authorities: spec.authorities.as_deref().map(str::to_owned),
            secs,
        };
        let mut child = self.children.start("artifact", &order, self.bounds.silent_secs)?;
        let mut next = || {
            let left = until.saturating_sub(self.clock.awake()).max(Duration::from_millis(1));
            child.wait_for(left.min(Duration::from_secs(self.bounds.silent_secs)));
            let frame = child.frame(PIECE as u64 + 1)?;
            Frame::parse(frame).ok_or(ChildError::Unasked)
        };
        let head = match next()? {
            Frame::Head(head) => head,
            Frame::Failed(why) => return Err(MirrorError::Said(why)),
            Frame::Content(_) | Frame::End => return Err(ChildError::Unasked.into()),
        };
        let whole = match self.begin(&head, part)? {
            Begun::Content(whole) => whole,
            Begun::Got(got) => return Ok(got),
        };
        let ended = loop {
            match next() {
                Ok(Frame::Content(bytes)) => self.append(part, &bytes)?,
                Ok(Frame::End) => break None,
                Ok(Frame::Failed(why)) => break Some(why),
                Ok(Frame::Head(_)) => return Err(ChildError::Unasked.into()),
                Err(error) => break Some(error.to_string()),
            }
        };
        match (ended, whole) {
            (Some(why), _) => Err(MirrorError::BrokeOff { have: part.have, why }),
            (None, Some(whole)) if part.have < whole => {
                Err(MirrorError::BrokeOff { have: part.have, why: format!("of {whole} that it announced") })
            }
            (None, _) => Ok(Got::Whole),
        }
    }

    /// Judges an answer before its content.
    fn begin(&self, head: &Head, part: &mut Part) -> Result<Begun, MirrorError> {
        let Head { status, length, range, location } = head;
        match status {
            200 => {
                // All of it, also where only the rest was asked for.
                part.begin_anew().map_err(MirrorError::Write)?;
                if let Some(length) = length {
                    self.room(*length, part)?;
                }
                Ok(Begun::Content(*length))
            }
            206 => {
                let told = range.as_deref().and_then(content_range);
                let Some((first, whole)) = told.filter(|(first, _)| *first == part.have) else {
                    let range = range.as_deref().unwrap_or("nothing");
                    return Err(MirrorError::Said(format!("asked for the rest from {}, it gives {range}", part.have)));
                };
                if let Some(whole) = whole {
                    self.room(whole.saturating_sub(first), part)?;
                }
                Ok(Begun::Content(whole))
            }
            416 if part.have > 0 => Ok(Begun::Got(Got::NotThatRange)),
            301 | 302 | 303 | 307 | 308 => match location {
                Some(location) => Ok(Begun::Got(Got::Elsewhere(location.clone()))),
                None => Err(MirrorError::Said(format!("it answers {status} and no place"))),
            },
            401 | 403 => Err(MirrorError::Said(format!("it answers {status}: not for these credentials"))),
            status => Err(MirrorError::Said(format!("it answers {status}"))),
        }
    }

    fn append(&self, part: &mut Part, bytes: &[u8]) -> Result<(), MirrorError> {
        let max = self.bounds.bytes;
        if part.have + bytes.len() as u64 > max {
            return Err(MirrorError::TooLarge { max });
        }
        part.append(bytes).map_err(MirrorError::Write)
    }

    /// Before the first byte: what cannot fit is not begun.
    fn room(&self, more: u64, part: &Part) -> Result<(), MirrorError> {
        let max = self.bounds.bytes;
        if part.have.saturating_add(more) > max {
            return Err(MirrorError::TooLarge { max });
        }
        let stat = rustix::fs::fstatvfs(&part.file).map_err(|error| MirrorError::Write(error.into()))?;
        let free = stat.f_bavail * stat.f_frsize;
        if more > free { Err(MirrorError::NoRoom { needed: more, free }) } else { Ok(()) }
    }
}

enum Begun {
    /// Content comes; the whole archive has so many bytes, if that was told.
    Content(Option<u64>),
    Got(Got),
}

fn wanted(spec: &ArtifactSpec) -> Result<[u8; 32], FetchError> {
    let mut wanted = [0; 32];
    hex::decode_to_slice(&spec.sha256, &mut wanted).map_err(|_| FetchError::NoDigest)?;
    Ok(wanted)
}

fn range(have: u64) -> Vec<(String, String)> {
    if have == 0 { Vec::new() } else { vec![("range".to_owned(), format!("bytes={have}-"))] }
}

/// `bytes 5-9/10` as 5 and 10 (RFC 9110, 14.4).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    Some((first.parse().ok()?, whole))
}

fn port_of(url: &Uri) -> Option<u16> {
    match url.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    }
}

/// Where a redirect leads, if it may.
fn redirect(from: &Request, to: &str) -> Result<Uri, MirrorError> {
    let refuse = |why| Err(MirrorError::Redirect { to: to.chars().take(200).collect(), why });
    if from.signed {
        return refuse("the request is signed for this address; is the region right?");
    }
    let text = match to.strip_prefix("//") {
        Some(rest) => format!("{}://{rest}", from.url.scheme_str().unwrap_or("https")),
        None if to.starts_with('/') => {
            let (scheme, authority) = (from.url.scheme_str().unwrap_or_default(), from.url.authority());
            format!("{scheme}://{}{to}", authority.map(|a| a.as_str()).unwrap_or_default())
        }
        None => to.to_owned(),
    };
    let text = text.split('#').next().unwrap_or_default();
    if !text.starts_with("https://") && !text.starts_with("http://") {
        return refuse("neither http nor https, or no whole address");
    }
    if mistake_in_url(text).is_some() {
        return refuse("no usable address");
    }
    if from.url.scheme_str() == Some("https") && !text.starts_with("https://") {
        return refuse("from https to http");
    }
    match text.parse() {
        Ok(url) => Ok(url),
        Err(_) => refuse("no usable address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_http_and_never_leave_https() {
        let to = |from: &str, to: &str| {
            let from = Request { url: from.parse().unwrap(), headers: Vec::new(), signed: false };
            redirect(&from, to).ok().map(|url| url.to_string())
        };
        assert_eq!(to("https://a:8443/x", "/y"), Some("https://a:8443/y".to_owned()));
        assert_eq!(to("http://a/x", "https://b/y#z"), Some("https://b/y".to_owned()));
        assert_eq!(to("https://a/x", "//b/y"), Some("https://b/y".to_owned()));
        for bad in ["http://a/x", "file:///etc/passwd", "ftp://a/x", "y", "https://u:p@b/y"] {
            assert_eq!(to("https://a/x", bad), None, "{bad}");
        }
        let signed = Request { url: "https://a/x".parse().unwrap(), headers: Vec::new(), signed: true };
        assert!(redirect(&signed, "https://a/y").is_err());
    }

    #[test]
    fn ranges_are_read_as_written() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert!(["bytes */10", "5-9/10", "bytes x-9/10", ""].iter().all(|text| content_range(text).is_none()));
    }
}
