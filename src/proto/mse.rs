//! Message stream encryption (MSE, "protocol encryption"): hides that a connection is BitTorrent, and from whom does not
//! know the info-hash also which torrent it is for. It is obfuscation: RC4 without any check of integrity.
//!
//! A key exchange, two searches over random padding, and one message each way that settles whether the stream behind it
//! is RC4 or plain. Sans-IO: [`Mse::handle_input`] and [`Mse::poll_transmit`] move bytes, [`Mse::poll_work`] hands out the
//! arithmetic, which takes too long for a thread that serves sockets.

use std::fmt;

use crypto_bigint::modular::{ConstMontyForm, ConstMontyParams};
use crypto_bigint::{U192, U768};
use rc4::{KeyInit, Rc4, StreamCipher};
use sha1::{Digest, Sha1};
use thiserror::Error;

/// Bytes of a public key and of the secret.
pub const KEY_LEN: usize = 96;
/// Longest padding of any of the four kinds.
const PAD_LEN_MAX: usize = 512;
/// Bits of a private key.
const PRIVATE_BITS: u32 = 160;
const PRIVATE_LEN: usize = PRIVATE_BITS as usize / 8;
/// First bytes of an RC4 key stream, which tell of the key and are not used.
const DISCARD_LEN: usize = 1024;
/// Eight zeros, encrypted, by which the caller finds where the answer begins.
const VC: [u8; 8] = [0; 8];
/// The stream behind the handshake is not encrypted.
const PLAIN: u32 = 1;
/// It is RC4.
const RC4: u32 = 2;

crypto_bigint::const_monty_params!(
    Group,
    U768,
    "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a63a36210000000000090563",
    "The prime of the key exchange; its generator is 2."
);

type Element = ConstMontyForm<Group, { <Group as ConstMontyParams<{ U768::LIMBS }>>::LIMBS }>;

/// Whether connections of torrents are encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encryption {
    Off,
    /// The handshake is, with whoever can; the stream behind it only where the other side insists.
    #[default]
    Prefer,
    /// Everything is, and others are not spoken to.
    Require,
}

impl Encryption {
    /// What the stream behind the handshake may be.
    fn methods(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Prefer => PLAIN | RC4,
            Self::Require => RC4,
        }
    }
}

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MseError {
    #[error("the other side's public key is none")]
    BadKey,
    #[error("what has to follow the padding is not there")]
    NoSync,
    #[error("a torrent that is not here")]
    UnknownTorrent,
    #[error("the verification constant is wrong")]
    BadConstant,
    #[error("padding of {0} bytes")]
    PadTooLong(u16),
    #[error("no common method: the other side offers {0:#x}")]
    NoCommonMethod(u32),
    #[error("the other side chose {0:#x}, which is not one of what was offered")]
    BadChoice(u32),
}

/// The key stream of one direction.
pub struct Cipher(Rc4);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    fn new(name: &[u8], secret: &Secret, torrent: &[u8; 20]) -> Self {
        let key = hash(&[name, secret, torrent]);
        let mut cipher = Self(Rc4::new_from_slice(&key).expect("RC4 takes keys of 20 bytes"));
        cipher.apply(&mut [0; DISCARD_LEN]);
        cipher
    }

    /// Encrypts or decrypts the next bytes of the stream.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        self.0.apply_keystream(bytes);
    }
}

/// The ciphers of a connection.
#[derive(Debug)]
pub struct Ciphers {
    pub incoming: Cipher,
    pub outgoing: Cipher,
}

/// How a handshake ended well.
#[derive(Debug)]
pub struct Done {
    /// Nothing for a stream that is plain from here on.
    pub ciphers: Option<Ciphers>,
    /// The info-hash both sides know.
    pub torrent: [u8; 20],
    /// What came for the layer above, decrypted.
    pub early: Vec<u8>,
}

type Secret = [u8; KEY_LEN];

