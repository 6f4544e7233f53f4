//! Brings one program of the agent to this disk: from where the commit says, or from what is here already.
//!
//! It is hashed as it comes, looked at (an ELF file for this machine), run once with `--version`, and only then moved to its
//! place, whole. Never: a program whose digest is not the commit's; never: a redirect to plain http.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{Context, SHA256};

use super::state::Build;
use crate::disk::{self, DiskError};
use crate::host::command::Command;
use crate::reason::chain;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("converger {version} cannot be had: {}", .tried.join("; "))]
    Nowhere { version: String, tried: Vec<String> },
    #[error("what came as converger {version} is no program for this machine: {why}")]
    Unfit { version: String, why: String },
}

/// What a release is not larger than, with room.
const PROGRAM_MAX: u64 = 1 << 30;
const WITHIN: Duration = Duration::from_secs(600);
const VERSION_WITHIN: Duration = Duration::from_secs(10);

/// The program in its place below `folder`. `here`: a program of this machine that may be the same one.
pub fn program(folder: &Path, build: &Build, urls: &[String], here: Option<&Path>) -> Result<PathBuf, FetchError> {
    let place = build.program(folder);
    if is(&place, &build.sha256) {
        return Ok(place);
    }
    let fresh = folder.join(".new");
    let fetched = any(&fresh, build, urls, here).and_then(|()| {
        let parent = place.parent().unwrap_or(folder);
        disk::create_dirs(parent)?;
        Ok(disk::install(&fresh, &place)?)
    });
    if fetched.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    fetched.map(|()| place)
}

fn any(fresh: &Path, build: &Build, urls: &[String], here: Option<&Path>) -> Result<(), FetchError> {
    disk::create_dirs(fresh.parent().unwrap_or(fresh))?;
    let mut tried = Vec::new();
    let here = here.filter(|here| is(here, &build.sha256)).map(|here| format!("file://{}", here.display()));
    for url in here.iter().chain(urls) {
        match one(fresh, url) {
            Ok(digest) if digest == build.sha256 => return fits(fresh, build),
            Ok(digest) => tried.push(format!("{url} has the digest {digest}, the commit says {}", build.sha256)),
            Err(error) => tried.push(format!("{url}: {error}")),
        }
    }
    Err(FetchError::Nowhere { version: build.version.clone(), tried })
}

/// Copies what is there, and says its digest.
fn one(fresh: &Path, url: &str) -> std::io::Result<String> {
    let _ = std::fs::remove_file(fresh);
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o755).open(fresh)?;
    let mut source = open(url)?.take(PROGRAM_MAX);
    let (mut hash, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 16]);
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        target.write_all(&buffer[..read])?;
    }
    // The umask cut the mode.
    rustix::fs::fchmod(&target, rustix::fs::Mode::from_raw_mode(0o755))?;
    Ok(hex::encode(hash.finish()))
}

/// The one place that reads from elsewhere.
fn open(url: &str) -> std::io::Result<Box<dyn Read>> {
    if let Some(path) = url.strip_prefix("file://") {
        return Ok(Box::new(File::open(path)?));
    }
    let config = ureq::Agent::config_builder()
        .https_only(true)
        .proxy(None)
        .max_redirects(5)
        .user_agent(concat!("converger/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(WITHIN))
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(Some(Duration::from_secs(20)))
        .build();
    let response = config.new_agent().get(url).call().map_err(std::io::Error::other)?;
    Ok(Box::new(response.into_body().into_with_config().limit(PROGRAM_MAX).reader()))
}

/// Whether the file there is this program, byte by byte.
pub fn is(path: &Path, sha256: &str) -> bool {
    digest(path).is_ok_and(|digest| digest == sha256)
}

/// Hex SHA-256 of a file.
pub fn digest(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(hash.finish()));
        }
        hash.update(&buffer[..read]);
    }
}

/// An ELF file of this machine's kind that says the version it is wanted for.
fn fits(program: &Path, build: &Build) -> Result<(), FetchError> {
    let unfit = |why: String| FetchError::Unfit { version: build.version.clone(), why };
    let header = |path: &Path| -> std::io::Result<[u8; 20]> {
        let mut header = [0; 20];
        File::open(path)?.read_exact(&mut header)?;
        Ok(header)
    };
    let theirs = header(program).map_err(|error| unfit(error.to_string()))?;
    let ours = header(Path::new("/proc/self/exe")).map_err(|error| unfit(error.to_string()))?;
    // elf(5): magic, class and byte order, then the machine's number.
    if theirs[..4] != *b"\x7fELF" {
        return Err(unfit("it is not an ELF file".to_owned()));
    }
    if theirs[4..6] != ours[4..6] || theirs[18..] != ours[18..] {
        return Err(unfit("it is built for another kind of processor".to_owned()));
    }
    let argv = [program.display().to_string(), "--version".to_owned()];
    let output = Command { argv: &argv, user: "", within: VERSION_WITHIN }.succeed();
    let output = output.map_err(|error| unfit(chain(&error)))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let wanted = format!("converger {}", build.version);
    if said.trim_end() != wanted {
        let said: String = said.chars().filter(|c| !c.is_control()).take(80).collect();
        return Err(unfit(format!("it calls itself {said:?}, the commit says {wanted:?}")));
    }
    Ok(())
}

/// Removes programs that nobody comes back to.
pub fn prune(folder: &Path, keep: &[&Build]) {
    let keep: Vec<PathBuf> =
        keep.iter().filter_map(|build| build.program(folder).parent().map(Path::to_owned)).collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !keep.contains(&path) {
            // Only room on the disk; the next update tries again.
            let _ = disk::remove(&path);
        }
    }
}
