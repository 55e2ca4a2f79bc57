//! The messages of BEP 3, 5, 6, 10 and 52 after the handshake: cut out of a byte stream without copying, and written.
//!
//! A message borrows its payload from the input or holds a shared slice of it; what it is (`P`) is the caller's choice. Lengths
//! are refused as soon as the header shows them, so nothing is waited for that would not be taken.

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use super::blocks::{BLOCK_BYTES, Block};

/// Largest block a peer may ask for, in bytes; some clients ask for more than 16 KiB.
pub const REQUEST_BYTES_MAX: u32 = 128 << 10;
/// Largest payload of an extended message, in bytes: a piece of metadata or a full PEX message needs less.
pub const EXTENDED_BYTES_MAX: u32 = 128 << 10;
/// Most hashes in one hashes message (BEP 52 lets 512 be asked for), with the uncle hashes of a tree of 2^30 leaves.
const HASHES_MAX: u32 = 512 + 30;
/// Bytes of a length prefix.
pub const PREFIX_BYTES: usize = 4;
/// Bytes of a hash request: root, base layer, index, length, proof layers.
const HASH_REQUEST_BYTES: u32 = 32 + 4 * 4;

/// Which part of a file's hash tree is meant (BEP 52).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashRange {
    /// Root of the file's tree.
    pub root: [u8; 32],
    /// Lowest layer asked for; 0 are the leaves.
    pub base_layer: u32,
    /// First hash in that layer.
    pub index: u32,
    /// Hashes, a power of two.
    pub length: u32,
    /// Layers of uncle hashes.
    pub proof_layers: u32,
}

/// One message; `P` is how it holds bytes of any length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<P> {
    KeepAlive,
    Choke,
    Unchoke,
    Interested,
    NotInterested,
    Have(u32),
    Bitfield(P),
    Request(Block),
    Piece {
        piece: u32,
        begin: u32,
        data: P,
    },
    Cancel(Block),
    /// Where the peer's DHT node listens (BEP 5).
    Port(u16),
    /// BEP 6 from here to `AllowedFast`.
    Suggest(u32),
    HaveAll,
    HaveNone,
    Reject(Block),
    AllowedFast(u32),
    /// BEP 10.
    Extended {
        id: u8,
        payload: P,
    },
    /// BEP 52 from here on.
    HashRequest(HashRange),
    Hashes {
        range: HashRange,
        hashes: P,
    },
    HashReject(HashRange),
    /// A message of a later protocol; passed over.
    Unknown(u8),
}

/// Why a peer's bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("a message {id} of {len} bytes, at most {max} are allowed")]
    TooLong { id: u8, len: u32, max: u32 },
    #[error("a message {id} of {len} bytes, which is not its length")]
    Length { id: u8, len: u32 },
}

/// What decides how long messages may be.
#[derive(Debug, Clone, Copy)]
pub struct WireLimits {
    /// Longest bitfield, in bytes.
    pub bitfield_bytes: u32,
}

/// A message with the bytes of input it takes; `None` while it is incomplete.
pub type Decoded<'a> = Result<Option<(Message<&'a [u8]>, usize)>, WireError>;

mod id {
    pub(super) const CHOKE: u8 = 0;
    pub(super) const UNCHOKE: u8 = 1;
    pub(super) const INTERESTED: u8 = 2;
    pub(super) const NOT_INTERESTED: u8 = 3;
    pub(super) const HAVE: u8 = 4;
    pub(super) const BITFIELD: u8 = 5;
    pub(super) const REQUEST: u8 = 6;
    pub(super) const PIECE: u8 = 7;
    pub(super) const CANCEL: u8 = 8;
    pub(super) const PORT: u8 = 9;
    pub(super) const SUGGEST: u8 = 13;
    pub(super) const HAVE_ALL: u8 = 14;
    pub(super) const HAVE_NONE: u8 = 15;
    pub(super) const REJECT: u8 = 16;
    pub(super) const ALLOWED_FAST: u8 = 17;
    pub(super) const EXTENDED: u8 = 20;
    pub(super) const HASH_REQUEST: u8 = 21;
    pub(super) const HASHES: u8 = 22;
    pub(super) const HASH_REJECT: u8 = 23;
}

/// Finds the message at the start of `input`, with the bytes it takes; `Ok(None)` while it is incomplete.
pub fn decode(input: &[u8], limits: WireLimits) -> Decoded<'_> {
    let Some((len, rest)) = input.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*len);
    if len == 0 {
        return Ok(Some((Message::KeepAlive, PREFIX_BYTES)));
    }
    let Some((&id, rest)) = rest.split_first() else {
        return Ok(None);
    };
    let max = len_max(id, limits);
    if len > max {
        return Err(WireError::TooLong { id, len, max });
    }
    let Some(body) = rest.get(..len as usize - 1) else {
        return Ok(None);
    };
    let message = parse(id, body).ok_or(WireError::Length { id, len })?;
    Ok(Some((message, PREFIX_BYTES + len as usize)))
}

