//! The journal: what happened since the last checkpoint, appended before it is acknowledged.
//!
//! A generation is one file: a header, then records `len u32 | crc u32 | body`. Records queue in the order their
//! operations were applied and are written by whoever comes first, so a killed process loses nothing it acknowledged; a
//! power failure loses nothing that [`Journal::sync`] returned for. After a failed write the queue is kept and written
//! before anything else: an operation that is in memory gets into the log or nothing after it does.
//!
//! On a full disk a ballast file is given back, so that the operation that met the end of the space still gets its record
//! down; later ones are refused before they change anything ([`Journal::ready`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ccbt_xet::disk::{Disk, DiskFile, OpenMode};
use parking_lot::Mutex;

/// Header: magic, generation, length of the generation before, crc.
const HEADER_LEN: u64 = 8 + 8 + 8 + 4;
const MAGIC: &[u8; 8] = b"ccbtjrn1";

/// `len u32 | crc u32` before each body.
const FRAME_LEN: u64 = 8;

/// Longest record. A reader allocates no more than the file has left.
pub(super) const RECORD_LEN_MAX: usize = 1 << 30;

/// Enough for the records of every operation that can be under way when the disk is found full.
const BALLAST_LEN: usize = 256 << 10;
const BALLAST_NAME: &str = "ballast";

/// A queued record: [`Journal::write_out`] with it makes the record safe from a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub(super) struct Ticket(u64);

/// A place in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    generation: u64,
    tail: u64,
}

#[derive(Debug)]
pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    queue: Mutex<Queue>,
    writer: Mutex<Writer>,
    synced: Mutex<Synced>,
}

/// What is durable.
#[derive(Debug)]
struct Synced {
    until: Position,
    /// A sync failed. The kernel may have dropped what it could not write, and says so once: another sync that
    /// succeeds proves nothing.
    failed: Option<io::ErrorKind>,
}

#[derive(Debug, Default)]
struct Queue {
    bodies: Vec<Vec<u8>>,
    /// Records queued since the start.
    count: u64,
}

#[derive(Debug)]
struct Writer {
    file: Arc<dyn DiskFile>,
    generation: u64,
    tail: u64,
    /// Taken from the queue, not written yet.
    bodies: Vec<Vec<u8>>,
    /// Records written since the start.
    written: u64,
    /// Earlier generations that may have bytes that are not durable.
    unsynced: Vec<Arc<dyn DiskFile>>,
    ballast: bool,
}

/// One generation as it was found.
pub(super) struct Scan {
    /// The records up to the first that is torn, each with the position of its body in the file.
    pub(super) records: Vec<(u64, Vec<u8>)>,
    /// Where the valid records end.
    pub(super) end: u64,
    /// The length the generation before had when this one was begun.
    pub(super) before: u64,
}

/// Whether an error says that there is no room, for this user or at all.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

pub(super) fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("journal-{generation:016x}"))
}

/// The generations that have a file, ascending.
pub(super) fn generations(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = disk
        .list(dir)?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.strip_prefix("journal-"))
        .filter_map(|digits| u64::from_str_radix(digits, 16).ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Reads a generation. None: not even its header is there.
pub(super) fn scan(disk: &dyn Disk, dir: &Path, generation: u64) -> io::Result<Option<Scan>> {
    let file = disk.open(&path(dir, generation), OpenMode::Read)?;
    let len = file.len()?;
    let mut header = [0; HEADER_LEN as usize];
    if len < HEADER_LEN {
        return Ok(None);
    }
    file.read_at(0, &mut header)?;
    let Some(before) = parse_header(&header, generation) else {
        return Ok(None);
    };
    let mut scan = Scan {
        records: Vec::new(),
        end: HEADER_LEN,
        before,
    };
    while let Some(body) = read_record(file.as_ref(), generation, scan.end, len)? {
        let at = scan.end + FRAME_LEN;
        scan.end = at + body.len() as u64;
        scan.records.push((at, body));
    }
    Ok(Some(scan))
}

fn read_record(
    file: &dyn DiskFile,
    generation: u64,
    at: u64,
    len: u64,
) -> io::Result<Option<Vec<u8>>> {
    if len.saturating_sub(at) < FRAME_LEN {
        return Ok(None);
    }
    let mut frame = [0; FRAME_LEN as usize];
    file.read_at(at, &mut frame)?;
    let [a, b, c, d, crc @ ..] = frame;
    let body_len = u32::from_le_bytes([a, b, c, d]);
    let left = len - at - FRAME_LEN;
    if body_len == 0 || body_len as usize > RECORD_LEN_MAX || u64::from(body_len) > left {
        return Ok(None);
    }
    let mut body = vec![0; body_len as usize];
    file.read_at(at + FRAME_LEN, &mut body)?;
    let expected = checksum(generation, at, &[&body]);
    Ok((u32::from_le_bytes(crc) == expected).then_some(body))
}

/// Covers where the record stands, so that no stale bytes can pass for one.
fn checksum(generation: u64, at: u64, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(&at.to_le_bytes());
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

fn header(generation: u64, before: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&generation.to_le_bytes());
    out.extend_from_slice(&before.to_le_bytes());
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The length of the generation before.
fn parse_header(bytes: &[u8; HEADER_LEN as usize], generation: u64) -> Option<u64> {
    let before = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    (header(generation, before) == bytes).then_some(before)
}

fn frame(generation: u64, at: u64, parts: &[&[u8]]) -> io::Result<[u8; FRAME_LEN as usize]> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    if len > RECORD_LEN_MAX {
        return Err(io::Error::other("journal record too long"));
    }
    let mut out = [0; FRAME_LEN as usize];
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    out[4..].copy_from_slice(&checksum(generation, at, parts).to_le_bytes());
    Ok(out)
}

fn create(
    disk: &dyn Disk,
    dir: &Path,
    generation: u64,
    before: u64,
) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.open(&path(dir, generation), OpenMode::Create)?;
    file.write_at(0, &[&header(generation, before)])?;
    disk.sync_dir(dir)?;
    Ok(Arc::from(file))
}

