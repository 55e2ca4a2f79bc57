//! Pack files: where chunks and nodes lie on disk. `docs/formats/pack.md` draws the bytes.
//!
//! A chunk pack *is* a xorb being appended to: records first, the xorb footer once it is full and
//! sealed. A node pack has the same records and a footer of its own. While a pack is unsealed, a
//! journal beside it lists the records known to be durable. What that gives after a crash:
//!
//! | pack | journal | meaning |
//! |---|---|---|
//! | footer | no | sealed and durable: the footer is believed, nothing is scanned |
//! | any | yes | the journal names the durable records; the tail beyond is scanned and cut where torn |
//! | no footer | no | damage: every record that can still be read and named is kept |
//!
//! A journal exists durably before its pack gets a byte and goes only after the sealed pack was
//! synced, so the first row can be trusted. Records name themselves (by hashing), so a scan never
//! gives wrong bytes, whatever it reads.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::codec::{self, Scheme};
use crate::disk::is_unreadable;
use crate::hash::{Suite, node_id};
use crate::index::{PackId, Place};
use crate::xorb::{HEADER_LEN, MAX_CHUNKS, RecordHeader};

pub(crate) mod files;
pub(crate) mod footer;
pub(crate) mod journal;
pub(crate) mod open;

use files::{Handle, OpenFiles};

/// Full name of a record: a chunk hash or a node id.
pub(crate) type Name = [u8; 32];

/// What the records of a pack are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PackKind {
    Chunks(Suite),
    Nodes,
}

impl PackKind {
    pub(crate) const fn extension(self) -> &'static str {
        match self {
            Self::Chunks(_) => "xorb",
            Self::Nodes => "nodes",
        }
    }

    /// The name a record must have. `tag` is the first header byte: the kind of a node.
    pub(crate) fn name_of(self, tag: u8, bytes: &[u8]) -> Option<Name> {
        match self {
            Self::Chunks(_) if tag != 0 => None,
            Self::Chunks(suite) => Some(*suite.chunk_hash(bytes).as_bytes()),
            Self::Nodes => Some(*node_id(tag, bytes).as_bytes()),
        }
    }
}

/// One pack file: its records, and what this process knows about each.
pub(crate) struct Pack {
    pub(crate) id: PackId,
    pub(crate) kind: PackKind,
    pub(crate) path: PathBuf,
    /// Damaged: read, but never appended to, and emptied by the next gc.
    retired: AtomicBool,
    handle: Arc<Handle>,
    layout: RwLock<Layout>,
    states: States,
    has_bad: AtomicBool,
    /// A bit a record, see [`mark_cut`](Self::mark_cut). Most packs are never asked.
    cuts: OnceLock<Box<[AtomicU64]>>,
}

/// Where the records of a pack are.
#[derive(Debug)]
pub(crate) enum Layout {
    /// Not sealed: the names are here.
    Listed(Vec<Entry>),
    /// Sealed: the names are read from the footer.
    Sealed { ends: Box<[u32]> },
}

/// What an unsealed pack knows about one of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    /// Where the record ends, in bytes from the start of the pack.
    pub(crate) end: u32,
    /// Length of the content in bytes.
    pub(crate) len: u32,
    /// First byte of the header: the kind of a node, 0 for a chunk.
    pub(crate) tag: u8,
}

/// A record as it stands in the file.
pub(crate) struct RawRecord {
    pub(crate) tag: u8,
    pub(crate) header: RecordHeader,
    bytes: Bytes,
}

impl Pack {
    pub(crate) fn new(
        id: PackId,
        kind: PackKind,
        path: PathBuf,
        layout: Layout,
        retired: bool,
    ) -> Self {
        let states = match &layout {
            Layout::Sealed { ends } => States::new(ends.len()),
            Layout::Listed(_) => States::new(MAX_CHUNKS),
        };
        let (handle, layout) = (Arc::new(Handle::default()), RwLock::new(layout));
        let has_bad = AtomicBool::new(false);
        Self {
            id,
            kind,
            path,
            retired: AtomicBool::new(retired),
            handle,
            layout,
            states,
            has_bad,
            cuts: OnceLock::new(),
        }
    }

