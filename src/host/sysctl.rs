//! Whether the kernel's settings are what a sysctl.d file says.
//!
//! systemd-sysctl passes over what is unknown or read-only, and the kernel takes some values for others; so it is read
//! back. Never: writes a setting.

use std::collections::BTreeMap;
use std::path::Path;

use super::Words;

const SETTINGS: &str = "/proc/sys";

/// In words, each setting that is not as the file says, actual and wanted; without the values where secrets are near.
pub fn unlike(text: &str, words: Words) -> Vec<String> {
    unlike_in(Path::new(SETTINGS), text, words)
}

fn unlike_in(settings: &Path, text: &str, words: Words) -> Vec<String> {
    let told = |name: &str, wanted: &str| match std::fs::read_to_string(settings.join(name)) {
        Ok(actual) if is_same(&actual, wanted) => None,
        Ok(_) if words == Words::Kept => Some(format!("{name} is not what it says")),
        Ok(actual) => Some(format!("{name} is {}, wanted is {wanted}", plain(&actual))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(format!("{name} is not there")),
        // What cannot be read back (vm.drop_caches, …) is left to the tool's word.
        Err(_) => None,
    };
    wanted(text).iter().filter_map(|(name, wanted)| told(name, wanted)).collect()
}

/// Settings by their path below /proc/sys (sysctl.d(5)). A pattern stands for whatever is there, and a leading `-` says
/// that a failure is of no concern: neither is looked for.
fn wanted(text: &str) -> BTreeMap<String, &str> {
    let setting = |line| {
        let line = str::trim(line);
        let (name, value) = line.split_once('=')?;
        let name = name.trim();
        let counts = !line.starts_with(['#', ';', '-']) && !name.contains(['*', '?', '[']);
        let path = path_of(name);
        let plain = path.split('/').all(|part| part != ".." && !part.is_empty());
        (counts && plain).then(|| (path, value.trim()))
    };
    text.lines().filter_map(setting).collect()
}

/// `net.ipv4.conf.eth0/1.forwarding` as `net/ipv4/conf/eth0.1/forwarding`; a name that begins with a slash is a path already.
fn path_of(name: &str) -> String {
    match name.find(['.', '/']).map(|at| &name[at..=at]) {
        Some(".") => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            name.chars().map(swap).collect()
        }
        _ => name.trim_start_matches('/').to_owned(),
    }
}

fn plain(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Several numbers are parted by tabs when they are read, whatever they were written with.
fn is_same(actual: &str, wanted: &str) -> bool {
    let (actual, wanted) = (plain(actual), plain(wanted));
    let number = |text: &str| text.parse::<i128>().ok();
    actual == wanted || number(&actual).is_some_and(|actual| number(&wanted) == Some(actual))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E14
    #[test]
    #[allow(clippy::disallowed_methods)] // it plays the kernel
    fn what_the_kernel_made_of_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [
            ("net/core/somaxconn", "4096\n"),
            ("net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
            ("vm/swappiness", "100\n"),
            ("net/ipv4/conf/eth0.1/forwarding", "0\n"),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        }
        let text = "# vm.no = 1\n; vm.no = 2\n-vm.no = 3\nnet.ipv4.conf.*.rp_filter = 1\n-net.ipv4.conf.eth0.rp_filter\n\
            net.core.somaxconn = 04096\nnet/ipv4/tcp_rmem = 4096 131072  6291456\nvm.swappiness=1\nvm.swappiness = 300\n\
            net.ipv4.conf.eth0/1.forwarding = 1; 2\nkernel.gone = 1\n";
        let unlike = |words| unlike_in(dir.path(), text, words).join("\n");
        assert_eq!(
            unlike(Words::Told),
            "kernel/gone is not there\nnet/ipv4/conf/eth0.1/forwarding is 0, wanted is 1; 2\n\
             vm/swappiness is 100, wanted is 300"
        );
        assert!(!unlike(Words::Kept).contains("300"), "{}", unlike(Words::Kept));
    }
}
