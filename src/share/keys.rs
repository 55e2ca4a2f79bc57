//! The capability chain owner > write > read > discover, and what each level derives
//! (`docs/bep_xet.md` section 1). Every step is a BLAKE3 key derivation, so a holder can always
//! hand out less and never more. Secrets are wiped on drop and never shown by `Debug`.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::ids::{DeviceId, FolderId, SwarmId};
use super::signed::{self, BadSignature};

const WRITE_CONTEXT: &str = "ccbt 2026 write";
const READ_CONTEXT: &str = "ccbt 2026 read";
const DISCOVER_CONTEXT: &str = "ccbt 2026 discover";
const SWARM_CONTEXT: &str = "ccbt 2026 swarm";
const PSK_CONTEXT: &str = "ccbt 2026 psk";
const ITEM_CONTEXT: &str = "ccbt 2026 dht item";
const SALT_CONTEXT: &str = "ccbt 2026 salt";
const READER_CONTEXT: &str = "ccbt 2026 reader";

/// 32 secret bytes, wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

macro_rules! secret_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Secret);

        impl $name {
            /// Wraps the secret bytes as they stand in a link or key file.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(Zeroizing::new(bytes))
            }

            /// The secret itself, for links and key files only.
            pub fn expose(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

secret_key!(
    /// `S`: the owner's seed. Signs manifests; every right of every epoch follows from it.
    OwnerSeed
);
secret_key!(
    /// `W`: the right to write in one epoch. Certifies devices and signs the DHT item.
    WriteKey
);
secret_key!(
    /// `R`: the right to read in one epoch.
    ReadKey
);
secret_key!(
    /// `D`: the right to find and meet the swarm, not to understand it.
    DiscoverKey
);
secret_key!(
    /// The Ed25519 key of one installation. Signs heads and AUTH.
    DeviceKey
);

impl OwnerSeed {
    /// A new folder's seed from `random`.
    pub fn generate(random: &mut dyn FnMut(&mut [u8])) -> Self {
        Self(drawn(random))
    }

    /// The folder this seed owns.
    pub fn folder(&self) -> FolderId {
        FolderId::from_bytes(public(&self.0))
    }

    /// The write key of `epoch`.
    pub fn write_key(&self, epoch: u32) -> WriteKey {
        let mut material = Zeroizing::new([0; 36]);
        material[..32].copy_from_slice(self.expose());
        material[32..].copy_from_slice(&epoch.to_le_bytes());
        WriteKey(derive(WRITE_CONTEXT, &material[..]))
    }

    /// Signs `context | bytes` as the owner.
    pub(super) fn sign(&self, context: &[u8], bytes: &[u8]) -> [u8; 64] {
        sign(&self.0, context, bytes)
    }
}

impl WriteKey {
    /// The public half, by which certificates and the DHT item are checked.
    pub fn public(&self) -> WritePublic {
        WritePublic(public(&self.0))
    }

    /// The read key of the same epoch.
    pub fn read_key(&self) -> ReadKey {
        ReadKey(derive(READ_CONTEXT, self.expose()))
    }

    /// Signs `context | bytes` as a holder of the write key.
    pub(super) fn sign(&self, context: &[u8], bytes: &[u8]) -> [u8; 64] {
        sign(&self.0, context, bytes)
    }
}

impl ReadKey {
    /// The discovery key of the same epoch.
    pub fn discover_key(&self) -> DiscoverKey {
        DiscoverKey(derive(DISCOVER_CONTEXT, self.expose()))
    }

    /// Key of the MAC in AUTH that proves the right to read.
    pub fn reader_key(&self) -> Secret {
        derive(READER_CONTEXT, self.expose())
    }
}

impl DiscoverKey {
    /// Info-hash under which members announce themselves.
    pub fn swarm(&self) -> SwarmId {
        SwarmId::from_bytes(prefix(&derive(SWARM_CONTEXT, self.expose())))
    }

    /// Pre-shared key of the Noise handshake.
    pub fn psk(&self) -> Secret {
        derive(PSK_CONTEXT, self.expose())
    }

    /// XChaCha20-Poly1305 key of the DHT item.
    pub fn item_key(&self) -> Secret {
        derive(ITEM_CONTEXT, self.expose())
    }

    /// BEP 44 salt of the DHT item.
    pub fn salt(&self) -> [u8; 8] {
        prefix(&derive(SALT_CONTEXT, self.expose()))
    }
}

impl DeviceKey {
    /// A new installation's key from `random`.
    pub fn generate(random: &mut dyn FnMut(&mut [u8])) -> Self {
        Self(drawn(random))
    }

    /// The public half, which names the device.
    pub fn id(&self) -> DeviceId {
        DeviceId::from_bytes(public(&self.0))
    }

    /// Signs `context | bytes` as this device.
    pub(super) fn sign(&self, context: &[u8], bytes: &[u8]) -> [u8; 64] {
        sign(&self.0, context, bytes)
    }
}

/// `PK_w`: the public half of the write key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WritePublic(pub [u8; 32]);

impl WritePublic {
    pub(super) fn verify(
        &self,
        context: &[u8],
        bytes: &[u8],
        signature: &[u8; 64],
    ) -> Result<(), BadSignature> {
        signed::verify(&self.0, context, bytes, signature)
    }
}

/// Whether `bytes` can be an Ed25519 public key that signatures are accepted from.
pub(super) fn is_public_key(bytes: &[u8; 32]) -> bool {
    VerifyingKey::from_bytes(bytes).is_ok_and(|key| !key.is_weak())
}

fn sign(secret: &[u8; 32], context: &[u8], bytes: &[u8]) -> [u8; 64] {
    let text = [context, bytes].concat();
    SigningKey::from_bytes(secret).sign(&text).to_bytes()
}

fn public(secret: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(secret).verifying_key().to_bytes()
}

fn derive(context: &str, material: &[u8]) -> Secret {
    Zeroizing::new(blake3::derive_key(context, material))
}

fn drawn(random: &mut dyn FnMut(&mut [u8])) -> Secret {
    let mut secret = Zeroizing::new([0; 32]);
    random(&mut secret[..]);
    secret
}

fn prefix<const N: usize>(bytes: &[u8; 32]) -> [u8; N] {
    const { assert!(N <= 32) }
    std::array::from_fn(|i| bytes[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chain of a fixed seed. It may not change: every link ever handed out depends on it.
    #[test]
    fn the_chain_of_a_fixed_seed_does_not_move() {
        let write = OwnerSeed::from_bytes([7; 32]).write_key(3);
        let mut material = vec![7; 32];
        material.extend_from_slice(&[3, 0, 0, 0]);
        assert_eq!(
            write.expose(),
            &blake3::derive_key("ccbt 2026 write", &material)
        );
        let discover = write.read_key().discover_key();
        assert_eq!(discover.swarm().to_string(), GOLDEN_SWARM);
    }

    const GOLDEN_SWARM: &str = "57c23cccee8553f247cf215d26732fa653289886";

    #[test]
    fn every_derived_value_is_its_own() {
        let read = ReadKey::from_bytes([1; 32]);
        let discover = read.discover_key();
        let all = [
            *read.expose(),
            *read.reader_key(),
            *discover.expose(),
            *discover.psk(),
            *discover.item_key(),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "value {i} repeats");
        }
    }

    #[test]
    fn an_epoch_changes_everything_below_the_owner() {
        let owner = OwnerSeed::from_bytes([9; 32]);
        let swarm = |epoch| owner.write_key(epoch).read_key().discover_key().swarm();
        assert_ne!(swarm(0), swarm(1));
        assert_eq!(swarm(1), swarm(1));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = WriteKey::from_bytes([0xab; 32]);
        assert_eq!(format!("{key:?}"), "WriteKey(secret)");
    }
}
