//! Which heads a member of a folder believes: the newest of every incarnation, with the certificates that make them count.
//!
//! Pure: the owner hands in what arrived and the time, and asks which snapshots are worth fetching. The rules are in
//! docs/bep_xet.md, "Heads". A head is believed in two steps: [`Heads::check`] says whether it could count, and, once its
//! snapshot has been fetched and merged, [`Heads::take`] makes it the newest of its incarnation.

use std::collections::BTreeMap;

use super::wire::{DecodeError, Reader, at_most};
use super::{
    BadSignature, CertError, Certificate, DeviceId, FolderId, Head, Incarnation, Manifest,
    Unverified, WritePublic,
};

/// A head's clock may be this far ahead of ours; more would let one wrong clock win every conflict for long.
const AHEAD_MS_MAX: u64 = 10 * 60 * 1000;
/// Heads, and certificates, kept for one folder.
const KEPT_MAX: usize = 1024;
/// Heads with a clock ahead kept for [`Heads::vouched`].
const AHEAD_KEPT_MAX: usize = 64;
/// Pairs of contradicting heads kept as proof.
const FORKS_MAX: usize = 16;
/// First byte of the encoded table.
const VERSION: u8 = 1;

/// Why a head does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the device {0} has shown no certificate")]
    NoCertificate(DeviceId),
    #[error("the folder's write key is not known yet")]
    NoManifest,
    #[error(transparent)]
    Signature(#[from] BadSignature),
    #[error(transparent)]
    Certificate(#[from] CertError),
    #[error("the head is of epoch {theirs}, the folder is in epoch {ours}")]
    Epoch { theirs: u32, ours: u32 },
    #[error("incarnation {0} was revoked")]
    Revoked(Incarnation),
    #[error("its clock is {} ahead of the one here", span(*ahead_ms))]
    Future { ahead_ms: u64 },
    #[error("incarnation {0} belongs to another device")]
    Foreign(Incarnation),
    #[error("incarnation {0} signed two heads with one number")]
    Fork(Incarnation),
    #[error("more than {KEPT_MAX} incarnations")]
    TooMany,
}

/// A time for people, in the largest unit that fits.
fn span(ms: u64) -> String {
    let minutes = ms / 60_000;
    match minutes {
        0..120 => format!("{minutes} minutes"),
        120..2880 => format!("{} hours", minutes / 60),
        _ => format!("{} days", minutes / 1440),
    }
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Heads {
    folder: FolderId,
    /// Known from the link by writers, from the manifest by readers.
    write: Option<WritePublic>,
    manifest: Option<Manifest>,
    certificates: BTreeMap<DeviceId, Certificate>,
    heads: BTreeMap<Incarnation, Head>,
    /// Refused for their clock alone.
    ahead: BTreeMap<Incarnation, Head>,
    forks: Vec<(Head, Head)>,
}

impl Heads {
    pub fn new(folder: FolderId, write: Option<WritePublic>) -> Self {
        Self {
            folder,
            write,
            manifest: None,
            certificates: BTreeMap::new(),
            heads: BTreeMap::new(),
            ahead: BTreeMap::new(),
            forks: Vec::new(),
        }
    }

    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The key that certifies devices, once it is known.
    pub fn write_public(&self) -> Option<WritePublic> {
        self.write
    }

    /// Takes a manifest if the owner signed it and it is not older than ours. True if it is news.
    pub fn offer_manifest(&mut self, manifest: Unverified<Manifest>) -> Result<bool, BadSignature> {
        let manifest = manifest.verify(&self.folder)?;
        let old = self.manifest.as_ref().map(|m| m.claims().epoch);
        if old.is_some_and(|epoch| epoch > manifest.claims().epoch)
            || self.manifest.as_ref() == Some(&manifest)
        {
            return Ok(false);
        }
        self.write = Some(manifest.claims().write);
        self.manifest = Some(manifest);
        Ok(true)
    }

    /// Takes a certificate if the write key signed it. True if it is news. `today` counts Unix days.
    pub fn offer_certificate(
        &mut self,
        certificate: Unverified<Certificate>,
        today: u32,
    ) -> Result<bool, HeadError> {
        let write = self.write.ok_or(HeadError::NoManifest)?;
        let certificate = certificate.verify(&write, today)?;
        let known = self.certificates.get(&certificate.device());
        if known == Some(&certificate) {
            return Ok(false);
        }
        if known.is_none() && self.certificates.len() >= KEPT_MAX {
            return Err(HeadError::TooMany);
        }
        self.certificates.insert(certificate.device(), certificate);
        Ok(true)
    }

    /// Whether a head that arrived could count: `Some` if it is newer than what we have, `None` if it is old news.
    pub fn check(
        &mut self,
        head: Unverified<Head>,
        now_ms: u64,
    ) -> Result<Option<Head>, HeadError> {
        let claims = head.claimed().claims().clone();
        let known = self.heads.get(&claims.incarnation);
        if known.is_some_and(|k| k.claims().seq > claims.seq || k == head.claimed()) {
            return Ok(None);
        }
        self.check_standing(&claims)?;
        if known.is_some_and(|k| k.claims().device != claims.device) {
            return Err(HeadError::Foreign(claims.incarnation));
        }
        let fork = known.is_some_and(|k| k.claims().seq == claims.seq);
        if fork && self.forks.len() >= FORKS_MAX {
            // Proof enough is kept: further ones are not worth checking a signature.
            return Err(HeadError::Fork(claims.incarnation));
        }
        let head = head.verify()?;
        let ahead_ms = (claims.hlc >> 16).saturating_sub(now_ms);
        if ahead_ms > AHEAD_MS_MAX {
            self.keep_ahead(head);
            return Err(HeadError::Future { ahead_ms });
        }
        if let Some(known) = self.heads.get(&claims.incarnation)
            && known.claims().seq == claims.seq
        {
            self.forks.push((known.clone(), head));
            return Err(HeadError::Fork(claims.incarnation));
        }
        if known_is_full(&self.heads, &claims.incarnation) {
            return Err(HeadError::TooMany);
        }
        Ok(Some(head))
    }

    fn keep_ahead(&mut self, head: Head) {
        let incarnation = head.claims().incarnation;
        let older = self.ahead.get(&incarnation);
        let is_room = older.is_some() || self.ahead.len() < AHEAD_KEPT_MAX;
        if is_room && older.is_none_or(|known| known.claims().seq < head.claims().seq) {
            self.ahead.insert(incarnation, head);
        }
    }

    /// The head of `incarnation` that was refused because its clock was ahead, if the device that signed `later`, whose
    /// clock is right and whose vector names that incarnation, is the same: it went on from there, and so may we. A device
    /// that was killed before its clock was set right cannot sign for the old incarnation again.
    pub fn vouched(&self, later: &Head, incarnation: &Incarnation) -> Option<&Head> {
        let ahead = self.ahead.get(incarnation)?;
        (ahead.claims().device == later.claims().device).then_some(ahead)
    }

    fn check_standing(&self, claims: &super::HeadClaims) -> Result<(), HeadError> {
        if let Some(manifest) = &self.manifest {
            let ours = manifest.claims().epoch;
            if claims.epoch != ours {
                return Err(HeadError::Epoch {
                    theirs: claims.epoch,
                    ours,
                });
            }
            let revoked = manifest.revoked_after(&claims.incarnation);
            if revoked.is_some_and(|last| claims.seq > last) {
                return Err(HeadError::Revoked(claims.incarnation));
            }
        }
        if !self.certificates.contains_key(&claims.device) {
            return Err(HeadError::NoCertificate(claims.device));
        }
        Ok(())
    }

    /// Makes a checked head the newest of its incarnation. False if a newer one came in between.
    pub fn take(&mut self, head: Head) -> bool {
        self.ahead.remove(&head.claims().incarnation);
        let slot = self.heads.entry(head.claims().incarnation);
        match slot {
            std::collections::btree_map::Entry::Occupied(mut known) => {
                let newer = known.get().claims().seq < head.claims().seq;
                if newer {
                    known.insert(head);
                }
                newer
            }
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(head);
                true
            }
        }
    }

    /// The highest counter each incarnation has signed, as far as we know, counting `also`: heads that were checked, but
    /// whose snapshots are not merged yet. A signature counts from the moment it is verified.
    pub fn counters<'h>(&'h self, also: impl IntoIterator<Item = &'h Head>) -> Counters {
        let mut counters = BTreeMap::new();
        for head in self.heads.values().chain(also) {
            let signed = counters.entry(head.claims().incarnation).or_insert(0);
            *signed = head.claims().ctr.max(*signed);
        }
        Counters(counters)
    }

    /// The newest head of every incarnation.
    pub fn heads(&self) -> impl Iterator<Item = &Head> {
        self.heads.values()
    }

    pub fn get(&self, incarnation: &Incarnation) -> Option<&Head> {
        self.heads.get(incarnation)
    }

    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.values()
    }

    /// What the devices behind all incarnations are called, counting `also`: heads that were checked, but are not taken yet.
    pub fn named<'h>(
        &'h self,
        also: impl IntoIterator<Item = &'h Head>,
    ) -> impl Iterator<Item = (Incarnation, &'h str)> {
        self.heads.values().chain(also).filter_map(|head| {
            let claims = head.claims();
            let certificate = self.certificates.get(&claims.device)?;
            Some((claims.incarnation, certificate.name().as_str()))
        })
    }

    /// What the device that publishes as `incarnation` is called.
    pub fn device_name(&self, incarnation: &Incarnation) -> Option<&str> {
        let device = self.heads.get(incarnation)?.claims().device;
        Some(self.certificates.get(&device)?.name().as_str())
    }

    /// Pairs of heads that one incarnation signed with one number: two machines use one device key.
    pub fn forks(&self) -> &[(Head, Head)] {
        &self.forks
    }

    /// The table as it is kept on disk: version, manifest, certificates, heads; each checked again when read.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let mut put = |bytes: &[u8]| {
            out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        put(&self
            .manifest
            .as_ref()
            .map(Manifest::encode)
            .unwrap_or_default());
        for certificate in self.certificates.values() {
            put(&certificate.encode());
        }
        put(&[]);
        for head in self.heads.values() {
            put(&head.encode());
        }
        put(&[]);
        out
    }

    /// Reads [`Self::encode`]'s bytes into this (fresh) table. What no longer verifies is left out.
    pub fn restore(&mut self, bytes: &[u8], today: u32) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        at_most("version", u64::from(reader.u8()?), u64::from(VERSION))?;
        let manifest = list_item(&mut reader)?;
        if !manifest.is_empty() {
            let _news = self.offer_manifest(Manifest::decode(manifest)?);
        }
        loop {
            let certificate = list_item(&mut reader)?;
            if certificate.is_empty() {
                break;
            }
            let _news = self.offer_certificate(Certificate::decode(certificate)?, today);
        }
        loop {
            let head = list_item(&mut reader)?;
            if head.is_empty() {
                return reader.finish();
            }
            let mut fields = Reader::new(head);
            if let Ok(Some(head)) = self.check(Head::read(&mut fields)?, u64::MAX >> 16) {
                self.take(head);
            }
        }
    }
}

