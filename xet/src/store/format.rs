//! What a store is: `STORE/format`, one line that says the version of its files and the suite that names its chunks.
//!
//! Written once, when the store is made. A store without it was made before there was one: what its records are named
//! by tells the suite, and it is written then. Nothing in a pack says so itself, so a store opened for the wrong suite
//! would count every record as damaged.
//!
//! What a crash may lose: the line, which the next start writes. `docs/formats/pack.md` has the bytes.

use std::io;
use std::path::Path;

use crate::disk::{Disk, OpenMode};
use crate::hash::Suite;
use crate::pack::PackKind;

use super::OpenStoreError;
use super::shelf::Shelf;

/// Version of everything in a store.
pub(crate) const FORMAT: u64 = 1;

const FILE_NAME: &str = "format";
const NEW_NAME: &str = "format.new";

/// More is no such line.
const LINE_LEN_MAX: usize = 128;

/// Records looked at, of so many packs, to learn which suite named them.
const RECORDS_TRIED: u16 = 4;
const PACKS_TRIED: usize = 4;

/// Whether the store says what it is. An error if it is not what it is opened as.
pub(crate) fn check(disk: &dyn Disk, dir: &Path, suite: Suite) -> Result<bool, OpenStoreError> {
    let path = dir.join(FILE_NAME);
    let line = match read(disk, &path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        read => read.map_err(|source| OpenStoreError::Io {
            path: path.clone(),
            source,
        })?,
    };
    let Some((format, found)) = parse(&line) else {
        return Err(OpenStoreError::Format { path });
    };
    if format != FORMAT {
        let path = dir.to_path_buf();
        return Err(OpenStoreError::Version {
            path,
            found: format,
        });
    }
    match Suite::from_name(found) {
        None => Err(OpenStoreError::Format { path }),
        Some(found) => same(dir, found, suite).map(|()| true),
    }
}

/// Learns the suite of a store that does not say it from its records, and writes it down.
pub(crate) fn settle(
    disk: &dyn Disk,
    dir: &Path,
    suite: Suite,
    chunks: &Shelf,
) -> Result<(), OpenStoreError> {
    let other = match suite {
        Suite::Blake3 => Suite::Sha256,
        Suite::Sha256 => Suite::Blake3,
    };
    if !has_named(chunks, suite) && has_named(chunks, other) {
        return same(dir, other, suite);
    }
    // A full disk is no reason not to start: the next time there may be room.
    if let Err(error) = write(disk, dir, suite) {
        tracing::warn!(?dir, %error, "the store's format is not written down");
    }
    Ok(())
}

fn same(dir: &Path, found: Suite, wanted: Suite) -> Result<(), OpenStoreError> {
    if found == wanted {
        return Ok(());
    }
    Err(OpenStoreError::Suite {
        path: dir.to_path_buf(),
        found: found.name(),
        wanted: wanted.name(),
    })
}

fn has_named(chunks: &Shelf, suite: Suite) -> bool {
    let packs: Vec<_> = chunks.packs.read().values().cloned().collect();
    packs.iter().take(PACKS_TRIED).any(|pack| {
        let Ok(names) = pack.names(&chunks.files) else {
            return false;
        };
        (0..RECORDS_TRIED).zip(&names).any(|(slot, name)| {
            let record = pack.read(&chunks.files, slot).ok().flatten();
            let named = record.and_then(|record| {
                let content = record.decode()?;
                PackKind::Chunks(suite).name_of(record.tag, &content)
            });
            named.as_ref() == Some(name)
        })
    })
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let len = file.len()?.min(LINE_LEN_MAX as u64 + 1);
    let mut line = vec![0; len as usize];
    file.read_at(0, &mut line)?;
    Ok(line)
}

/// Version and suite of exactly the line that [`line`] makes.
fn parse(bytes: &[u8]) -> Option<(u64, &str)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let rest = text.strip_prefix("{\"format\":")?;
    let (format, rest) = rest.split_once(',')?;
    let suite = rest.strip_prefix("\"suite\":\"")?.strip_suffix("\"}\n")?;
    let is_number = !format.is_empty() && format.bytes().all(|byte| byte.is_ascii_digit());
    Some((format.parse().ok().filter(|_| is_number)?, suite))
}

fn line(suite: Suite) -> String {
    format!("{{\"format\":{FORMAT},\"suite\":\"{}\"}}\n", suite.name())
}

