//! XXH32 with seed 0, the checksum of LZ4 frames (xxHash specification, section "XXH32").

const PRIMES: [u32; 5] = [
    0x9E37_79B1,
    0x85EB_CA77,
    0xC2B2_AE3D,
    0x27D4_EB2F,
    0x1656_67B1,
];

/// Checksum of `bytes`.
pub(super) fn xxh32(bytes: &[u8]) -> u32 {
    let (stripes, tail) = bytes.as_chunks::<16>();
    let mut lanes = [
        PRIMES[0].wrapping_add(PRIMES[1]),
        PRIMES[1],
        0,
        0u32.wrapping_sub(PRIMES[0]),
    ];
    for stripe in stripes {
        for (lane, input) in lanes.iter_mut().zip(stripe.as_chunks::<4>().0) {
            let mixed = lane.wrapping_add(u32::from_le_bytes(*input).wrapping_mul(PRIMES[1]));
            *lane = mixed.rotate_left(13).wrapping_mul(PRIMES[0]);
        }
    }
    let hash = if stripes.is_empty() {
        PRIMES[4]
    } else {
        let turned = lanes
            .iter()
            .zip([1, 7, 12, 18])
            .map(|(lane, by)| lane.rotate_left(by));
        turned.fold(0, u32::wrapping_add)
    };
    // The format counts modulo 2^32.
    avalanche(finish(hash.wrapping_add(bytes.len() as u32), tail))
}

/// Mixes in the last, incomplete stripe.
fn finish(hash: u32, tail: &[u8]) -> u32 {
    let (words, bytes) = tail.as_chunks::<4>();
    let hash = words.iter().fold(hash, |hash, word| {
        let mixed = hash.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(PRIMES[2]));
        mixed.rotate_left(17).wrapping_mul(PRIMES[3])
    });
    bytes.iter().fold(hash, |hash, byte| {
        let mixed = hash.wrapping_add(u32::from(*byte).wrapping_mul(PRIMES[4]));
        mixed.rotate_left(11).wrapping_mul(PRIMES[0])
    })
}

fn avalanche(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> 15)).wrapping_mul(PRIMES[1]);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(PRIMES[2]);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::xxh32;

    #[test]
    fn known_values() {
        assert_eq!(xxh32(b""), 0x02cc_5d05);
        assert_eq!(xxh32(b"a"), 0x550d_7456);
        assert_eq!(xxh32(b"abc"), 0x32d1_53ff);
        assert_eq!(
            xxh32(b"Nobody inspects the spammish repetition"),
            0xe229_3b2f
        );
    }
}
