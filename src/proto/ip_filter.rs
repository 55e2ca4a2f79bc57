//! Lists of addresses that are not spoken to: PeerGuardian's text (`p2p`), eMule's (`dat`), and plain CIDR, line by line
//! and in any mixture.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Levels of access from which on eMule lets an address in.
const LEVEL_ALLOWED: u32 = 128;
/// Longest line looked at.
const LINE_LEN_MAX: usize = 4096;

/// Ranges of addresses that are blocked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpFilter {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// What a list came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    pub filter: IpFilter,
    /// Lines that are none of the three, and the number of the first of them.
    pub unknown: usize,
    pub first_unknown: Option<usize>,
}

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Nothing,
    Range(IpAddr, IpAddr),
}

impl IpFilter {
    /// Reads a list. Lines that are not understood are counted and left out.
    pub fn parse(text: &[u8]) -> Parsed {
        let mut parsed = Parsed::default();
        for (n, line) in text.split(|byte| *byte == b'\n').enumerate() {
            // Descriptions are in any encoding; addresses are not.
            let short = line.get(..LINE_LEN_MAX).unwrap_or(line);
            match parse_line(String::from_utf8_lossy(short).trim()) {
                Some(Line::Nothing) => {}
                Some(Line::Range(first, last)) => parsed.filter.add(first, last),
                None => {
                    parsed.unknown += 1;
                    parsed.first_unknown.get_or_insert(n + 1);
                }
            }
        }
        tidy(&mut parsed.filter.v4, |end| end.saturating_add(1));
        tidy(&mut parsed.filter.v6, |end| end.saturating_add(1));
        parsed
    }

    fn add(&mut self, first: IpAddr, last: IpAddr) {
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => self.v4.push((first.into(), last.into())),
            (IpAddr::V6(first), IpAddr::V6(last)) => self.v6.push((first.into(), last.into())),
            _ => {}
        }
    }

    /// Whether the address is not to be spoken to.
    pub fn blocks(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(v4) => holds(&self.v4, v4.into()),
            IpAddr::V6(v6) => holds(&self.v6, v6.into()),
        }
    }

    /// Ranges, after those that touch were made one.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Sorts, and makes ranges that overlap or touch one.
fn tidy<N: Ord + Copy>(ranges: &mut Vec<(N, N)>, after: impl Fn(N) -> N) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let touches = next.0 <= after(kept.1);
        if touches {
            kept.1 = kept.1.max(next.1);
        }
        touches
    });
    ranges.shrink_to_fit();
}

fn holds<N: Ord + Copy>(ranges: &[(N, N)], at: N) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= at);
    let before = after.checked_sub(1).and_then(|n| ranges.get(n));
    before.is_some_and(|(_, last)| *last >= at)
}

fn parse_line(line: &str) -> Option<Line> {
    if line.is_empty() || line.starts_with(['#', ';']) || line.starts_with("//") {
        return Some(Line::Nothing);
    }
    let found = cidr(line).or_else(|| dat(line)).or_else(|| p2p(line))?;
    match found {
        Line::Range(first, last) if first > last || first.is_ipv4() != last.is_ipv4() => None,
        found => Some(found),
    }
}

/// `10.0.0.0/8`, `2001:db8::/32`, or one address.
fn cidr(line: &str) -> Option<Line> {
    let (ip, bits) = match line.split_once('/') {
        Some((ip, bits)) => (address(ip)?, Some(bits.trim().parse::<u32>().ok()?)),
        None => (address(line)?, None),
    };
    let (first, last) = match ip {
        IpAddr::V4(v4) => {
            let free = 32_u32.checked_sub(bits.unwrap_or(32))?;
            let mask = 1_u32.checked_shl(free).map_or(u32::MAX, |n| n - 1);
            let ip = u32::from(v4);
            (
                Ipv4Addr::from(ip & !mask).into(),
                Ipv4Addr::from(ip | mask).into(),
            )
        }
        IpAddr::V6(v6) => {
            let free = 128_u32.checked_sub(bits.unwrap_or(128))?;
            let mask = 1_u128.checked_shl(free).map_or(u128::MAX, |n| n - 1);
            let ip = u128::from(v6);
            (
                Ipv6Addr::from(ip & !mask).into(),
                Ipv6Addr::from(ip | mask).into(),
            )
        }
    };
    Some(Line::Range(first, last))
}

