//! The extension handshake of ordinary torrents (BEP 10): which extensions each side takes under which number.

use std::net::IpAddr;

use crate::proto::bencode::{Document, Item, Strictness};

/// The number under which we take PEX (BEP 11).
pub const UT_PEX: u8 = 1;
/// The number under which we take metadata messages (BEP 9).
pub const UT_METADATA: u8 = 2;
/// The number under which we take "I no longer have this piece" (BEP 54).
pub const LT_DONTHAVE: u8 = 3;
/// The number under which we take messages about meeting a third peer (BEP 55).
pub const UT_HOLEPUNCH: u8 = 4;
/// Requests we let wait for a peer; beyond, they are refused.
pub const REQUESTS_MAX: u32 = 2000;
/// Requests taken to fit into the queue of a peer that does not say how many do; libtorrent's old default.
const REQUESTS_ASSUMED: u32 = 250;
/// Characters kept of the name of a peer's program.
const CLIENT_CHARS_MAX: usize = 60;

/// What one side says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its number for BEP 9 messages, if it takes them.
    pub ut_metadata: Option<u8>,
    /// Its number for BEP 11 messages, if it takes them.
    pub ut_pex: Option<u8>,
    /// Its number for BEP 54 messages, if it takes them.
    pub lt_donthave: Option<u8>,
    /// Its number for BEP 55 messages, if it takes them.
    pub ut_holepunch: Option<u8>,
    /// Bytes of the info dictionary, if it has that.
    pub metadata_size: Option<u64>,
    /// Requests that fit into its queue.
    pub requests_max: u32,
    /// It downloads nothing more (BEP 21).
    pub upload_only: bool,
    /// Where it takes connections.
    pub port: Option<u16>,
    /// Name and version of its program, without control characters.
    pub client: Option<String>,
    /// Our address as it sees it.
    pub your_ip: Option<IpAddr>,
}

impl Hello {
    /// What we say. `pex`: the torrent is not private.
    pub fn ours(metadata_size: Option<usize>, pex: bool, upload_only: bool, port: u16) -> Self {
        Self {
            ut_metadata: Some(UT_METADATA),
            ut_pex: pex.then_some(UT_PEX),
            lt_donthave: Some(LT_DONTHAVE),
            ut_holepunch: Some(UT_HOLEPUNCH),
            metadata_size: metadata_size.map(|size| size as u64),
            requests_max: REQUESTS_MAX,
            upload_only,
            port: (port != 0).then_some(port),
            client: Some(concat!("ccbt ", env!("CARGO_PKG_VERSION")).to_owned()),
            your_ip: None,
        }
    }

    /// What holds when a peer that has said `before` says this: only what it names has changed (BEP 10).
    pub fn after(self, before: &Self) -> Self {
        let requests_max = match self.requests_max {
            REQUESTS_ASSUMED => before.requests_max,
            said => said,
        };
        Self {
            ut_metadata: self.ut_metadata.or(before.ut_metadata),
            ut_pex: self.ut_pex.or(before.ut_pex),
            lt_donthave: self.lt_donthave.or(before.lt_donthave),
            ut_holepunch: self.ut_holepunch.or(before.ut_holepunch),
            metadata_size: self.metadata_size.or(before.metadata_size),
            requests_max,
            upload_only: self.upload_only,
            port: self.port.or(before.port),
            client: self.client.or_else(|| before.client.clone()),
            your_ip: self.your_ip.or(before.your_ip),
        }
    }

