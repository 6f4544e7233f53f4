//! Reads archives, entry by entry: tar (plain, gzip, xz, zstd) and zip.
//!
//! Of tar the headers are taken one by one, and those that only name the next one (GNU's long names, pax(5)) are read here,
//! within bounds; a size that two headers disagree about is refused, since every reader would go on elsewhere. Never:
//! writes, or believes a length before it is compared with a bound.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};

use lzma_rust2::XzReader;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use tar::{EntryType, PaxExtensions};

use super::tree::Refusal;
use crate::resource::artifact::Packing;

/// Of a long name, a link's target, or the pax records of one entry.
const HEADER_MAX: u64 = 64 << 10;
/// What a decompressor may keep in memory.
const WINDOW_MAX: u64 = 128 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the archive cannot be read")]
    Read(#[from] io::Error),
    #[error("the archive is no whole zip file")]
    Zip(#[from] zip::result::ZipError),
}

/// One entry as the archive has it.
pub struct Item<'a> {
    pub name: &'a [u8],
    pub kind: Kind<'a>,
    /// Seconds since 1970, where the archive tells it without a time zone.
    pub modified: Option<u64>,
    pub content: &'a mut dyn Read,
}

pub enum Kind<'a> {
    Directory,
    File { bytes: u64, executable: bool },
    Link(&'a [u8]),
    Hard(&'a [u8]),
}

fn refuse<T>(name: &[u8], why: impl Into<String>) -> Result<T, ArchiveError> {
    Err(Refusal { entry: String::from_utf8_lossy(name).chars().take(200).collect(), why: why.into() }.into())
}

/// Hands every entry of a tar file to `each`, which may leave the content unread.
pub fn tar(
    file: impl Read,
    packing: Packing,
    each: &mut dyn FnMut(Item<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let packed = BufReader::with_capacity(1 << 16, file);
    let memory = (WINDOW_MAX >> 10) as u32;
    let unpacked: Box<dyn Read + '_> = match packing {
        Packing::Plain => Box::new(packed),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Packing::Xz => Box::new(XzReader::new_mem_limit(packed, true, memory)),
        Packing::Zstd => Box::new(Zstd::new(packed)),
    };
    entries(unpacked, each)
}

fn entries(
    unpacked: impl Read,
    each: &mut dyn FnMut(Item<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut archive = tar::Archive::new(unpacked);
    let mut next = Ahead::default();
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let header = entry.header().clone();
        let (size, own) = (header.entry_size()?, header.path_bytes().into_owned());
        match header.entry_type() {
            EntryType::GNULongName => {
                once(&mut next.name, terminated(bounded(&mut entry, size, &own)?), &own)?;
                continue;
            }
            EntryType::GNULongLink => {
                once(&mut next.target, terminated(bounded(&mut entry, size, &own)?), &own)?;
                continue;
            }
            EntryType::XHeader => {
                next.pax(&bounded(&mut entry, size, &own)?, &own)?;
                continue;
            }
            EntryType::XGlobalHeader => {
                // git archive tells its commit this way. What would change entries has no place in it.
                let mut global = Ahead::default();
                global.pax(&bounded(&mut entry, size, &own)?, &own)?;
                match global.is_empty() {
                    true => continue,
                    false => return refuse(&own, "a global header that names or sizes entries"),
                }
            }
            _ => {}
        }
        let Ahead { name, target, size: told } = std::mem::take(&mut next);
        let name = name.unwrap_or(own);
        if told.is_some_and(|told| told != size) {
            return refuse(&name, "two headers tell two sizes of it");
        }
        let target = target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
        let kind = match header.entry_type() {
            // Before there were types, a directory was told by its name.
            EntryType::Regular if name.ends_with(b"/") && size == 0 => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                Kind::File { bytes: size, executable: header.mode()? & 0o100 != 0 }
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Link(&target),
            EntryType::Link => Kind::Hard(&target),
            EntryType::Char | EntryType::Block => return refuse(&name, "a device"),
            EntryType::Fifo => return refuse(&name, "a pipe"),
            EntryType::GNUSparse => return refuse(&name, "a sparse file; pack it without holes"),
            other => return refuse(&name, format!("an entry of type {:?}", char::from(other.as_byte()))),
        };
        if !matches!(kind, Kind::File { .. }) && size != 0 {
            return refuse(&name, "it has content and is no file");
        }
        let modified = header.mtime().ok();
        each(Item { name: &name, kind, modified, content: &mut entry })?;
    }
    match next.is_empty() {
        true => Ok(()),
        false => refuse(b"", "the last header names an entry that does not come"),
    }
}

/// What headers tell of the entry that comes after them.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Ahead {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.target.is_none() && self.size.is_none()
    }

    fn pax(&mut self, records: &[u8], entry: &[u8]) -> Result<(), ArchiveError> {
        for record in PaxExtensions::new(records) {
            let record = record?;
            match record.key_bytes() {
                b"path" => once(&mut self.name, record.value_bytes().to_vec(), entry)?,
                b"linkpath" => once(&mut self.target, record.value_bytes().to_vec(), entry)?,
                b"size" => {
                    let size = record.value().ok().and_then(|size| size.parse().ok());
                    let Some(size) = size else { return refuse(entry, "a size that is no number") };
                    once(&mut self.size, size, entry)?;
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return refuse(entry, "a sparse file; pack it without holes");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn once<T>(place: &mut Option<T>, value: T, entry: &[u8]) -> Result<(), ArchiveError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => refuse(entry, "two headers tell of the same thing"),
    }
}

fn bounded(entry: &mut impl Read, size: u64, name: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    if size > HEADER_MAX {
        return refuse(name, "a header that is too long");
    }
    let mut bytes = Vec::new();
    entry.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn terminated(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// Hands every entry of a zip file to `each`.
pub fn zip(mut file: File, each: &mut dyn FnMut(Item<'_>) -> Result<(), ArchiveError>) -> Result<(), ArchiveError> {
    const TYPE: u32 = 0o170_000;
    file.rewind()?;
    let mut archive = zip::ZipArchive::new(BufReader::with_capacity(1 << 16, file))?;
    if archive.has_duplicate_names() {
        return refuse(b"", "an entry is there twice");
    }
    // What the directory at the end says and what stands before each entry must be one and the same.
    archive.validate_header_consistency()?;
    if archive.has_overlapping_files()? {
        return refuse(b"", "entries lie on top of each other");
    }
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let name = entry.name_raw().to_vec();
        let (bytes, mode) = (entry.size(), entry.unix_mode().unwrap_or_default());
        let target;
        let kind = match mode & TYPE {
            _ if entry.encrypted() => return refuse(&name, "it is encrypted"),
            0o040_000 | 0 | 0o100_000 if name.ends_with(b"/") => Kind::Directory,
            0 | 0o100_000 => Kind::File { bytes, executable: mode & 0o100 != 0 },
            0o120_000 => {
                target = bounded(&mut entry, bytes, &name)?;
                Kind::Link(&target)
            }
            0o040_000 => Kind::Directory,
            _ => return refuse(&name, "neither a file, nor a directory, nor a link"),
        };
        if matches!(kind, Kind::Directory) && bytes != 0 {
            return refuse(&name, "it has content and is no file");
        }
        each(Item { name: &name, kind, modified: None, content: &mut entry })?;
    }
    Ok(())
}

/// All frames of a zstd stream (RFC 8878), one after the other, skippable ones skipped.
struct Zstd<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    open: bool,
}

impl<R: Read> Zstd<BufReader<R>> {
    fn new(source: BufReader<R>) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_MAX);
        Self { source: BufReader::new(source), decoder, open: false }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use io::BufRead as _;
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
        loop {
            if !self.open {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                match self.decoder.reset(&mut self.source) {
                    Ok(()) => self.open = true,
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length, ..
                    })) => {
                        let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                        if skipped != u64::from(length) {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        continue;
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            if self.decoder.is_finished() {
                self.open = false;
                continue;
            }
            let step = BlockDecodingStrategy::UptoBlocks(1);
            self.decoder.decode_blocks(&mut self.source, step).map_err(io::Error::other)?;
        }
    }
}
