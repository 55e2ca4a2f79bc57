//! Certificates: the write key says that a device may publish, under which name and until when.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::ids::DeviceId;
use super::keys::{WriteKey, WritePublic};
use super::signed::{BadSignature, Unverified};
use super::wire::{DecodeError, Reader, at_most};

const CERT_CONTEXT: &[u8] = b"ccbt 2026 cert";

/// Longest device name in bytes; it appears in the names of conflict files.
pub const NAME_LEN_MAX: usize = 16;

/// Longest encoded certificate in bytes.
pub const CERT_LEN_MAX: usize = 32 + 1 + 4 + 1 + NAME_LEN_MAX + 64;

/// A statement of the write key about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    device: DeviceId,
    role: Role,
    expires_day: u32,
    name: DeviceName,
    signature: [u8; 64],
}

/// What a certified device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Publishes heads.
    Writer,
    /// Publishes heads and keeps whole snapshots, so its STORED counts.
    Keeper,
}

/// 1 to 16 of `A-Z a-z 0-9 -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceName(String);

/// A certificate is not valid here and now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CertError {
    /// Not signed by the folder's write key.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// Its last day has passed.
    #[error("the certificate expired on day {expires_day}, today is day {today}")]
    Expired {
        /// Last valid Unix day.
        expires_day: u32,
        /// The Unix day it was checked on.
        today: u32,
    },
}

/// Not a device name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a device name is 1 to 16 letters, digits or hyphens, not {0:?}")]
pub struct BadName(String);

impl Certificate {
    /// Certifies `device`. `expires_day` counts Unix days, 0 means never.
    pub fn issue(
        write: &WriteKey,
        device: DeviceId,
        role: Role,
        expires_day: u32,
        name: DeviceName,
    ) -> Self {
        let mut certificate = Self {
            device,
            role,
            expires_day,
            name,
            signature: [0; 64],
        };
        certificate.signature = write.sign(CERT_CONTEXT, &certificate.signed_bytes());
        certificate
    }

    /// The certified device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// What the device does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Last valid Unix day, 0 for never ending.
    pub fn expires_day(&self) -> u32 {
        self.expires_day
    }

    /// The device's name for people.
    pub fn name(&self) -> &DeviceName {
        &self.name
    }

    /// The bytes of `docs/bep_xet.md` section 1.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.signed_bytes();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Parses exactly one certificate.
    pub fn decode(bytes: &[u8]) -> Result<Unverified<Self>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let device = DeviceId::from_bytes(reader.array()?);
        let role = match reader.u8()? {
            1 => Role::Writer,
            2 => Role::Keeper,
            value => {
                return Err(DecodeError::Value {
                    what: "role",
                    value: u64::from(value),
                });
            }
        };
        let expires_day = reader.u32()?;
        let name = decode_name(&mut reader)?;
        let signature = reader.array()?;
        reader.finish()?;
        Ok(Unverified(Self {
            device,
            role,
            expires_day,
            name,
            signature,
        }))
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let name = self.name.0.as_bytes();
        let mut bytes = Vec::with_capacity(CERT_LEN_MAX);
        bytes.extend_from_slice(self.device.as_bytes());
        bytes.push(match self.role {
            Role::Writer => 1,
            Role::Keeper => 2,
        });
        bytes.extend_from_slice(&self.expires_day.to_le_bytes());
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name);
        bytes
    }
}

impl Unverified<Certificate> {
    /// Checks signature and date. `today` counts Unix days.
    pub fn verify(self, write: &WritePublic, today: u32) -> Result<Certificate, CertError> {
        let certificate = self.0;
        write.verify(
            CERT_CONTEXT,
            &certificate.signed_bytes(),
            &certificate.signature,
        )?;
        match certificate.expires_day {
            0 => Ok(certificate),
            expires_day if expires_day < today => Err(CertError::Expired { expires_day, today }),
            _ => Ok(certificate),
        }
    }
}

fn decode_name(reader: &mut Reader<'_>) -> Result<DeviceName, DecodeError> {
    let len = reader.u8()?;
    at_most("name length", u64::from(len), NAME_LEN_MAX as u64)?;
    let name = reader.take(usize::from(len))?;
    let bad = DecodeError::Value {
        what: "name",
        value: u64::from(len),
    };
    std::str::from_utf8(name)
        .map_err(|_| bad)?
        .parse()
        .map_err(|_| bad)
}

impl DeviceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(legal) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadName(name.to_owned()))
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::keys::DeviceKey;

    fn sample(expires_day: u32) -> (WriteKey, Certificate) {
        let write = WriteKey::from_bytes([3; 32]);
        let device = DeviceKey::from_bytes([4; 32]).id();
        let name = "laptop-1".parse().unwrap();
        let certificate = Certificate::issue(&write, device, Role::Keeper, expires_day, name);
        (write, certificate)
    }

    #[test]
    fn round_trip_and_verify() {
        let (write, certificate) = sample(0);
        let bytes = certificate.encode();
        assert_eq!(bytes.len(), 32 + 1 + 4 + 1 + 8 + 64);
        let decoded = Certificate::decode(&bytes).unwrap();
        assert_eq!(decoded.verify(&write.public(), u32::MAX), Ok(certificate));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let (write, certificate) = sample(0);
        let bytes = certificate.encode();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let verified =
                Certificate::decode(&changed).map(|cert| cert.verify(&write.public(), 0));
            assert!(!matches!(verified, Ok(Ok(_))), "byte {i}");
        }
    }

    #[test]
    fn another_write_key_does_not_certify() {
        let (_, certificate) = sample(0);
        let other = WriteKey::from_bytes([5; 32]).public();
        let refused = Unverified::from(certificate).verify(&other, 0);
        assert_eq!(refused, Err(CertError::Signature(BadSignature)));
    }

    #[test]
    fn the_last_day_still_counts() {
        let (write, certificate) = sample(100);
        let verify = |today| Unverified(certificate.clone()).verify(&write.public(), today);
        assert!(verify(100).is_ok());
        assert_eq!(
            verify(101),
            Err(CertError::Expired {
                expires_day: 100,
                today: 101
            })
        );
    }

    #[test]
    fn names_are_short_and_plain() {
        for bad in ["", "a b", "../x", "seventeen-letters", "ä"] {
            assert_eq!(bad.parse::<DeviceName>(), Err(BadName(bad.to_owned())));
        }
        assert_eq!("Host-9".parse::<DeviceName>().unwrap().as_str(), "Host-9");
    }
}