/// A private key and what belongs to it.
#[derive(Debug, Clone)]
pub struct Keys {
    private: U192,
    public: [u8; KEY_LEN],
}

impl Keys {
    /// Takes about as long as hashing 64 KiB.
    pub fn generate(fill: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut random = [0; U192::BYTES];
        fill(&mut random[U192::BYTES - PRIVATE_LEN..]);
        let private = U192::from_be_slice(&random);
        let public = power(&U768::from_u8(2), &private);
        Self { private, public }
    }

    /// The secret both sides come to.
    fn agree(&self, theirs: &[u8; KEY_LEN]) -> Result<Secret, MseError> {
        let theirs = U768::from_be_slice(theirs);
        let last = Element::MODULUS.get().wrapping_sub(&U768::ONE);
        // With these everybody knows the secret.
        if theirs <= U768::ONE || theirs >= last {
            return Err(MseError::BadKey);
        }
        Ok(power(&theirs, &self.private))
    }
}

fn power(base: &U768, exponent: &U192) -> [u8; KEY_LEN] {
    let power = Element::new(base).pow_bounded_exp(exponent, PRIVATE_BITS);
    let mut bytes = [0; KEY_LEN];
    bytes.copy_from_slice(&power.retrieve().to_be_bytes());
    bytes
}

/// The arithmetic of a handshake, to be done where it may take its time.
#[derive(Debug)]
pub struct Work {
    keys: Option<Keys>,
    theirs: [u8; KEY_LEN],
}

/// What comes of it, for [`Mse::handle_work`].
#[derive(Debug)]
pub struct Worked {
    public: [u8; KEY_LEN],
    secret: Result<Secret, MseError>,
}

impl Work {
    pub fn run(self, fill: &mut dyn FnMut(&mut [u8])) -> Worked {
        let keys = self.keys.unwrap_or_else(|| Keys::generate(fill));
        Worked {
            public: keys.public,
            secret: keys.agree(&self.theirs),
        }
    }
}

/// Finds the info-hash that [`obfuscated`] makes a given value of.
pub type Lookup = Box<dyn Fn(&[u8; 20]) -> Option<[u8; 20]> + Send>;

/// What stands for an info-hash on the wire.
pub fn obfuscated(torrent: &[u8; 20]) -> [u8; 20] {
    hash(&[b"req2", torrent])
}

/// A handshake.
pub struct Mse {
    role: Role,
    allowed: u32,
    pads: Pads,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    work: Option<Work>,
    outcome: Option<Result<Done, MseError>>,
}

enum Role {
    Caller {
        torrent: [u8; 20],
        /// Sent with the offer, encrypted.
        initial: Vec<u8>,
    },
    Called(Lookup),
}

/// What is sent between the messages.
struct Pads {
    first: Vec<u8>,
    second: Vec<u8>,
}

enum State {
    /// Their public key is to come.
    Key,
    /// The secret is being computed.
    Working,
    // Called.
    Search(Secret),
    Name(Secret),
    Offer(Ciphers, [u8; 20]),
    /// Their padding, and the length of what they send at once.
    OfferPad(Ciphers, [u8; 20], u32, usize),
    Initial(Ciphers, [u8; 20], u32, usize),
    // Calling.
    /// With what the beginning of the answer looks like.
    Answer(Ciphers, [u8; 8]),
    Choice(Ciphers),
    ChoicePad(Ciphers, u32, usize),
    Over,
}

/// Where a step leads.
enum Step {
    /// More input is needed in this state.
    Wait(State),
    Next(State),
    Done(Done),
}

impl fmt::Debug for Mse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mse")
            .field("input", &self.input.len())
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

