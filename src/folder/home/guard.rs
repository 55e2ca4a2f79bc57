//! The guard: when what a scan found is more likely a lost disk than the user's wish, nothing of it is published until
//! the user confirms.

use std::fmt;
use std::time::Duration;

/// Up to this many entries may go at once whatever part of the home they are.
const GONE_ENTRIES_MIN: u64 = 20;

/// Deletions within this time count together: `rm -r` of a big tree is seen in many pieces.
const WINDOW: Duration = Duration::from_secs(10);

/// Why a home is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldReason {
    /// The directory cannot be opened where it was.
    RootMissing,
    /// Another directory is where it was.
    Replaced,
    /// The marker is gone.
    MarkerMissing,
    /// The marker is of another folder or device.
    MarkerOfAnother,
    /// Nothing is left in it.
    Emptied,
    /// Most of it is gone.
    MostGone { gone: u64, of: u64 },
}

impl HeldReason {
    /// Whether the user can say that it is meant to be so. What is not the directory of the records has to come back.
    pub fn can_be_confirmed(&self) -> bool {
        match self {
            Self::MarkerMissing | Self::Emptied | Self::MostGone { .. } => true,
            Self::RootMissing | Self::Replaced | Self::MarkerOfAnother => false,
        }
    }
}

impl HeldReason {
    /// Whether it may pass without the user saying anything: a disk is mounted again.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::RootMissing | Self::Replaced | Self::MarkerMissing | Self::MarkerOfAnother => {
                true
            }
            Self::Emptied | Self::MostGone { .. } => false,
        }
    }
}

impl fmt::Display for HeldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootMissing => f.write_str("the directory is not there"),
            Self::Replaced => f.write_str("another directory is in its place"),
            Self::MarkerMissing => {
                f.write_str("its marker .ccbt/home is gone: is the disk mounted?")
            }
            Self::MarkerOfAnother => {
                f.write_str("its marker .ccbt/home is of another folder or device")
            }
            Self::Emptied => f.write_str("the directory is empty"),
            Self::MostGone { gone, of } => write!(f, "{gone} of {of} entries are gone"),
        }
    }
}

/// Counts deletions.
#[derive(Debug, Default)]
pub struct Guard {
    window: Option<Window>,
}

#[derive(Debug)]
struct Window {
    start: Duration,
    /// Entries there were then.
    of: u64,
    gone: u64,
}

impl Guard {
    /// Judges a scan at `now` that found `gone` of `known` entries gone and `left` entries at the root. A scan that is
    /// let pass counts from then on.
    pub fn judge(
        &mut self,
        now: Duration,
        known: u64,
        gone: u64,
        root_is_empty: bool,
    ) -> Result<(), HeldReason> {
        if root_is_empty && known > 0 {
            return Err(HeldReason::Emptied);
        }
        if self
            .window
            .as_ref()
            .is_none_or(|window| now.saturating_sub(window.start) > WINDOW)
        {
            self.window = Some(Window {
                start: now,
                of: known,
                gone: 0,
            });
        }
        let Some(window) = &mut self.window else {
            return Ok(());
        };
        let gone = window.gone + gone;
        let of = window.of.max(known);
        if gone > GONE_ENTRIES_MIN && gone * 2 > of {
            return Err(HeldReason::MostGone { gone, of });
        }
        window.gone = gone;
        Ok(())
    }

    /// The user has confirmed: what was counted is forgotten.
    pub fn reset(&mut self) {
        self.window = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn few_or_a_small_part_may_go() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(at(0), 20, 20, false), Ok(()));
        assert_eq!(guard.judge(at(100), 1000, 500, false), Ok(()));
    }

    #[test]
    fn most_of_a_home_is_held_back() {
        let mut guard = Guard::default();
        let reason = Err(HeldReason::MostGone { gone: 21, of: 41 });
        assert_eq!(guard.judge(at(0), 41, 21, false), reason);
        assert_eq!(guard.judge(at(0), 42, 21, false), Ok(()));
    }

    #[test]
    fn an_empty_home_is_held_back_unless_it_was_empty() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(at(0), 1, 1, true), Err(HeldReason::Emptied));
        assert_eq!(guard.judge(at(0), 0, 0, true), Ok(()));
    }

    #[test]
    fn deletions_in_pieces_count_together_for_a_while() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(at(0), 100, 30, false), Ok(()));
        assert_eq!(guard.judge(at(1), 70, 20, false), Ok(()));
        let reason = Err(HeldReason::MostGone { gone: 51, of: 100 });
        assert_eq!(guard.judge(at(2), 50, 1, false), reason);
        assert_eq!(guard.judge(at(11), 50, 1, false), Ok(()));
    }
}
