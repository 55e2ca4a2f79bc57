//! Objects that arrive with a signature nobody has checked yet.

use ed25519_dalek::{Signature, VerifyingKey};
use thiserror::Error;

/// The signature on an object is not by the key that had to make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// Something parsed whose signature is still to be checked. `verify` of the inner type gives the
/// object itself; until then it can be stored, forwarded and looked at, but not mistaken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified<T>(pub(super) T);

impl<T> Unverified<T> {
    /// What the sender claims. Good for finding the key to verify with, for nothing else.
    pub fn claimed(&self) -> &T {
        &self.0
    }
}

impl<T> From<T> for Unverified<T> {
    fn from(verified: T) -> Self {
        Self(verified)
    }
}

/// Checks an Ed25519 signature over `context | bytes`. The strict form: small-order keys and
/// signatures that only some implementations take are refused, so all devices agree.
pub(super) fn verify(
    key: &[u8; 32],
    context: &[u8],
    bytes: &[u8],
    signature: &[u8; 64],
) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| BadSignature)?;
    let text = [context, bytes].concat();
    key.verify_strict(&text, &Signature::from_bytes(signature))
        .map_err(|_| BadSignature)
}
