//! `ccbt xet inspect`

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use ccbt_xet::chunk::{Chunker, MAX_CHUNK};
use ccbt_xet::hash::{ChunkHash, chunk_hash};
use ccbt_xet::merkle::MerkleBuilder;
use clap::Args;

use super::CommandResult;
use super::options::GlobalOptions;
use crate::api::{ApiError, ErrorKind, escape};

/// Bytes per read: large enough that system calls do not show.
const BLOCK_BYTES: usize = 1 << 20;

/// Show the chunks and hashes of a file
///
/// `xorb_hash` is that of one xorb with all the chunks. A chunk marked `dedup` may be asked for in global deduplication.
#[derive(Debug, Args)]
pub(super) struct InspectCommand {
    file: PathBuf,
}

impl InspectCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let shown = escape(self.file.as_os_str().as_encoded_bytes());
        let file = open(&self.file, &shown)?;
        let mut out = BufWriter::new(io::stdout().lock());
        let done = if global.json {
            inspect(
                file,
                &mut Json {
                    out: &mut out,
                    chunks: 0,
                },
            )
        } else {
            inspect(file, &mut Text { out: &mut out })
        };
        match done.and_then(|()| out.flush().map_err(InspectError::Write)) {
            Ok(()) => Ok(0),
            Err(InspectError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            Err(InspectError::Write(error)) => {
                Err(ApiError::io("cannot write to standard output", &error))
            }
            Err(InspectError::Read(error)) => {
                Err(ApiError::io(format_args!("cannot read {shown}"), &error))
            }
        }
    }
}

fn open(path: &Path, shown: &str) -> Result<File, ApiError> {
    let failed = |error| ApiError::io(format_args!("cannot read {shown}"), &error);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(
            ApiError::new(ErrorKind::Usage, format_args!("{shown} is a directory"))
                .hint("name a file"),
        );
    }
    Ok(file)
}

#[derive(Debug)]
enum InspectError {
    Read(io::Error),
    Write(io::Error),
}

/// One chunk, as it is found.
struct Found {
    offset: u64,
    len: usize,
    hash: ChunkHash,
    dedup: bool,
}

/// Takes the chunks in order, then the sums; so nothing grows with the file.
trait Sink {
    fn chunk(&mut self, chunk: &Found) -> io::Result<()>;
    fn end(&mut self, size: u64, tree: MerkleBuilder) -> io::Result<()>;
}

fn inspect(mut file: impl Read, sink: &mut dyn Sink) -> Result<(), InspectError> {
    let mut chunker = Chunker::new();
    let mut tree = MerkleBuilder::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut open = Vec::with_capacity(MAX_CHUNK);
    let mut offset = 0;
    let mut emit = |bytes: &[u8], sink: &mut dyn Sink| {
        let hash = chunk_hash(bytes);
        tree.push(&hash, bytes.len() as u64);
        // The first chunk of a file may always be asked for.
        let dedup = offset == 0 || hash.is_dedup_eligible();
        let found = Found {
            offset,
            len: bytes.len(),
            hash,
            dedup,
        };
        offset += bytes.len() as u64;
        sink.chunk(&found).map_err(InspectError::Write)
    };
    loop {
        let n = match file.read(&mut block) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(InspectError::Read(error)),
        };
        let mut rest = block.get(..n).unwrap_or_default();
        while let Some(cut) = chunker.next_cut(rest) {
            let (head, tail) = rest.split_at(cut);
            open.extend_from_slice(head);
            emit(&open, sink)?;
            open.clear();
            rest = tail;
        }
        open.extend_from_slice(rest);
    }
    if !open.is_empty() {
        emit(&open, sink)?;
    }
    sink.end(offset, tree).map_err(InspectError::Write)
}

struct Json<'a, W> {
    out: &'a mut W,
    chunks: u64,
}

impl<W: Write> Sink for Json<'_, W> {
    fn chunk(&mut self, chunk: &Found) -> io::Result<()> {
        let before = if self.chunks == 0 {
            "{\"chunks\":["
        } else {
            ","
        };
        self.chunks += 1;
        let Found {
            offset,
            len,
            hash,
            dedup,
        } = chunk;
        write!(
            self.out,
            "{before}{{\"offset\":{offset},\"len\":{len},\"hash\":\"{hash}\",\"dedup\":{dedup}}}"
        )
    }

    fn end(&mut self, size: u64, tree: MerkleBuilder) -> io::Result<()> {
        let before = if self.chunks == 0 {
            "{\"chunks\":["
        } else {
            ""
        };
        let (file, xorb) = (tree.clone().file_hash(), tree.xorb_hash());
        writeln!(
            self.out,
            "{before}],\"size\":{size},\"file_hash\":\"{file}\",\"xorb_hash\":\"{xorb}\"}}"
        )
    }
}

struct Text<'a, W> {
    out: &'a mut W,
}

impl<W: Write> Sink for Text<'_, W> {
    fn chunk(&mut self, chunk: &Found) -> io::Result<()> {
        let dedup = if chunk.dedup { "  dedup" } else { "" };
        writeln!(
            self.out,
            "{:>15}  {:>6}  {}{dedup}",
            chunk.offset, chunk.len, chunk.hash
        )
    }

    fn end(&mut self, size: u64, tree: MerkleBuilder) -> io::Result<()> {
        writeln!(self.out, "size       {size}")?;
        writeln!(self.out, "file hash  {}", tree.clone().file_hash())?;
        writeln!(self.out, "xorb hash  {}", tree.xorb_hash())
    }
}
