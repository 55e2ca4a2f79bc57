//! Opening a pack file at start: believing its footer, or recovering it after a crash or damage.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{DiskFile, OpenMode, is_unreadable};
use crate::index::PackId;
use crate::xorb::{HEADER_LEN, MAX_CHUNKS};

use super::files::OpenFiles;
use super::journal::{self, Journal};
use super::{Entry, Layout, Name, Pack, PackKind, RawRecord, State, footer, parse_header};

/// A pack after opening.
pub(crate) struct OpenedPack {
    pub(crate) pack: Pack,
    /// Names in slot order. Those of bad records are here too.
    pub(crate) names: Vec<Name>,
    /// Present if the pack is unsealed and can be appended to.
    pub(crate) unsealed: Option<(Arc<dyn DiskFile>, Journal)>,
    /// The drive could not read all of it: there may be more than is known.
    pub(crate) unreadable: bool,
}

/// Opens a pack. `None` if nothing was ever written to it; its files are gone then.
pub(crate) fn open_pack(
    files: &OpenFiles,
    kind: PackKind,
    id: PackId,
    path: PathBuf,
) -> io::Result<Option<OpenedPack>> {
    match Journal::open(&*files.disk, &path)? {
        Some((journal, entries)) => recover(files, kind, id, path, journal, entries),
        None => {
            let file = files.disk.open(&path, OpenMode::Read)?;
            // What cannot be read is handled like what cannot be parsed: by saving the rest.
            if let Ok(Some(footer)) = footer::read(kind, &*file) {
                let layout = Layout::Sealed {
                    ends: footer.ends.into_boxed_slice(),
                };
                let pack = Pack::new(id, kind, path, layout, false);
                return Ok(Some(OpenedPack {
                    pack,
                    names: footer.names,
                    unsealed: None,
                    unreadable: false,
                }));
            }
            salvage(files, kind, id, path, &*file)
        }
    }
}

/// An unsealed pack: what the journal names is durable, the tail beyond is scanned and cut.
fn recover(
    files: &OpenFiles,
    kind: PackKind,
    id: PackId,
    path: PathBuf,
    mut journal: Journal,
    mut entries: Vec<Entry>,
) -> io::Result<Option<OpenedPack>> {
    let file: Arc<dyn DiskFile> = Arc::from(files.disk.open(&path, OpenMode::Write)?);
    let file_len = file.len()?;
    let durable = entries.last().map_or(0, |entry| u64::from(entry.end));
    if file_len < durable {
        tracing::warn!(
            ?path,
            file_len,
            durable,
            "pack is shorter than it was synced"
        );
        return Ok(Some(cut_off(kind, id, path, entries, file_len)));
    }
    let slots = entries.len();
    let scan = scan(&*file, kind, &mut entries, file_len, OnDamage::Stop);
    if let Err(error) = scan {
        tracing::warn!(?path, %error, "pack cannot be read to its end");
        let retired = retire(kind, id, path, entries, &[]);
        return Ok(Some(OpenedPack {
            unreadable: true,
            ..retired
        }));
    }
    let end = entries.last().map_or(0, |entry| u64::from(entry.end));
    if end < file_len {
        tracing::info!(
            ?path,
            from = end,
            to = file_len,
            "cutting the torn end of a pack"
        );
        file.set_len(end)?;
    }
    if entries.is_empty() {
        files.disk.remove(&path)?;
        journal::remove(&*files.disk, &path)?;
        return Ok(None);
    }
    if entries.len() > slots || end < file_len {
        file.sync()?;
    }
    if let Err(error) = journal
        .append(&entries[slots..])
        .and_then(|()| journal.sync())
    {
        tracing::warn!(?path, %error, "cannot write a pack's journal");
    }
    let names = entries.iter().map(|entry| entry.name).collect();
    let pack = Pack::new(id, kind, path, Layout::Listed(entries), false);
    Ok(Some(OpenedPack {
        pack,
        names,
        unsealed: Some((file, journal)),
        unreadable: false,
    }))
}

