//! BEP 10 on a folder's swarm: message framing, of which only keep-alives and extended messages
//! are legal there, and the extension handshake that offers `ut_xet` and nothing else.

use std::ops::Range;

use bytes::BytesMut;
use thiserror::Error;

use super::bencode::{BencodeError, Document, Item, Strictness};

/// Bytes of framing before the payload of an extended message: length, 20, extended id.
pub const HEADER_LEN: usize = 6;

/// BEP 10: the message id of every extended message.
const EXTENDED: u8 = 20;

/// The extended id of the handshake.
pub const HANDSHAKE_ID: u8 = 0;

/// The id under which we take `ut_xet` messages.
pub const UT_XET_ID: u8 = 1;

/// What stands at the start of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Nothing but a sign of life.
    KeepAlive,
    /// An extended message; its payload lies at `payload` in the input.
    Extended {
        /// Which extension.
        id: u8,
        /// Where the payload lies.
        payload: Range<usize>,
    },
}

impl Message {
    /// Bytes of input it takes.
    pub fn input_len(&self) -> usize {
        match self {
            Self::KeepAlive => 4,
            Self::Extended { payload, .. } => payload.end,
        }
    }
}

/// A message that has no place on a folder's swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Longer than the state of the connection allows.
    #[error("a message of {len} bytes, at most {max} are allowed now")]
    TooLong {
        /// What its length field says.
        len: u32,
        /// What it may say.
        max: u32,
    },
    /// Any message of ordinary BitTorrent.
    #[error("a BitTorrent message {0} on a folder's swarm")]
    Foreign(u8),
    /// An extended message without its extended id.
    #[error("an extended message without an id")]
    NoId,
}

/// Finds the message at the start of `input`; `None` while it is incomplete. A message that is
/// too long or of another kind is refused as soon as its header shows it.
pub fn next_message(input: &[u8], payload_max: u32) -> Result<Option<Message>, MessageError> {
    let Some((len, rest)) = input.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*len);
    if len == 0 {
        return Ok(Some(Message::KeepAlive));
    }
    let max = payload_max.saturating_add(2);
    if len > max {
        return Err(MessageError::TooLong { len, max });
    }
    match (rest, len) {
        ([], _) => Ok(None),
        ([EXTENDED, ..], 1) => Err(MessageError::NoId),
        ([EXTENDED, id, rest @ ..], _) => {
            let payload_len = len as usize - 2;
            let complete = rest.len() >= payload_len;
            let payload = HEADER_LEN..HEADER_LEN + payload_len;
            Ok(complete.then_some(Message::Extended { id: *id, payload }))
        }
        ([EXTENDED], _) => Ok(None),
        ([other, ..], _) => Err(MessageError::Foreign(*other)),
    }
}

/// Appends the header of an extended message whose payload of `payload_len` bytes follows.
pub fn put_header(out: &mut BytesMut, id: u8, payload_len: usize) {
    let len = u32::try_from(payload_len + 2).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&[EXTENDED, id]);
}

/// Why an extension handshake does not lead to `ut_xet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ExtensionError {
    /// Not bencode.
    #[error("the extension handshake is malformed: {0}")]
    Bencode(#[from] BencodeError),
    /// The peer has no `ut_xet`.
    #[error("the peer does not offer ut_xet")]
    NoUtXet,
}

/// Our extension handshake: no client name, no port, no other extension.
pub fn encode_handshake() -> Vec<u8> {
    let mut payload = vec![];
    let extensions = Item::dict([("ut_xet", Item::Integer(i64::from(UT_XET_ID)))]);
    Item::dict([("m", extensions)]).encode(&mut payload);
    payload
}

/// The id under which the peer takes `ut_xet` messages. Other keys are passed over (BEP 10).
pub fn decode_handshake(payload: &[u8]) -> Result<u8, ExtensionError> {
    let document = Document::parse(payload, Strictness::Canonical)?;
    let id = document
        .root()
        .get(b"m")
        .and_then(|m| m.get(b"ut_xet")?.integer());
    id.and_then(|id| u8::try_from(id).ok())
        .filter(|id| *id != HANDSHAKE_ID)
        .ok_or(ExtensionError::NoUtXet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_handshake_names_ut_xet_and_nothing_else() {
        assert_eq!(encode_handshake(), b"d1:md6:ut_xeti1eee");
        assert_eq!(decode_handshake(&encode_handshake()), Ok(UT_XET_ID));
        assert_eq!(
            decode_handshake(b"d1:md5:otheri2e6:ut_xeti9ee1:v1:xe"),
            Ok(9)
        );
    }

    #[test]
    fn handshakes_without_a_usable_id_are_refused() {
        for payload in [
            "de",
            "i1e",
            "d1:mdee",
            "d1:md6:ut_xeti0eee",
            "d1:md6:ut_xeti256eee",
            "d1:mi1ee",
        ] {
            let refused = decode_handshake(payload.as_bytes());
            assert_eq!(refused, Err(ExtensionError::NoUtXet), "{payload}");
        }
        let refused = decode_handshake(b"d1:m");
        assert_eq!(
            refused,
            Err(ExtensionError::Bencode(BencodeError::Truncated))
        );
    }

    #[test]
    fn messages_are_found_whole_and_refused_early() {
        let mut out = BytesMut::new();
        put_header(&mut out, 3, 5);
        out.extend_from_slice(b"hello, more");
        for cut in 0..11 {
            assert_eq!(next_message(&out[..cut], 5), Ok(None), "cut at {cut}");
        }
        let message = next_message(&out, 5).unwrap().unwrap();
        assert_eq!(
            message,
            Message::Extended {
                id: 3,
                payload: 6..11
            }
        );
        assert_eq!(&out[6..message.input_len()], b"hello");
        assert_eq!(
            next_message(&out[..4], 4),
            Err(MessageError::TooLong { len: 7, max: 6 })
        );
        assert_eq!(
            next_message(&[0, 0, 0, 1, 2], 9),
            Err(MessageError::Foreign(2))
        );
        assert_eq!(next_message(&[0, 0, 0, 1, 20], 9), Err(MessageError::NoId));
        assert_eq!(next_message(&[0; 5], 9), Ok(Some(Message::KeepAlive)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            input in prop::collection::vec(any::<u8>(), 0..64),
            max: u32,
        ) {
            let _id = decode_handshake(&input);
            if let Ok(Some(message)) = next_message(&input, max) {
                prop_assert!(message.input_len() <= input.len());
            }
        }
    }
}