/// Bytes the message at the start of `input` takes, once its length is there. Not checked.
pub fn needed(input: &[u8]) -> Option<usize> {
    let len = u32::from_be_bytes(*input.first_chunk::<PREFIX_BYTES>()?);
    Some(PREFIX_BYTES + len as usize)
}

/// Longest message of a kind: id and body.
fn len_max(id: u8, limits: WireLimits) -> u32 {
    1 + match id {
        id::BITFIELD => limits.bitfield_bytes,
        id::PIECE => 8 + BLOCK_BYTES,
        id::EXTENDED => 1 + EXTENDED_BYTES_MAX,
        id::HASHES => HASH_REQUEST_BYTES + 32 * HASHES_MAX,
        _ => EXTENDED_BYTES_MAX,
    }
}

fn parse(id: u8, body: &[u8]) -> Option<Message<&[u8]>> {
    let empty = |message| body.is_empty().then_some(message);
    Some(match id {
        id::CHOKE => return empty(Message::Choke),
        id::UNCHOKE => return empty(Message::Unchoke),
        id::INTERESTED => return empty(Message::Interested),
        id::NOT_INTERESTED => return empty(Message::NotInterested),
        id::HAVE_ALL => return empty(Message::HaveAll),
        id::HAVE_NONE => return empty(Message::HaveNone),
        id::HAVE => Message::Have(number(body)?),
        id::SUGGEST => Message::Suggest(number(body)?),
        id::ALLOWED_FAST => Message::AllowedFast(number(body)?),
        id::BITFIELD => Message::Bitfield(body),
        id::REQUEST => Message::Request(block(body)?),
        id::CANCEL => Message::Cancel(block(body)?),
        id::REJECT => Message::Reject(block(body)?),
        id::PIECE => {
            let (piece, rest) = body.split_first_chunk()?;
            let (begin, data) = rest.split_first_chunk()?;
            Message::Piece {
                piece: u32::from_be_bytes(*piece),
                begin: u32::from_be_bytes(*begin),
                data,
            }
        }
        id::PORT => Message::Port(u16::from_be_bytes(body.try_into().ok()?)),
        id::EXTENDED => {
            let (id, payload) = body.split_first()?;
            Message::Extended { id: *id, payload }
        }
        id::HASH_REQUEST => Message::HashRequest(hash_range(body)?.0).only(hash_range(body)?.1)?,
        id::HASH_REJECT => Message::HashReject(hash_range(body)?.0).only(hash_range(body)?.1)?,
        id::HASHES => {
            let (range, hashes) = hash_range(body)?;
            hashes
                .len()
                .is_multiple_of(32)
                .then_some(Message::Hashes { range, hashes })?
        }
        other => Message::Unknown(other),
    })
}

fn number(body: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(body.try_into().ok()?))
}

fn block(body: &[u8]) -> Option<Block> {
    let (words, rest) = body.as_chunks::<4>();
    let [piece, begin, length] = words else {
        return None;
    };
    rest.is_empty().then_some(Block {
        piece: u32::from_be_bytes(*piece),
        begin: u32::from_be_bytes(*begin),
        length: u32::from_be_bytes(*length),
    })
}

fn hash_range(body: &[u8]) -> Option<(HashRange, &[u8])> {
    let (root, rest) = body.split_first_chunk()?;
    let (words, rest) = rest.split_at_checked(16)?;
    let [base_layer, index, length, proof_layers] = words.as_chunks::<4>().0 else {
        return None;
    };
    let range = HashRange {
        root: *root,
        base_layer: u32::from_be_bytes(*base_layer),
        index: u32::from_be_bytes(*index),
        length: u32::from_be_bytes(*length),
        proof_layers: u32::from_be_bytes(*proof_layers),
    };
    Some((range, rest))
}

impl<P> Message<P> {
    /// The message, if nothing is left behind it.
    fn only(self, rest: &[u8]) -> Option<Self> {
        rest.is_empty().then_some(self)
    }