impl Journal {
    /// Begins `generation`; the one before it ends after `before` bytes and is durable.
    pub(super) fn begin(
        disk: Arc<dyn Disk>,
        dir: &Path,
        generation: u64,
        before: u64,
    ) -> io::Result<Self> {
        let file = create(disk.as_ref(), dir, generation, before)?;
        let journal = Self {
            queue: Mutex::default(),
            writer: Mutex::new(Writer {
                file,
                generation,
                tail: HEADER_LEN,
                bodies: Vec::new(),
                written: 0,
                unsynced: Vec::new(),
                ballast: false,
            }),
            synced: Mutex::new(Synced {
                until: Position {
                    generation,
                    tail: 0,
                },
                failed: None,
            }),
            dir: dir.to_path_buf(),
            disk,
        };
        let made = journal.make_ballast(&mut journal.writer.lock());
        made.map(|()| journal)
    }

    /// Puts a record in the queue. No I/O: to be called where the operation is applied, under the same lock.
    pub(super) fn queue(&self, body: Vec<u8>) -> Ticket {
        let mut queue = self.queue.lock();
        queue.bodies.push(body);
        queue.count += 1;
        Ticket(queue.count)
    }

    /// Writes the queue up to `ticket`, if nobody else did. An error leaves it queued.
    pub(super) fn write_out(&self, ticket: Ticket) -> io::Result<()> {
        let mut writer = self.writer.lock();
        if writer.written >= ticket.0 {
            return Ok(());
        }
        self.drain(&mut writer)
    }

    /// Writes everything queued.
    pub(super) fn write_queue(&self) -> io::Result<()> {
        self.drain(&mut self.writer.lock())
    }

    /// Appends a record and the bytes that belong to it. Returns the file's generation and where in it `data` lies. Not
    /// queued: after an error there is no such record.
    pub(super) fn append(&self, head: &[u8], data: &[u8]) -> io::Result<(u64, u64)> {
        let mut writer = self.writer.lock();
        self.drain(&mut writer)?;
        let frame = frame(writer.generation, writer.tail, &[head, data])?;
        writer.file.write_at(writer.tail, &[&frame, head, data])?;
        let at = writer.tail + FRAME_LEN + head.len() as u64;
        writer.tail = at + data.len() as u64;
        Ok((writer.generation, at))
    }

    /// Whether there is room for another operation. On a full disk only what frees space may go on.
    pub(super) fn ready(&self) -> io::Result<()> {
        let mut writer = self.writer.lock();
        self.drain(&mut writer)?;
        self.make_ballast(&mut writer)
    }

    /// Makes every record that was written before the call durable. Concurrent callers share one sync. Once one has
    /// failed, all later ones do.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.write_queue()?;
        let target = self.position();
        let mut synced = self.synced.lock();
        if let Some(kind) = synced.failed {
            return Err(io::Error::new(
                kind,
                "an earlier sync of the journal failed",
            ));
        }
        if synced.until >= target {
            return Ok(());
        }
        let (file, earlier, reached) = {
            let writer = self.writer.lock();
            (
                writer.file.clone(),
                writer.unsynced.clone(),
                writer.position(),
            )
        };
        let mut files = earlier.iter().chain([&file]);
        if let Err(error) = files.try_for_each(|file| file.sync()) {
            synced.failed = Some(error.kind());
            return Err(error);
        }
        synced.until = reached;
        let mut writer = self.writer.lock();
        writer
            .unsynced
            .retain(|file| !earlier.iter().any(|done| Arc::ptr_eq(done, file)));
        Ok(())
    }

    /// Ends this generation and begins the next. The caller sees to it that no record is on its way.
    pub(super) fn roll(&self) -> io::Result<u64> {
        let mut writer = self.writer.lock();
        self.drain(&mut writer)?;
        let generation = writer.generation + 1;
        let file = create(self.disk.as_ref(), &self.dir, generation, writer.tail)?;
        let old = std::mem::replace(&mut writer.file, file);
        writer.unsynced.push(old);
        writer.generation = generation;
        writer.tail = HEADER_LEN;
        Ok(generation)
    }

    /// Bytes in the current generation.
    pub(super) fn len(&self) -> u64 {
        self.position().tail
    }

    /// The file being written and its generation.
    pub(super) fn current(&self) -> (u64, Arc<dyn DiskFile>) {
        let writer = self.writer.lock();
        (writer.generation, writer.file.clone())
    }

    fn position(&self) -> Position {
        self.writer.lock().position()
    }

    fn drain(&self, writer: &mut Writer) -> io::Result<()> {
        {
            let mut queue = self.queue.lock();
            writer.bodies.append(&mut queue.bodies);
        }
        if writer.bodies.is_empty() {
            return Ok(());
        }
        let written = match writer.write_bodies() {
            Err(error) if is_full(&error) && writer.ballast => {
                writer.ballast = false;
                self.disk.remove(&self.dir.join(BALLAST_NAME))?;
                writer.write_bodies()
            }
            written => written,
        };
        written?;
        writer.written += writer.bodies.len() as u64;
        writer.bodies.clear();
        Ok(())
    }

    fn make_ballast(&self, writer: &mut Writer) -> io::Result<()> {
        if writer.ballast {
            return Ok(());
        }
        let path = self.dir.join(BALLAST_NAME);
        let file = self.disk.open(&path, OpenMode::Create)?;
        if let Err(error) = file.write_at(0, &[&[0x55; BALLAST_LEN]]) {
            self.disk.remove(&path)?;
            return Err(error);
        }
        writer.ballast = true;
        Ok(())
    }
}

