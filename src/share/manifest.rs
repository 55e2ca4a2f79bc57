//! The manifest: the owner's statement which write key is in force and which incarnations are
//! revoked. It travels in AUTH and MANIFEST, so that links can stay short.

use super::ids::{FolderId, Incarnation};
use super::keys::{OwnerSeed, WritePublic};
use super::link::Suite;
use super::signed::{self, BadSignature, Unverified};
use super::wire::{DecodeError, Reader};

const MANIFEST_CONTEXT: &[u8] = b"ccbt 2026 manifest";
const VERSION: u8 = 1;

/// Most revocations in one manifest; beyond that the owner starts a new epoch.
pub const REVOCATIONS_MAX: u16 = 1024;

const FIXED_LEN: usize = 1 + 4 + 1 + 32 + 4 + 2;
const REVOCATION_LEN: usize = 16;

/// Longest encoded manifest in bytes.
pub const MANIFEST_LEN_MAX: usize = FIXED_LEN + REVOCATION_LEN * REVOCATIONS_MAX as usize + 64;

/// The owner's statement, with its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    claims: ManifestClaims,
    signature: [u8; 64],
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestClaims {
    /// Counts write keys; a new epoch is a new swarm.
    pub epoch: u32,
    /// Hash suite of the folder's chunks.
    pub suite: Suite,
    /// The key that certifies devices in this epoch.
    pub write: WritePublic,
    /// Reserved; kept as found.
    pub flags: u32,
    /// Incarnations whose later heads do not count, ascending by incarnation.
    pub revocations: Vec<Revocation>,
}

/// One revoked incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// Whose heads stop counting.
    pub incarnation: Incarnation,
    /// The last `seq` that still counts.
    pub last_seq: u64,
}

impl Manifest {
    /// Signs `claims` as the owner. Revocations are put in order; of two for one incarnation the
    /// stricter stays. Fails when more than [`REVOCATIONS_MAX`] remain.
    pub fn sign(owner: &OwnerSeed, mut claims: ManifestClaims) -> Result<Self, DecodeError> {
        claims
            .revocations
            .sort_by_key(|r| (r.incarnation, r.last_seq));
        claims.revocations.dedup_by_key(|r| r.incarnation);
        let count = claims.revocations.len() as u64;
        super::wire::at_most("revocations", count, u64::from(REVOCATIONS_MAX))?;
        let signature = owner.sign(MANIFEST_CONTEXT, &claims.encode());
        Ok(Self { claims, signature })
    }

    /// What it says.
    pub fn claims(&self) -> &ManifestClaims {
        &self.claims
    }

    /// The last `seq` of `incarnation` that counts, if it is revoked.
    pub fn revoked_after(&self, incarnation: &Incarnation) -> Option<u64> {
        let list = &self.claims.revocations;
        let at = list
            .binary_search_by_key(incarnation, |r| r.incarnation)
            .ok()?;
        list.get(at).map(|r| r.last_seq)
    }

    /// The bytes of `docs/bep_xet.md` section 1.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.claims.encode();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Parses exactly one manifest.
    pub fn decode(bytes: &[u8]) -> Result<Unverified<Self>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let claims = ManifestClaims::decode(&mut reader)?;
        let signature = reader.array()?;
        reader.finish()?;
        Ok(Unverified(Self { claims, signature }))
    }
}

impl Unverified<Manifest> {
    /// Checks that the owner of `folder` signed it.
    pub fn verify(self, folder: &FolderId) -> Result<Manifest, BadSignature> {
        let text = self.0.claims.encode();
        signed::verify(
            folder.as_bytes(),
            MANIFEST_CONTEXT,
            &text,
            &self.0.signature,
        )?;
        Ok(self.0)
    }
}

