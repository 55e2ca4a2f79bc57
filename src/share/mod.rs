//! What makes a folder shared: keys and the rights they give, links, and the signed objects that
//! devices show each other (manifest, certificate, head). Normative text: `docs/bep_xet.md` and
//! `docs/formats/tree.md`.
//!
//! Pure functions and plain types; no clock, no randomness and no sockets of their own.

pub mod auth;
pub mod cert;
pub mod dht_item;
pub mod head;
pub mod heads;
pub mod ids;
pub mod keys;
pub mod link;
pub mod manifest;
pub mod pace;
mod signed;
pub(crate) mod wire;

pub use auth::{Auth, AuthError, FolderCredentials, PeerRights, Side, Writer, WriterProof};
pub use cert::{CertError, Certificate, DeviceName, Role};
pub use head::{Head, HeadClaims};
pub use ids::{ChunkHash, DeviceId, FolderId, Incarnation, NodeId, SnapshotId, SwarmId};
pub use keys::{DeviceKey, DiscoverKey, OwnerSeed, ReadKey, WriteKey, WritePublic};
pub use link::{Capability, Hints, Link, LinkError, Right, Suite};
pub use manifest::{Manifest, ManifestClaims, Revocation};
pub use signed::{BadSignature, Unverified};
pub use wire::DecodeError;
