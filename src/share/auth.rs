//! AUTH: the first frame each way inside Noise, by which both sides show what they may do
//! (`docs/bep_xet.md` section 3). A MAC under the reader key over the handshake hash proves the
//! right to read; a writer adds its certificate and the device's signature of the same text.

use std::sync::Arc;

use thiserror::Error;

use super::cert::{CERT_LEN_MAX, CertError, Certificate};
use super::ids::{DeviceId, FolderId, SwarmId};
use super::keys::{DeviceKey, ReadKey, Secret, WritePublic};
use super::manifest::{MANIFEST_LEN_MAX, Manifest};
use super::signed::{self, BadSignature, Unverified};
use super::wire::{DecodeError, Reader, at_most};

const AUTH_CONTEXT: &[u8] = b"ccbt 2026 auth";

/// Longest body of an AUTH frame in bytes: it has to hold the longest manifest.
pub const AUTH_LEN_MAX: usize = 1 + 32 + 2 + MANIFEST_LEN_MAX + 2 + CERT_LEN_MAX + 64;

/// Everything a device needs to meet the members of one folder.
#[derive(Debug, Clone)]
pub struct FolderCredentials {
    /// The folder.
    pub folder: FolderId,
    /// Proves and checks the right to read.
    pub read: ReadKey,
    /// The write key's public half, if the device holds the write key itself.
    pub write: Option<WritePublic>,
    /// The newest manifest, if one has come so far.
    pub manifest: Option<Manifest>,
    /// What makes this device a writer, if it is one.
    pub writer: Option<Writer>,
}

/// A device that may publish.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The installation's key.
    pub device: Arc<DeviceKey>,
    /// The write key's statement about it.
    pub certificate: Certificate,
}

/// Which end of the connection somebody is. Part of the MAC, so that it cannot be reflected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opened the connection.
    Caller,
    /// Was called.
    Called,
}

/// A parsed AUTH frame, nothing of it checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    mac: [u8; 32],
    manifest: Option<Unverified<Manifest>>,
    writer: Option<WriterProof>,
}

/// What a writer adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterProof {
    certificate: Unverified<Certificate>,
    signature: [u8; 64],
}

/// What a verified AUTH says about the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRights {
    /// The certificate of a writer, `None` for a reader.
    pub certificate: Option<Certificate>,
    /// The manifest it sent.
    pub manifest: Option<Manifest>,
}

/// Why an AUTH is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthError {
    /// The MAC is wrong: no read key, another handshake, or our own AUTH sent back.
    #[error("the peer does not show the right to read")]
    Mac,
    /// The manifest is not signed by the folder's owner.
    #[error("the peer's manifest is not signed by the owner")]
    Manifest,
    /// The peer claims to be a writer, but neither side has the manifest that could prove it.
    #[error("no manifest is known yet to check the peer's certificate with")]
    NoManifest,
    /// The certificate is not valid.
    #[error("the peer's certificate is not accepted: {0}")]
    Certificate(#[from] CertError),
    /// The certificate is good, but the peer does not hold the certified device key.
    #[error("the peer does not hold the device key of the certificate it shows")]
    Device,
}

impl FolderCredentials {
    /// Info-hash of the folder's swarm.
    pub fn swarm(&self) -> SwarmId {
        self.read.discover_key().swarm()
    }

    /// Pre-shared key of the Noise handshake.
    pub fn psk(&self) -> Secret {
        self.read.discover_key().psk()
    }

    /// The epoch, 0 as long as no manifest tells it.
    pub fn epoch(&self) -> u32 {
        self.manifest
            .as_ref()
            .map_or(0, |manifest| manifest.claims().epoch)
    }

    /// The key that certificates are checked with, if it is known.
    fn write_public(&self) -> Option<WritePublic> {
        self.write.or_else(|| {
            self.manifest
                .as_ref()
                .map(|manifest| manifest.claims().write)
        })
    }

    fn mac(&self, text: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.read.reader_key(), text)
    }
}

impl Side {
    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Self::Caller => Self::Called,
            Self::Called => Self::Caller,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Caller => 0,
            Self::Called => 1,
        }
    }
}

