//! Bencode: a tokenizer that keeps byte spans (an info-hash is the hash of bytes as found), with a
//! depth limit, and a writer whose output is canonical by construction.
//!
//! Tokens lie in one flat list and refer to the input, so parsing neither recurses nor copies.

use std::collections::BTreeMap;
use std::ops::Range;

use thiserror::Error;

/// Deepest nesting accepted; the stack of open containers is bounded by it.
pub const DEPTH_MAX: usize = 64;

/// What to do about encodings that are not the only one for their value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Refuse them: unsorted or repeated keys, leading zeros, `-0`.
    Canonical,
    /// Take them, as torrents in the wild have them. Of repeated keys the first counts.
    AsFound,
}

/// Why input is not bencode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BencodeError {
    /// The input ends inside a value.
    #[error("the input ends inside a value")]
    Truncated,
    /// A byte that cannot stand there.
    #[error("unexpected byte {byte:#04x} at offset {offset}")]
    Unexpected {
        /// The byte.
        byte: u8,
        /// Where it stands.
        offset: usize,
    },
    /// An integer or length outside 64 bits.
    #[error("the number at offset {offset} is too large")]
    Overflow {
        /// Where it starts.
        offset: usize,
    },
    /// A second encoding of the same value, refused by [`Strictness::Canonical`].
    #[error("the value at offset {offset} is not in canonical form")]
    NotCanonical {
        /// Where it starts.
        offset: usize,
    },
    /// More than [`DEPTH_MAX`] containers inside each other.
    #[error("more than {DEPTH_MAX} levels at offset {offset}")]
    TooDeep {
        /// Where the one too many starts.
        offset: usize,
    },
    /// Bytes behind the value.
    #[error("{left} bytes follow the value")]
    Trailing {
        /// How many.
        left: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer(i64),
    /// The length of the `123:` before the bytes themselves.
    Bytes {
        prefix: usize,
    },
    List,
    Dict,
}

#[derive(Debug, Clone)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
    /// Index of the first token that is not inside this one.
    next: usize,
}

/// A parsed value with everything in it.
#[derive(Debug, Clone)]
pub struct Document<'a> {
    input: &'a [u8],
    tokens: Vec<Token>,
}

/// One value inside a [`Document`].
#[derive(Debug, Clone, Copy)]
pub struct Value<'d> {
    input: &'d [u8],
    tokens: &'d [Token],
    index: usize,
}

impl<'a> Document<'a> {
    /// Parses input that is exactly one value.
    pub fn parse(input: &'a [u8], strictness: Strictness) -> Result<Self, BencodeError> {
        let document = Self::parse_prefix(input, strictness)?;
        match input.len() - document.len() {
            0 => Ok(document),
            left => Err(BencodeError::Trailing { left }),
        }
    }

    /// Parses the value at the start of `input`; what follows is left alone (BEP 9 puts a block
    /// of metadata there).
    pub fn parse_prefix(input: &'a [u8], strictness: Strictness) -> Result<Self, BencodeError> {
        let parser = Parser {
            input,
            strictness,
            at: 0,
            tokens: Vec::new(),
            open: Vec::new(),
        };
        let tokens = parser.run()?;
        Ok(Self { input, tokens })
    }

    /// Bytes of input the value takes.
    #[expect(
        clippy::len_without_is_empty,
        reason = "no value has an empty encoding"
    )]
    pub fn len(&self) -> usize {
        self.tokens.first().map_or(0, |token| token.end)
    }

    /// The outermost value.
    pub fn root(&self) -> Value<'_> {
        Value {
            input: self.input,
            tokens: &self.tokens,
            index: 0,
        }
    }
}

