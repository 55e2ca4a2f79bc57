//! The names under which things are shown that lost their own name to a larger one: `stem (conflict DEVICE UTC).ext`.

use std::sync::Arc;

use super::values::{Hlc, Inc, NAME_BYTES_MAX, Name};

/// What stands in parentheses for a directory that came back without a place.
pub(super) const RECOVERED: &str = "recovered";

/// Room kept free behind a label for ` 2` to ` 999`, so that numbering one does not shorten its stem.
const NUMBER_BYTES: usize = 4;

/// Longest text in parentheses, in bytes: whatever device names are, the extension and something of the stem remain.
const TAG_BYTES_MAX: usize = 128;

/// What stands in parentheses behind the stem of a sibling, from its incarnation and clock.
pub type Tag = Arc<dyn Fn(Inc, Hlc) -> String + Send + Sync>;

/// `conflict DEVICE UTC`, with the device's name as `names` has it, else the first 4 bytes of the incarnation in hex.
pub fn conflict_tag(names: impl Fn(Inc) -> Option<String> + Send + Sync + 'static) -> Tag {
    Arc::new(move |inc, hlc| {
        let device = names(inc).unwrap_or_else(|| {
            let [a, b, c, d, ..] = inc.0;
            format!("{:08x}", u32::from_be_bytes([a, b, c, d]))
        });
        format!("conflict {device} {}", utc(hlc.unix_ms() / 1000))
    })
}

/// `name` with `tag` in parentheses before its extension, and ` number` behind that from 2 on. The stem is shortened, on
/// a character boundary, to keep the whole within [`NAME_BYTES_MAX`].
pub fn label(name: &[u8], tag: &str, number: usize) -> Name {
    let tag = printable(tag);
    let number = if number > 1 {
        format!(" {number}")
    } else {
        String::new()
    };
    let room = NAME_BYTES_MAX - NUMBER_BYTES.max(number.len()) - tag.len() - " ()".len();
    let dot = name.iter().rposition(|byte| *byte == b'.').unwrap_or(0);
    // An extension that leaves no room for a stem is none.
    let (stem, extension) = match name.split_at(dot) {
        (stem, extension) if !stem.is_empty() && extension.len() < room => (stem, extension),
        _ => (name, &[][..]),
    };
    let stem = shorten(stem, room - extension.len());
    let parts: [&[u8]; 6] = [
        stem,
        b" (",
        tag.as_bytes(),
        b")",
        extension,
        number.as_bytes(),
    ];
    Name::from(&parts.concat()[..])
}

/// A device's name is another's text: what no file name may hold is replaced, what is too long is cut.
fn printable(tag: &str) -> String {
    let fit = |c: char| if c == '/' || c.is_control() { '-' } else { c };
    let mut tag: String = tag.chars().map(fit).collect();
    tag.truncate(tag.floor_char_boundary(TAG_BYTES_MAX));
    tag
}

/// The longest beginning of `stem` within `max` bytes that does not end inside a UTF-8 character.
fn shorten(stem: &[u8], max: usize) -> &[u8] {
    if stem.len() <= max {
        return stem;
    }
    let is_start = |index: &usize| stem[*index] & 0xc0 != 0x80;
    // Bytes that are no UTF-8 may have no boundary within a character's length: then any cut is as good.
    let cut = (max.saturating_sub(3)..=max).rev().find(is_start);
    &stem[..cut.unwrap_or(max)]
}

/// `YYYY-MM-DD HH-MM-SS` of `unix` seconds.
fn utc(unix: u64) -> String {
    let (year, month, day) = civil(unix / 86_400);
    let second = unix % 86_400;
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}-{minute:02}-{:02}",
        second % 60
    )
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01. Counted in 400-year cycles of 146,097 days
/// and years that begin in March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let leaps = day_of_cycle / 1_460 + day_of_cycle / 146_096 - day_of_cycle / 36_524;
    let year_of_cycle = (day_of_cycle - leaps) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (
        cycle * 400 + year_of_cycle + u64::from(month <= 2),
        month,
        day,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &[u8], tag: &str, number: usize) -> String {
        String::from_utf8(label(name, tag, number).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn tags_go_before_the_extension() {
        assert_eq!(text(b"a.txt", "t", 1), "a (t).txt");
        assert_eq!(text(b"a.tar.gz", "t", 2), "a.tar (t).gz 2");
        assert_eq!(text(b"a", "t", 3), "a (t) 3");
        assert_eq!(text(b".a", "t", 1), ".a (t)");
        assert_eq!(text(b"a", "x/y\0z", 1), "a (x-y-z)");
    }

    #[test]
    fn long_names_keep_255_bytes_and_whole_characters() {
        let name = format!("{}.txt", "é".repeat(125));
        let short = text(name.as_bytes(), "conflict device 2026-01-01 00-00-00", 1);
        assert!(
            short.ends_with("é (conflict device 2026-01-01 00-00-00).txt"),
            "{short}"
        );
        assert!((249..=251).contains(&short.len()), "{}", short.len());
        for number in [1, 2, 99, 999, 12_345] {
            let long_extension = [b"a.".as_slice(), &[b'x'; 253]].concat();
            for name in [&[b'n'; 255][..], &[0xbf; 255], &long_extension] {
                for tag in ["recovered", &"t".repeat(300)] {
                    let name = label(name, tag, number);
                    assert!(Name::is_valid(name.as_bytes()), "{name:?}");
                }
            }
        }
    }

    #[test]
    fn times_are_shown_as_utc() {
        assert_eq!(utc(0), "1970-01-01 00-00-00");
        assert_eq!(utc(951_782_399), "2000-02-28 23-59-59");
        assert_eq!(utc(951_782_400), "2000-02-29 00-00-00");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23-59-59");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00-00-00");
        let tag = conflict_tag(|inc| (inc.0[0] == 1).then(|| "laptop".to_owned()));
        let at = Hlc(1_798_761_599_000 << 16 | 7);
        assert_eq!(tag(Inc([1; 8]), at), "conflict laptop 2026-12-31 23-59-59");
        assert_eq!(
            tag(Inc([0xab; 8]), at),
            "conflict abababab 2026-12-31 23-59-59"
        );
    }
}