impl Mse {
    /// A handshake of ours for `torrent`. `initial` goes with it.
    pub fn call(
        keys: Keys,
        torrent: [u8; 20],
        encryption: Encryption,
        initial: Vec<u8>,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Self {
        let mut mse = Self::new(Role::Caller { torrent, initial }, encryption, fill);
        mse.output.extend_from_slice(&keys.public);
        mse.output.append(&mut mse.pads.first);
        mse.work = Some(Work {
            keys: Some(keys),
            theirs: [0; KEY_LEN],
        });
        mse
    }

    /// A handshake that somebody begins with us.
    pub fn answer(encryption: Encryption, lookup: Lookup, fill: &mut dyn FnMut(&mut [u8])) -> Self {
        Self::new(Role::Called(lookup), encryption, fill)
    }

    fn new(role: Role, encryption: Encryption, fill: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut pad = || {
            let mut len = [0; 2];
            fill(&mut len);
            let len = usize::from(u16::from_le_bytes(len)) % (PAD_LEN_MAX + 1);
            let mut pad = vec![0; len];
            fill(&mut pad);
            pad
        };
        let pads = Pads {
            first: pad(),
            second: pad(),
        };
        Self {
            role,
            allowed: encryption.methods(),
            pads,
            state: State::Key,
            input: Vec::new(),
            output: Vec::new(),
            work: None,
            outcome: None,
        }
    }

    /// Takes what came. After the end it is not looked at.
    pub fn handle_input(&mut self, input: &[u8]) {
        if !matches!(self.state, State::Over) {
            self.input.extend_from_slice(input);
            self.advance();
        }
    }

    /// Bytes to be sent.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| std::mem::take(&mut self.output))
    }

    /// Arithmetic to be done; its outcome goes to [`Self::handle_work`].
    pub fn poll_work(&mut self) -> Option<Work> {
        match self.state {
            State::Working => self.work.take(),
            _ => None,
        }
    }

    /// The end, once. What [`Self::poll_transmit`] has goes out before it.
    pub fn poll_outcome(&mut self) -> Option<Result<Done, MseError>> {
        self.outcome.take()
    }