impl<'d> Value<'d> {
    fn token(&self) -> Option<&'d Token> {
        self.tokens.get(self.index)
    }

    /// Where the encoding lies in the input.
    pub fn span(&self) -> Range<usize> {
        self.token().map_or(0..0, |token| token.start..token.end)
    }

    /// The encoding as found.
    pub fn raw(&self) -> &'d [u8] {
        self.input.get(self.span()).unwrap_or_default()
    }

    /// The value of an integer.
    pub fn integer(&self) -> Option<i64> {
        match self.token()?.kind {
            Kind::Integer(value) => Some(value),
            _ => None,
        }
    }

    /// The content of a byte string.
    pub fn bytes(&self) -> Option<&'d [u8]> {
        match self.token()?.kind {
            Kind::Bytes { prefix } => self.raw().get(prefix..),
            _ => None,
        }
    }

    /// The elements of a list.
    pub fn list(&self) -> Option<impl Iterator<Item = Value<'d>> + use<'d>> {
        (self.token()?.kind == Kind::List).then(|| self.children())
    }

    /// The keys and values of a dictionary, in the order of the input.
    pub fn dict(&self) -> Option<impl Iterator<Item = (&'d [u8], Value<'d>)> + use<'d>> {
        let mut children = (self.token()?.kind == Kind::Dict).then(|| self.children())?;
        Some(std::iter::from_fn(move || {
            Some((children.next()?.bytes()?, children.next()?))
        }))
    }

    /// The value behind `key` in a dictionary.
    pub fn get(&self, key: &[u8]) -> Option<Self> {
        self.dict()?
            .find(|(found, _)| *found == key)
            .map(|(_, value)| value)
    }

    fn children(&self) -> impl Iterator<Item = Self> + use<'d> {
        let Value {
            input,
            tokens,
            index,
        } = *self;
        let end = self.token().map_or(index, |token| token.next);
        let mut at = index + 1;
        std::iter::from_fn(move || {
            let child = (at < end).then_some(Value {
                input,
                tokens,
                index: at,
            })?;
            at = child.token()?.next;
            Some(child)
        })
    }
}

/// A container whose end has not been seen.
struct Open {
    token: usize,
    /// In a dictionary: the token of the newest key, and whether its value is still to come.
    last_key: Option<usize>,
    value_due: bool,
}

struct Parser<'a> {
    input: &'a [u8],
    strictness: Strictness,
    at: usize,
    tokens: Vec<Token>,
    open: Vec<Open>,
}

impl Parser<'_> {
    fn run(mut self) -> Result<Vec<Token>, BencodeError> {
        loop {
            let byte = self.peek()?;
            if byte == b'e' {
                self.close()?;
            } else {
                self.check_place(byte)?;
                match byte {
                    b'i' => self.integer()?,
                    b'0'..=b'9' => self.bytes()?,
                    b'l' => self.begin(Kind::List)?,
                    b'd' => self.begin(Kind::Dict)?,
                    _ => return Err(self.unexpected(byte)),
                }
            }
            if self.open.is_empty() {
                return Ok(self.tokens);
            }
        }
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        self.input
            .get(self.at)
            .copied()
            .ok_or(BencodeError::Truncated)
    }

    fn unexpected(&self, byte: u8) -> BencodeError {
        BencodeError::Unexpected {
            byte,
            offset: self.at,
        }
    }

    /// Keys have to be byte strings; keeps track of whether a key or a value comes next.
    fn check_place(&mut self, byte: u8) -> Result<(), BencodeError> {
        let next = self.tokens.len();
        let Some(open) = self.open.last_mut() else {
            return Ok(());
        };
        if self
            .tokens
            .get(open.token)
            .is_none_or(|token| token.kind != Kind::Dict)
        {
            return Ok(());
        }
        if open.value_due {
            open.value_due = false;
        } else if byte.is_ascii_digit() {
            open.value_due = true;
            open.last_key.get_or_insert(next);
        } else {
            return Err(self.unexpected(byte));
        }
        Ok(())
    }

    fn push(&mut self, kind: Kind, start: usize) {
        let next = self.tokens.len() + 1;
        self.tokens.push(Token {
            kind,
            start,
            end: self.at,
            next,
        });
    }

    fn begin(&mut self, kind: Kind) -> Result<(), BencodeError> {
        if self.open.len() == DEPTH_MAX {
            return Err(BencodeError::TooDeep { offset: self.at });
        }
        self.open.push(Open {
            token: self.tokens.len(),
            last_key: None,
            value_due: false,
        });
        self.at += 1;
        self.push(kind, self.at - 1);
        Ok(())
    }

    fn close(&mut self) -> Result<(), BencodeError> {
        let unexpected = self.unexpected(b'e');
        let open = self
            .open
            .pop()
            .filter(|open| !open.value_due)
            .ok_or(unexpected)?;
        self.at += 1;
        let (end, next) = (self.at, self.tokens.len());
        if let Some(token) = self.tokens.get_mut(open.token) {
            token.end = end;
            token.next = next;
        }
        Ok(())
    }

    fn integer(&mut self) -> Result<(), BencodeError> {
        let start = self.at;
        self.at += 1;
        let negative = self.peek()? == b'-';
        if negative {
            self.at += 1;
        }
        let digits = self.digits(b'e', start)?;
        let value = digits
            .iter()
            .try_fold(0i64, |value, digit| {
                let digit = i64::from(digit - b'0');
                let step = if negative {
                    i64::checked_sub
                } else {
                    i64::checked_add
                };
                step(value.checked_mul(10)?, digit)
            })
            .ok_or(BencodeError::Overflow { offset: start })?;
        if negative && value == 0 {
            self.refuse_if_strict(start)?;
        }
        self.push(Kind::Integer(value), start);
        Ok(())
    }

    fn bytes(&mut self) -> Result<(), BencodeError> {
        let start = self.at;
        let digits = self.digits(b':', start)?;
        let len = digits
            .iter()
            .try_fold(0usize, |len, digit| {
                len.checked_mul(10)?.checked_add(usize::from(digit - b'0'))
            })
            .ok_or(BencodeError::Overflow { offset: start })?;
        let prefix = self.at - start;
        if len > self.input.len() - self.at {
            return Err(BencodeError::Truncated);
        }
        self.at += len;
        self.push(Kind::Bytes { prefix }, start);
        self.check_order()
    }

    /// Consumes at least one digit and the byte `end`.
    fn digits(&mut self, end: u8, start: usize) -> Result<&[u8], BencodeError> {
        let first = self.at;
        while self.peek()?.is_ascii_digit() {
            self.at += 1;
        }
        let byte = self.peek()?;
        if byte != end || self.at == first {
            return Err(self.unexpected(byte));
        }
        let digits = first..self.at;
        self.at += 1;
        if digits.len() > 1 && self.input.get(first) == Some(&b'0') {
            self.refuse_if_strict(start)?;
        }
        Ok(self.input.get(digits).unwrap_or_default())
    }

    /// Called after a byte string: if it is a key, it has to be above the key before it.
    fn check_order(&mut self) -> Result<(), BencodeError> {
        let newest = self.tokens.len() - 1;
        let Some(open) = self.open.last_mut().filter(|open| open.value_due) else {
            return Ok(());
        };
        let Some(last) = open.last_key.replace(newest).filter(|last| *last != newest) else {
            return Ok(());
        };
        let key = |index| {
            Value {
                input: self.input,
                tokens: &self.tokens,
                index,
            }
            .bytes()
        };
        if key(last) >= key(newest) {
            let offset = self.tokens.last().map_or(0, |token| token.start);
            self.refuse_if_strict(offset)?;
        }
        Ok(())
    }

    fn refuse_if_strict(&self, offset: usize) -> Result<(), BencodeError> {
        match self.strictness {
            Strictness::Canonical => Err(BencodeError::NotCanonical { offset }),
            Strictness::AsFound => Ok(()),
        }
    }
}

