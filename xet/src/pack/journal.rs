//! The journal beside an unsealed pack: which records are durable, and what they are called.
//!
//! A batch is written after the pack was synced, so it never claims too much. It is itself synced
//! only now and then ([`SYNC_BYTES`]): a lost batch costs a scan of its records, which name
//! themselves, and no acknowledged byte. That keeps a commit at one `fdatasync`. (Only if power
//! fails *and* the drive damages one of these young records, those behind it are lost.)
//!
//! Batch: u32 number of entries, entries, u32 CRC-32 of both. Entry, 40 bytes: name 32, end of the
//! record in the pack u32, length of the content u24, first header byte u8. Little-endian.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::xorb::{HEADER_LEN, MAX_CHUNKS, MAX_PAYLOAD};

use super::Entry;

/// The journal is synced once the pack grew by this many bytes since it last was.
const SYNC_BYTES: u64 = 4 * 1024 * 1024;

const ENTRY_LEN: usize = 40;

/// Count and checksum.
const BATCH_FIXED_LEN: usize = 8;

/// Longest journal read: every record in a batch of its own.
const JOURNAL_BYTES_MAX: u64 = (MAX_CHUNKS * (ENTRY_LEN + BATCH_FIXED_LEN)) as u64;

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Box<dyn DiskFile>,
    /// Length of the whole batches.
    len: u64,
    /// Records it names.
    slots: usize,
    /// Bytes of the pack up to the last record it names, and up to the one it named when synced.
    covered: u64,
    covered_synced: u64,
}

impl Journal {
    /// Creates an empty journal. Its directory has to be synced before the pack is written.
    pub(crate) fn create(disk: &dyn Disk, pack: &Path) -> io::Result<Self> {
        let file = disk.open(&path(pack), OpenMode::Create)?;
        Ok(Self {
            file,
            len: 0,
            slots: 0,
            covered: 0,
            covered_synced: 0,
        })
    }

    /// Opens a pack's journal and reads the entries up to the first broken batch. `None` if there
    /// is no journal.
    pub(crate) fn open(disk: &dyn Disk, pack: &Path) -> io::Result<Option<(Self, Vec<Entry>)>> {
        let file = match disk.open(&path(pack), OpenMode::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = vec![0; file.len()?.min(JOURNAL_BYTES_MAX) as usize];
        file.read_at(0, &mut bytes)?;
        let (entries, len) = parse(&bytes);
        let covered = entries.last().map_or(0, |entry| u64::from(entry.end));
        let (slots, len) = (entries.len(), len as u64);
        if len < file.len()? {
            // Behind a lost batch a later one may stand whole. It must not come back to life when
            // the gap is filled again, with other records.
            file.set_len(len)?;
            file.sync()?;
        }
        Ok(Some((
            Self {
                file,
                len,
                slots,
                covered,
                covered_synced: 0,
            },
            entries,
        )))
    }

    pub(crate) const fn slots(&self) -> usize {
        self.slots
    }

    /// Notes records that were synced. After an error the journal is as it was before.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let Some(last) = entries.last() else {
            return Ok(());
        };
        let batch = encode(entries);
        self.file.write_at(self.len, &[&batch])?;
        self.len += batch.len() as u64;
        self.slots += entries.len();
        self.covered = u64::from(last.end);
        if self.covered >= self.covered_synced + SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes the entries durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.covered_synced = self.covered;
        Ok(())
    }
}

