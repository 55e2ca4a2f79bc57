//! The kinds a configuration value can have: how each is checked, read from text and shown.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Serialize, Serializer};

use super::Schedule;
use crate::proto::proxy::ProxyUrl;

/// With the byte that ends it.
const INTERFACE_LEN_MAX: usize = 16;

/// What a key accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    /// Whole seconds, 1 to 3600: a longer wait is a hang to whoever waits.
    Seconds,
    /// Whole days, 0 to 36,500.
    Days,
    /// Whole seconds, up to a year; 0 is never.
    Period,
    /// An amount of bytes: a whole number, or text with a unit (`256 MiB`, `1.5 GB`).
    Bytes,
    /// A whole number, up to a million.
    Count,
    /// Times of the week, or empty.
    Schedule,
    /// `IP:PORT`.
    Address,
    /// `IP:PORT` or empty.
    OptionalAddress,
    Addresses,
    /// `HOST:PORT`, not resolved yet.
    Hosts,
    /// `http`, `https` or `udp`.
    Trackers,
    Choice(&'static [&'static str]),
    /// An address of this machine or the name of an interface, or empty.
    Bind,
    /// The URL of a SOCKS5 or HTTP proxy, or empty.
    Proxy,
    /// A file, from the root, or empty.
    OptionalPath,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    Number(u64),
    Address(Option<SocketAddr>),
    Addresses(Vec<SocketAddr>),
    List(Vec<String>),
    Schedule(Option<Schedule>),
    Choice(&'static str),
    Text(String),
    Proxy(ProxyText),
}

/// The URL of a proxy as given, or empty. It is shown without its password: listings end up in bug reports.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyText(pub(super) String);

impl fmt::Display for ProxyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.as_str();
        let shown = text.rsplit_once('@').and_then(|(before, place)| {
            let (scheme, login) = before.split_once("://")?;
            let (user, _) = login.split_once(':')?;
            Some(format!("{scheme}://{user}:***@{place}"))
        });
        f.write_str(shown.as_deref().unwrap_or(text))
    }
}

impl fmt::Debug for ProxyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Kind {
    /// Checks a value from a TOML file. The error says what was expected.
    pub fn check_toml(self, value: &toml::Value) -> Result<Value, String> {
        use toml::Value as Toml;
        match (self, value) {
            (Self::Bool, Toml::Boolean(b)) => Ok(Value::Bool(*b)),
            (
                Self::Seconds | Self::Period | Self::Days | Self::Bytes | Self::Count,
                Toml::Integer(n),
            ) => self.check_text(&n.to_string()),
            (Self::Addresses | Self::Hosts | Self::Trackers, Toml::Array(items)) => {
                let texts = items
                    .iter()
                    .map(|item| item.as_str().ok_or_else(|| self.expected()));
                self.check_items(texts.collect::<Result<Vec<_>, _>>()?)
            }
            (Self::Bool | Self::Seconds | Self::Period | Self::Days | Self::Count, _) => {
                Err(self.expected())
            }
            (Self::Addresses | Self::Hosts | Self::Trackers, _) => Err(self.expected()),
            (_, Toml::String(text)) => self.check_text(text),
            _ => Err(self.expected()),
        }
    }

