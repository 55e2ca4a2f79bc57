//! What is different for one torrent, and what that comes to with the configuration.

use std::time::Duration;

use crate::api::types::*;
use crate::api::{ApiError, ErrorKind};
use crate::clock;
use crate::config::{Config, Kind, Value};
use crate::engine::limits::Rates;
use crate::engine::torrent::settings::Settings;

/// Every setting as users name it.
const KEYS: &[&str] = &[
    "limit_down",
    "limit_up",
    "peer_limit_down",
    "peer_limit_up",
    "peers_max",
    "slots",
    "seed_ratio",
    "seed_minutes",
    "order",
    "super_seed",
    "preallocation",
    "forced",
];
/// More than anybody sends of a torrent.
const RATIO_MAX: f64 = 1e6;

impl TorrentSettings {
    /// With what the configuration says for the rest.
    pub(super) fn resolve(&self, config: &Config) -> Settings {
        let keys = &config.torrent;
        let rate = |own: Option<u64>, general: Option<u64>| own.or(general).filter(|n| *n > 0);
        let number = |own: Option<u64>, general: u64| {
            usize::try_from(own.unwrap_or(general)).unwrap_or(usize::MAX)
        };
        let preallocation = match keys.preallocation {
            "none" => Preallocation::None,
            "full" => Preallocation::Full,
            _ => Preallocation::Sparse,
        };
        Settings {
            rates: Rates {
                down: rate(self.limit_down, None),
                up: rate(self.limit_up, None),
            },
            peer_rates: Rates {
                down: rate(self.peer_limit_down, keys.peer_limit_down),
                up: rate(self.peer_limit_up, keys.peer_limit_up),
            },
            peers_max: number(self.peers_max, keys.peers_max),
            slots: number(self.slots, keys.slots),
            seed_ratio: rate(self.seed_percent, keys.seed_percent)
                .map(|percent| percent as f64 / 100.0),
            seed_time: rate(self.seed_minutes, keys.seed_minutes)
                .map(|minutes| Duration::from_secs(minutes * 60)),
            order: self.order.unwrap_or_else(|| order_of(keys.order)),
            super_seed: self.super_seed.unwrap_or(false),
            preallocation: self.preallocation.unwrap_or(preallocation),
        }
    }

    /// Takes over what `other` says.
    pub(super) fn lay(&mut self, other: &Self) {
        let all = [
            (&mut self.limit_down, other.limit_down),
            (&mut self.limit_up, other.limit_up),
            (&mut self.peer_limit_down, other.peer_limit_down),
            (&mut self.peer_limit_up, other.peer_limit_up),
            (&mut self.peers_max, other.peers_max),
            (&mut self.slots, other.slots),
            (&mut self.seed_percent, other.seed_percent),
            (&mut self.seed_minutes, other.seed_minutes),
        ];
        for (own, other) in all {
            *own = other.or(*own);
        }
        self.order = other.order.or(self.order);
        self.super_seed = other.super_seed.or(self.super_seed);
        self.preallocation = other.preallocation.or(self.preallocation);
        self.forced = other.forced.or(self.forced);
    }

    /// Changes one setting as a user writes it.
    pub(super) fn set(&mut self, setting: &TorrentSetting) -> Result<(), ApiError> {
        let (key, value) = (setting.key.as_str(), setting.value.trim());
        match key {
            "limit_down" => self.limit_down = number(key, Kind::Bytes, value)?,
            "limit_up" => self.limit_up = number(key, Kind::Bytes, value)?,
            "peer_limit_down" => self.peer_limit_down = number(key, Kind::Bytes, value)?,
            "peer_limit_up" => self.peer_limit_up = number(key, Kind::Bytes, value)?,
            "peers_max" => self.peers_max = number(key, Kind::Count, value)?,
            "slots" => self.slots = number(key, Kind::Count, value)?,
            "seed_minutes" => self.seed_minutes = number(key, Kind::Count, value)?,
            "seed_ratio" => self.seed_percent = percent(key, value)?,
            "super_seed" => self.super_seed = flag(key, value)?,
            "forced" => self.forced = flag(key, value)?,
            "order" => {
                let kind = Kind::Choice(&["rarest", "sequential", "round-robin"]);
                self.order = check(key, kind, value)?.map(|value| match value {
                    Value::Choice(word) => order_of(word),
                    _ => PieceOrder::default(),
                });
            }
            "preallocation" => {
                let kind = Kind::Choice(&["none", "sparse", "full"]);
                self.preallocation = check(key, kind, value)?.map(|value| match value {
                    Value::Choice("none") => Preallocation::None,
                    Value::Choice("full") => Preallocation::Full,
                    _ => Preallocation::Sparse,
                });
            }
            _ => {
                let known = KEYS.join(", ");
                return Err(ApiError::new(
                    ErrorKind::Usage,
                    format_args!(
                        "there is no setting `{}`",
                        crate::api::escape(key.as_bytes())
                    ),
                )
                .hint(format!("settings are {known}")));
            }
        }
        Ok(())
    }
}

