//! Names of things: each its own type, so that none can be passed for another.

use std::fmt;

pub use ccbt_xet::hash::{ChunkHash, NodeId, NodeId as SnapshotId};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Wraps raw bytes as they stand on the wire.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

id!(
    /// Info-hash of a folder's swarm: what trackers, the DHT and strangers see of it.
    SwarmId,
    20
);
id!(
    /// Identity of a folder: the owner's Ed25519 public key.
    FolderId,
    32
);
id!(
    /// Identity of a device: its Ed25519 public key.
    DeviceId,
    32
);
id!(
    /// One life of a device's state directory; its counters never repeat (`merge-rules`).
    Incarnation,
    8
);
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_plain_hex_and_their_type() {
        let id = Incarnation::from_bytes([0, 1, 0x7f, 0x80, 0xff, 0xab, 0xcd, 0xef]);
        assert_eq!(id.to_string(), "00017f80ffabcdef");
        assert_eq!(format!("{id:?}"), "Incarnation(00017f80ffabcdef)");
    }
}