    /// Checks a value from the environment or the command line.
    pub fn check_text(self, text: &str) -> Result<Value, String> {
        let text = text.trim();
        let value = match self {
            Self::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(Value::Bool(true)),
                "false" | "0" | "no" | "off" => Some(Value::Bool(false)),
                _ => None,
            },
            Self::Seconds => {
                let seconds = text.parse().ok().filter(|s| (1..=3600).contains(s));
                seconds.map(Value::Number)
            }
            Self::Days => {
                let days = text.parse().ok().filter(|days| *days <= 36_500);
                days.map(Value::Number)
            }
            Self::Period => {
                let seconds = text.parse().ok().filter(|s| *s <= PERIOD_MAX);
                seconds.map(Value::Number)
            }
            Self::Bytes => parse_bytes(text).map(Value::Number),
            Self::Count => {
                let count = text.parse().ok().filter(|n| *n <= COUNT_MAX);
                count.map(Value::Number)
            }
            Self::Schedule if text.is_empty() => Some(Value::Schedule(None)),
            Self::Schedule => Schedule::parse(text).map(|s| Value::Schedule(Some(s))),
            Self::Address => text.parse().ok().map(|addr| Value::Address(Some(addr))),
            Self::OptionalAddress if text.is_empty() => Some(Value::Address(None)),
            Self::OptionalAddress => text.parse().ok().map(|addr| Value::Address(Some(addr))),
            Self::Addresses | Self::Hosts | Self::Trackers => {
                let items = text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty());
                return self.check_items(items.collect());
            }
            Self::Bind | Self::Proxy | Self::OptionalPath => {
                let fits = text.is_empty() || self.fits(text);
                let text = text.to_owned();
                fits.then_some(match self {
                    Self::Proxy => Value::Proxy(ProxyText(text)),
                    _ => Value::Text(text),
                })
            }
            Self::Choice(words) => words
                .iter()
                .find(|word| **word == text)
                .map(|w| Value::Choice(w)),
        };
        value.ok_or_else(|| self.expected())
    }

    /// Whether a text that is not empty is of one of the kinds that stay text.
    fn fits(self, text: &str) -> bool {
        match self {
            Self::Bind => {
                let interface = text.len() < INTERFACE_LEN_MAX
                    && !text.contains(|c: char| {
                        c.is_control() || c.is_whitespace() || "/:".contains(c)
                    });
                text.parse::<IpAddr>().is_ok() || interface
            }
            Self::Proxy => ProxyUrl::parse(text).is_some(),
            _ => text.starts_with('/'),
        }
    }

    fn check_items(self, items: Vec<&str>) -> Result<Value, String> {
        let fits = match self {
            Self::Addresses => {
                let addresses = items.iter().map(|item| item.parse());
                return addresses
                    .collect::<Result<_, _>>()
                    .map(Value::Addresses)
                    .map_err(|_| self.expected());
            }
            Self::Hosts => items.iter().all(|item| is_host_port(item)),
            _ => items.iter().all(|item| is_tracker(item)),
        };
        if !fits {
            return Err(self.expected());
        }
        Ok(Value::List(items.into_iter().map(str::to_owned).collect()))
    }

    fn expected(self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Seconds => "a whole number of seconds from 1 to 3600".into(),
            Self::Days => "a whole number of days from 0 to 36500".into(),
            Self::Period => "a whole number of seconds from 0 to 31536000".into(),
            Self::Bytes => "a number of bytes, such as 268435456 or \"256 MiB\"".into(),
            Self::Count => "a whole number from 0 to 1000000".into(),
            Self::Schedule => {
                "times like \"mon-fri 08:00-18:00 +01:00\" (without an offset, of UTC), or nothing"
                    .into()
            }
            Self::Address => "an address, IP:PORT".into(),
            Self::OptionalAddress => "an address, IP:PORT, or nothing".into(),
            Self::Addresses => "a list of addresses, IP:PORT".into(),
            Self::Hosts => "a list of HOST:PORT".into(),
            Self::Trackers => "a list of http, https or udp URLs".into(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Bind => {
                "an IP address of this machine, the name of an interface, or nothing".into()
            }
            Self::Proxy => {
                "socks5://[USER:PASSWORD@]HOST:PORT, http://[USER:PASSWORD@]HOST:PORT, or nothing"
                    .into()
            }
            Self::OptionalPath => "a path from the root, or nothing".into(),
        }
    }
}

/// A year, in seconds: what is done more rarely is not done.
const PERIOD_MAX: u64 = 365 * 86_400;

/// Units as their makers write them: KiB = 1024, kB = 1000.
const UNITS: [(&str, u64); 11] = [
    ("", 1),
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
    ("PIB", 1 << 50),
];

/// More connections or minutes than anybody can mean.
const COUNT_MAX: u64 = 1_000_000;

/// TOML integers are signed, so this is the most a file can say without a unit; more than any disk.
const BYTES_MAX: u64 = i64::MAX as u64;

/// `1048576`, `512 KiB`, `1.5 GB`: an amount of bytes as people write it.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let split = text
        .find(|c: char| c != '.' && !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_uppercase();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(*factor)?,
        // The cast saturates; what is too big is refused below.
        Err(_) => (number.parse::<f64>().ok()? * *factor as f64) as u64,
    };
    (bytes <= BYTES_MAX).then_some(bytes)
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && port.parse::<u16>().is_ok_and(|port| port != 0)
            && !host.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/')
    })
}

fn is_tracker(text: &str) -> bool {
    let schemes = ["http://", "https://", "udp://"];
    let rest = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    let bad = |c: char| c.is_control() || c.is_whitespace();
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(bad))
}

