//! The one error type of the API, and the one table that turns its kind into an exit code and an HTTP status.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, coarsely: enough for a script to decide what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A bug, or something nobody foresaw.
    Internal,
    /// The request itself is wrong: an option, a mistyped link, an unknown configuration key.
    Usage,
    /// What the request names does not exist.
    NotFound,
    /// Something else holds it: a mount point in use, a state directory with a daemon, a port.
    Busy,
    /// Understood and possible, but a rule forbids it: a directory that is not empty, a link of a lower right.
    Refused,
    /// The operating system or the API's access check says no.
    Denied,
    /// Reading or writing failed.
    Io,
    /// The disk, or the store's quota, is full.
    NoSpace,
    /// Nobody answered in time.
    Timeout,
    /// The command needs a running daemon and there is none.
    NoDaemon,
}

impl ErrorKind {
    /// Every kind with its exit code and HTTP status, in the order of the exit codes. `docs/manual/exit-codes.md` has
    /// the same table, and a test compares the two. 2 is also what clap uses for a command line it cannot parse.
    pub const TABLE: [(Self, u8, u16); 10] = [
        (Self::Internal, 1, 500),
        (Self::Usage, 2, 400),
        (Self::NotFound, 3, 404),
        (Self::Busy, 4, 409),
        (Self::Refused, 5, 422),
        (Self::Denied, 6, 403),
        (Self::Io, 7, 502),
        (Self::NoSpace, 8, 507),
        (Self::Timeout, 9, 504),
        (Self::NoDaemon, 10, 503),
    ];

    pub fn exit_code(self) -> u8 {
        self.row().1
    }

    pub fn http_status(self) -> u16 {
        self.row().2
    }

    fn row(self) -> (Self, u8, u16) {
        let found = Self::TABLE.into_iter().find(|row| row.0 == self);
        found.unwrap_or((Self::Internal, 1, 500))
    }
}

/// An error as a user sees it: one sentence that says what is wrong, and one that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    /// Lower case, no full stop, names the file or the value. Anything a peer chose is already escaped.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// An `io::Error` met while doing `what` (such as "cannot read /etc/x"), with the kind that fits it.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
            Io::AddrInUse | Io::ResourceBusy => ErrorKind::Busy,
            Io::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format_args!("{what}: {}", describe(error)))
    }
}

/// The error's text without Rust's `(os error 2)`, which tells a user nothing.
fn describe(error: &std::io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text.get(..end)
        .map_or_else(|| text.clone(), str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_never_zero() {
        let mut codes: Vec<u8> = ErrorKind::TABLE.iter().map(|row| row.1).collect();
        codes.sort_unstable();
        assert_eq!(codes, (1..=10).collect::<Vec<u8>>());
        assert_eq!(ErrorKind::Usage.exit_code(), 2);
        assert_eq!(ErrorKind::NoSpace.http_status(), 507);
    }

    #[test]
    fn io_errors_get_their_kind_and_a_plain_sentence() {
        let error = std::io::Error::from_raw_os_error(28);
        let error = ApiError::io("cannot write x", &error);
        assert_eq!(error.kind, ErrorKind::NoSpace);
        assert_eq!(error.message, "cannot write x: no space left on device");
    }
}
