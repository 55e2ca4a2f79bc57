//! `ccbt xet inspect`

use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;

use ccbt_xet::hash::{ChunkHash, Suite};
use ccbt_xet::ingest;
use ccbt_xet::merkle::MerkleBuilder;
use clap::Args;

use super::super::CommandResult;
use super::super::options::GlobalOptions;
use super::{hashes, shown};
use crate::api::ApiError;
use crate::api::types::HashSuite;

/// Show the chunks and hashes of a file
///
/// `xorb_hash` is that of one xorb with all the chunks. A chunk marked `dedup` may be asked for in global deduplication.
#[derive(Debug, Args)]
pub(in crate::cli) struct InspectCommand {
    file: PathBuf,
    /// The hash suite that names the chunks
    #[arg(long, value_enum, value_name = "SUITE", default_value = "blake3")]
    suite: HashSuite,
}

impl InspectCommand {
    pub(super) fn run(self, global: &GlobalOptions) -> CommandResult {
        let shown = shown(&self.file);
        let suite = hashes(self.suite);
        let file = super::open(&self.file)?;
        let mut out = BufWriter::new(io::stdout().lock());
        let done = if global.json {
            inspect(
                suite,
                file,
                &mut Json {
                    out: &mut out,
                    chunks: 0,
                },
            )
        } else {
            inspect(suite, file, &mut Text { out: &mut out })
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

#[derive(Debug)]
enum InspectError {
    Read(io::Error),
    Write(io::Error),
}

impl From<io::Error> for InspectError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
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

fn inspect(suite: Suite, file: impl Read, sink: &mut dyn Sink) -> Result<(), InspectError> {
    let mut tree = MerkleBuilder::with_suite(suite);
    let mut offset = 0;
    ingest::each_chunk(suite, file, |hash, bytes| {
        tree.push(hash, bytes.len() as u64);
        let found = Found {
            offset,
            len: bytes.len(),
            hash: *hash,
            // The first chunk of a file may always be asked for.
            dedup: offset == 0 || hash.is_dedup_eligible(),
        };
        offset += bytes.len() as u64;
        sink.chunk(&found).map_err(InspectError::Write)
    })?;
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