/// See [`Heads::counters`].
#[derive(Debug, Clone)]
pub struct Counters(BTreeMap<Incarnation, u64>);

impl Counters {
    /// The first incarnation of `vector` whose counter is above what it signed. Believing such a vector would make us drop
    /// what that incarnation writes next.
    pub fn uncovered(
        &self,
        vector: impl IntoIterator<Item = (Incarnation, u64)>,
    ) -> Option<Incarnation> {
        let above = |inc: &Incarnation, ctr: u64| self.0.get(inc).is_none_or(|max| *max < ctr);
        vector
            .into_iter()
            .find(|(inc, ctr)| above(inc, *ctr))
            .map(|(inc, _)| inc)
    }
}

fn known_is_full(heads: &BTreeMap<Incarnation, Head>, incarnation: &Incarnation) -> bool {
    heads.len() >= KEPT_MAX && !heads.contains_key(incarnation)
}

fn list_item<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let len = reader.u16()?;
    reader.take(usize::from(len))
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceKey, HeadClaims, ManifestClaims, NodeId, OwnerSeed, Role, Suite};
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    struct World {
        owner: OwnerSeed,
        heads: Heads,
    }

    fn world() -> World {
        let owner = OwnerSeed::from_bytes([1; 32]);
        let mut heads = Heads::new(owner.folder(), None);
        let claims = ManifestClaims {
            epoch: 0,
            suite: Suite::Blake3,
            write: owner.write_key(0).public(),
            flags: 0,
            revocations: vec![],
        };
        heads
            .offer_manifest(Manifest::sign(&owner, claims).unwrap().into())
            .unwrap();
        World { owner, heads }
    }

    fn device(n: u8) -> DeviceKey {
        DeviceKey::from_bytes([n; 32])
    }

    fn certify(world: &mut World, n: u8) {
        let name = format!("dev-{n}").parse().unwrap();
        let write = world.owner.write_key(0);
        let cert = Certificate::issue(&write, device(n).id(), Role::Writer, 0, name);
        world.heads.offer_certificate(cert.into(), 0).unwrap();
    }

    fn head(n: u8, inc: u8, seq: u64, ctr: u64) -> Head {
        let claims = HeadClaims {
            epoch: 0,
            device: device(n).id(),
            incarnation: Incarnation::from_bytes([inc; 8]),
            ctr,
            seq,
            snapshot: NodeId::from_bytes([seq as u8; 32]),
            previous: [0; 32],
            hlc: NOW_MS << 16,
            flags: 0,
        };
        Head::sign(&device(n), claims)
    }

    fn offer(world: &mut World, h: &Head) -> Result<bool, HeadError> {
        let new = world.heads.check(h.clone().into(), NOW_MS)?;
        Ok(new.is_some_and(|h| world.heads.take(h)))
    }

    #[test]
    fn only_a_certified_device_counts() {
        let mut w = world();
        let h = head(5, 1, 1, 1);
        assert_eq!(
            offer(&mut w, &h),
            Err(HeadError::NoCertificate(device(5).id()))
        );
        certify(&mut w, 5);
        assert_eq!(offer(&mut w, &h), Ok(true));
        assert_eq!(
            w.heads.device_name(&Incarnation::from_bytes([1; 8])),
            Some("dev-5")
        );
    }

    #[test]
    fn replays_change_nothing_and_a_fork_is_kept_as_proof() {
        let mut w = world();
        certify(&mut w, 5);
        let (one, two) = (head(5, 1, 1, 1), head(5, 1, 2, 7));
        assert_eq!(offer(&mut w, &two), Ok(true));
        assert_eq!(offer(&mut w, &one), Ok(false));
        assert_eq!(offer(&mut w, &two), Ok(false));
        let other = head(5, 1, 2, 8);
        let inc = Incarnation::from_bytes([1; 8]);
        assert_eq!(offer(&mut w, &other), Err(HeadError::Fork(inc)));
        assert_eq!(w.heads.forks().len(), 1);
        for n in 0..100 {
            let other = head(5, 1, 2, 9 + n);
            assert_eq!(offer(&mut w, &other), Err(HeadError::Fork(inc)));
        }
        assert_eq!(w.heads.forks().len(), FORKS_MAX, "enough is enough");
        assert_eq!(w.heads.get(&inc), Some(&two));
    }

    #[test]
    fn a_forged_number_or_a_stolen_incarnation_is_refused() {
        let mut w = world();
        certify(&mut w, 5);
        certify(&mut w, 6);
        let real = head(5, 1, 1, 1);
        let mut bytes = real.encode();
        bytes[52..60].copy_from_slice(&(1_u64 << 63).to_le_bytes());
        let forged = w.heads.check(Head::decode(&bytes).unwrap(), NOW_MS);
        assert_eq!(forged, Err(HeadError::Signature(BadSignature)));
        assert_eq!(offer(&mut w, &real), Ok(true));
        let inc = Incarnation::from_bytes([1; 8]);
        assert_eq!(
            offer(&mut w, &head(6, 1, 9, 9)),
            Err(HeadError::Foreign(inc))
        );
    }

    #[test]
    fn a_clock_far_ahead_is_held_back() {
        let mut w = world();
        certify(&mut w, 5);
        let early = w
            .heads
            .check(head(5, 1, 1, 1).into(), NOW_MS - AHEAD_MS_MAX - 1);
        assert_eq!(
            early,
            Err(HeadError::Future {
                ahead_ms: AHEAD_MS_MAX + 1
            })
        );
        assert!(
            w.heads
                .check(head(5, 1, 1, 1).into(), NOW_MS - AHEAD_MS_MAX)
                .is_ok()
        );
    }

    #[test]
    fn a_device_vouches_for_what_it_signed_with_its_clock_ahead() {
        let mut w = world();
        certify(&mut w, 5);
        certify(&mut w, 6);
        let (ahead, early) = (head(5, 1, 1, 1), NOW_MS - AHEAD_MS_MAX - 1);
        assert!(w.heads.check(ahead.clone().into(), early).is_err());
        let inc = ahead.claims().incarnation;
        assert_eq!(w.heads.vouched(&head(5, 2, 1, 1), &inc), Some(&ahead));
        assert_eq!(w.heads.vouched(&head(6, 2, 1, 1), &inc), None);
        w.heads.take(ahead);
        assert_eq!(w.heads.vouched(&head(5, 2, 1, 1), &inc), None);
        for n in 1..=AHEAD_KEPT_MAX as u8 + 1 {
            assert!(w.heads.check(head(6, n, 1, 1).into(), early).is_err());
        }
        assert_eq!(w.heads.ahead.len(), AHEAD_KEPT_MAX);
    }

    #[test]
    fn a_vector_may_not_run_ahead_of_what_its_devices_signed() {
        let mut w = world();
        certify(&mut w, 5);
        certify(&mut w, 6);
        assert_eq!(offer(&mut w, &head(5, 1, 1, 10)), Ok(true));
        let by_6 = head(6, 2, 1, 3);
        let inc = |n| Incarnation::from_bytes([n; 8]);
        let signed = |w: &World| w.heads.counters([&by_6]);
        let check = |w: &World, a, b| signed(w).uncovered([(inc(1), a), (inc(2), b)]);
        assert_eq!(check(&w, 10, 3), None);
        assert_eq!(check(&w, 11, 3), Some(Incarnation::from_bytes([1; 8])));
        assert_eq!(check(&w, 10, 4), Some(Incarnation::from_bytes([2; 8])));
    }

    #[test]
    fn the_table_survives_a_restart() {
        let mut w = world();
        certify(&mut w, 5);
        assert_eq!(offer(&mut w, &head(5, 1, 3, 4)), Ok(true));
        let bytes = w.heads.encode();
        let mut again = Heads::new(w.owner.folder(), None);
        again.restore(&bytes, 0).unwrap();
        assert_eq!(again.encode(), bytes);
        assert_eq!(again.heads().count(), 1);
        for cut in 0..bytes.len() {
            let mut torn = Heads::new(w.owner.folder(), None);
            assert!(torn.restore(&bytes[..cut], 0).is_err());
        }
    }
}
