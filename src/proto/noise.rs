//! Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s around `snow`: ChaCha20-Poly1305 from `ring` (assembly),
//! random bytes from the caller. Sealing writes straight into the output, opening straight into
//! the buffer that frames are cut from.

use bytes::BytesMut;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver, RingResolver};
use snow::types;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::share::SwarmId;
use crate::share::auth::Side;
use crate::share::keys::Secret;

const PATTERN: &str = "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE_CONTEXT: &[u8] = b"ccbt 2026 noise";

/// Bytes of authentication tag on every message.
pub const TAG_LEN: usize = 16;

/// Longest Noise message in bytes (Noise specification, section 3).
pub const MESSAGE_LEN_MAX: usize = 65_535;

/// Longest plaintext of one message in bytes.
pub const PLAINTEXT_LEN_MAX: usize = MESSAGE_LEN_MAX - TAG_LEN;

/// Longest of the three handshake messages in bytes: ephemeral, sealed static, empty payload.
const HANDSHAKE_MESSAGE_LEN_MAX: usize = 32 + (32 + TAG_LEN) + TAG_LEN;

/// A message cannot be opened, or a handshake cannot go on. Which of the ways it failed is of no
/// use to anybody but an attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the peer does not share our key")]
pub struct NoiseError;

/// The X25519 key of this process, the same for all its connections.
#[derive(Clone)]
pub struct StaticKey(Secret);

impl StaticKey {
    /// A new key from `random`.
    pub fn generate(random: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        random(&mut secret[..]);
        Self(secret)
    }
}

impl std::fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StaticKey(secret)")
    }
}

/// A handshake under way.
#[derive(Debug)]
pub struct Handshake(snow::HandshakeState);

/// An established channel.
#[derive(Debug)]
pub struct Transport(snow::TransportState);

impl Handshake {
    /// Begins a handshake on `swarm` as `side`; the caller of the connection speaks first.
    /// `ephemeral` is 32 random bytes that serve no other handshake.
    pub fn begin(
        side: Side,
        swarm: &SwarmId,
        psk: &[u8; 32],
        key: &StaticKey,
        ephemeral: Secret,
    ) -> Result<Self, NoiseError> {
        let prologue = [PROLOGUE_CONTEXT, swarm.as_bytes()].concat();
        let build = || {
            let resolver = Box::new(Resolver { ephemeral });
            let builder = snow::Builder::with_resolver(PATTERN.parse()?, resolver)
                .prologue(&prologue)?
                .psk(0, psk)?
                .local_private_key(&key.0[..])?;
            match side {
                Side::Caller => builder.build_initiator(),
                Side::Called => builder.build_responder(),
            }
        };
        build().map(Self).map_err(|_: snow::Error| NoiseError)
    }

    /// Our next message, if it is our turn.
    pub fn write(&mut self) -> Result<Vec<u8>, NoiseError> {
        let mut message = vec![0; HANDSHAKE_MESSAGE_LEN_MAX];
        let len = self
            .0
            .write_message(&[], &mut message)
            .map_err(|_| NoiseError)?;
        message.truncate(len);
        Ok(message)
    }

    /// Takes the peer's message; one with a payload is refused, the protocol has none here.
    pub fn read(&mut self, message: &[u8]) -> Result<(), NoiseError> {
        let mut payload = [0; HANDSHAKE_MESSAGE_LEN_MAX];
        if message.len() > HANDSHAKE_MESSAGE_LEN_MAX {
            return Err(NoiseError);
        }
        match self.0.read_message(message, &mut payload) {
            Ok(0) => Ok(()),
            Ok(_) | Err(_) => Err(NoiseError),
        }
    }

    /// Whether all three messages are through.
    pub fn is_finished(&self) -> bool {
        self.0.is_handshake_finished()
    }

    /// The channel, and the handshake hash that AUTH binds itself to.
    pub fn finish(self) -> Result<(Transport, [u8; 32]), NoiseError> {
        let hash = self
            .0
            .get_handshake_hash()
            .try_into()
            .map_err(|_| NoiseError)?;
        let transport = self.0.into_transport_mode().map_err(|_| NoiseError)?;
        Ok((Transport(transport), hash))
    }
}

