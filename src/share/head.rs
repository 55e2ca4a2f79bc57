//! Heads: a device's signed statement "my newest snapshot is S" (`docs/formats/tree.md`, "Head").

use super::ids::{DeviceId, Incarnation, SnapshotId};
use super::keys::DeviceKey;
use super::signed::{self, BadSignature, Unverified};
use super::wire::{DecodeError, Reader};

const HEAD_CONTEXT: &[u8] = b"ccbt 2026 head";

/// Every head is this many bytes.
pub const HEAD_LEN: usize = 197;
const SIGNED_LEN: usize = HEAD_LEN - 64;

/// Flag bit 0: the device keeps the whole folder.
pub const FLAG_HOME: u8 = 1;

/// A head with its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    claims: HeadClaims,
    signature: [u8; 64],
}

/// What a head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadClaims {
    /// Epoch of the write key that certifies the device.
    pub epoch: u32,
    /// Who says it.
    pub device: DeviceId,
    /// Which life of that device.
    pub incarnation: Incarnation,
    /// Highest counter of this incarnation used in the snapshot.
    pub ctr: u64,
    /// Number of this head within the incarnation.
    pub seq: u64,
    /// The newest snapshot.
    pub snapshot: SnapshotId,
    /// BLAKE3 of the previous head's 197 bytes, zeros for an incarnation's first.
    pub previous: [u8; 32],
    /// Unix milliseconds * 65536 + counter.
    pub hlc: u64,
    /// [`FLAG_HOME`]; other bits are kept as found.
    pub flags: u8,
}

impl Head {
    /// Signs `claims` with the device key. The caller sees to it that `claims.device` is its id.
    pub fn sign(device: &DeviceKey, claims: HeadClaims) -> Self {
        debug_assert_eq!(device.id(), claims.device);
        let signature = device.sign(HEAD_CONTEXT, &claims.encode());
        Self { claims, signature }
    }

    /// What it says.
    pub fn claims(&self) -> &HeadClaims {
        &self.claims
    }

    /// What the next head of the same incarnation carries as `previous`.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }

    /// The 197 bytes.
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..SIGNED_LEN].copy_from_slice(&self.claims.encode());
        bytes[SIGNED_LEN..].copy_from_slice(&self.signature);
        bytes
    }

    /// Reads the fields. Every 197 bytes are some head, so only the length can be wrong.
    pub fn decode(bytes: &[u8]) -> Result<Unverified<Self>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let head = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(head)
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Unverified<Self>, DecodeError> {
        let claims = HeadClaims {
            epoch: reader.u32()?,
            device: DeviceId::from_bytes(reader.array()?),
            incarnation: Incarnation::from_bytes(reader.array()?),
            ctr: reader.u64()?,
            seq: reader.u64()?,
            snapshot: SnapshotId::from_bytes(reader.array()?),
            previous: reader.array()?,
            hlc: reader.u64()?,
            flags: reader.u8()?,
        };
        Ok(Unverified(Self {
            claims,
            signature: reader.array()?,
        }))
    }
}

impl Unverified<Head> {
    /// Checks that the device the head names signed it. Whether that device may publish is for
    /// its certificate to say.
    pub fn verify(self) -> Result<Head, BadSignature> {
        let claims = &self.0.claims;
        let text = claims.encode();
        signed::verify(
            claims.device.as_bytes(),
            HEAD_CONTEXT,
            &text,
            &self.0.signature,
        )?;
        Ok(self.0)
    }
}

impl HeadClaims {
    fn encode(&self) -> [u8; SIGNED_LEN] {
        let mut bytes = Vec::with_capacity(SIGNED_LEN);
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(self.device.as_bytes());
        bytes.extend_from_slice(self.incarnation.as_bytes());
        bytes.extend_from_slice(&self.ctr.to_le_bytes());
        bytes.extend_from_slice(&self.seq.to_le_bytes());
        bytes.extend_from_slice(self.snapshot.as_bytes());
        bytes.extend_from_slice(&self.previous);
        bytes.extend_from_slice(&self.hlc.to_le_bytes());
        bytes.push(self.flags);
        std::array::from_fn(|i| bytes[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Head {
        let device = DeviceKey::from_bytes([6; 32]);
        let claims = HeadClaims {
            epoch: 1,
            device: device.id(),
            incarnation: Incarnation::from_bytes([2; 8]),
            ctr: 3,
            seq: 4,
            snapshot: SnapshotId::from_bytes([5; 32]),
            previous: [0; 32],
            hlc: 0x0102_0304_0506_0708,
            flags: FLAG_HOME,
        };
        Head::sign(&device, claims)
    }

    #[test]
    fn fields_lie_where_the_format_says() {
        let bytes = sample().encode();
        assert_eq!(bytes[..4], [1, 0, 0, 0]);
        assert_eq!(bytes[36..44], [2; 8]);
        assert_eq!(bytes[44], 3);
        assert_eq!(bytes[52], 4);
        assert_eq!(bytes[60..92], [5; 32]);
        assert_eq!(bytes[124..133], [8, 7, 6, 5, 4, 3, 2, 1, FLAG_HOME]);
    }

    #[test]
    fn round_trip_and_any_changed_byte_is_noticed() {
        let head = sample();
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes).unwrap().verify(), Ok(head));
        for i in 0..HEAD_LEN {
            let mut changed = bytes;
            changed[i] ^= 0x10;
            assert_eq!(
                Head::decode(&changed).unwrap().verify(),
                Err(BadSignature),
                "byte {i}"
            );
        }
    }
}