impl Auth {
    /// What a device with `credentials` at the end `side` says after the Noise handshake that
    /// ended with the hash `handshake`.
    pub fn prove(credentials: &FolderCredentials, side: Side, handshake: &[u8; 32]) -> Self {
        let text = auth_text(side, credentials.writer.is_some(), handshake);
        let writer = credentials.writer.as_ref().map(|writer| WriterProof {
            certificate: writer.certificate.clone().into(),
            signature: writer.device.sign(&[], &text),
        });
        let manifest = credentials.manifest.clone().map(Unverified::from);
        Self {
            mac: *credentials.mac(&text).as_bytes(),
            manifest,
            writer,
        }
    }

    /// Checks what the peer at the end `side` says. `today` counts Unix days.
    pub fn verify(
        self,
        credentials: &FolderCredentials,
        side: Side,
        handshake: &[u8; 32],
        today: u32,
    ) -> Result<PeerRights, AuthError> {
        let text = auth_text(side, self.writer.is_some(), handshake);
        // `blake3::Hash` compares in constant time.
        if credentials.mac(&text) != blake3::Hash::from_bytes(self.mac) {
            return Err(AuthError::Mac);
        }
        let manifest = self
            .manifest
            .map(|manifest| manifest.verify(&credentials.folder))
            .transpose()
            .map_err(|BadSignature| AuthError::Manifest)?;
        let certificate = match self.writer {
            None => None,
            Some(proof) => {
                let told = manifest.as_ref().map(|manifest| manifest.claims().write);
                let write = credentials
                    .write_public()
                    .or(told)
                    .ok_or(AuthError::NoManifest)?;
                Some(proof.verify(&write, &text, today)?)
            }
        };
        Ok(PeerRights {
            certificate,
            manifest,
        })
    }

    /// Appends the frame body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.writer.is_some()));
        out.extend_from_slice(&self.mac);
        let manifest = self
            .manifest
            .as_ref()
            .map(|manifest| manifest.claimed().encode());
        put_short(out, &manifest.unwrap_or_default());
        if let Some(proof) = &self.writer {
            put_short(out, &proof.certificate.claimed().encode());
            out.extend_from_slice(&proof.signature);
        }
    }

    /// Parses a frame body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let level = reader.u8()?;
        at_most("level", u64::from(level), 1)?;
        let mac = reader.array()?;
        let manifest = match take_short(&mut reader, "manifest length", MANIFEST_LEN_MAX)? {
            [] => None,
            bytes => Some(Manifest::decode(bytes)?),
        };
        let writer = if level == 1 {
            Some(WriterProof::decode(&mut reader)?)
        } else {
            None
        };
        reader.finish()?;
        Ok(Self {
            mac,
            manifest,
            writer,
        })
    }
}

impl WriterProof {
    fn verify(
        self,
        write: &WritePublic,
        text: &[u8],
        today: u32,
    ) -> Result<Certificate, AuthError> {
        let certificate = self.certificate.verify(write, today)?;
        let device: DeviceId = certificate.device();
        signed::verify(device.as_bytes(), &[], text, &self.signature)
            .map_err(|BadSignature| AuthError::Device)?;
        Ok(certificate)
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = take_short(reader, "certificate length", CERT_LEN_MAX)?;
        let certificate = Certificate::decode(bytes)?;
        Ok(Self {
            certificate,
            signature: reader.array()?,
        })
    }
}

/// What MAC and signature are made over.
fn auth_text(side: Side, writer: bool, handshake: &[u8; 32]) -> Vec<u8> {
    [AUTH_CONTEXT, &[side.byte(), u8::from(writer)], handshake].concat()
}