    /// The same message holding its bytes another way.
    pub fn map<Q>(self, hold: impl FnOnce(P) -> Q) -> Message<Q> {
        match self {
            Self::Bitfield(bits) => Message::Bitfield(hold(bits)),
            Self::Piece { piece, begin, data } => Message::Piece {
                piece,
                begin,
                data: hold(data),
            },
            Self::Extended { id, payload } => Message::Extended {
                id,
                payload: hold(payload),
            },
            Self::Hashes { range, hashes } => Message::Hashes {
                range,
                hashes: hold(hashes),
            },
            Self::KeepAlive => Message::KeepAlive,
            Self::Choke => Message::Choke,
            Self::Unchoke => Message::Unchoke,
            Self::Interested => Message::Interested,
            Self::NotInterested => Message::NotInterested,
            Self::Have(piece) => Message::Have(piece),
            Self::Request(block) => Message::Request(block),
            Self::Cancel(block) => Message::Cancel(block),
            Self::Port(port) => Message::Port(port),
            Self::Suggest(piece) => Message::Suggest(piece),
            Self::HaveAll => Message::HaveAll,
            Self::HaveNone => Message::HaveNone,
            Self::Reject(block) => Message::Reject(block),
            Self::AllowedFast(piece) => Message::AllowedFast(piece),
            Self::HashRequest(range) => Message::HashRequest(range),
            Self::HashReject(range) => Message::HashReject(range),
            Self::Unknown(id) => Message::Unknown(id),
        }
    }
}

impl<P: AsRef<[u8]>> Message<P> {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::KeepAlive => out.put_u32(0),
            Self::Choke => head(out, id::CHOKE, 0),
            Self::Unchoke => head(out, id::UNCHOKE, 0),
            Self::Interested => head(out, id::INTERESTED, 0),
            Self::NotInterested => head(out, id::NOT_INTERESTED, 0),
            Self::HaveAll => head(out, id::HAVE_ALL, 0),
            Self::HaveNone => head(out, id::HAVE_NONE, 0),
            Self::Have(piece) => put_number(out, id::HAVE, *piece),
            Self::Suggest(piece) => put_number(out, id::SUGGEST, *piece),
            Self::AllowedFast(piece) => put_number(out, id::ALLOWED_FAST, *piece),
            Self::Bitfield(bits) => put_bytes(out, id::BITFIELD, &[], bits.as_ref()),
            Self::Request(block) => put_block(out, id::REQUEST, block),
            Self::Cancel(block) => put_block(out, id::CANCEL, block),
            Self::Reject(block) => put_block(out, id::REJECT, block),
            Self::Piece { piece, begin, data } => {
                let length = data.as_ref().len() as u32;
                put_piece_head(
                    out,
                    &Block {
                        piece: *piece,
                        begin: *begin,
                        length,
                    },
                );
                out.put_slice(data.as_ref());
            }
            Self::Port(port) => put_bytes(out, id::PORT, &port.to_be_bytes(), &[]),
            Self::Extended { id, payload } => {
                put_bytes(out, id::EXTENDED, &[*id], payload.as_ref());
            }
            Self::HashRequest(range) => put_bytes(out, id::HASH_REQUEST, &range_bytes(range), &[]),
            Self::HashReject(range) => put_bytes(out, id::HASH_REJECT, &range_bytes(range), &[]),
            Self::Hashes { range, hashes } => {
                put_bytes(out, id::HASHES, &range_bytes(range), hashes.as_ref());
            }
            Self::Unknown(id) => head(out, *id, 0),
        }
    }
}

/// Appends what stands before the bytes of a block in a piece message.
pub fn put_piece_head(out: &mut BytesMut, block: &Block) {
    head(out, id::PIECE, 8 + block.length as usize);
    out.put_u32(block.piece);
    out.put_u32(block.begin);
}

fn head(out: &mut BytesMut, id: u8, body: usize) {
    out.put_u32(u32::try_from(1 + body).unwrap_or(u32::MAX));
    out.put_u8(id);
}

fn put_number(out: &mut BytesMut, id: u8, number: u32) {
    put_bytes(out, id, &number.to_be_bytes(), &[]);
}

fn put_block(out: &mut BytesMut, id: u8, block: &Block) {
    head(out, id, 12);
    out.put_u32(block.piece);
    out.put_u32(block.begin);
    out.put_u32(block.length);
}

fn put_bytes(out: &mut BytesMut, id: u8, first: &[u8], rest: &[u8]) {
    head(out, id, first.len() + rest.len());
    out.put_slice(first);
    out.put_slice(rest);
}