impl fmt::Display for Value {
    /// As it would stand in a configuration file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(b) => write!(f, "{b}"),
            Self::Number(n) => write!(f, "{n}"),
            Self::Address(Some(addr)) => write!(f, "\"{addr}\""),
            Self::Address(None) => f.write_str("\"\""),
            Self::Addresses(list) => write_list(f, list.iter().map(SocketAddr::to_string)),
            Self::List(list) => write_list(f, list.iter().cloned()),
            Self::Schedule(Some(schedule)) => write!(f, "\"{schedule}\""),
            Self::Schedule(None) => f.write_str("\"\""),
            Self::Choice(word) => write!(f, "\"{word}\""),
            Self::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
            Self::Proxy(url) => write!(f, "{}", toml::Value::String(url.to_string())),
        }
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = String>) -> fmt::Result {
    let items: Vec<String> = items
        .map(|item| toml::Value::String(item).to_string())
        .collect();
    write!(f, "[{}]", items.join(", "))
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Number(n) => serializer.serialize_u64(*n),
            Self::Address(addr) => addr.serialize(serializer),
            Self::Addresses(list) => list.serialize(serializer),
            Self::List(list) => list.serialize(serializer),
            Self::Schedule(schedule) => {
                let text = schedule.map(|schedule| schedule.to_string());
                serializer.serialize_str(&text.unwrap_or_default())
            }
            Self::Choice(word) => serializer.serialize_str(word),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Proxy(url) => serializer.serialize_str(&url.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_with_and_without_units() {
        let ok = [
            ("0", 0),
            ("7", 7),
            ("1KiB", 1024),
            ("256 MiB", 1 << 28),
            ("1.5 gb", 1_500_000_000),
        ];
        for (text, bytes) in ok {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for bad in [
            "",
            "x",
            "-1",
            "1 XB",
            "1..5 GB",
            "99999999 TiB",
            "18446744073709551615",
            "1e9",
        ] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_shown_without_its_password() {
        for (given, shown) in [
            ("", ""),
            ("socks5://h.example:1080", "socks5://h.example:1080"),
            ("http://me@h.example:1", "http://me@h.example:1"),
            ("http://me:s3cret@h.example:1", "http://me:***@h.example:1"),
            ("socks5://me:a%40b:c@[::1]:1", "socks5://me:***@[::1]:1"),
        ] {
            let value = Kind::Proxy.check_text(given).unwrap();
            assert_eq!(value.to_string(), format!("\"{shown}\""));
            assert_eq!(serde_json::to_value(&value).unwrap(), shown);
            assert!(!format!("{value:?}").contains("s3cret"));
        }
    }

    #[test]
    fn each_kind_refuses_what_it_is_not() {
        let choice = Kind::Choice(&["text", "json"]);
        for (kind, good, bad) in [
            (Kind::Bool, "yes", "maybe"),
            (Kind::Seconds, "30", "0"),
            (Kind::Days, "0", "-1"),
            (Kind::Period, "0", "31536001"),
            (Kind::Address, "[::1]:80", "localhost:80"),
            (Kind::OptionalAddress, "", "80"),
            (Kind::Addresses, "127.0.0.1:1, [::1]:2", "127.0.0.1"),
            (Kind::Hosts, "router.example:6881", "router.example"),
            (
                Kind::Trackers,
                "udp://t.example:1/announce",
                "ftp://t.example",
            ),
            (choice, "json", "yaml"),
            (Kind::Bind, "tun0", "a/b"),
            (Kind::Bind, "10.8.0.2", "a name that is too long"),
            (Kind::Proxy, "socks5://me:pw@h:1080", "socks4://h:1080"),
            (Kind::OptionalPath, "/etc/list", "list"),
        ] {
            assert!(kind.check_text(good).is_ok(), "{kind:?} {good}");
            assert!(kind.check_text(bad).is_err(), "{kind:?} {bad}");
        }
        assert!(
            Kind::Bool
                .check_toml(&toml::Value::String("true".into()))
                .is_err()
        );
        assert!(Kind::Seconds.check_toml(&toml::Value::Integer(-1)).is_err());
        assert!(
            Kind::Addresses
                .check_toml(&toml::Value::String("127.0.0.1:1".into()))
                .is_err()
        );
    }

    #[test]
    fn a_shown_value_reads_back_as_the_same() {
        for (kind, text) in [
            (Kind::Trackers, "udp://a:1,http://b"),
            (Kind::Addresses, "127.0.0.1:1"),
            (Kind::OptionalAddress, ""),
            (Kind::Bytes, "1 MiB"),
            (Kind::OptionalPath, "/a \"b\""),
            (Kind::Schedule, "sat-sun 22:00-06:00 -03:30"),
            (Kind::Schedule, ""),
            (Kind::Count, "12"),
        ] {
            let value = kind.check_text(text).unwrap();
            let table: toml::Table = format!("x = {value}").parse().unwrap();
            assert_eq!(kind.check_toml(&table["x"]).unwrap(), value);
        }
    }
}