/// Writes bytes behind their `u16` length. Callers stay far below its range by their own limits.
pub(crate) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads what [`put_short`] writes.
pub(crate) fn take_short<'a>(
    reader: &mut Reader<'a>,
    what: &'static str,
    max: usize,
) -> Result<&'a [u8], DecodeError> {
    let len = reader.u16()?;
    at_most(what, u64::from(len), max as u64)?;
    reader.take(usize::from(len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::share::cert::Role;
    use crate::share::keys::OwnerSeed;
    use crate::share::link::Suite;
    use crate::share::manifest::ManifestClaims;

    const HANDSHAKE: [u8; 32] = [0x11; 32];

    fn reader() -> FolderCredentials {
        let owner = OwnerSeed::from_bytes([1; 32]);
        let write = owner.write_key(0);
        let claims = ManifestClaims {
            epoch: 0,
            suite: Suite::Blake3,
            write: write.public(),
            flags: 0,
            revocations: vec![],
        };
        FolderCredentials {
            folder: owner.folder(),
            read: write.read_key(),
            write: None,
            manifest: Some(Manifest::sign(&owner, claims).unwrap()),
            writer: None,
        }
    }

    fn writer() -> FolderCredentials {
        let write = OwnerSeed::from_bytes([1; 32]).write_key(0);
        let device = Arc::new(DeviceKey::from_bytes([2; 32]));
        let name = "desk".parse().unwrap();
        let certificate = Certificate::issue(&write, device.id(), Role::Writer, 0, name);
        FolderCredentials {
            write: Some(write.public()),
            writer: Some(Writer {
                device,
                certificate,
            }),
            ..reader()
        }
    }

    fn trip(auth: &Auth) -> Auth {
        let mut body = vec![];
        auth.encode(&mut body);
        assert!(body.len() <= AUTH_LEN_MAX);
        Auth::decode(&body).unwrap()
    }

    #[test]
    fn reader_and_writer_prove_themselves() {
        let auth = trip(&Auth::prove(&reader(), Side::Caller, &HANDSHAKE));
        let rights = auth.verify(&writer(), Side::Caller, &HANDSHAKE, 0).unwrap();
        assert_eq!(
            rights,
            PeerRights {
                certificate: None,
                manifest: reader().manifest
            }
        );

        let auth = trip(&Auth::prove(&writer(), Side::Called, &HANDSHAKE));
        let rights = auth.verify(&reader(), Side::Called, &HANDSHAKE, 0).unwrap();
        assert_eq!(rights.certificate.unwrap().name().as_str(), "desk");
    }

    #[test]
    fn replay_into_another_handshake_and_reflection_fail() {
        let auth = Auth::prove(&writer(), Side::Caller, &HANDSHAKE);
        let replayed = auth.clone().verify(&reader(), Side::Caller, &[0x22; 32], 0);
        assert_eq!(replayed, Err(AuthError::Mac));
        assert_eq!(
            auth.verify(&reader(), Side::Called, &HANDSHAKE, 0),
            Err(AuthError::Mac)
        );
    }

    #[test]
    fn a_reader_with_somebodys_certificate_is_no_writer() {
        let stolen = writer().writer.unwrap().certificate;
        let thief = FolderCredentials {
            writer: Some(Writer {
                device: Arc::new(DeviceKey::from_bytes([3; 32])),
                certificate: stolen,
            }),
            ..reader()
        };
        let auth = Auth::prove(&thief, Side::Caller, &HANDSHAKE);
        let refused = auth.verify(&reader(), Side::Caller, &HANDSHAKE, 0);
        assert_eq!(refused, Err(AuthError::Device));
    }

    #[test]
    fn without_any_manifest_a_writer_cannot_be_checked() {
        let fresh = |credentials| FolderCredentials {
            manifest: None,
            ..credentials
        };
        let auth = Auth::prove(&fresh(writer()), Side::Caller, &HANDSHAKE);
        let refused = auth.verify(&fresh(reader()), Side::Caller, &HANDSHAKE, 0);
        assert_eq!(refused, Err(AuthError::NoManifest));

        let auth = Auth::prove(&writer(), Side::Caller, &HANDSHAKE);
        let rights = auth
            .verify(&fresh(reader()), Side::Caller, &HANDSHAKE, 0)
            .unwrap();
        assert!(rights.certificate.is_some() && rights.manifest.is_some());
    }

    #[test]
    fn a_manifest_of_another_owner_is_refused() {
        let other = OwnerSeed::from_bytes([9; 32]);
        let claims = reader().manifest.unwrap().claims().clone();
        let manifest = Some(Manifest::sign(&other, claims).unwrap());
        let liar = FolderCredentials {
            manifest,
            ..reader()
        };
        let auth = Auth::prove(&liar, Side::Caller, &HANDSHAKE);
        let refused = auth.verify(&reader(), Side::Caller, &HANDSHAKE, 0);
        assert_eq!(refused, Err(AuthError::Manifest));
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..600)) {
            drop(Auth::decode(&body));
        }

        #[test]
        fn damaged_bodies_never_verify(at: prop::sample::Index, bit in 0u8..8) {
            let mut body = vec![];
            Auth::prove(&writer(), Side::Caller, &HANDSHAKE).encode(&mut body);
            let at = at.index(body.len());
            body[at] ^= 1 << bit;
            let verified = Auth::decode(&body)
                .map(|auth| auth.verify(&reader(), Side::Caller, &HANDSHAKE, 0));
            prop_assert!(!matches!(verified, Ok(Ok(_))));
        }
    }
}
