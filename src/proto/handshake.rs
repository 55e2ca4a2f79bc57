//! The BEP 3 handshake: 68 bytes each way before anything else.

use thiserror::Error;

/// Length of the handshake in bytes.
pub const HANDSHAKE_LEN: usize = 68;

const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

/// Reserved bit 20 from the right: the sender knows BEP 10.
const EXTENSIONS: (usize, u8) = (5, 0x10);

/// The sender knows BEP 6, the fast extension.
const FAST: (usize, u8) = (7, 0x04);

/// The sender names a hybrid torrent by its v1 hash and knows BEP 52: who has the v2 half may answer with that hash.
const UPGRADE: (usize, u8) = (7, 0x10);

/// One side's handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// What the sender can do.
    pub reserved: [u8; 8],
    /// Which swarm it wants.
    pub info_hash: [u8; 20],
    /// Its name; random per connection for folders.
    pub peer_id: [u8; 20],
}

/// The bytes do not begin a BitTorrent connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a BitTorrent handshake")]
pub struct NotBitTorrent;

impl Handshake {
    /// A handshake that offers BEP 10 and nothing else.
    pub fn with_extensions(info_hash: [u8; 20], peer_id: [u8; 20]) -> Self {
        let mut reserved = [0; 8];
        reserved[EXTENSIONS.0] = EXTENSIONS.1;
        Self {
            reserved,
            info_hash,
            peer_id,
        }
    }

    /// A handshake of an ordinary torrent: BEP 10 and BEP 6.
    pub fn for_torrent(info_hash: [u8; 20], peer_id: [u8; 20]) -> Self {
        let mut handshake = Self::with_extensions(info_hash, peer_id);
        handshake.reserved[FAST.0] |= FAST.1;
        handshake
    }

    /// The same, of a hybrid torrent.
    pub fn offering_v2(mut self) -> Self {
        self.reserved[UPGRADE.0] |= UPGRADE.1;
        self
    }

    /// Whether the sender lets us answer with the v2 hash.
    pub fn offers_v2(&self) -> bool {
        self.reserved[UPGRADE.0] & UPGRADE.1 != 0
    }

    /// Whether the sender knows BEP 6.
    pub fn has_fast(&self) -> bool {
        self.reserved[FAST.0] & FAST.1 != 0
    }

    /// Whether the sender knows BEP 10.
    pub fn has_extensions(&self) -> bool {
        self.reserved[EXTENSIONS.0] & EXTENSIONS.1 != 0
    }

    /// The 68 bytes.
    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut bytes = [0; HANDSHAKE_LEN];
        bytes[..20].copy_from_slice(PROTOCOL);
        bytes[20..28].copy_from_slice(&self.reserved);
        bytes[28..48].copy_from_slice(&self.info_hash);
        bytes[48..].copy_from_slice(&self.peer_id);
        bytes
    }

    /// Reads the handshake at the start of `input`; `None` while it is incomplete. Input that
    /// cannot become one is refused at its first wrong byte.
    pub fn decode(input: &[u8]) -> Result<Option<Self>, NotBitTorrent> {
        if !input.iter().zip(PROTOCOL).all(|(a, b)| a == b) {
            return Err(NotBitTorrent);
        }
        let parse = || {
            let (_, rest) = input.split_first_chunk::<20>()?;
            let (reserved, rest) = rest.split_first_chunk()?;
            let (info_hash, rest) = rest.split_first_chunk()?;
            let (peer_id, _) = rest.split_first_chunk()?;
            Some(Self {
                reserved: *reserved,
                info_hash: *info_hash,
                peer_id: *peer_id,
            })
        };
        Ok(parse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_at_every_cut() {
        let handshake = Handshake::with_extensions([7; 20], [8; 20]);
        let bytes = handshake.encode();
        assert_eq!(bytes[25], 0x10);
        assert_eq!(bytes.iter().filter(|byte| **byte == 0).count(), 7);
        for cut in 0..HANDSHAKE_LEN {
            assert_eq!(Handshake::decode(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        let longer = [&bytes[..], b"more"].concat();
        assert_eq!(Handshake::decode(&longer), Ok(Some(handshake)));
        assert!(handshake.has_extensions() && !handshake.has_fast());
        let torrent = Handshake::for_torrent([7; 20], [8; 20]);
        assert!(torrent.has_extensions() && torrent.has_fast() && !torrent.offers_v2());
        let hybrid = torrent.offering_v2();
        assert!(hybrid.has_fast() && hybrid.offers_v2());
        assert_eq!(hybrid.encode()[27], 0x14);
    }

    #[test]
    fn another_protocol_is_refused_at_its_first_byte() {
        assert_eq!(Handshake::decode(b"GET / HTTP/1.1"), Err(NotBitTorrent));
        assert_eq!(
            Handshake::decode(b"\x13BitTorrent protocoL"),
            Err(NotBitTorrent)
        );
        assert_eq!(Handshake::decode(b"\x14"), Err(NotBitTorrent));
    }
}
