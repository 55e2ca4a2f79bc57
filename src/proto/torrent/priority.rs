//! Which of many peers to be connected to (BEP 40): a number both ends of a connection work out alike and nobody else can choose,
//! so that swarms whose members are full stay joined.

use std::net::{IpAddr, SocketAddr};

/// The priority of a connection between two ends; the higher the better.
pub(super) fn canonical(a: SocketAddr, b: SocketAddr) -> u32 {
    let ip = |addr: SocketAddr| addr.ip().to_canonical();
    if ip(a) == ip(b) {
        return of_pair(&a.port().to_be_bytes(), &b.port().to_be_bytes());
    }
    match (ip(a), ip(b)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let (a, b) = (a.octets(), b.octets());
            // Near ones are told apart by more bits.
            let mask = match (a.get(..2) == b.get(..2), a.get(..3) == b.get(..3)) {
                (_, true) => [0xff; 4],
                (true, false) => [0xff, 0xff, 0xff, 0x55],
                (false, false) => [0xff, 0xff, 0x55, 0x55],
            };
            of_pair(&masked(a, mask), &masked(b, mask))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let (a, b) = (a.octets(), b.octets());
            let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            let whole = if same >= 6 { (same + 1).min(16) } else { 6 };
            let mask = std::array::from_fn(|n| if n < whole { 0xff } else { 0x55 });
            of_pair(&masked(a, mask), &masked(b, mask))
        }
        _ => 0,
    }
}

fn masked<const N: usize>(ip: [u8; N], mask: [u8; N]) -> [u8; N] {
    let mut out = ip;
    out.iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte &= mask);
    out
}

fn of_pair(a: &[u8], b: &[u8]) -> u32 {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    crc32c(&[low, high].concat())
}

/// The Castagnoli CRC, of a few bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32| (crc >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(crc & 1));
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority(a: &str, b: &str) -> u32 {
        let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(canonical(a, b), canonical(b, a));
        canonical(a, b)
    }

    #[test]
    fn the_examples_of_bep_40() {
        assert_eq!(priority("123.213.32.10:1", "98.76.54.32:2"), 0xec2d_7224);
        assert_eq!(priority("123.213.32.10:1", "123.213.32.234:2"), 0x9956_8189);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_cannot_be_chosen_freely_does_not_count() {
        let here = "123.213.32.10:6881";
        // Bits that a mask takes out, and ports of different hosts.
        assert_eq!(
            priority(here, "98.76.54.32:2"),
            priority(here, "98.76.54.32:9")
        );
        assert_eq!(priority(here, "98.76.2.0:2"), priority(here, "98.76.0.2:9"));
        assert_ne!(priority(here, "98.76.1.0:2"), priority(here, "98.76.0.2:9"));
        assert_ne!(
            priority(here, "123.213.32.10:1"),
            priority(here, "123.213.32.10:2")
        );
        let six = "[2001:db8:1:2::1]:1";
        assert_eq!(
            priority(six, "[2001:db9:1:aaaa::]:1"),
            priority(six, "[2001:db9:1:0::]:1")
        );
        assert_ne!(
            priority(six, "[2001:db8:1:3::]:1"),
            priority(six, "[2001:db8:1:1::]:1")
        );
        assert_eq!(priority(here, six), 0);
    }
}
