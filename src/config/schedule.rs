//! Times of the week: `mon-fri 08:00-18:00`, `22:00-06:00 +02:00`.

use std::fmt;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u32 = 24 * 60;
/// 1970 began on a Thursday.
const FIRST_DAY: u64 = 3;

/// A time of the day on some days. Over midnight, it belongs to the day on which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The first and the last day, 0 for Monday.
    days: (u8, u8),
    /// Minutes of the day.
    from: u16,
    to: u16,
    /// Minutes that local clocks are ahead of UTC.
    ahead: i16,
}

impl Schedule {
    /// `[DAY[-DAY]] HH:MM-HH:MM [+HH:MM]`; without an offset, times are UTC.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace().peekable();
        let mut days = (0, 6);
        if let Some(word) =
            words.next_if(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
        {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            days = (day(first)?, day(last)?);
        }
        let (from, to) = words.next()?.split_once('-')?;
        let (from, to) = (time(from)?, time(to)?);
        let ahead = match words.next() {
            Some(word) => match (word.strip_prefix('+'), word.strip_prefix('-')) {
                (Some(plus), _) => time(plus)? as i16,
                (_, Some(minus)) => -(time(minus)? as i16),
                _ => return None,
            },
            None => 0,
        };
        (from != to && words.next().is_none()).then_some(Self {
            days,
            from,
            to,
            ahead,
        })
    }

    /// Whether it is such a time, `seconds` after 1970.
    pub fn holds(&self, seconds: u64) -> bool {
        let minutes = (seconds / 60).saturating_add_signed(self.ahead.into());
        let (days, minute) = (
            minutes / u64::from(DAY_MINUTES),
            (minutes % u64::from(DAY_MINUTES)) as u16,
        );
        let today = ((days + FIRST_DAY) % 7) as u8;
        let yesterday = (today + 6) % 7;
        if self.from < self.to {
            return self.has(today) && (self.from..self.to).contains(&minute);
        }
        (self.has(today) && minute >= self.from) || (self.has(yesterday) && minute < self.to)
    }

    fn has(&self, day: u8) -> bool {
        let (first, last) = self.days;
        match first <= last {
            true => (first..=last).contains(&day),
            false => day >= first || day <= last,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |day: u8| DAYS.get(usize::from(day)).copied().unwrap_or_default();
        match self.days {
            (0, 6) => {}
            (one, other) if one == other => write!(f, "{} ", name(one))?,
            (first, last) => write!(f, "{}-{} ", name(first), name(last))?,
        }
        let (from, to) = (self.from, self.to);
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            to / 60,
            to % 60
        )?;
        if self.ahead != 0 {
            let (sign, ahead) = (if self.ahead < 0 { '-' } else { '+' }, self.ahead.abs());
            write!(f, " {sign}{:02}:{:02}", ahead / 60, ahead % 60)?;
        }
        Ok(())
    }
}

fn day(text: &str) -> Option<u8> {
    let text = text.to_ascii_lowercase();
    let n = DAYS.iter().position(|day| *day == text)?;
    u8::try_from(n).ok()
}

/// Minutes of `HH:MM`.
fn time(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-01-01 was a Monday.
    const MONDAY: u64 = 1_704_067_200;

    fn at(day: u64, hour: u64, minute: u64) -> u64 {
        MONDAY + day * 86_400 + hour * 3600 + minute * 60
    }

    #[test]
    fn hours_on_working_days() {
        let schedule = Schedule::parse("mon-fri 08:00-18:00").unwrap();
        assert!(schedule.holds(at(0, 8, 0)) && schedule.holds(at(4, 17, 59)));
        assert!(!schedule.holds(at(0, 7, 59)) && !schedule.holds(at(4, 18, 0)));
        assert!(!schedule.holds(at(5, 12, 0)) && !schedule.holds(at(6, 12, 0)));
    }

    #[test]
    fn over_midnight_the_day_is_that_of_the_beginning() {
        let schedule = Schedule::parse("Fri-Sat 22:00-06:00 +02:00").unwrap();
        // 20:00 UTC is 22:00 there.
        assert!(!schedule.holds(at(4, 19, 59)) && schedule.holds(at(4, 20, 0)));
        assert!(schedule.holds(at(6, 3, 59)) && !schedule.holds(at(6, 4, 0)));
        assert!(!schedule.holds(at(6, 20, 0)) && !schedule.holds(at(4, 3, 0)));
        let around = Schedule::parse("sun-mon 00:00-23:59 -01:00").unwrap();
        assert!(
            around.holds(at(6, 5, 0)) && around.holds(at(0, 5, 0)) && !around.holds(at(2, 5, 0))
        );
    }

    #[test]
    fn what_is_shown_reads_back_and_nonsense_is_refused() {
        for text in [
            "08:00-18:00",
            "mon 00:00-06:30",
            "sat-sun 22:00-06:00 -03:30",
        ] {
            assert_eq!(Schedule::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "mon",
            "8-18",
            "24:00-01:00",
            "08:00-08:00",
            "xyz 08:00-09:00",
            "08:00-09:00 02:00",
            "08:00-09:00 +1:0 x",
        ] {
            assert_eq!(Schedule::parse(bad), None, "{bad}");
        }
    }
}