/// A pack that lost bytes below its durable length: the records that lost some are bad.
fn cut_off(
    kind: PackKind,
    id: PackId,
    path: PathBuf,
    entries: Vec<Entry>,
    file_len: u64,
) -> OpenedPack {
    let mut bad = Vec::new();
    for (slot, entry) in entries.iter().enumerate() {
        if u64::from(entry.end) > file_len {
            bad.push(slot);
        }
    }
    retire(kind, id, path, entries, &bad)
}

/// A sealed pack whose footer is damaged: whatever still names itself is kept.
fn salvage(
    files: &OpenFiles,
    kind: PackKind,
    id: PackId,
    path: PathBuf,
    file: &dyn DiskFile,
) -> io::Result<Option<OpenedPack>> {
    let file_len = file.len()?;
    if file_len == 0 {
        files.disk.remove(&path)?;
        return Ok(None);
    }
    let mut entries = Vec::new();
    let scan = scan(file, kind, &mut entries, file_len, OnDamage::SkipRecord);
    let (slots, skipped, error) = (entries.len(), scan.as_ref().ok().copied(), scan.err());
    tracing::warn!(
        ?path,
        slots,
        ?error,
        "pack without a footer, saving its records"
    );
    let mut bad = Vec::new();
    for (slot, entry) in entries.iter().enumerate() {
        if entry.name == NAMELESS {
            bad.push(slot);
        }
    }
    let retired = retire(kind, id, path, entries, &bad);
    Ok(Some(OpenedPack {
        unreadable: skipped != Some(0),
        ..retired
    }))
}

/// A pack that is only read from now on, until gc has emptied it.
fn retire(
    kind: PackKind,
    id: PackId,
    path: PathBuf,
    entries: Vec<Entry>,
    bad: &[usize],
) -> OpenedPack {
    let names = entries.iter().map(|entry| entry.name).collect();
    let pack = Pack::new(id, kind, path, Layout::Listed(entries), true);
    for &slot in bad {
        pack.set_state(slot as u16, State::Bad);
    }
    OpenedPack {
        pack,
        names,
        unsealed: None,
        unreadable: false,
    }
}

/// Stands for the name of a record whose content is damaged. No content hashes to it.
pub(crate) const NAMELESS: Name = [0; 32];

/// What a scan does at a record whose header is good and whose content is not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnDamage {
    Stop,
    SkipRecord,
}

/// Adds the records that follow `entries` in the file, up to the first broken header. Returns how many of them the
/// drive could not read.
fn scan(
    file: &dyn DiskFile,
    kind: PackKind,
    entries: &mut Vec<Entry>,
    file_len: u64,
    on_damage: OnDamage,
) -> io::Result<usize> {
    let mut unreadable = 0;
    let mut start = entries.last().map_or(0, |entry| u64::from(entry.end));
    while entries.len() < MAX_CHUNKS && start + (HEADER_LEN as u64) < file_len {
        let mut header = [0; HEADER_LEN];
        file.read_at(start, &mut header)?;
        let Some((tag, header)) = parse_header(header) else {
            break;
        };
        let end = start + header.record_len() as u64;
        let (Ok(end32), true) = (u32::try_from(end), end <= file_len) else {
            break;
        };
        let mut bytes = vec![0; header.record_len()];
        let record = match file.read_at(start, &mut bytes) {
            Err(error) if on_damage == OnDamage::SkipRecord && is_unreadable(&error) => {
                unreadable += 1;
                None
            }
            read => {
                read?;
                RawRecord::parse(Bytes::from(bytes))
            }
        };
        let content = record.and_then(|record| record.decode());
        let name = content.and_then(|content| kind.name_of(tag, &content));
        let name = match (name, on_damage) {
            (Some(name), _) => name,
            (None, OnDamage::SkipRecord) => NAMELESS,
            (None, OnDamage::Stop) => break,
        };
        entries.push(Entry {
            name,
            end: end32,
            len: header.chunk_len,
            tag,
        });
        start = end;
    }
    Ok(unreadable)
}