fn range_bytes(range: &HashRange) -> [u8; HASH_REQUEST_BYTES as usize] {
    let mut bytes = [0; HASH_REQUEST_BYTES as usize];
    let (root, words) = bytes.split_at_mut(32);
    root.copy_from_slice(&range.root);
    let values = [
        range.base_layer,
        range.index,
        range.length,
        range.proof_layers,
    ];
    for (word, value) in words.chunks_mut(4).zip(values) {
        word.copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: WireLimits = WireLimits { bitfield_bytes: 40 };

    fn message() -> impl Strategy<Value = Message<Vec<u8>>> {
        let block =
            (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(piece, begin, length)| Block {
                piece,
                begin,
                length,
            });
        let range = (any::<[u8; 32]>(), any::<[u32; 4]>()).prop_map(
            |(root, [base_layer, index, length, proof_layers])| HashRange {
                root,
                base_layer,
                index,
                length,
                proof_layers,
            },
        );
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
        prop_oneof![
            Just(Message::KeepAlive),
            Just(Message::Choke),
            Just(Message::Unchoke),
            Just(Message::Interested),
            Just(Message::NotInterested),
            Just(Message::HaveAll),
            Just(Message::HaveNone),
            any::<u32>().prop_map(Message::Have),
            any::<u32>().prop_map(Message::Suggest),
            any::<u32>().prop_map(Message::AllowedFast),
            any::<u16>().prop_map(Message::Port),
            block.clone().prop_map(Message::Request),
            block.clone().prop_map(Message::Cancel),
            block.prop_map(Message::Reject),
            bytes(41).prop_map(Message::Bitfield),
            (any::<u8>(), bytes(100)).prop_map(|(id, payload)| Message::Extended { id, payload }),
            (any::<u32>(), any::<u32>(), bytes(100))
                .prop_map(|(piece, begin, data)| Message::Piece { piece, begin, data }),
            range.clone().prop_map(Message::HashRequest),
            range.clone().prop_map(Message::HashReject),
            (range, 0usize..4).prop_map(|(range, n)| Message::Hashes {
                range,
                hashes: vec![7; n * 32]
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_whole_and_at_no_cut_before(messages in prop::collection::vec(message(), 1..5)) {
            let mut out = BytesMut::new();
            messages.iter().for_each(|message| message.encode(&mut out));
            let mut at = 0;
            for message in &messages {
                let (found, taken) = decode(&out[at..], LIMITS).unwrap().unwrap();
                prop_assert_eq!(&found.map(<[u8]>::to_vec), message);
                prop_assert_eq!(needed(&out[at..]), Some(taken));
                for cut in 0..taken.min(60) {
                    prop_assert_eq!(decode(&out[at..at + cut], LIMITS), Ok(None));
                }
                at += taken;
            }
            prop_assert_eq!(at, out.len());
        }

        #[test]
        fn arbitrary_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(Some((_, taken))) = decode(&input, LIMITS) {
                prop_assert!(taken <= input.len());
            }
        }
    }

    #[test]
    fn messages_look_as_the_standard_says() {
        let bytes = |message: Message<&[u8]>| {
            let mut out = BytesMut::new();
            message.encode(&mut out);
            out.to_vec()
        };
        assert_eq!(bytes(Message::Unchoke), [0, 0, 0, 1, 1]);
        assert_eq!(bytes(Message::Have(258)), [0, 0, 0, 5, 4, 0, 0, 1, 2]);
        let block = Block {
            piece: 1,
            begin: 2,
            length: 3,
        };
        assert_eq!(
            bytes(Message::Request(block)),
            [0, 0, 0, 13, 6, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]
        );
        let piece = Message::Piece {
            piece: 1,
            begin: 2,
            data: &b"ab"[..],
        };
        assert_eq!(
            bytes(piece),
            [0, 0, 0, 11, 7, 0, 0, 0, 1, 0, 0, 0, 2, b'a', b'b']
        );
    }

    #[test]
    fn lengths_that_cannot_be_are_refused_by_the_header_alone() {
        let refused = |bytes: &[u8]| decode(bytes, LIMITS).unwrap_err();
        assert_eq!(
            refused(&[0xff, 0, 0, 0, 7]),
            WireError::TooLong {
                id: 7,
                len: 0xff00_0000,
                max: 16_393
            }
        );
        assert_eq!(
            refused(&[0, 0, 0, 42, 5]),
            WireError::TooLong {
                id: 5,
                len: 42,
                max: 41
            }
        );
        assert_eq!(
            refused(&[0, 0, 0, 2, 0, 9]),
            WireError::Length { id: 0, len: 2 }
        );
        assert_eq!(
            refused(&[0, 0, 0, 5, 7, 0, 0, 0, 0]),
            WireError::Length { id: 7, len: 5 }
        );
        assert_eq!(
            decode(&[0, 0, 0, 2, 99, 9], LIMITS),
            Ok(Some((Message::Unknown(99), 6)))
        );
    }
}