/// What all torrents may take of the line together, at this time of the week.
pub(super) fn shared_rates(config: &Config) -> Rates {
    let keys = &config.torrent;
    let now = clock::unix_millis() / 1000;
    match keys
        .alt_schedule
        .is_some_and(|schedule| schedule.holds(now))
    {
        true => Rates {
            down: keys.alt_limit_down,
            up: keys.alt_limit_up,
        },
        false => Rates {
            down: keys.limit_down,
            up: keys.limit_up,
        },
    }
}

fn order_of(word: &str) -> PieceOrder {
    match word {
        "sequential" => PieceOrder::Sequential,
        "round-robin" => PieceOrder::RoundRobin,
        _ => PieceOrder::Rarest,
    }
}

/// `None`: nothing was said, so the configuration decides.
fn check(key: &str, kind: Kind, text: &str) -> Result<Option<Value>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let value = kind.check_text(text);
    let wrong =
        |expected| ApiError::new(ErrorKind::Usage, format_args!("{key} must be {expected}"));
    value.map(Some).map_err(wrong)
}

fn number(key: &str, kind: Kind, text: &str) -> Result<Option<u64>, ApiError> {
    Ok(match check(key, kind, text)? {
        Some(Value::Number(n)) => Some(n),
        _ => None,
    })
}

fn flag(key: &str, text: &str) -> Result<Option<bool>, ApiError> {
    Ok(check(key, Kind::Bool, text)?.map(|value| value == Value::Bool(true)))
}

fn percent(key: &str, text: &str) -> Result<Option<u64>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let ratio = text
        .parse()
        .ok()
        .filter(|ratio| (0.0..=RATIO_MAX).contains(ratio));
    let wrong = || {
        ApiError::new(
            ErrorKind::Usage,
            format_args!("{key} must be a number from 0 to 1000000, such as 1.5"),
        )
    };
    let ratio: f64 = ratio.ok_or_else(wrong)?;
    Ok(Some((ratio * 100.0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(settings: &mut TorrentSettings, key: &str, value: &str) -> Result<(), ApiError> {
        settings.set(&TorrentSetting {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }

    #[test]
    fn what_is_set_wins_and_what_is_unset_falls_back() {
        let config = Config::load(
            None,
            &|name| match name {
                "CCBT_TORRENT_PEER_LIMIT_UP" => Some("1 MB".into()),
                "CCBT_TORRENT_SEED_PERCENT" => Some("200".into()),
                "CCBT_TORRENT_PREALLOCATION" => Some("full".into()),
                "CCBT_TORRENT_ORDER" => Some("sequential".into()),
                _ => None,
            },
            Vec::new(),
        )
        .unwrap();
        let mut settings = TorrentSettings::default();
        let general = settings.resolve(&config);
        assert_eq!(
            (general.rates, general.peer_rates.up),
            (Rates::default(), Some(1_000_000))
        );
        assert_eq!(
            (general.seed_ratio, general.slots, general.peers_max),
            (Some(2.0), 8, 120)
        );
        assert_eq!(general.preallocation, Preallocation::Full);
        assert_eq!(
            (general.order, general.super_seed),
            (PieceOrder::Sequential, false)
        );
        for (key, value) in [
            ("limit_down", "5 MiB"),
            ("peer_limit_up", "0"),
            ("seed_ratio", "1.5"),
            ("slots", "3"),
            ("order", "round-robin"),
            ("super_seed", "yes"),
            ("preallocation", "none"),
        ] {
            set(&mut settings, key, value).unwrap();
        }
        let own = settings.resolve(&config);
        assert_eq!((own.rates.down, own.peer_rates.up), (Some(5 << 20), None));
        assert_eq!(
            (own.seed_ratio, own.slots, own.order, own.super_seed),
            (Some(1.5), 3, PieceOrder::RoundRobin, true)
        );
        assert_eq!(own.preallocation, Preallocation::None);
        for key in KEYS {
            set(&mut settings, key, "").unwrap();
        }
        assert_eq!(settings, TorrentSettings::default());
    }

    #[test]
    fn wrong_settings_are_refused_with_what_would_be_right() {
        let mut settings = TorrentSettings::default();
        for (key, value) in [
            ("limit_down", "fast"),
            ("slots", "-1"),
            ("seed_ratio", "NaN"),
            ("order", "any"),
            ("super_seed", "perhaps"),
            ("preallocation", "half"),
            ("colour", "1"),
        ] {
            let error = set(&mut settings, key, value).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.message.contains(key), "{}", error.message);
        }
        assert_eq!(settings, TorrentSettings::default());
    }
}
