//! Files to measure with. All are the same in every run.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Fields, Result};

/// Bytes of one edit, and of the distance between two: 1 % of the file changes.
const EDIT_LEN: u64 = 64 << 10;
const EDIT_EVERY: u64 = 100 * EDIT_LEN;

/// Words a text is made of, and sequences of them.
const WORDS: usize = 20_000;
const PHRASES: usize = 50_000;

pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Bytes without a pattern.
pub fn fill_noise(seed: u64, out: &mut [u8]) {
    let mut state = seed;
    for piece in out.chunks_mut(8) {
        piece.copy_from_slice(&splitmix(&mut state).to_le_bytes()[..piece.len()]);
    }
}

pub fn noise_file(path: &Path, mib: usize) -> Result<Fields> {
    let mut file = File::create(path)?;
    let mut block = vec![0; 1 << 20];
    for seed in 0..mib as u64 {
        fill_noise(seed << 32, &mut block);
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(Fields::default())
}

/// Lines of phrases, the n-th most common one as often as 1 / n, as prose and logs have them.
pub fn text_file(path: &Path, mib: usize) -> Result<Fields> {
    let mut state = 7;
    let words: Vec<Vec<u8>> = (0..WORDS).map(|_| word(&mut state)).collect();
    let mut phrases = Vec::new();
    for _ in 0..PHRASES {
        let len = 1 + splitmix(&mut state) % 5;
        let phrase: Vec<&[u8]> = (0..len)
            .map(|_| &words[common(&mut state, WORDS)][..])
            .collect();
        phrases.push(phrase.join(&b' '));
    }
    let mut out = BufWriter::new(File::create(path)?);
    let (mut left, mut column) = (mib << 20, 0);
    while left > 0 {
        let phrase = &phrases[common(&mut state, PHRASES)];
        column = if column > 80 {
            0
        } else {
            column + phrase.len()
        };
        let piece = [&phrase[..], if column == 0 { b"\n" } else { b" " }].concat();
        let len = piece.len().min(left);
        out.write_all(&piece[..len])?;
        left -= len;
    }
    out.into_inner()?.sync_all()?;
    Ok(Fields::default())
}

fn word(state: &mut u64) -> Vec<u8> {
    let random = splitmix(state);
    let letter = |at| b"etaoinshrdlucmfwypvbgkqjxzetaoin"[(random >> (5 * at + 4)) as usize % 32];
    (0..2 + random % 9).map(letter).collect()
}

/// A number below `count`, low ones more often.
fn common(state: &mut u64, count: usize) -> usize {
    let random = (splitmix(state) >> 11) as f64 / (1u64 << 53) as f64;
    ((count as f64).powf(random) as usize - 1).min(count - 1)
}

pub fn edited_file(from: &Path, to: &Path) -> Result<Fields> {
    std::fs::copy(from, to)?;
    let file = File::options().write(true).open(to)?;
    let len = file.metadata()?.len();
    let mut edit = vec![0; EDIT_LEN as usize];
    for at in (EDIT_EVERY / 2..len.saturating_sub(EDIT_LEN)).step_by(EDIT_EVERY as usize) {
        fill_noise(at, &mut edit);
        file.write_all_at(&edit, at)?;
    }
    file.sync_all()?;
    Ok(Fields::default())
}