    /// The payload of extended message 0.
    pub fn encode(&self) -> Vec<u8> {
        let mut entries = std::collections::BTreeMap::new();
        let mut put = |key: &str, value: Option<Item>| {
            entries.extend(value.map(|value| (key.as_bytes().to_vec(), value)));
        };
        let integer = |n: u64| Item::Integer(i64::try_from(n).unwrap_or(i64::MAX));
        let extensions = [
            ("ut_metadata", self.ut_metadata),
            ("ut_pex", self.ut_pex),
            ("lt_donthave", self.lt_donthave),
            ("ut_holepunch", self.ut_holepunch),
        ];
        let taken = extensions
            .into_iter()
            .filter_map(|(name, id)| Some((name.as_bytes().to_vec(), integer(id?.into()))));
        put("m", Some(Item::Dict(taken.collect())));
        put("metadata_size", self.metadata_size.map(integer));
        put("reqq", Some(integer(self.requests_max.into())));
        put("upload_only", self.upload_only.then_some(Item::Integer(1)));
        put("p", self.port.map(|port| integer(port.into())));
        put(
            "v",
            self.client
                .clone()
                .map(|text| Item::Bytes(text.into_bytes())),
        );
        put(
            "yourip",
            self.your_ip.map(|ip| match ip.to_canonical() {
                IpAddr::V4(ip) => Item::Bytes(ip.octets().to_vec()),
                IpAddr::V6(ip) => Item::Bytes(ip.octets().to_vec()),
            }),
        );
        let mut payload = Vec::new();
        Item::Dict(entries).encode(&mut payload);
        payload
    }

    /// Reads a payload; what makes no sense is taken as not said. `None`: not a dictionary.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let document = Document::parse(payload, Strictness::AsFound).ok()?;
        let root = document.root();
        drop(root.dict()?);
        let field = |key: &[u8]| root.get(key).and_then(|v| v.integer());
        let extension = |key: &[u8]| {
            let id = root.get(b"m")?.get(key)?.integer()?;
            u8::try_from(id).ok().filter(|id| *id != 0)
        };
        let client = root.get(b"v").and_then(|v| v.bytes()).map(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let plain = text.chars().filter(|c| !c.is_control());
            plain.take(CLIENT_CHARS_MAX).collect()
        });
        let requests = field(b"reqq").and_then(|n| u32::try_from(n).ok());
        Some(Self {
            ut_metadata: extension(b"ut_metadata"),
            ut_pex: extension(b"ut_pex"),
            lt_donthave: extension(b"lt_donthave"),
            ut_holepunch: extension(b"ut_holepunch"),
            metadata_size: field(b"metadata_size").and_then(|n| u64::try_from(n).ok()),
            requests_max: requests.filter(|n| *n > 0).unwrap_or(REQUESTS_ASSUMED),
            upload_only: field(b"upload_only") == Some(1),
            port: field(b"p")
                .and_then(|n| u16::try_from(n).ok())
                .filter(|port| *port != 0),
            client,
            your_ip: root.get(b"yourip").and_then(|v| v.bytes()).and_then(ip),
        })
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        for (size, pex, upload_only, port) in
            [(Some(77), true, false, 6881), (None, false, true, 0)]
        {
            let hello = Hello::ours(size, pex, upload_only, port);
            assert_eq!(Hello::decode(&hello.encode()), Some(hello.clone()));
            for ip in ["10.2.3.4", "2001:db8::7"] {
                let your_ip = Some(ip.parse().unwrap());
                let hello = Hello {
                    your_ip,
                    ..hello.clone()
                };
                assert_eq!(Hello::decode(&hello.encode()), Some(hello));
            }
        }
    }

    #[test]
    fn nonsense_is_taken_as_not_said() {
        let payload = b"d1:md11:ut_metadatai0e6:ut_pexi999ee13:metadata_sizei-1e1:pi70000e4:reqqi0e1:v4:a\x1bbc6:yourip4:\x01\x02\x03\x04e";
        let hello = Hello::decode(payload).unwrap();
        assert_eq!(
            (hello.ut_metadata, hello.ut_pex, hello.metadata_size),
            (None, None, None)
        );
        assert_eq!((hello.port, hello.requests_max), (None, REQUESTS_ASSUMED));
        assert_eq!(hello.client.as_deref(), Some("abc"));
        assert_eq!(hello.your_ip, Some([1, 2, 3, 4].into()));
        assert_eq!(Hello::decode(b"le"), None);
        assert_eq!(Hello::decode(b""), None);
    }
}
