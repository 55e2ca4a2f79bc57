//! Paths and names on their way through JSON and onto a terminal.
//!
//! A Linux path is bytes. In JSON it is a string when those bytes are UTF-8 and `{"base64":"…"}` otherwise, so no path is
//! ever changed on the way. On a terminal everything that could move the cursor, change colours or reorder text is
//! escaped: names come from peers.

use std::ffi::OsString;
use std::fmt::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path in a request or an answer. `Display` is the escaped form for people, serde the lossless one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiPath(pub PathBuf);

impl ApiPath {
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl From<PathBuf> for ApiPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl From<&Path> for ApiPath {
    fn from(path: &Path) -> Self {
        Self(path.to_path_buf())
    }
}

impl fmt::Display for ApiPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(self.0.as_os_str().as_bytes()))
    }
}

impl fmt::Debug for ApiPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ApiPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &BASE64.encode(self.0.as_os_str().as_bytes()))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for ApiPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PathVisitor)
    }
}

struct PathVisitor;

impl<'de> Visitor<'de> for PathVisitor {
    type Value = ApiPath;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path: a string, or {\"base64\": \"...\"} if it is not UTF-8")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ApiPath, E> {
        Ok(ApiPath(PathBuf::from(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ApiPath, A::Error> {
        let Some((key, value)) = map.next_entry::<String, String>()? else {
            return Err(A::Error::missing_field("base64"));
        };
        if key != "base64" || map.next_key::<String>()?.is_some() {
            return Err(A::Error::unknown_field(&key, &["base64"]));
        }
        let bytes = BASE64.decode(value.as_bytes()).map_err(A::Error::custom)?;
        Ok(ApiPath(OsString::from_vec(bytes).into()))
    }
}

/// `bytes` as text that is safe on a terminal: bytes that are not UTF-8, control characters, and characters that reorder
/// or hide text become `\xNN` or `\u{N}`; a backslash becomes `\\`, so the form can be read back by a person.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                c if c.is_ascii_control() => push_byte(&mut out, c as u8),
                c if c.is_control() || reorders_or_hides(c) => {
                    out.extend(c.escape_unicode());
                }
                c => out.push(c),
            }
        }
        for byte in part.invalid() {
            push_byte(&mut out, *byte);
        }
    }
    out
}

fn push_byte(out: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\x{byte:02x}");
}

/// Bidirectional controls, zero-width characters, line and paragraph separators, tags: all can make one name look like
/// another.
fn reorders_or_hides(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(bytes: &[u8]) -> ApiPath {
        ApiPath(OsString::from_vec(bytes.to_vec()).into())
    }

    #[test]
    fn json_is_a_string_or_base64() {
        assert_eq!(
            serde_json::to_string(&path(b"/a b%20")).unwrap(),
            "\"/a b%20\""
        );
        assert_eq!(
            serde_json::to_string(&path(b"/\xff")).unwrap(),
            "{\"base64\":\"L/8=\"}"
        );
        for bad in [
            "{}",
            "{\"base64\":\"!\"}",
            "{\"b\":\"\"}",
            "3",
            "{\"base64\":\"\",\"x\":\"\"}",
        ] {
            assert!(serde_json::from_str::<ApiPath>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn escapes_what_a_terminal_would_act_on() {
        assert_eq!(escape("grün/文件".as_bytes()), "grün/文件");
        assert_eq!(
            escape(b"a\x1b[31mb\r\n\xff\\"),
            "a\\x1b[31mb\\x0d\\n\\xff\\\\"
        );
        assert_eq!(
            escape("x\u{202e}gpj.exe\u{9b}".as_bytes()),
            "x\\u{202e}gpj.exe\\u{9b}"
        );
    }

    proptest! {
        #[test]
        fn json_keeps_every_byte(bytes in proptest::collection::vec(1u8.., 0..64)) {
            let json = serde_json::to_string(&path(&bytes)).unwrap();
            prop_assert_eq!(serde_json::from_str::<ApiPath>(&json).unwrap(), path(&bytes));
        }

        #[test]
        fn escaped_text_has_no_control_characters(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let text = escape(&bytes);
            prop_assert!(text.chars().all(|c| !c.is_control() && !reorders_or_hides(c)));
        }
    }
}