impl Transport {
    /// Appends the sealed form of `plaintext` (at most [`PLAINTEXT_LEN_MAX`] bytes) to `out`.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut BytesMut) -> Result<(), NoiseError> {
        let start = out.len();
        out.resize(start + plaintext.len() + TAG_LEN, 0);
        let space = out.get_mut(start..).unwrap_or_default();
        self.0
            .write_message(plaintext, space)
            .map_err(|_| NoiseError)?;
        Ok(())
    }

    /// Appends the plaintext of `message` to `out`. Needs the room of the whole message there,
    /// tag included, as the cipher works in place.
    pub fn open(&mut self, message: &[u8], out: &mut BytesMut) -> Result<(), NoiseError> {
        let start = out.len();
        out.resize(start + message.len(), 0);
        let space = out.get_mut(start..).unwrap_or_default();
        let opened = self.0.read_message(message, space);
        out.truncate(start + opened.as_ref().map_or(0, |len| *len));
        opened.map(drop).map_err(|_| NoiseError)
    }
}

/// `ring` for the cipher, which carries the bulk; `snow`'s own for what runs once a connection.
struct Resolver {
    ephemeral: Secret,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn types::Random>> {
        Some(Box::new(Drawn(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn types::Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn types::Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn types::Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// The one secret a handshake draws: its ephemeral key. It is handed out once.
struct Drawn(Option<Secret>);

impl types::Random for Drawn {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        match self.0.take() {
            Some(secret) if secret.len() == dest.len() => {
                dest.copy_from_slice(&secret[..]);
                Ok(())
            }
            _ => Err(snow::Error::Rng),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(side: Side, swarm: u8, psk: u8, seed: u8) -> Handshake {
        let mut next = seed;
        let mut random = |dest: &mut [u8]| {
            next = next.wrapping_add(1);
            dest.fill(next);
        };
        let key = StaticKey::generate(&mut random);
        let swarm = SwarmId::from_bytes([swarm; 20]);
        let mut ephemeral = Zeroizing::new([0; 32]);
        random(&mut ephemeral[..]);
        Handshake::begin(side, &swarm, &[psk; 32], &key, ephemeral).unwrap()
    }

    fn pair() -> (Transport, Transport) {
        let (mut caller, mut called) = (side(Side::Caller, 1, 1, 1), side(Side::Called, 1, 1, 9));
        called.read(&caller.write().unwrap()).unwrap();
        caller.read(&called.write().unwrap()).unwrap();
        called.read(&caller.write().unwrap()).unwrap();
        assert!(caller.is_finished() && called.is_finished());
        let ((a, hash_a), (b, hash_b)) = (caller.finish().unwrap(), called.finish().unwrap());
        assert_eq!(hash_a, hash_b);
        (a, b)
    }

    #[test]
    fn messages_arrive_and_damage_is_noticed() {
        let (mut a, mut b) = pair();
        let plaintext = vec![0x5a; PLAINTEXT_LEN_MAX];
        let (mut sealed, mut opened) = (BytesMut::new(), BytesMut::from(&b"before"[..]));
        a.seal(&plaintext, &mut sealed).unwrap();
        assert_eq!(sealed.len(), MESSAGE_LEN_MAX);
        b.open(&sealed, &mut opened).unwrap();
        assert_eq!(&opened[..6], b"before");
        assert_eq!(&opened[6..], plaintext);

        let mut damaged = BytesMut::new();
        a.seal(b"next", &mut damaged).unwrap();
        damaged[2] ^= 1;
        assert_eq!(b.open(&damaged, &mut opened), Err(NoiseError));
        assert_eq!(opened.len(), 6 + PLAINTEXT_LEN_MAX);
        assert_eq!(b.open(b"short", &mut opened), Err(NoiseError));
        assert_eq!(b.open(b"", &mut opened), Err(NoiseError));
    }

    #[test]
    fn the_first_message_already_needs_psk_and_swarm() {
        let first = side(Side::Caller, 1, 1, 1).write().unwrap();
        assert_eq!(side(Side::Called, 1, 2, 9).read(&first), Err(NoiseError));
        assert_eq!(side(Side::Called, 2, 1, 9).read(&first), Err(NoiseError));
        assert_eq!(side(Side::Called, 1, 1, 9).read(&first), Ok(()));
    }

    #[test]
    fn the_ephemeral_key_comes_from_the_caller_and_is_used_once() {
        let first = side(Side::Caller, 1, 1, 1).write().unwrap();
        assert_eq!(first, side(Side::Caller, 1, 1, 1).write().unwrap());
        assert_ne!(first, side(Side::Caller, 1, 1, 2).write().unwrap());
        let mut drawn = Drawn(Some(Zeroizing::new([1; 32])));
        let mut dest = [0; 32];
        assert!(types::Random::try_fill_bytes(&mut drawn, &mut dest).is_ok());
        assert!(types::Random::try_fill_bytes(&mut drawn, &mut dest).is_err());
    }
}