/// Removes a pack's journal if there is one.
pub(crate) fn remove(disk: &dyn Disk, pack: &Path) -> io::Result<()> {
    match disk.remove(&path(pack)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// File name extension of journals.
pub(crate) const EXTENSION: &str = "journal";

fn path(pack: &Path) -> PathBuf {
    pack.with_extension(EXTENSION)
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BATCH_FIXED_LEN + ENTRY_LEN * entries.len());
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.extend_from_slice(&entry.name);
        out.extend_from_slice(&entry.end.to_le_bytes());
        out.extend_from_slice(&entry.len.to_le_bytes()[..3]);
        out.push(entry.tag);
    }
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

/// The entries of all whole batches, and the bytes they take.
fn parse(bytes: &[u8]) -> (Vec<Entry>, usize) {
    let (mut entries, mut rest) = (Vec::new(), bytes);
    while let Some(after) = parse_batch(rest, &mut entries) {
        rest = after;
    }
    (entries, bytes.len() - rest.len())
}

/// Takes one batch; nothing is added unless all of it is good and continues the entries.
fn parse_batch<'a>(bytes: &'a [u8], entries: &mut Vec<Entry>) -> Option<&'a [u8]> {
    let count = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    if count == 0 || count + entries.len() > MAX_CHUNKS {
        return None;
    }
    let (body, rest) = bytes.split_at_checked(4 + ENTRY_LEN * count)?;
    let (crc, rest) = rest.split_first_chunk()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let before = entries.len();
    let mut start = entries.last().map_or(0, |entry| entry.end);
    for bytes in body.get(4..)?.as_chunks::<ENTRY_LEN>().0 {
        let entry = parse_entry(bytes);
        let len = entry.end.saturating_sub(start) as usize;
        if !(HEADER_LEN + 1..=HEADER_LEN + MAX_PAYLOAD).contains(&len) {
            entries.truncate(before);
            return None;
        }
        start = entry.end;
        entries.push(entry);
    }
    Some(rest)
}

fn parse_entry(bytes: &[u8; ENTRY_LEN]) -> Entry {
    let mut name = [0; 32];
    name.copy_from_slice(&bytes[..32]);
    let [e0, e1, e2, e3, l0, l1, l2, tag] = [32, 33, 34, 35, 36, 37, 38, 39].map(|i| bytes[i]);
    let end = u32::from_le_bytes([e0, e1, e2, e3]);
    Entry {
        name,
        end,
        len: u32::from_le_bytes([l0, l1, l2, 0]),
        tag,
    }
}

#[cfg(test)]
mod tests {
    use crate::disk::MemDisk;

    use super::*;

    fn entry(number: u32) -> Entry {
        let (end, len) = (number * 100 + 100, 92 + number);
        Entry {
            name: [number as u8; 32],
            end,
            len,
            tag: number as u8,
        }
    }

    #[test]
    fn broken_batches_end_the_journal() {
        let entries: Vec<Entry> = (0..7).map(entry).collect();
        let mut bytes = encode(&entries[..3]);
        let first = bytes.len();
        bytes.extend(encode(&entries[3..]));
        assert_eq!(parse(&bytes), (entries.clone(), bytes.len()));
        for damaged in 0..bytes.len() {
            let mut copy = bytes.clone();
            copy[damaged] ^= 0x41;
            let kept = if damaged < first { 0 } else { 3 };
            let (got, len) = parse(&copy);
            assert_eq!(got, entries[..kept], "damaged at {damaged}");
            assert_eq!(len, if kept == 0 { 0 } else { first });
        }
        for cut in 0..bytes.len() {
            assert_eq!(
                parse(&bytes[..cut]).0.len(),
                if cut < first { 0 } else { 3 }
            );
        }
    }

    #[test]
    fn a_batch_behind_a_broken_one_does_not_come_back() {
        let (disk, pack) = (MemDisk::new(), Path::new("/d/1.xorb"));
        disk.create_dir(Path::new("/d")).unwrap();
        let mut journal = Journal::create(&disk, pack).unwrap();
        journal.append(&[entry(0)]).unwrap();
        journal.append(&[entry(1)]).unwrap();
        disk.damage(&path(pack), 5, &[0xAB]);
        let (mut journal, entries) = Journal::open(&disk, pack).unwrap().unwrap();
        assert_eq!(entries, []);
        journal.append(&[entry(0)]).unwrap();
        let (_, entries) = Journal::open(&disk, pack).unwrap().unwrap();
        assert_eq!(entries, [entry(0)]);
    }

    #[test]
    fn a_batch_that_does_not_continue_the_pack_is_refused() {
        let mut bytes = encode(&[entry(4)]);
        bytes.extend(encode(&[entry(2)]));
        assert_eq!(parse(&bytes).0, [entry(4)]);
        let mut bytes = encode(&[entry(0), entry(1)]);
        bytes.extend(encode(&[entry(0)]));
        assert_eq!(parse(&bytes).0.len(), 2);
    }
}
