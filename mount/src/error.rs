//! What can go wrong in a volume, without errno numbers (those are in `errno.rs` only).

/// Why a volume refused or failed a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    #[error("no such file or directory")]
    NotFound,
    #[error("the name exists already")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the volume is read-only")]
    ReadOnly,
    #[error("no space left")]
    NoSpace,
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    #[error("the file would be too large")]
    TooLarge,
    #[error("too many hard links")]
    TooManyLinks,
    #[error("invalid argument")]
    Invalid,
    #[error("operation not permitted")]
    NotPermitted,
    #[error("permission denied")]
    Denied,
    #[error("no such extended attribute")]
    NoAttribute,
    #[error("the value is too long")]
    ValueTooLong,
    #[error("not supported")]
    NotSupported,
    #[error("no such open file")]
    BadHandle,
    #[error("the file changed under an old handle")]
    Stale,
    #[error("no data or hole beyond this offset")]
    NoSuchOffset,
    #[error("the content did not arrive in time")]
    TimedOut,
    #[error("input/output error")]
    Io,
}