    pub(crate) fn place(&self, slot: u16) -> Place {
        Place {
            pack: self.id,
            slot,
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.layout.read().slots()
    }

    /// Bytes of all records: where the next one would start.
    pub(crate) fn records_len(&self) -> u64 {
        self.layout.read().records_len()
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Whether the footer of a sealed pack still says where its records end. True of a pack that is not sealed.
    pub(crate) fn has_good_footer(&self, files: &OpenFiles) -> io::Result<bool> {
        if !self.is_sealed() {
            return Ok(true);
        }
        let file = files.file(&self.path, &self.handle)?;
        let footer = footer::read(self.kind, &*file)?;
        Ok(footer.is_some_and(|footer| footer.ends == self.ends() && footer.is_whole(self.kind)))
    }

    /// Lets the records name themselves, as the footer cannot be believed any more. Those that cannot are bad; whether it
    /// is the drive that cannot read some. The pack is retired.
    pub(crate) fn rename_records(&self, files: &OpenFiles) -> io::Result<bool> {
        let (mut entries, mut bad, mut unreadable) = (Vec::new(), Vec::new(), false);
        for (slot, end) in self.ends().into_iter().enumerate() {
            let record = match self.read(files, slot as u16) {
                Err(error) if is_unreadable(&error) => {
                    unreadable |= error.kind() != io::ErrorKind::UnexpectedEof;
                    None
                }
                read => read?,
            };
            let named = record.and_then(|record| {
                let content = record.decode()?;
                let name = self.kind.name_of(record.tag, &content)?;
                Some((name, record.header.chunk_len, record.tag))
            });
            let (name, len, tag) = named.unwrap_or_else(|| {
                bad.push(slot as u16);
                (open::NAMELESS, 0, 0)
            });
            entries.push(Entry {
                name,
                end,
                len,
                tag,
            });
        }
        *self.layout.write() = Layout::Listed(entries);
        self.retired.store(true, Ordering::Release);
        for slot in &bad {
            self.set_state(*slot, State::Bad);
        }
        Ok(unreadable)
    }

    pub(crate) fn is_sealed(&self) -> bool {
        matches!(*self.layout.read(), Layout::Sealed { .. })
    }

    pub(crate) fn span(&self, slot: u16) -> Option<Range<u64>> {
        self.layout.read().span(slot)
    }

    /// The name in slot `slot`, from memory or from the footer.
    pub(crate) fn name(&self, files: &OpenFiles, slot: u16) -> io::Result<Option<Name>> {
        let at = match &*self.layout.read() {
            Layout::Listed(list) => return Ok(list.get(usize::from(slot)).map(|of| of.name)),
            Layout::Sealed { ends } if usize::from(slot) >= ends.len() => return Ok(None),
            sealed => {
                let names = sealed.records_len() + footer::names_offset(self.kind);
                names + 32 * u64::from(slot)
            }
        };
        let mut name = [0; 32];
        files
            .file(&self.path, &self.handle)?
            .read_at(at, &mut name)?;
        Ok(Some(name))
    }

    /// All names, in slot order.
    pub(crate) fn names(&self, files: &OpenFiles) -> io::Result<Vec<Name>> {
        let (at, slots) = match &*self.layout.read() {
            Layout::Listed(list) => return Ok(list.iter().map(|entry| entry.name).collect()),
            sealed => (
                sealed.records_len() + footer::names_offset(self.kind),
                sealed.slots(),
            ),
        };
        let mut bytes = vec![0; 32 * slots];
        files
            .file(&self.path, &self.handle)?
            .read_at(at, &mut bytes)?;
        Ok(bytes.as_chunks::<32>().0.to_vec())
    }

    /// Bytes of all contents together. Only of a pack of chunks: footers of nodes lack it.
    pub(crate) fn content_len(&self, files: &OpenFiles) -> io::Result<u64> {
        let at = match &*self.layout.read() {
            Layout::Listed(list) => {
                return Ok(list.iter().map(|entry| u64::from(entry.len)).sum());
            }
            sealed => sealed.records_len() + footer::content_end_offset(sealed.slots()),
        };
        let mut end = [0; 4];
        files
            .file(&self.path, &self.handle)?
            .read_at(at, &mut end)?;
        Ok(u64::from(u32::from_le_bytes(end)))
    }

    /// Where each record ends, in bytes from the start of the pack.
    pub(crate) fn ends(&self) -> Vec<u32> {
        match &*self.layout.read() {
            Layout::Listed(list) => list.iter().map(|entry| entry.end).collect(),
            Layout::Sealed { ends } => ends.to_vec(),
        }
    }

    /// The entries from slot `from` on. A sealed pack has none.
    pub(crate) fn listed_from(&self, from: usize) -> Vec<Entry> {
        match &*self.layout.read() {
            Layout::Listed(list) => list.iter().skip(from).copied().collect(),
            Layout::Sealed { .. } => Vec::new(),
        }
    }

    /// Adds a record that was written behind the last one. Returns its slot; a sealed pack takes none.
    pub(crate) fn push(&self, entry: Entry, plain: bool) -> Option<u16> {
        let mut layout = self.layout.write();
        let Layout::Listed(list) = &mut *layout else {
            return None;
        };
        let slot = u16::try_from(list.len()).ok()?;
        list.push(entry);
        self.states
            .set(slot, if plain { State::Plain } else { State::Encoded });
        Some(slot)
    }

    /// The pack's footer stands in the file: from now on names are read there.
    pub(crate) fn mark_sealed(&self) {
        let mut layout = self.layout.write();
        if let Layout::Listed(list) = &*layout {
            let ends = list.iter().map(|entry| entry.end).collect();
            *layout = Layout::Sealed { ends };
        }
    }

    pub(crate) fn state(&self, slot: u16) -> State {
        self.states.get(slot)
    }

    /// Whether a record is known to be damaged.
    pub(crate) fn has_bad(&self) -> bool {
        self.has_bad.load(Ordering::Acquire)
    }

    pub(crate) fn set_state(&self, slot: u16, state: State) {
        if state == State::Bad {
            self.has_bad.store(true, Ordering::Release);
        }
        self.states.set(slot, state);
    }

    /// Reads a record. `None` means damage: the header does not fit the record's place.
    pub(crate) fn read(&self, files: &OpenFiles, slot: u16) -> io::Result<Option<RawRecord>> {
        let Some(span) = self.span(slot) else {
            return Ok(None);
        };
        let mut bytes = vec![0; (span.end - span.start) as usize];
        files
            .file(&self.path, &self.handle)?
            .read_at(span.start, &mut bytes)?;
        Ok(RawRecord::parse(bytes.into()))
    }

    /// Reads part of a record already known to be good and stored as it is. Returns the length of its content; `buf`
    /// is filled if the range is inside it.
    pub(crate) fn read_plain(
        &self,
        files: &OpenFiles,
        slot: u16,
        offset: u32,
        buf: &mut [u8],
    ) -> io::Result<Option<u32>> {
        let Some(span) = self.span(slot) else {
            return Ok(None);
        };
        let content = span.start + HEADER_LEN as u64;
        let start = content + u64::from(offset);
        if start + buf.len() as u64 <= span.end {
            files.file(&self.path, &self.handle)?.read_at(start, buf)?;
        }
        Ok(Some(span.end.saturating_sub(content) as u32))
    }

    /// As [`read_plain`](Self::read_plain), of a record that has to be decoded, by decoding no more than it takes.
    /// `None` where only the whole will do.
    pub(crate) fn read_encoded(
        &self,
        files: &OpenFiles,
        slot: u16,
        (offset, buf): (u32, &mut [u8]),
        scratch: &mut Scratch,
    ) -> io::Result<Option<u32>> {
        let Some(span) = self.span(slot) else {
            return Ok(None);
        };
        let len = (span.end - span.start) as usize;
        if scratch.record.len() < len {
            scratch.record.resize(len, 0);
        }
        let record = &mut scratch.record[..len];
        let file = files.file(&self.path, &self.handle)?;
        file.read_at(span.start, record)?;
        let header = record.first_chunk().copied().and_then(parse_header);
        let Some((_, header)) = header.filter(|(_, header)| header.record_len() == len) else {
            return Ok(None);
        };
        let (scheme, payload) = (header.scheme, &record[HEADER_LEN..]);
        let start = offset as usize;
        let end = start + buf.len();
        if end > header.chunk_len as usize {
            return Ok(Some(header.chunk_len));
        }
        if buf.len() == header.chunk_len as usize {
            let decoded = codec::decode_into(scheme, payload, buf);
            return Ok(decoded.ok().map(|()| header.chunk_len));
        }
        let content = codec::decode_start(scheme, payload, end, &mut scratch.content);
        Ok(content.map(|content| {
            buf.copy_from_slice(&content[start..]);
            header.chunk_len
        }))
    }

    /// Notes that our chunker, at the start of this content, cuts at its end.
    pub(crate) fn mark_cut(&self, slot: u16) {
        let slots = || match &*self.layout.read() {
            Layout::Listed(_) => MAX_CHUNKS,
            Layout::Sealed { ends } => ends.len(),
        };
        let cuts = self.cuts.get_or_init(|| {
            let words = slots().div_ceil(64);
            (0..words).map(|_| AtomicU64::new(0)).collect()
        });
        if let Some(word) = cuts.get(usize::from(slot) / 64) {
            word.fetch_or(1 << (slot % 64), Ordering::Relaxed);
        }
    }

    /// Name and length of a content at whose end our chunker is known to cut.
    pub(crate) fn known_cut(
        &self,
        files: &OpenFiles,
        slot: u16,
    ) -> io::Result<Option<(Name, u32)>> {
        let word = self
            .cuts
            .get()
            .and_then(|cuts| cuts.get(usize::from(slot) / 64));
        let is_cut = word.is_some_and(|word| word.load(Ordering::Relaxed) >> (slot % 64) & 1 != 0);
        // The names of a retired pack may have been corrected since.
        if !is_cut || self.is_retired() || self.state(slot) == State::Bad {
            return Ok(None);
        }
        let at = match &*self.layout.read() {
            Layout::Listed(list) => {
                let entry = list.get(usize::from(slot));
                return Ok(entry.map(|entry| (entry.name, entry.len)));
            }
            sealed => sealed.records_len() + footer::content_end_offset(sealed.slots()),
        };
        let Some(name) = self.name(files, slot)? else {
            return Ok(None);
        };
        let back = 4 * (self.slots() as u64 - 1 - u64::from(slot));
        let mut ends = [0; 8];
        let file = files.file(&self.path, &self.handle)?;
        match slot {
            0 => file.read_at(at - back, &mut ends[4..])?,
            _ => file.read_at(at - back - 4, &mut ends)?,
        }
        let [before, end] = [0, 4].map(|at| word_at(&ends, at));
        Ok(end.checked_sub(before).map(|len| (name, len)))
    }
}

/// Buffers of a reader, kept between reads.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    record: Vec<u8>,
    content: Vec<u8>,
}

fn word_at(bytes: &[u8; 8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap_or(&[0; 4]))
}

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pack")
            .field("path", &self.path)
            .field("slots", &self.slots())
            .finish()
    }
}

