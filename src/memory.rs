//! Before a long sleep the agent gives back what it does not need meanwhile: the pages of its own program code.
//!
//! They are clean copies of the file on disk; what is needed again comes back from the page cache with a fault. Never: a
//! page that was written to.

use std::os::unix::fs::MetadataExt as _;

/// Lets go of the program's code pages. Whatever cannot be looked up stays.
pub fn let_go_of_code() {
    let Ok(exe) = std::fs::metadata("/proc/self/exe") else { return };
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for line in maps.lines() {
        if let Some((from, to)) = code_of(line, exe.ino()) {
            forget(from, to);
        }
    }
}

/// The range of a line of `/proc/self/maps` if it is private code, executable and not writable, of this file.
fn code_of(line: &str, inode: u64) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    let file = words.nth(2)?;
    if permissions != "r-xp" || file.parse() != Ok(inode) {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

#[allow(unsafe_code)] // no safe wrapper exists: what makes it sound is that the range is code, which nobody writes
fn forget(from: usize, to: usize) {
    // SAFETY: a private, read-only, executable mapping of our own program file. madvise(2): after MADV_DONTNEED the next
    // access brings the page again from the file; since nothing was ever written there, that is the same page.
    let _ = unsafe { nix::libc::madvise(from as *mut _, to - from, nix::libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_this_file_is_taken() {
        let line = |permissions: &str, inode: u64| {
            format!("55d0c000-55d0d000 {permissions} 00001000 fe:00 {inode}  /usr/bin/converger")
        };
        assert_eq!(code_of(&line("r-xp", 7), 7), Some((0x55d0_c000, 0x55d0_d000)));
        for other in [line("rw-p", 7), line("r--p", 7), line("r-xp", 8), line("r-xs", 7), "garbage".to_owned()] {
            assert_eq!(code_of(&other, 7), None, "{other}");
        }
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let_go_of_code();
        assert_eq!((1..=10).sum::<u32>(), 55);
    }
}