impl Writer {
    fn position(&self) -> Position {
        Position {
            generation: self.generation,
            tail: self.tail,
        }
    }

    fn write_bodies(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        for body in &self.bodies {
            let at = self.tail + out.len() as u64;
            out.extend_from_slice(&frame(self.generation, at, &[body])?);
            out.extend_from_slice(body);
        }
        self.file.write_at(self.tail, &[&out])?;
        self.tail += out.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ccbt_xet::disk::MemDisk;

    use super::*;

    fn dir() -> &'static Path {
        Path::new("/f")
    }

    fn journal(disk: &MemDisk) -> Journal {
        disk.create_dir(dir()).unwrap();
        Journal::begin(Arc::new(disk.clone()), dir(), 1, 0).unwrap()
    }

    fn bodies(disk: &MemDisk, generation: u64) -> Vec<Vec<u8>> {
        let scan = scan(disk, dir(), generation).unwrap().unwrap();
        scan.records.into_iter().map(|(_, body)| body).collect()
    }

    #[test]
    fn queued_and_direct_records_keep_their_order() {
        let disk = MemDisk::new();
        let journal = journal(&disk);
        let first = journal.queue(b"one".to_vec());
        let second = journal.queue(b"two".to_vec());
        let (generation, at) = journal.append(b"three", b"data").unwrap();
        journal.write_out(second).unwrap();
        journal.write_out(first).unwrap();
        assert_eq!(bodies(&disk, 1), [&b"one"[..], b"two", b"threedata"]);
        let mut data = [0; 4];
        let file = disk.open(&path(dir(), generation), OpenMode::Read).unwrap();
        file.read_at(at, &mut data).unwrap();
        assert_eq!(&data, b"data");
    }

    #[test]
    fn a_power_failure_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        for seed in 0..200 {
            let disk = MemDisk::new();
            let journal = journal(&disk);
            let written: Vec<Vec<u8>> = (0..12_u8).map(|i| vec![i + 1; 400]).collect();
            for (i, body) in written.iter().enumerate() {
                let ticket = journal.queue(body.clone());
                journal.write_out(ticket).unwrap();
                if i == 4 {
                    journal.sync().unwrap();
                }
            }
            disk.crash(seed);
            let found = bodies(&disk, 1);
            assert!(found.len() >= 5, "seed {seed}: {} records", found.len());
            assert_eq!(found, written[..found.len()], "seed {seed}");
        }
    }

    #[test]
    fn a_new_generation_says_where_the_old_one_ended() {
        let disk = MemDisk::new();
        let journal = journal(&disk);
        let ticket = journal.queue(b"old".to_vec());
        journal.write_out(ticket).unwrap();
        assert_eq!(journal.roll().unwrap(), 2);
        journal.append(b"new", b"").unwrap();
        journal.sync().unwrap();
        disk.crash(1);
        assert_eq!(generations(&disk, dir()).unwrap(), [1, 2]);
        let old = scan(&disk, dir(), 1).unwrap().unwrap();
        let new = scan(&disk, dir(), 2).unwrap().unwrap();
        assert_eq!(new.before, old.end);
        assert_eq!(bodies(&disk, 1), [b"old"]);
        assert_eq!(bodies(&disk, 2), [b"new"]);
    }

    #[test]
    fn the_operation_that_meets_a_full_disk_is_still_recorded() {
        let disk = MemDisk::new();
        let journal = journal(&disk);
        disk.limit_space(Some(100));
        let ticket = journal.queue(vec![7; 5000]);
        journal.write_out(ticket).unwrap();
        let full = journal.ready().unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.limit_space(None);
        journal.ready().unwrap();
        assert_eq!(bodies(&disk, 1), [vec![7; 5000]]);
    }
}
