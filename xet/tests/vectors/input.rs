//! Input of the test vectors: the generator their files describe, hex, base64 and JSON.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A piece of an input file.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Part {
    /// Bytes `[skip, skip + len)` of the generator, each masked.
    Rng {
        seed: String,
        #[serde(default)]
        skip: usize,
        len: usize,
        #[serde(default = "all_bits")]
        and: u8,
        #[serde(default)]
        or: u8,
    },
    /// The same few bytes again and again.
    Repeat { hex: String, len: usize },
    /// Numbered lines of text.
    Lines { first: u64, len: usize },
    /// A little-endian counter.
    Ctr32 { start: u32, step: u32, len: usize },
}

fn all_bits() -> u8 {
    0xff
}

pub(crate) fn read<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).expect("vector file")
}

/// The concatenation of `parts`.
pub(crate) fn build(parts: &[Part]) -> Vec<u8> {
    let mut data = Vec::new();
    for part in parts {
        let start = data.len();
        match part {
            Part::Rng {
                seed,
                skip,
                len,
                and,
                or,
            } => {
                let bytes = rng(seed.parse().expect("seed"), skip + len);
                data.extend(bytes[*skip..].iter().map(|byte| (byte & and) | or));
            }
            Part::Repeat { hex: pattern, len } => {
                data.extend(hex(pattern).iter().cycle().take(*len));
            }
            Part::Lines { first, len } => {
                for i in *first.. {
                    if data.len() >= start + len {
                        break;
                    }
                    data.extend_from_slice(format!("line {i} of the xet test text\n").as_bytes());
                }
                data.truncate(start + len);
            }
            Part::Ctr32 {
                start: first,
                step,
                len,
            } => {
                let words = (0u32..).map(|i| first.wrapping_add(step.wrapping_mul(i)));
                data.extend(words.flat_map(u32::to_le_bytes).take(*len));
            }
        }
    }
    data
}

/// `len` bytes of splitmix64 from `seed`.
pub(crate) fn rng(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        data.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    data.truncate(len);
    data
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(pair, 16).expect("hex")
        })
        .collect()
}

pub(crate) fn hex32(text: &str) -> [u8; 32] {
    hex(text).try_into().expect("32 bytes")
}

/// Standard base64 with padding.
pub(crate) fn base64(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.as_bytes().as_chunks::<4>().0 {
        let bits = group.iter().fold(0, |bits, c| (bits << 6) | sextet(*c));
        out.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    let padding = text.bytes().rev().take_while(|c| *c == b'=').count();
    out.truncate(out.len() - padding);
    out
}

fn sextet(c: u8) -> u32 {
    match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        b'=' => 0,
        other => panic!("{other} is no base64"),
    }
}
