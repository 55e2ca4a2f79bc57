//! Which pieces are here, over restarts: a log to which every verified piece is appended at once.
//!
//! A piece is on the log after its bytes were written, so what a killed process has logged is in the page cache or on disk. After
//! a restart of the machine that need not be so: unless the log was closed in order, its pieces are then checked again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::proto::bitfield::Bitfield;
use crate::state_file;

const MAGIC: &[u8; 8] = b"ccbtrsm1";
/// Bytes of the kernel's boot id, a UUID as text.
const BOOT_BYTES: usize = 36;
/// Magic, boot id, closed in order or not, number of pieces.
const HEADER_BYTES: usize = 8 + BOOT_BYTES + 1 + 4;

/// What an earlier run has left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing, or nothing that can be read.
    Nothing,
    /// These pieces are here.
    Sure(Bitfield),
    /// These pieces were here, if the machine got to write them.
    Unsure(Bitfield),
}

/// The log, open.
#[derive(Debug)]
pub(super) struct ResumeLog {
    path: PathBuf,
    file: File,
}

impl ResumeLog {
    /// Begins the log anew with these pieces.
    pub(super) fn begin(path: &Path, have: &Bitfield) -> io::Result<Self> {
        write(path, have, false)?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// A piece has been written and verified.
    pub(super) fn verified(&mut self, piece: u32) -> io::Result<()> {
        self.file.write_all(&piece.to_be_bytes())
    }

    /// Everything in `have` is durable; nothing will be added.
    pub(super) fn close(self, have: &Bitfield) -> io::Result<()> {
        write(&self.path, have, true)
    }
}

/// Reads what an earlier run has left of a torrent with this many pieces.
pub(super) fn read(path: &Path, pieces: u32) -> Left {
    std::fs::read(path)
        .ok()
        .and_then(|bytes| parse(&bytes, pieces, &boot_id()))
        .unwrap_or(Left::Nothing)
}

pub(crate) fn parse(bytes: &[u8], pieces: u32, boot: &[u8]) -> Option<Left> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (logged_boot, rest) = rest.split_at_checked(BOOT_BYTES)?;
    let (closed, rest) = rest.split_first()?;
    let (count, rest) = rest.split_first_chunk()?;
    if u32::from_be_bytes(*count) != pieces {
        return None;
    }
    let (field, log) = rest.split_at_checked((pieces as usize).div_ceil(8))?;
    let mut have = Bitfield::from_bytes(field, pieces).ok()?;
    for piece in log.as_chunks::<4>().0 {
        have.set(u32::from_be_bytes(*piece));
    }
    let sure = *closed == 1 || logged_boot == boot;
    Some(if sure {
        Left::Sure(have)
    } else {
        Left::Unsure(have)
    })
}

fn write(path: &Path, have: &Bitfield, closed: bool) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&boot_id());
    bytes.push(closed.into());
    bytes.extend_from_slice(&have.len().to_be_bytes());
    bytes.extend_from_slice(&have.to_bytes());
    state_file::replace(path, &bytes)
}

/// Differs after every start of the machine.
fn boot_id() -> Vec<u8> {
    let mut id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.resize(BOOT_BYTES, b'0');
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_logged_is_there_after_a_kill_and_doubted_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resume");
        assert_eq!(read(&path, 20), Left::Nothing);
        let mut have = Bitfield::new(20);
        have.set(3);
        let mut log = ResumeLog::begin(&path, &have).unwrap();
        log.verified(17).unwrap();
        have.set(17);
        assert_eq!(read(&path, 20), Left::Sure(have.clone()));
        assert_eq!(read(&path, 21), Left::Nothing, "another torrent");
        let bytes = std::fs::read(&path).unwrap();
        let other_boot = [b'x'; BOOT_BYTES];
        assert_eq!(
            parse(&bytes, 20, &other_boot),
            Some(Left::Unsure(have.clone()))
        );
        let torn = &bytes[..bytes.len() - 1];
        let Some(Left::Sure(before)) = parse(torn, 20, &boot_id()) else {
            panic!("a torn entry costs only itself")
        };
        assert_eq!(before.iter().collect::<Vec<_>>(), [3]);
        log.close(&have).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(parse(&bytes, 20, &other_boot), Some(Left::Sure(have)));
        for cut in 0..HEADER_BYTES + 3 {
            assert_eq!(parse(&bytes[..cut], 20, &boot_id()), None, "{cut}");
        }
    }
}
