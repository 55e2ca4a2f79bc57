//! What SOURCE, DIR and PATH on a command line stand for.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::api::types::{ApiPath, MountSource, Secret};
use crate::api::{ApiError, ErrorKind, escape};

/// A link with all the hints it may carry; a longer text is not one.
const LINK_BYTES_MAX: usize = 4096;

const SCHEMES: [&str; 3] = ["ccbt:", "magnet:", "xet:"];

/// The two arguments of `mount`. `env`: the content of $CCBT_LINK, which takes the place of SOURCE if only DIR is given.
pub(super) fn mount_args(
    first: Option<OsString>,
    second: Option<PathBuf>,
    env: Option<OsString>,
) -> Result<(MountSource, ApiPath), ApiError> {
    let env = env.filter(|link| !link.is_empty());
    match (first, second, env) {
        (Some(source), Some(dir), _) => Ok((source_of(&source)?, target(&dir)?)),
        (Some(dir), None, Some(link)) if !is_link(dir.as_bytes()) && dir != "-" => Ok((
            MountSource::Link(link_of(link.as_bytes(), "$CCBT_LINK")?),
            target(dir.as_ref())?,
        )),
        (Some(source), None, _) => match source_of(&source)? {
            MountSource::Dir(dir) => Ok((MountSource::Dir(dir.clone()), dir)),
            MountSource::Link(_) | MountSource::Torrent(_) => Err(ApiError::new(
                ErrorKind::Usage,
                "a link needs a directory to be mounted on",
            )
            .hint("`ccbt mount LINK DIR`")),
        },
        (None, _, _) => Err(
            ApiError::new(ErrorKind::Usage, "nothing to mount was named")
                .hint("`ccbt mount LINK DIR` or `ccbt mount DIR`"),
        ),
    }
}

fn is_link(bytes: &[u8]) -> bool {
    SCHEMES
        .iter()
        .any(|scheme| bytes.starts_with(scheme.as_bytes()))
}

fn source_of(arg: &OsStr) -> Result<MountSource, ApiError> {
    if is_link(arg.as_bytes()) {
        return Ok(MountSource::Link(link_of(arg.as_bytes(), "the link")?));
    }
    if arg == "-" {
        let bytes = read_short(std::io::stdin().lock(), "standard input")?;
        return Ok(MountSource::Link(link_of(&bytes, "standard input")?));
    }
    let path = Path::new(arg);
    let shown = escape(arg.as_bytes());
    clear_dead(path)?;
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ApiError::new(
            ErrorKind::NotFound,
            format_args!("there is no directory {shown}"),
        )
        .hint(format_args!(
            "make it with `mkdir {shown}`; a link begins with `ccbt:`"
        )),
        _ => ApiError::io(format_args!("cannot read {shown}"), &error),
    })?;
    if meta.is_dir() {
        return existing_dir(path).map(MountSource::Dir);
    }
    if path
        .extension()
        .is_some_and(|extension| extension == "torrent")
    {
        return Ok(MountSource::Torrent(target(path)?));
    }
    let not_mountable = || {
        ApiError::new(
            ErrorKind::Usage,
            format_args!("{shown} is a file, and it holds no link"),
        )
        .hint("mount the directory it is in")
    };
    if !meta.is_file() {
        return Err(not_mountable());
    }
    let file = File::open(path)
        .map_err(|error| ApiError::io(format_args!("cannot read {shown}"), &error))?;
    let bytes = read_short(file, &shown).map_err(|_| not_mountable())?;
    link_of(&bytes, &shown)
        .map(MountSource::Link)
        .map_err(|_| not_mountable())
}

fn read_short(from: impl Read, what: &str) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    // One byte more than fits shows that there is more.
    from.take(LINK_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ApiError::io(format_args!("cannot read {what}"), &error))?;
    Ok(bytes)
}

/// The link in `bytes`. What is there instead is not repeated: it may be a link with a typing error.
fn link_of(bytes: &[u8], place: &str) -> Result<Secret, ApiError> {
    let text = std::str::from_utf8(bytes).ok().map(str::trim);
    let fits = |text: &&str| {
        is_link(text.as_bytes())
            && text.len() <= LINK_BYTES_MAX
            && !text.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    text.filter(fits).map(Secret::new).ok_or_else(|| {
        ApiError::new(ErrorKind::Usage, format_args!("{place} is not one link"))
            .hint("a link is one line that begins with `ccbt:`")
    })
}

/// A directory that is there, by its real name.
pub(super) fn existing_dir(path: &Path) -> Result<ApiPath, ApiError> {
    let shown = escape(path.as_os_str().as_bytes());
    clear_dead(path)?;
    let real = std::fs::canonicalize(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ApiError::new(
            ErrorKind::NotFound,
            format_args!("there is no directory {shown}"),
        ),
        _ => ApiError::io(format_args!("cannot use {shown}"), &error),
    })?;
    if !real.is_dir() {
        return Err(
            ApiError::new(ErrorKind::Usage, format_args!("{shown} is not a directory"))
                .hint("name the directory it is in"),
        );
    }
    Ok(ApiPath(real))
}

