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
    /// These pieces are here. `closed`: the log says so as it is, and nothing was written since.
    Sure { have: Bitfield, closed: bool },
    /// These pieces were here, if the machine got to write them.
    Unsure(Bitfield),
}

/// The log, open.
#[derive(Debug)]
pub(super) struct ResumeLog {
    path: PathBuf,
    /// `None`: it is as an earlier run has closed it.
    file: Option<File>,
}

impl ResumeLog {
    /// Begins the log anew with these pieces.
    pub(super) fn begin(path: &Path, have: &Bitfield) -> io::Result<Self> {
        write(path, have, false)?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
        })
    }

    /// The log that an earlier run has closed in order, for as long as nothing is added.
    pub(super) fn unchanged(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
        }
    }

    /// A piece has been written and verified. `have`: all that are.
    pub(super) fn verified(&mut self, piece: u32, have: &Bitfield) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(&piece.to_be_bytes()),
            None => Self::begin(&self.path, have).map(|begun| *self = begun),
        }
    }

    /// Everything in `have` is durable; nothing will be added.
    pub(super) fn close(self, have: &Bitfield) -> io::Result<()> {
        match self.file {
            Some(_) => write(&self.path, have, true),
            None => Ok(()),
        }
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
    let closed = *closed == 1;
    Some(if closed || logged_boot == boot {
        Left::Sure { have, closed }
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
        let sure = |have: &Bitfield, closed| Left::Sure {
            have: have.clone(),
            closed,
        };
        have.set(17);
        log.verified(17, &have).unwrap();
        assert_eq!(read(&path, 20), sure(&have, false));
        assert_eq!(read(&path, 21), Left::Nothing, "another torrent");
        let bytes = std::fs::read(&path).unwrap();
        let other_boot = [b'x'; BOOT_BYTES];
        assert_eq!(
            parse(&bytes, 20, &other_boot),
            Some(Left::Unsure(have.clone()))
        );
        let torn = &bytes[..bytes.len() - 1];
        let Some(Left::Sure { have: before, .. }) = parse(torn, 20, &boot_id()) else {
            panic!("a torn entry costs only itself")
        };
        assert_eq!(before.iter().collect::<Vec<_>>(), [3]);
        log.close(&have).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(parse(&bytes, 20, &other_boot), Some(sure(&have, true)));
        ResumeLog::unchanged(&path)
            .close(&Bitfield::new(20))
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was added");
        let mut again = ResumeLog::unchanged(&path);
        have.set(5);
        again.verified(5, &have).unwrap();
        assert_eq!(read(&path, 20), sure(&have, false));
        for cut in 0..HEADER_BYTES + 3 {
            assert_eq!(parse(&bytes[..cut], 20, &boot_id()), None, "{cut}");
        }
    }
}