/// A value to write. Dictionaries sort themselves, so the encoding is canonical.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// `i..e`
    Integer(i64),
    /// `n:..`
    Bytes(Vec<u8>),
    /// `l..e`
    List(Vec<Self>),
    /// `d..e`
    Dict(BTreeMap<Vec<u8>, Self>),
}

impl Item {
    /// A dictionary of the given entries.
    pub fn dict<const N: usize>(entries: [(&str, Self); N]) -> Self {
        let own = |(key, value): (&str, Self)| (key.as_bytes().to_vec(), value);
        Self::Dict(entries.into_iter().map(own).collect())
    }

    /// Appends the canonical encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Integer(value) => out.extend_from_slice(format!("i{value}e").as_bytes()),
            Self::Bytes(bytes) => encode_bytes(bytes, out),
            Self::List(items) => {
                out.push(b'l');
                items.iter().for_each(|item| item.encode(out));
                out.push(b'e');
            }
            Self::Dict(entries) => {
                out.push(b'd');
                for (key, value) in entries {
                    encode_bytes(key, out);
                    value.encode(out);
                }
                out.push(b'e');
            }
        }
    }
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Turns a parsed value back into a tree, independently of spans.
    fn tree(value: Value<'_>) -> Item {
        if let Some(integer) = value.integer() {
            Item::Integer(integer)
        } else if let Some(bytes) = value.bytes() {
            Item::Bytes(bytes.to_vec())
        } else if let Some(list) = value.list() {
            Item::List(list.map(tree).collect())
        } else {
            let entries = value.dict().unwrap();
            Item::Dict(
                entries
                    .map(|(key, value)| (key.to_vec(), tree(value)))
                    .collect(),
            )
        }
    }

    fn error(input: &[u8], strictness: Strictness) -> BencodeError {
        Document::parse(input, strictness).unwrap_err()
    }

    #[test]
    fn spans_give_the_bytes_as_found() {
        let input = b"d4:infod6:lengthi03e4:name1:ae3:seqi-7ee";
        let document = Document::parse(input, Strictness::AsFound).unwrap();
        let info = document.root().get(b"info").unwrap();
        assert_eq!(info.raw(), b"d6:lengthi03e4:name1:ae");
        assert_eq!(info.span(), 7..30);
        assert_eq!(info.get(b"length").unwrap().integer(), Some(3));
        assert_eq!(info.get(b"name").unwrap().bytes(), Some(&b"a"[..]));
        assert_eq!(document.root().get(b"seq").unwrap().integer(), Some(-7));
        assert!(document.root().get(b"nam").is_none());
    }

    #[test]
    fn what_is_not_canonical_is_refused_or_taken_as_asked() {
        let loose: [&[u8]; 7] = [
            b"i03e",
            b"i-0e",
            b"i00e",
            b"01:a",
            b"d1:b0:1:a0:e",
            b"d1:a0:1:a0:e",
            b"li-01ee",
        ];
        for input in loose {
            let strict = error(input, Strictness::Canonical);
            assert!(
                matches!(strict, BencodeError::NotCanonical { .. }),
                "{input:?}: {strict}"
            );
            assert!(
                Document::parse(input, Strictness::AsFound).is_ok(),
                "{input:?}"
            );
        }
        let first = Document::parse(b"d1:ai1e1:ai2ee", Strictness::AsFound).unwrap();
        assert_eq!(first.root().get(b"a").unwrap().integer(), Some(1));
    }

    #[test]
    fn broken_input_is_refused_either_way() {
        let cases: [(&[u8], BencodeError); 12] = [
            (b"", BencodeError::Truncated),
            (b"i12", BencodeError::Truncated),
            (b"5:abc", BencodeError::Truncated),
            (b"d1:a", BencodeError::Truncated),
            (
                b"ie",
                BencodeError::Unexpected {
                    byte: b'e',
                    offset: 1,
                },
            ),
            (
                b"i+1e",
                BencodeError::Unexpected {
                    byte: b'+',
                    offset: 1,
                },
            ),
            (
                b"e",
                BencodeError::Unexpected {
                    byte: b'e',
                    offset: 0,
                },
            ),
            (
                b"d1:ae",
                BencodeError::Unexpected {
                    byte: b'e',
                    offset: 4,
                },
            ),
            (
                b"di1ei2ee",
                BencodeError::Unexpected {
                    byte: b'i',
                    offset: 1,
                },
            ),
            (
                b"i9223372036854775808e",
                BencodeError::Overflow { offset: 0 },
            ),
            (
                b"99999999999999999999:",
                BencodeError::Overflow { offset: 0 },
            ),
            (b"i1ei2e", BencodeError::Trailing { left: 3 }),
        ];
        for (input, expected) in cases {
            for strictness in [Strictness::Canonical, Strictness::AsFound] {
                assert_eq!(error(input, strictness), expected, "{input:?}");
            }
        }
    }

    #[test]
    fn the_extremes_of_64_bits_are_numbers() {
        for value in [i64::MIN, i64::MAX] {
            let text = format!("i{value}e");
            let document = Document::parse(text.as_bytes(), Strictness::Canonical).unwrap();
            assert_eq!(document.root().integer(), Some(value));
        }
    }

    #[test]
    fn depth_is_limited() {
        let nested = |levels: usize| [vec![b'l'; levels], vec![b'e'; levels]].concat();
        assert!(Document::parse(&nested(DEPTH_MAX), Strictness::Canonical).is_ok());
        let refused = error(&nested(100_000), Strictness::AsFound);
        assert_eq!(refused, BencodeError::TooDeep { offset: DEPTH_MAX });
    }

    fn item() -> impl Strategy<Value = Item> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..8);
        let leaf = prop_oneof![
            any::<i64>().prop_map(Item::Integer),
            bytes().prop_map(Item::Bytes)
        ];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Item::List),
                prop::collection::btree_map(bytes(), inner, 0..6).prop_map(Item::Dict),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(item in item(), tail: [u8; 3]) {
            let mut bytes = vec![];
            item.encode(&mut bytes);
            let document = Document::parse(&bytes, Strictness::Canonical).unwrap();
            prop_assert_eq!(tree(document.root()), item);
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            let prefix = Document::parse_prefix(&bytes, Strictness::Canonical).unwrap();
            prop_assert_eq!(prefix.len(), len);
        }

        #[test]
        fn what_is_taken_as_canonical_is_written_the_same(
            input in prop::collection::vec(prop::sample::select(b"dlei-:0123ab".to_vec()), 0..24),
        ) {
            if let Ok(document) = Document::parse(&input, Strictness::Canonical) {
                let mut again = vec![];
                tree(document.root()).encode(&mut again);
                prop_assert_eq!(again, input);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Document::parse(&input, Strictness::AsFound));
        }
    }
}
