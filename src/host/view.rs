//! The future at its own paths: the candidates of a batch laid over the directories that they will be in.
//!
//! One read-only overlay for each directory (its candidates above, the directory as it is below), mounted where only root
//! can go and shown to one program at the real path, so that includes resolve whether they are absolute, relative or
//! patterns. What is mounted below such a directory is not seen. Never: mounts over a path that others see, or anything
//! that can be written through.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::AsRawFd;

use rustix::mount::MountFlags;

use super::HostError;
use super::room::{Attributes, Plain, Room};
use super::root::{Directory, Root, file, split};
use crate::resource::FileSpec;

/// What is shown instead of what: two absolute paths.
pub type Bind = (String, String);

/// Stays as long as it lives.
pub struct View<'r> {
    pub binds: Vec<Bind>,
    _room: Room<'r>,
}

impl<'r> View<'r> {
    /// Errors: this kernel or this container mounts no overlays.
    pub fn open(root: &'r Root, candidates: &[&FileSpec], plain: Plain) -> Result<Self, HostError> {
        let room = Room::furnish(root, candidates, &Attributes::Declared { plain })?;
        // By where it really is: a mount cannot be shown at a link, and two names may lead to one directory.
        let mut directories: BTreeMap<String, (Directory, BTreeSet<String>)> = BTreeMap::new();
        for spec in candidates {
            let (name, below) = nearest(root, split(spec.path.as_str())?.0)?;
            let at = directories.entry(below.real.clone());
            at.or_insert_with(|| (below, BTreeSet::new())).1.insert(name);
        }
        let mut binds = Vec::new();
        for (number, (real, (below, names))) in directories.into_iter().enumerate() {
            let mut layers = names.iter().map(|name| room.layer(name)).collect::<Result<Vec<_>, _>>()?;
            layers.push(below);
            // By descriptor: no name has to be escaped, and no link can come between.
            let layers_at = layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.fd.as_raw_fd()));
            let option = format!("lowerdir={}", layers_at.collect::<Vec<_>>().join(":"));
            let option = CString::new(option).expect("digits and letters");
            let at = root.outside(&room.mount_point(number)?).to_string_lossy().into_owned();
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount("converger-validate", &at, "overlay", flags, option.as_c_str())
                .map_err(file("lay candidates over", &format!("/{real}")))?;
            binds.push((at, format!("/{real}")));
        }
        Ok(Self { binds, _room: room })
    }
}

/// `path`, or the nearest directory above it that is there.
fn nearest(root: &Root, path: &str) -> Result<(String, Directory), HostError> {
    let mut path = path;
    loop {
        if let Some(directory) = root.directory(path)? {
            return Ok((path.to_owned(), directory));
        }
        path = split(path)?.0;
    }
}

/// Whether a program of `user` comes as far as `spec` in a view, and may read it.
pub fn is_for(root: &Root, user: &nix::unistd::User, spec: &FileSpec) -> Result<bool, HostError> {
    if user.uid.is_root() {
        return Ok(true);
    }
    let name = CString::new(user.name.as_str()).expect("it was looked up by this name");
    let groups = nix::unistd::getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid]);
    let may = |stat: &rustix::fs::Stat, bit: u32| {
        let shift = match () {
            () if stat.st_uid == user.uid.as_raw() => 6,
            () if groups.iter().any(|group| group.as_raw() == stat.st_gid) => 3,
            () => 0,
        };
        stat.st_mode >> shift & bit != 0
    };
    let mut path = split(spec.path.as_str())?.0;
    loop {
        if let Some(directory) = root.directory(path)? {
            let stat = rustix::fs::fstat(&directory.fd).map_err(file("look at", path))?;
            if !may(&stat, 0o1) {
                return Ok(false);
            }
        }
        if path == "/" {
            break;
        }
        path = split(path)?.0;
    }
    let owned = spec.owner == user.name && spec.mode & 0o400 != 0;
    Ok(!spec.content.is_secret() || owned || spec.mode & 0o004 != 0)
}