fn write(disk: &dyn Disk, dir: &Path, suite: Suite) -> io::Result<()> {
    let new = dir.join(NEW_NAME);
    let file = disk.open(&new, OpenMode::Create)?;
    file.write_at(0, &[line(suite).as_bytes()])?;
    file.sync()?;
    disk.rename(&new, &dir.join(FILE_NAME))?;
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::MemDisk;
    use crate::store::{Store, StoreOptions};

    const DIR: &str = "/state/store";

    fn open(disk: &MemDisk, suite: Suite) -> Result<Store, OpenStoreError> {
        let options = StoreOptions {
            suite,
            ..StoreOptions::default()
        };
        Store::open(Path::new(DIR), Arc::new(disk.clone()), options)
    }

    fn format_of(disk: &MemDisk) -> Option<Vec<u8>> {
        disk.contents(&Path::new(DIR).join(FILE_NAME))
    }

    fn set_format(disk: &MemDisk, text: &[u8]) {
        let path = Path::new(DIR).join(FILE_NAME);
        let file = disk.open(&path, OpenMode::Create).unwrap();
        file.write_at(0, &[text]).unwrap();
    }

    #[test]
    fn a_store_is_opened_as_what_it_was_made() {
        for (made, other) in [
            (Suite::Blake3, Suite::Sha256),
            (Suite::Sha256, Suite::Blake3),
        ] {
            let disk = MemDisk::new();
            drop(open(&disk, made).unwrap());
            // Written and durable before anything is put.
            disk.crash(1);
            assert_eq!(format_of(&disk).unwrap(), line(made).as_bytes());
            let error = open(&disk, other).unwrap_err();
            let says = format!("names chunks by {}, not {}", made.name(), other.name());
            assert!(error.to_string().contains(&says), "{error}");
            open(&disk, made).unwrap();
        }
    }

    #[test]
    fn a_store_of_before_is_known_by_its_records_and_written_down() {
        let disk = MemDisk::new();
        let store = open(&disk, Suite::Sha256).unwrap();
        let bytes = b"some chunk";
        let hash = Suite::Sha256.chunk_hash(bytes);
        store.put_chunk(&hash, bytes).unwrap();
        store.sync().unwrap();
        drop(store);
        disk.remove(&Path::new(DIR).join(FILE_NAME)).unwrap();
        let error = open(&disk, Suite::Blake3).unwrap_err();
        assert!(matches!(error, OpenStoreError::Suite { .. }), "{error}");
        assert_eq!(format_of(&disk), None, "nothing is written about it");
        let store = open(&disk, Suite::Sha256).unwrap();
        assert_eq!(store.chunk(&hash).unwrap().unwrap(), &bytes[..]);
        assert_eq!(format_of(&disk).unwrap(), line(Suite::Sha256).as_bytes());
    }

    #[test]
    fn a_newer_or_damaged_format_is_refused_with_a_sentence() {
        let disk = MemDisk::new();
        drop(open(&disk, Suite::Blake3).unwrap());
        set_format(&disk, b"{\"format\":2,\"suite\":\"blake3\"}\n");
        let error = open(&disk, Suite::Blake3).unwrap_err().to_string();
        assert!(
            error.contains("has format 2") && error.contains("reads 1"),
            "{error}"
        );
        let damaged: [&[u8]; 6] = [
            b"",
            b"{\"format\":1,\"suite\":\"blake3\"}",
            b"{\"format\":-1,\"suite\":\"blake3\"}\n",
            b"{\"format\":1,\"suite\":\"md5\"}\n",
            &[0xff; 4096],
            b"{\"format\":,\"suite\":\"blake3\"}\n",
        ];
        for text in damaged {
            set_format(&disk, text);
            let error = open(&disk, Suite::Blake3).unwrap_err();
            assert!(matches!(error, OpenStoreError::Format { .. }), "{error}");
            assert_eq!(format_of(&disk).unwrap(), text, "it is left as it is");
        }
    }

    #[test]
    fn a_full_disk_does_not_keep_a_store_of_before_from_opening() {
        let disk = MemDisk::new();
        drop(open(&disk, Suite::Blake3).unwrap());
        disk.remove(&Path::new(DIR).join(FILE_NAME)).unwrap();
        disk.limit_space(Some(0));
        open(&disk, Suite::Blake3).unwrap();
        disk.limit_space(None);
        open(&disk, Suite::Blake3).unwrap();
        assert!(format_of(&disk).is_some());
    }
}