/// Takes away what a killed daemon left at `path`: nobody could look at the directory otherwise.
fn clear_dead(path: &Path) -> Result<(), ApiError> {
    let cleared = ccbt_mount::detach_dead(path);
    cleared
        .map(drop)
        .map_err(|error| ApiError::new(ErrorKind::Busy, error))
}

/// Something that may not be there, or may be a mount that does not answer: only its parent is looked at.
pub(super) fn target(path: &Path) -> Result<ApiPath, ApiError> {
    let shown = escape(path.as_os_str().as_bytes());
    let failed = |error: std::io::Error| {
        ApiError::io(format_args!("cannot use {shown}"), &error)
            .hint("name a directory in one that is there and that you may enter")
    };
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return std::fs::canonicalize(path).map(ApiPath).map_err(failed);
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let parent = std::fs::canonicalize(parent).map_err(failed)?;
    Ok(ApiPath(parent.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(
        first: &OsStr,
        second: Option<&Path>,
        env: Option<&str>,
    ) -> Result<(MountSource, ApiPath), ApiError> {
        mount_args(
            Some(first.into()),
            second.map(Into::into),
            env.map(Into::into),
        )
    }

    fn link(text: &str) -> MountSource {
        MountSource::Link(Secret::new(text))
    }

    #[test]
    fn a_source_is_a_directory_a_link_or_a_file_with_one() {
        let dir = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        let file = dir.path().join("link");
        std::fs::write(&file, "ccbt:rabc?n=x\n").unwrap();
        let at = dir.path().join("m");
        let target = ApiPath(real.join("m"));

        let own = (MountSource::Dir(ApiPath(real.clone())), ApiPath(real));
        assert_eq!(args(dir.path().as_ref(), None, None).unwrap(), own);
        let direct = args("ccbt:wabc".as_ref(), Some(&at), Some("ccbt:other")).unwrap();
        assert_eq!(direct, (link("ccbt:wabc"), target.clone()));
        let from_file = args(file.as_ref(), Some(&at), None).unwrap();
        assert_eq!(from_file, (link("ccbt:rabc?n=x"), target.clone()));
        let from_env = args(at.as_ref(), None, Some("ccbt:renv")).unwrap();
        assert_eq!(from_env, (link("ccbt:renv"), target));
    }

    #[test]
    fn what_is_neither_says_so_without_repeating_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "just text").unwrap();
        let big = dir.path().join("big");
        std::fs::write(&big, [b"ccbt:".as_slice(), &[b'x'; 9000]].concat()).unwrap();
        let at = dir.path().join("m");
        for (first, second, kind) in [
            (file.as_os_str(), Some(&at), ErrorKind::Usage),
            (big.as_os_str(), Some(&at), ErrorKind::Usage),
            (
                dir.path().join("none").as_os_str(),
                Some(&at),
                ErrorKind::NotFound,
            ),
            ("ccbt:wsecret".as_ref(), None, ErrorKind::Usage),
            ("ccbt:wsecret x".as_ref(), Some(&at), ErrorKind::Usage),
        ] {
            let error = args(first, second.map(|p| p.as_path()), None).unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
        assert_eq!(
            mount_args(None, None, None).unwrap_err().kind,
            ErrorKind::Usage
        );
    }

    #[test]
    fn a_target_keeps_its_last_part() {
        let dir = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        assert_eq!(
            target(&dir.path().join("none")).unwrap(),
            ApiPath(real.join("none"))
        );
        std::os::unix::fs::symlink("/nowhere", dir.path().join("s")).unwrap();
        assert_eq!(
            target(&dir.path().join("s/")).unwrap(),
            ApiPath(real.join("s"))
        );
        assert!(target(&dir.path().join("no/ne")).is_err());
        assert_eq!(target(Path::new("/")).unwrap(), ApiPath("/".into()));
    }
}
