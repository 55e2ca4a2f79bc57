//! The index beside the packs, so that a start reads one file instead of every footer.
//!
//! A checkpoint says which sealed packs it covers, where their records end, and what the index knew of them. It is
//! believed for packs that are still there, as long as they were, and have no journal; all others are opened as if
//! there were no checkpoint. So it may be old, and it may vanish: that costs reading footers. It must not be wrong
//! about a pack it covers, which is why pack numbers are not used twice: the checkpoint keeps the highest one.
//!
//! What a crash may lose: a new checkpoint, never a pack. `docs/formats/pack.md` draws the bytes.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::index::{ChunkIndex, PackId};
use crate::pack::{Pack, PackKind, footer};
use crate::xorb::MAX_CHUNKS;

/// First bytes of a checkpoint; the last is its version.
const MAGIC: [u8; 8] = *b"CCBTIDX\x01";

/// Length and checksum around a section.
const SECTION_FIXED_LEN: usize = 8;

/// Bytes read or written at once.
const BLOCK_LEN: usize = 1 << 20;

/// Name of the checkpoint in the directory of the packs.
const FILE_NAME: &str = "index.checkpoint";

/// What a checkpoint says besides the entries of the index.
#[derive(Debug, Default)]
pub(crate) struct Covered {
    /// The highest pack number there was.
    pub(crate) last_id: u32,
    /// Where the records of each covered pack end.
    pub(crate) packs: HashMap<PackId, Box<[u32]>>,
}

/// Takes the checkpoint in `dir` into an empty index. What is no good checkpoint is removed, so that the pack numbers
/// it keeps are not needed later.
pub(crate) fn load(disk: &dyn Disk, dir: &Path, index: &dyn ChunkIndex) -> io::Result<Covered> {
    let path = dir.join(FILE_NAME);
    let file = match disk.open(&path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Covered::default()),
        opened => opened?,
    };
    match read(&*file, index) {
        Ok(Some(covered)) => Ok(covered),
        damaged => {
            tracing::warn!(?path, error = ?damaged.err(), "reading all footers: the checkpoint is of no use");
            index.retain_packs(&|_| false);
            disk.remove(&path)?;
            Ok(Covered::default())
        }
    }
}

/// Writes a checkpoint of these packs, which must be sealed and durable. The index may change meanwhile.
pub(crate) fn save(
    disk: &dyn Disk,
    dir: &Path,
    index: &dyn ChunkIndex,
    last_id: u32,
    packs: &[Arc<Pack>],
) -> io::Result<()> {
    let new = dir.join("index.new");
    let mut out = Writer {
        file: disk.open(&new, OpenMode::Create)?,
        at: 0,
        block: MAGIC.to_vec(),
    };
    let counts = [last_id, packs.len() as u32, index.parts() as u32];
    out.section(&counts.map(u32::to_le_bytes).concat())?;
    for pack in packs {
        let mut section = pack.id.0.to_le_bytes().to_vec();
        section.extend(pack.ends().iter().flat_map(|end| end.to_le_bytes()));
        out.section(&section)?;
    }
    for part in 0..index.parts() {
        out.section(&index.save_part(part))?;
    }
    out.flush()?;
    out.file.sync()?;
    disk.rename(&new, &dir.join(FILE_NAME))?;
    disk.sync_dir(dir)
}

/// Whether the file has the length of a sealed pack with these records.
pub(crate) fn has_length(disk: &dyn Disk, path: &Path, kind: PackKind, ends: &[u32]) -> bool {
    let records_len = ends.last().map_or(0, |end| u64::from(*end));
    let expected = records_len + footer::len(kind, ends.len()) as u64;
    let len = disk.open(path, OpenMode::Read).and_then(|file| file.len());
    len.is_ok_and(|len| len == expected)
}