/// `001.002.003.004 - 001.002.003.255 , 000 , description`, or the range alone.
fn dat(line: &str) -> Option<Line> {
    let mut fields = line.split(',');
    let (first, last) = fields.next()?.split_once('-')?;
    let (first, last) = (address(first)?, address(last)?);
    let level = match fields.next() {
        Some(level) => level.trim().parse::<u32>().ok()?,
        None => 0,
    };
    Some(match level < LEVEL_ALLOWED {
        true => Line::Range(first, last),
        false => Line::Nothing,
    })
}

/// `description:1.2.3.4-1.2.3.255`. The description may have colons and dashes as well.
fn p2p(line: &str) -> Option<Line> {
    let (head, last) = line.rsplit_once('-')?;
    let last = address(last)?;
    let first = match last {
        IpAddr::V4(_) => address(head.rsplit_once(':')?.1)?,
        IpAddr::V6(_) => {
            let colons = head.match_indices(':');
            let mut tails = colons.filter_map(|(at, _)| head.get(at + 1..));
            tails.find_map(|tail| address(tail).filter(IpAddr::is_ipv6))?
        }
    };
    Some(Line::Range(first, last))
}

/// An address; the numbers of an IPv4 address may have zeros before them.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let digits = part.len() <= 3 && part.bytes().all(|byte| byte.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| digits)?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocked(list: &str, ip: &str) -> bool {
        IpFilter::parse(list.as_bytes())
            .filter
            .blocks(ip.parse().unwrap())
    }

    #[test]
    fn the_three_forms_are_read() {
        let list = "\u{feff}not a line\n# a comment\r\n\
            Some: Corp - a division:1.2.3.4-1.2.3.9\n\
            001.009.000.000 - 001.009.000.255 , 000 , eMule\n\
            1.10.0.0 - 1.10.0.255 , 200 , let in\n\
            10.0.0.0/8\n\
            192.0.2.7\n\
            2001:db8::/32\n\
            six:2001:db9::1-2001:db9::5\n";
        let parsed = IpFilter::parse(list.as_bytes());
        assert_eq!((parsed.unknown, parsed.first_unknown), (1, Some(1)));
        assert_eq!(parsed.filter.len(), 6);
        for (ip, expected) in [
            ("1.2.3.3", false),
            ("1.2.3.4", true),
            ("1.2.3.9", true),
            ("1.2.3.10", false),
            ("1.9.0.200", true),
            ("1.10.0.1", false),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("::ffff:10.0.0.1", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:ffff::", true),
            ("2001:db9::1", true),
            ("2001:db9::6", false),
        ] {
            assert_eq!(parsed.filter.blocks(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let parsed =
            IpFilter::parse(b"1.0.0.0-1.0.0.9\n1.0.0.10-1.0.0.20\n1.0.0.5-1.0.0.7\n0.0.0.0/0\n");
        assert_eq!(parsed.filter.len(), 1);
        assert!(blocked("0.0.0.0/0", "255.255.255.255"));
        assert!(blocked("::/0", "ffff::1"));
        assert!(!blocked("0.0.0.0/0", "ffff::1"));
    }

    #[test]
    fn what_is_none_is_counted() {
        for bad in [
            "1.2.3.4/33",
            "2001::/129",
            "1.2.3.9-1.2.3.4",
            "x:1.2.3.4-::1",
            "1.2.3.4 - 1.2.3.5 , abc , x",
            "1.2.3.0004",
            "1.2.3",
            "300.1.1.1",
            "<html>",
        ] {
            let parsed = IpFilter::parse(bad.as_bytes());
            assert_eq!((parsed.unknown, parsed.filter.len()), (1, 0), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_filter_blocks_what_its_lines_say(
            ranges in prop::collection::vec((any::<u32>(), 0_u32..100_000), 0..40),
            probes in prop::collection::vec(any::<u32>(), 0..40),
        ) {
            let ranges: Vec<(u32, u32)> = ranges.iter().map(|(a, n)| (*a, a.saturating_add(*n))).collect();
            let line = |(a, b): &(u32, u32)| format!("x:{}-{}\n", Ipv4Addr::from(*a), Ipv4Addr::from(*b));
            let list: String = ranges.iter().map(line).collect();
            let filter = IpFilter::parse(list.as_bytes()).filter;
            let edges = ranges.iter().flat_map(|(a, b)| [*a, *b, a.wrapping_sub(1), b.wrapping_add(1)]);
            for probe in probes.into_iter().chain(edges) {
                let expected = ranges.iter().any(|(a, b)| (*a..=*b).contains(&probe));
                prop_assert_eq!(filter.blocks(Ipv4Addr::from(probe).into()), expected);
            }
        }
    }
}