impl ManifestClaims {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_LEN + REVOCATION_LEN * self.revocations.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.push(self.suite.byte());
        bytes.extend_from_slice(&self.write.0);
        bytes.extend_from_slice(&self.flags.to_le_bytes());
        bytes.extend_from_slice(&(self.revocations.len() as u16).to_le_bytes());
        for revocation in &self.revocations {
            bytes.extend_from_slice(revocation.incarnation.as_bytes());
            bytes.extend_from_slice(&revocation.last_seq.to_le_bytes());
        }
        bytes
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            VERSION => {}
            value => {
                return Err(DecodeError::Value {
                    what: "manifest version",
                    value: u64::from(value),
                });
            }
        }
        let epoch = reader.u32()?;
        let suite = reader.u8()?;
        let Some(suite) = Suite::from_byte(suite) else {
            return Err(DecodeError::Value {
                what: "suite",
                value: u64::from(suite),
            });
        };
        let write = WritePublic(reader.array()?);
        let flags = reader.u32()?;
        let count = reader.count("revocations", REVOCATIONS_MAX, REVOCATION_LEN)?;
        let mut revocations: Vec<Revocation> = Vec::with_capacity(count);
        for _ in 0..count {
            let incarnation = Incarnation::from_bytes(reader.array()?);
            if revocations
                .last()
                .is_some_and(|last| last.incarnation >= incarnation)
            {
                return Err(DecodeError::Order {
                    what: "revocations",
                });
            }
            revocations.push(Revocation {
                incarnation,
                last_seq: reader.u64()?,
            });
        }
        Ok(Self {
            epoch,
            suite,
            write,
            flags,
            revocations,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revoke(first: u8, last_seq: u64) -> Revocation {
        Revocation {
            incarnation: Incarnation::from_bytes([first; 8]),
            last_seq,
        }
    }

    fn sample(revocations: Vec<Revocation>) -> (OwnerSeed, Manifest) {
        let owner = OwnerSeed::from_bytes([1; 32]);
        let claims = ManifestClaims {
            epoch: 2,
            suite: Suite::Blake3,
            write: owner.write_key(2).public(),
            flags: 0,
            revocations,
        };
        let manifest = Manifest::sign(&owner, claims).unwrap();
        (owner, manifest)
    }

    #[test]
    fn round_trip_and_verify() {
        let (owner, manifest) = sample(vec![revoke(9, 4), revoke(2, 8), revoke(9, 3)]);
        let bytes = manifest.encode();
        assert_eq!(bytes.len(), 44 + 2 * 16 + 64);
        let decoded = Manifest::decode(&bytes)
            .unwrap()
            .verify(&owner.folder())
            .unwrap();
        assert_eq!(decoded, manifest);
        assert_eq!(
            decoded.revoked_after(&Incarnation::from_bytes([9; 8])),
            Some(3)
        );
        assert_eq!(
            decoded.revoked_after(&Incarnation::from_bytes([3; 8])),
            None
        );
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let (owner, manifest) = sample(vec![revoke(2, 8)]);
        let bytes = manifest.encode();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let verified = Manifest::decode(&changed).map(|m| m.verify(&owner.folder()));
            assert!(!matches!(verified, Ok(Ok(_))), "byte {i}");
        }
    }

    #[test]
    fn another_owner_is_refused() {
        let (_, manifest) = sample(vec![]);
        let other = OwnerSeed::from_bytes([2; 32]).folder();
        assert_eq!(Unverified::from(manifest).verify(&other), Err(BadSignature));
    }

    #[test]
    fn revocations_out_of_order_are_refused() {
        let (_, manifest) = sample(vec![revoke(2, 8), revoke(3, 8)]);
        let mut bytes = manifest.encode();
        bytes[44] = 7;
        let refused = Manifest::decode(&bytes);
        assert_eq!(
            refused,
            Err(DecodeError::Order {
                what: "revocations"
            })
        );
    }

    #[test]
    fn the_longest_manifest_has_the_documented_length() {
        let all = (0..REVOCATIONS_MAX).map(|i| Revocation {
            incarnation: Incarnation::from_bytes(u64::from(i).to_be_bytes()),
            last_seq: 0,
        });
        let (_, manifest) = sample(all.collect());
        assert_eq!(manifest.encode().len(), MANIFEST_LEN_MAX);
    }
}