impl Layout {
    pub(crate) fn slots(&self) -> usize {
        match self {
            Self::Listed(list) => list.len(),
            Self::Sealed { ends } => ends.len(),
        }
    }

    pub(crate) fn records_len(&self) -> u64 {
        self.slots()
            .checked_sub(1)
            .and_then(|last| self.end(last))
            .unwrap_or(0)
    }

    fn end(&self, slot: usize) -> Option<u64> {
        match self {
            Self::Listed(list) => list.get(slot).map(|entry| u64::from(entry.end)),
            Self::Sealed { ends } => ends.get(slot).map(|end| u64::from(*end)),
        }
    }

    fn span(&self, slot: u16) -> Option<Range<u64>> {
        let slot = usize::from(slot);
        let end = self.end(slot)?;
        let start = slot
            .checked_sub(1)
            .map_or(Some(0), |before| self.end(before))?;
        Some(start..end)
    }
}

impl RawRecord {
    /// Takes the bytes of exactly one record.
    pub(crate) fn parse(bytes: Bytes) -> Option<Self> {
        let (tag, header) = parse_header(*bytes.first_chunk()?)?;
        (bytes.len() == header.record_len()).then_some(Self { tag, header, bytes })
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.header.scheme == Scheme::Stored
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// The content, without a copy if it is stored as it is. `None` means damage.
    pub(crate) fn decode(&self) -> Option<Bytes> {
        if self.is_plain() {
            return Some(self.bytes.slice(HEADER_LEN..));
        }
        let mut content = vec![0; self.header.chunk_len as usize];
        codec::decode_into(self.header.scheme, self.payload(), &mut content).ok()?;
        Some(content.into())
    }
}

/// A header whose first byte, the version of xorb records, carries `tag` instead.
pub(crate) fn encode_header(tag: u8, header: &RecordHeader) -> [u8; HEADER_LEN] {
    let mut bytes = header.encode();
    bytes[0] = tag;
    bytes
}

/// Takes a header apart into its tag and the rest.
pub(crate) fn parse_header(mut bytes: [u8; HEADER_LEN]) -> Option<(u8, RecordHeader)> {
    let tag = std::mem::take(&mut bytes[0]);
    Some((tag, RecordHeader::parse(bytes).ok()?))
}

/// What this process knows about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not read yet.
    Unknown = 0,
    /// Good; the payload has to be decoded.
    Encoded = 1,
    /// Good; the payload is the content.
    Plain = 2,
    /// Quarantined: never served.
    Bad = 3,
}

/// Two bits a record, only ever set.
struct States(Box<[AtomicU64]>);

impl States {
    fn new(slots: usize) -> Self {
        Self((0..slots.div_ceil(32)).map(|_| AtomicU64::new(0)).collect())
    }

    fn get(&self, slot: u16) -> State {
        let Some(word) = self.0.get(usize::from(slot) / 32) else {
            return State::Bad;
        };
        match (word.load(Ordering::Acquire) >> (2 * (slot % 32))) & 3 {
            0 => State::Unknown,
            1 => State::Encoded,
            2 => State::Plain,
            _ => State::Bad,
        }
    }

    fn set(&self, slot: u16, state: State) {
        if let Some(word) = self.0.get(usize::from(slot) / 32) {
            word.fetch_or((state as u64) << (2 * (slot % 32)), Ordering::AcqRel);
        }
    }
}