    pub fn handle_work(&mut self, worked: Worked) {
        if !matches!(self.state, State::Working) {
            return;
        }
        match worked.secret {
            Ok(secret) => {
                self.state = self.settle(&worked.public, secret);
                self.advance();
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: MseError) {
        self.state = State::Over;
        self.input.clear();
        self.outcome = Some(Err(error));
    }

    fn advance(&mut self) {
        loop {
            let state = std::mem::replace(&mut self.state, State::Over);
            match self.step(state) {
                Ok(Step::Next(state)) => self.state = state,
                Ok(Step::Wait(state)) => {
                    self.state = state;
                    return;
                }
                Ok(Step::Done(done)) => {
                    self.outcome = Some(Ok(done));
                    return;
                }
                Err(error) => return self.fail(error),
            }
        }
    }

    fn step(&mut self, state: State) -> Result<Step, MseError> {
        let needed = state.needed();
        if needed > self.input.len() {
            return Ok(Step::Wait(state));
        }
        match state {
            State::Key => {
                let theirs = self.take();
                let keys = self.work.take().and_then(|work| work.keys);
                self.work = Some(Work { keys, theirs });
                Ok(Step::Next(State::Working))
            }
            State::Search(secret) => {
                let needle = hash(&[b"req1", &secret]);
                Ok(match self.search(&needle)? {
                    true => Step::Next(State::Name(secret)),
                    false => Step::Wait(State::Search(secret)),
                })
            }
            State::Name(secret) => self.name(&secret),
            State::Offer(ciphers, torrent) => self.offer(ciphers, torrent),
            State::OfferPad(mut ciphers, torrent, offered, _) => {
                self.decrypt(&mut ciphers, needed - 2);
                let [a, b] = self.decrypted(&mut ciphers);
                let len = u16::from_be_bytes([a, b]).into();
                Ok(Step::Next(State::Initial(ciphers, torrent, offered, len)))
            }
            State::Initial(ciphers, torrent, offered, len) => {
                self.choose(ciphers, torrent, offered, len)
            }
            State::Answer(ciphers, needle) => Ok(match self.search(&needle)? {
                true => Step::Next(State::Choice(ciphers)),
                false => Step::Wait(State::Answer(ciphers, needle)),
            }),
            State::Choice(ciphers) => self.chosen(ciphers),
            State::ChoicePad(mut ciphers, method, len) => {
                self.decrypt(&mut ciphers, len);
                let torrent = match &self.role {
                    Role::Caller { torrent, .. } => *torrent,
                    Role::Called(_) => [0; 20],
                };
                Ok(Step::Done(self.done(ciphers, torrent, method, Vec::new())))
            }
            State::Working | State::Over => Ok(Step::Wait(state)),
        }
    }

    /// The secret is there: our next message, and what is waited for.
    fn settle(&mut self, public: &[u8; KEY_LEN], secret: Secret) -> State {
        let Role::Caller { torrent, initial } = &mut self.role else {
            self.output.extend_from_slice(public);
            self.output.append(&mut self.pads.first);
            return State::Search(secret);
        };
        let mut incoming = Cipher::new(b"keyB", &secret, torrent);
        let mut outgoing = Cipher::new(b"keyA", &secret, torrent);
        self.output.extend_from_slice(&hash(&[b"req1", &secret]));
        let veil = hash(&[b"req3", &secret]);
        let name = obfuscated(torrent);
        self.output
            .extend(name.iter().zip(veil).map(|(name, veil)| name ^ veil));
        let mut offer = [&VC[..], &self.allowed.to_be_bytes()].concat();
        put_block(&mut offer, &self.pads.second);
        put_block(&mut offer, initial);
        outgoing.apply(&mut offer);
        self.output.append(&mut offer);
        let mut needle = VC;
        incoming.apply(&mut needle);
        let ciphers = Ciphers { incoming, outgoing };
        State::Answer(ciphers, needle)
    }

    fn name(&mut self, secret: &Secret) -> Result<Step, MseError> {
        let veil = hash(&[b"req3", secret]);
        let mut name: [u8; 20] = self.take();
        name.iter_mut()
            .zip(veil)
            .for_each(|(name, veil)| *name ^= veil);
        let torrent = match &self.role {
            Role::Called(lookup) => lookup(&name),
            Role::Caller { .. } => None,
        };
        let torrent = torrent.ok_or(MseError::UnknownTorrent)?;
        let ciphers = Ciphers {
            incoming: Cipher::new(b"keyA", secret, &torrent),
            outgoing: Cipher::new(b"keyB", secret, &torrent),
        };
        Ok(Step::Next(State::Offer(ciphers, torrent)))
    }

    fn offer(&mut self, mut ciphers: Ciphers, torrent: [u8; 20]) -> Result<Step, MseError> {
        let constant: [u8; 8] = self.decrypted(&mut ciphers);
        if constant != VC {
            return Err(MseError::BadConstant);
        }
        let offered = u32::from_be_bytes(self.decrypted(&mut ciphers));
        let len = self.pad_len(&mut ciphers)?;
        Ok(Step::Next(State::OfferPad(ciphers, torrent, offered, len)))
    }

    /// Settles on a method, and is done.
    fn choose(
        &mut self,
        mut ciphers: Ciphers,
        torrent: [u8; 20],
        offered: u32,
        len: usize,
    ) -> Result<Step, MseError> {
        let early = self.decrypt(&mut ciphers, len);
        // A plain stream costs nothing; who wants more does not allow it.
        let common = [PLAIN, RC4]
            .into_iter()
            .find(|m| offered & self.allowed & m != 0);
        let method = common.ok_or(MseError::NoCommonMethod(offered))?;
        let mut answer = [&VC[..], &method.to_be_bytes()].concat();
        put_block(&mut answer, &self.pads.second);
        ciphers.outgoing.apply(&mut answer);
        self.output.append(&mut answer);
        Ok(Step::Done(self.done(ciphers, torrent, method, early)))
    }

    fn chosen(&mut self, mut ciphers: Ciphers) -> Result<Step, MseError> {
        let method = u32::from_be_bytes(self.decrypted(&mut ciphers));
        if method.count_ones() != 1 || method & self.allowed == 0 {
            return Err(MseError::BadChoice(method));
        }
        let len = self.pad_len(&mut ciphers)?;
        Ok(Step::Next(State::ChoicePad(ciphers, method, len)))
    }

    fn done(
        &mut self,
        mut ciphers: Ciphers,
        torrent: [u8; 20],
        method: u32,
        mut early: Vec<u8>,
    ) -> Done {
        let mut rest = std::mem::take(&mut self.input);
        let ciphers = (method == RC4).then(|| {
            ciphers.incoming.apply(&mut rest);
            ciphers
        });
        early.append(&mut rest);
        Done {
            ciphers,
            torrent,
            early,
        }
    }

    /// Drops input up to and with `needle`; false if that may still come.
    fn search(&mut self, needle: &[u8]) -> Result<bool, MseError> {
        let window = self.input.len().min(PAD_LEN_MAX + needle.len());
        let seen = self.input.get(..window).unwrap_or_default();
        let found = seen.windows(needle.len()).position(|at| at == needle);
        match found {
            Some(at) => {
                self.input.drain(..at + needle.len());
                Ok(true)
            }
            None if window == PAD_LEN_MAX + needle.len() => Err(MseError::NoSync),
            None => Ok(false),
        }
    }

    fn pad_len(&mut self, ciphers: &mut Ciphers) -> Result<usize, MseError> {
        let len = u16::from_be_bytes(self.decrypted(ciphers));
        match usize::from(len) {
            short @ ..=PAD_LEN_MAX => Ok(short),
            _ => Err(MseError::PadTooLong(len)),
        }
    }

    /// The next `N` bytes; the state has seen to it that they are there.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let there = N.min(self.input.len());
        for (to, from) in taken.iter_mut().zip(self.input.drain(..there)) {
            *to = from;
        }
        taken
    }

    fn decrypted<const N: usize>(&mut self, ciphers: &mut Ciphers) -> [u8; N] {
        let mut taken = self.take();
        ciphers.incoming.apply(&mut taken);
        taken
    }

    fn decrypt(&mut self, ciphers: &mut Ciphers, len: usize) -> Vec<u8> {
        let there = len.min(self.input.len());
        let mut taken: Vec<u8> = self.input.drain(..there).collect();
        ciphers.incoming.apply(&mut taken);
        taken
    }
}

impl State {
    /// Input without which nothing can be done.
    fn needed(&self) -> usize {
        match self {
            Self::Key => KEY_LEN,
            Self::Name(_) => 20,
            // The constant, the methods, a length.
            Self::Offer(..) => VC.len() + 4 + 2,
            Self::OfferPad(.., pad) => pad + 2,
            Self::Choice(_) => 4 + 2,
            Self::Initial(.., len) | Self::ChoicePad(_, _, len) => *len,
            Self::Working | Self::Search(_) | Self::Answer(..) | Self::Over => 0,
        }
    }
}

/// A length and as many bytes.
fn put_block(out: &mut Vec<u8>, block: &[u8]) {
    let len = u16::try_from(block.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(block.get(..len.into()).unwrap_or_default());
}

fn hash(parts: &[&[u8]]) -> [u8; 20] {
    let mut sha1 = Sha1::new();
    parts.iter().for_each(|part| sha1.update(part));
    sha1.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TORRENT: [u8; 20] = *b"an info-hash, 20 byt";

    /// Deterministic bytes that are not all alike.
    fn source(seed: u64) -> impl FnMut(&mut [u8]) {
        let mut state = seed;
        move |bytes| {
            for byte in bytes {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 33) as u8;
            }
        }
    }

    fn called(encryption: Encryption, seed: u64) -> Mse {
        let lookup = |name: &[u8; 20]| (*name == obfuscated(&TORRENT)).then_some(TORRENT);
        Mse::answer(encryption, Box::new(lookup), &mut source(seed))
    }

    fn calling(torrent: [u8; 20], encryption: Encryption, seed: u64) -> Mse {
        let keys = Keys::generate(&mut source(seed + 100));
        Mse::call(
            keys,
            torrent,
            encryption,
            b"hello".to_vec(),
            &mut source(seed),
        )
    }

    type Outcome = Option<Result<Done, MseError>>;

    /// Lets two talk, with input cut into pieces of `cut` bytes, until neither has more to say.
    fn talk(caller: &mut Mse, called: &mut Mse, cut: usize) -> (Outcome, Outcome) {
        let (mut a, mut b) = (None, None);
        loop {
            let mut quiet = true;
            for (from, to, outcome) in [(0, 1, &mut b), (1, 0, &mut a)] {
                let sides = [&mut *caller, &mut *called];
                if let Some(out) = sides[from].poll_transmit() {
                    quiet = false;
                    for piece in out.chunks(cut) {
                        sides[to].handle_input(piece);
                        if let Some(work) = sides[to].poll_work() {
                            let worked = work.run(&mut source(7));
                            sides[to].handle_work(worked);
                        }
                    }
                }
                if outcome.is_none() {
                    *outcome = sides[to].poll_outcome();
                }
            }
            if quiet {
                return (a, b);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn two_find_each_other_at_every_cut(seed: u64, cut in 1_usize..700, rc4: bool) {
            let seed = seed % (1 << 40);
            let theirs = if rc4 { Encryption::Require } else { Encryption::Prefer };
            let mut a = calling(TORRENT, Encryption::Prefer, seed);
            let mut b = called(theirs, seed + 1);
            let (Some(Ok(a)), Some(Ok(b))) = talk(&mut a, &mut b, cut) else {
                panic!("no end");
            };
            prop_assert_eq!(b.early, b"hello");
            prop_assert_eq!((a.torrent, b.torrent), (TORRENT, TORRENT));
            prop_assert_eq!((a.ciphers.is_some(), b.ciphers.is_some()), (rc4, rc4));
            if let (Some(mut a), Some(mut b)) = (a.ciphers, b.ciphers) {
                for (from, to) in [(&mut a.outgoing, &mut b.incoming), (&mut b.outgoing, &mut a.incoming)] {
                    let mut bytes = *b"the stream";
                    from.apply(&mut bytes);
                    prop_assert_ne!(&bytes, b"the stream");
                    to.apply(&mut bytes);
                    prop_assert_eq!(&bytes, b"the stream");
                }
            }
        }

        #[test]
        fn garbage_ends_or_waits(input: Vec<u8>, cut in 1_usize..50, calls: bool) {
            let mut mse = match calls {
                true => calling(TORRENT, Encryption::Prefer, 1),
                false => called(Encryption::Prefer, 1),
            };
            for piece in input.chunks(cut) {
                mse.handle_input(piece);
                if let Some(work) = mse.poll_work() {
                    let worked = work.run(&mut source(7));
                    mse.handle_work(worked);
                }
            }
            prop_assert!(!matches!(mse.poll_outcome(), Some(Ok(_))));
        }
    }

    #[test]
    fn the_key_exchange_is_that_of_everybody() {
        // Computed with Python's pow.
        let keys = Keys::generate(&mut |bytes| bytes.fill(3));
        assert_eq!(data_encoding::HEXLOWER.encode(&keys.public[..16]), PUBLIC_3);
        let others = Keys::generate(&mut |bytes| bytes.fill(5));
        let secret = keys.agree(&others.public).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(&secret[..16]), SECRET_3_5);
        assert_eq!(others.agree(&keys.public), Ok(secret));
    }

    const PUBLIC_3: &str = "758d84f677c4df567635a380ce642ea4";
    const SECRET_3_5: &str = "2c2ce8e16f1e303aba80a03ea2d96b8e";

    #[test]
    fn keys_that_give_the_secret_away_are_refused() {
        let keys = Keys::generate(&mut source(1));
        let mut one = [0; KEY_LEN];
        one[KEY_LEN - 1] = 1;
        let mut last = [0; KEY_LEN];
        last.copy_from_slice(&Element::MODULUS.get().to_be_bytes());
        last[KEY_LEN - 1] -= 1;
        for bad in [[0; KEY_LEN], one, last, [0xff; KEY_LEN]] {
            assert_eq!(keys.agree(&bad), Err(MseError::BadKey));
        }
    }

    #[test]
    fn another_torrent_is_not_here() {
        let (a, b) = talk(
            &mut calling([9; 20], Encryption::Prefer, 1),
            &mut called(Encryption::Prefer, 2),
            64,
        );
        assert!(a.is_none(), "{a:?}");
        assert_eq!(b.unwrap().unwrap_err(), MseError::UnknownTorrent);
    }

    #[test]
    fn methods_must_meet() {
        let mut a = calling(TORRENT, Encryption::Prefer, 1);
        a.allowed = PLAIN;
        let (_, b) = talk(&mut a, &mut called(Encryption::Require, 2), 64);
        assert_eq!(b.unwrap().unwrap_err(), MseError::NoCommonMethod(PLAIN));
        // Who answers with what was not offered is left.
        let mut a = calling(TORRENT, Encryption::Prefer, 1);
        let mut b = called(Encryption::Prefer, 2);
        b.pads.second = vec![0; 3];
        let (a, _) = talk_forged(&mut a, &mut b, |answer| answer[VC.len() + 3] = 4);
        assert_eq!(a.unwrap().unwrap_err(), MseError::BadChoice(4));
        let mut a = calling(TORRENT, Encryption::Prefer, 1);
        let mut b = called(Encryption::Prefer, 2);
        b.pads.second = vec![0; 3];
        let (a, _) = talk_forged(&mut a, &mut b, |answer| answer[VC.len() + 4] = 9);
        assert_eq!(a.unwrap().unwrap_err(), MseError::PadTooLong(9 << 8 | 3));
    }

    /// The same as [`talk`], with the plain text of the last answer changed: what RC4 lets everybody do.
    fn talk_forged(a: &mut Mse, b: &mut Mse, forge: impl Fn(&mut Vec<u8>)) -> (Outcome, Outcome) {
        let pass = |from: &mut Mse, to: &mut Mse| {
            to.handle_input(&from.poll_transmit().unwrap_or_default());
            if let Some(work) = to.poll_work() {
                let worked = work.run(&mut source(7));
                to.handle_work(worked);
            }
        };
        pass(a, b);
        pass(b, a);
        pass(a, b);
        let mut answer = b.poll_transmit().unwrap();
        let mut plain = [&VC[..], &PLAIN.to_be_bytes(), &[0, 3, 0, 0, 0]].concat();
        let before = plain.clone();
        forge(&mut plain);
        for (n, byte) in answer.iter_mut().enumerate() {
            *byte ^= plain[n] ^ before[n];
        }
        a.handle_input(&answer);
        (a.poll_outcome(), b.poll_outcome())
    }

    #[test]
    fn padding_has_an_end() {
        let mut b = called(Encryption::Prefer, 2);
        b.handle_input(&Keys::generate(&mut source(3)).public);
        let worked = b.poll_work().unwrap().run(&mut source(7));
        b.handle_work(worked);
        b.handle_input(&[1; PAD_LEN_MAX + 19]);
        assert!(b.poll_outcome().is_none());
        b.handle_input(&[1]);
        assert_eq!(b.poll_outcome().unwrap().unwrap_err(), MseError::NoSync);
    }
}
