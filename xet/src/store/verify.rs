//! Reading everything once: what is damaged is found before somebody needs it.

use std::io;
use std::sync::Arc;

use super::gc::{live_slots, span_len};
use super::shelf::Shelf;
use super::{ReadError, Store};
use crate::disk::is_unreadable;
use crate::pack::Pack;

/// Up to which pack everything was read: those of chunks come first. The default is before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct VerifyPosition {
    /// In the packs of nodes.
    pub nodes: bool,
    /// Number of the last pack read; 0 before the first.
    pub pack: u32,
}

/// What [`Store::verify`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records that were read, chunks and nodes.
    pub records: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Records that turned out damaged. They are in quarantine now.
    pub damaged: u64,
}

impl Store {
    /// Reads and hashes every chunk and node in packs. Damaged ones go into quarantine, where
    /// [`take_quarantined`](Self::take_quarantined) names them.
    ///
    /// `report` gets the bytes read so far and the bytes there are, and may end it early by returning
    /// false. Readers and writers go on meanwhile; what they add is not read.
    pub fn verify(&self, report: &mut dyn FnMut(u64, u64) -> bool) -> Result<Verified, ReadError> {
        let shelves = [&self.chunks, &self.nodes];
        let packs = shelves.map(|shelf| {
            let mut packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
            packs.sort_unstable_by_key(|pack| pack.id);
            packs
        });
        let total: u64 = packs.iter().flatten().map(|pack| pack.records_len()).sum();
        let (mut verified, mut before) = (Verified::default(), 0);
        for (shelf, packs) in shelves.into_iter().zip(&packs) {
            for pack in packs {
                let mut each = |read: u64| report((before + read).min(total), total);
                match verify_pack(shelf, pack, &mut verified, &mut each) {
                    Ok(true) => before += pack.records_len(),
                    Ok(false) => return Ok(verified),
                    // Emptied by a gc meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => {
                        let path = pack.path.clone();
                        return Err(ReadError { path, source });
                    }
                }
            }
        }
        Ok(verified)
    }

    /// As [`verify`](Self::verify), of the next pack after `position` only. `None` if there is none. A pack that may
    /// not be opened now is passed over: the next round finds it.
    ///
    /// `report` gets the bytes read so far of this pack, and the bytes of all packs before it and of all there are.
    pub fn verify_next(
        &self,
        position: VerifyPosition,
        report: &mut dyn FnMut(u64, (u64, u64)) -> bool,
    ) -> Option<(VerifyPosition, Verified)> {
        let shelves = [(false, &self.chunks), (true, &self.nodes)];
        let packs = shelves.iter().flat_map(|(nodes, shelf)| {
            let packs: Vec<Arc<Pack>> = shelf.packs.read().values().cloned().collect();
            packs.into_iter().map(|pack| {
                let at = VerifyPosition {
                    nodes: *nodes,
                    pack: pack.id.0,
                };
                (at, *shelf, pack)
            })
        });
        let mut next: Option<(VerifyPosition, &Shelf, Arc<Pack>)> = None;
        let (mut total, mut before) = (0, 0);
        for (at, shelf, pack) in packs.collect::<Vec<_>>() {
            total += pack.records_len();
            if at <= position {
                before += pack.records_len();
            } else if next.as_ref().is_none_or(|(first, ..)| at < *first) {
                next = Some((at, shelf, pack));
            }
        }
        let (at, shelf, pack) = next?;
        let mut verified = Verified::default();
        let mut each = |read: u64| report(read, (before, total));
        match verify_pack(shelf, &pack, &mut verified, &mut each) {
            // Emptied by a gc meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The packs after it are not to wait for one that may not be read.
            Err(error) => {
                tracing::warn!(path = ?pack.path, %error, "a pack cannot be checked now");
            }
            Ok(_) => {}
        }
        Some((at, verified))
    }

    /// Bytes of all chunks in packs before compression, dead ones included.
    pub fn content_bytes(&self) -> Result<u64, ReadError> {
        let packs: Vec<Arc<Pack>> = self.chunks.packs.read().values().cloned().collect();
        let mut total = 0;
        for pack in packs {
            match pack.content_len(&self.chunks.files) {
                Ok(len) => total += len,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    let path = pack.path.clone();
                    return Err(ReadError { path, source });
                }
            }
        }
        Ok(total)
    }
}

/// Reads everything in a pack. False if `each` wants no more.
fn verify_pack(
    shelf: &Shelf,
    pack: &Pack,
    verified: &mut Verified,
    each: &mut dyn FnMut(u64) -> bool,
) -> io::Result<bool> {
    let is_good = match pack.has_good_footer(&shelf.files) {
        Err(error) if is_unreadable(&error) => false,
        read => read?,
    };
    if !is_good {
        verified.damaged += shelf.rename_records(pack)?;
    }
    let names = pack.names(&shelf.files)?;
    let mut read = 0;
    for slot in live_slots(shelf, pack, &names) {
        let name = &names[usize::from(slot)];
        let len = span_len(pack, slot);
        match shelf.hashed_record(pack, slot, name) {
            Ok(Some(_)) => {}
            Ok(None) => verified.damaged += 1,
            Err(error) => return Err(error),
        }
        verified.records += 1;
        verified.bytes += len;
        read += len;
        if !each(read) {
            return Ok(false);
        }
    }
    Ok(true)
}