/// `None` if the bytes are no checkpoint of such an index.
fn read(file: &dyn DiskFile, index: &dyn ChunkIndex) -> io::Result<Option<Covered>> {
    let mut input = Reader::new(file)?;
    if input.array()? != MAGIC {
        return Ok(None);
    }
    let header = input.section()?;
    let [last_id, packs, parts] = match header.as_deref().map(<[u8]>::as_chunks::<4>) {
        Some(([a, b, c], [])) => [a, b, c].map(|word| u32::from_le_bytes(*word)),
        _ => return Ok(None),
    };
    if last_id > PackId::MAX.0 {
        return Ok(None);
    }
    let mut covered = Covered {
        last_id,
        ..Covered::default()
    };
    for _ in 0..packs {
        let Some((id, ends)) = input.section()?.as_deref().and_then(pack_of) else {
            return Ok(None);
        };
        if id.0 > last_id {
            return Ok(None);
        }
        covered.packs.insert(id, ends);
    }
    if parts as usize != index.parts() {
        return Ok(None);
    }
    for part in 0..index.parts() {
        let Some(bytes) = input.section()? else {
            return Ok(None);
        };
        if !index.load_part(part, &bytes) {
            return Ok(None);
        }
    }
    Ok(input.is_at_end().then_some(covered))
}

/// Number and ascending ends of one pack.
fn pack_of(section: &[u8]) -> Option<(PackId, Box<[u32]>)> {
    let (id, ends) = section.split_first_chunk()?;
    let ends = match ends.as_chunks::<4>() {
        (ends, []) => ends.iter().map(|end| u32::from_le_bytes(*end)),
        _ => return None,
    };
    let ends: Box<[u32]> = ends.collect();
    let good = (1..=MAX_CHUNKS).contains(&ends.len()) && ends.is_sorted();
    good.then_some((PackId(u32::from_le_bytes(*id)), ends))
}

struct Writer {
    file: Box<dyn DiskFile>,
    at: u64,
    block: Vec<u8>,
}

impl Writer {
    fn section(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.block.extend_from_slice(&len.to_le_bytes());
        self.block.extend_from_slice(bytes);
        let crc = crc32fast::hash(bytes);
        self.block.extend_from_slice(&crc.to_le_bytes());
        match self.block.len() >= BLOCK_LEN {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.at, &[&self.block])?;
        self.at += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }
}

struct Reader<'f> {
    file: &'f dyn DiskFile,
    /// Where the next bytes come from, and the length of the file.
    at: u64,
    len: u64,
    block: Vec<u8>,
    taken: usize,
}

impl<'f> Reader<'f> {
    fn new(file: &'f dyn DiskFile) -> io::Result<Self> {
        Ok(Self {
            file,
            at: 0,
            len: file.len()?,
            block: Vec::new(),
            taken: 0,
        })
    }

    fn left(&self) -> u64 {
        self.len - self.at + (self.block.len() - self.taken) as u64
    }

    fn is_at_end(&self) -> bool {
        self.left() == 0
    }

    fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        if out.len() as u64 > self.left() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut filled = 0;
        while filled < out.len() {
            if self.taken == self.block.len() {
                let want = (self.len - self.at).min(BLOCK_LEN as u64) as usize;
                self.block.resize(want, 0);
                self.file.read_at(self.at, &mut self.block)?;
                (self.at, self.taken) = (self.at + want as u64, 0);
            }
            let have = &self.block[self.taken..];
            let len = have.len().min(out.len() - filled);
            out[filled..filled + len].copy_from_slice(&have[..len]);
            (filled, self.taken) = (filled + len, self.taken + len);
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    /// The next section. `None` if its checksum is wrong or it is longer than the file.
    fn section(&mut self) -> io::Result<Option<Vec<u8>>> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        if (len + SECTION_FIXED_LEN) as u64 > self.left() + 4 {
            return Ok(None);
        }
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        let crc = u32::from_le_bytes(self.array()?);
        Ok((crc32fast::hash(&bytes) == crc).then_some(bytes))
    }
}
