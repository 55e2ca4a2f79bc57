//! Which directories may be shared and mounted on, each refusal with one sentence and what to do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::api::types::{Amount, ApiPath};
use crate::api::{ApiError, ErrorKind};
use crate::folder::home::marker::OWN_DIR;

/// The directory a request names, without symbolic links, or why it cannot be used.
pub(super) fn existing_dir(path: &ApiPath) -> Result<PathBuf, ApiError> {
    let shown = path.to_string();
    let real = fs::canonicalize(&path.0).map_err(|error| {
        let failed = ApiError::io(format_args!("cannot use {shown}"), &error);
        match failed.kind {
            ErrorKind::NotFound => failed.hint("create the directory first"),
            _ => failed,
        }
    })?;
    let kind = fs::metadata(&real)
        .map_err(|error| ApiError::io(format_args!("cannot use {shown}"), &error))?;
    if !kind.is_dir() {
        let what = format!("{shown} is not a directory");
        return Err(
            ApiError::new(ErrorKind::Refused, what).hint("share or mount the directory it is in")
        );
    }
    if real == Path::new("/") {
        return Err(
            ApiError::new(ErrorKind::Refused, "`/` cannot be shared or mounted on")
                .hint("name a directory below it"),
        );
    }
    Ok(real)
}

/// The directory a request names, without symbolic links as far as it is there.
pub(super) fn real(path: &ApiPath) -> PathBuf {
    fs::canonicalize(&path.0).unwrap_or_else(|_| path.0.clone())
}

/// Neither may contain the other: the daemon's own files would be in the folder, or the folder in them.
pub(super) fn apart_from_state(dir: &Path, state: &Path) -> Result<(), ApiError> {
    let state = fs::canonicalize(state).unwrap_or_else(|_| state.to_path_buf());
    if dir.starts_with(&state) || state.starts_with(dir) {
        let what = format!("{} and the state directory lie in one another", shown(dir));
        return Err(ApiError::new(ErrorKind::Refused, what)
            .hint("use --state DIR with a directory outside"));
    }
    Ok(())
}

/// No folder inside another.
pub(super) fn apart_from_others<'a>(
    dir: &Path,
    others: impl Iterator<Item = &'a Path>,
) -> Result<(), ApiError> {
    for other in others {
        if dir != other && (dir.starts_with(other) || other.starts_with(dir)) {
            let what = format!(
                "{} and the shared directory {} lie in one another",
                shown(dir),
                shown(other)
            );
            return Err(ApiError::new(ErrorKind::Refused, what)
                .hint("share them separately, side by side, or only the outer one"));
        }
    }
    Ok(())
}

/// Not inside a mounted folder: it would be a folder in a folder.
pub(super) fn outside_mounts(dir: &Path) -> Result<(), ApiError> {
    for above in dir.ancestors().skip(1) {
        if ccbt_mount::is_ccbt_mount(above).unwrap_or(false) {
            let what = format!("{} is inside the ccbt mount {}", shown(dir), shown(above));
            return Err(
                ApiError::new(ErrorKind::Refused, what).hint("choose a directory outside of it")
            );
        }
    }
    Ok(())
}

/// Not inside a directory that holds a folder, of this daemon (`homes`) or by its marker of any other.
pub(super) fn outside_homes(dir: &Path, homes: &[PathBuf]) -> Result<(), ApiError> {
    let is_marked = |above: &&Path| above.join(OWN_DIR).join("home").exists();
    let marked = || dir.ancestors().skip(1).find(is_marked).map(PathBuf::from);
    let known = homes.iter().find(|home| dir.starts_with(home)).cloned();
    let Some(home) = known.or_else(marked) else {
        return Ok(());
    };
    let what = format!(
        "{} is inside the shared directory {}",
        shown(dir),
        shown(&home)
    );
    Err(ApiError::new(ErrorKind::Refused, what).hint("choose a mount point outside of it"))
}

/// Whether a directory holds nothing.
pub(super) fn is_empty(dir: &Path) -> Result<bool, ApiError> {
    let mut entries = fs::read_dir(dir)
        .map_err(|error| ApiError::io(format_args!("cannot read {}", shown(dir)), &error))?;
    Ok(entries.next().is_none())
}

/// A path for people.
pub(super) fn shown(path: &Path) -> String {
    ApiPath(path.to_path_buf()).to_string()
}

/// Files, links and bytes below a directory, by looking at them only. What cannot be read counts for nothing; other file
/// systems below it are not looked into, as they are not shared either.
pub(super) fn measure(dir: &Path) -> Amount {
    let mut amount = Amount::default();
    let Ok(device) = fs::metadata(dir).map(|meta| meta.dev()) else {
        return amount;
    };
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let kind = meta.file_type();
            if kind.is_dir() && meta.dev() == device && entry.file_name() != OWN_DIR {
                dirs.push(entry.path());
            } else if kind.is_file() || kind.is_symlink() {
                amount.files += 1;
                amount.bytes += meta.len();
            }
        }
    }
    amount
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_the_root_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, b"").unwrap();
        let kind = |path: &Path| existing_dir(&ApiPath(path.to_path_buf())).unwrap_err().kind;
        assert_eq!(kind(&file), ErrorKind::Refused);
        assert_eq!(kind(Path::new("/")), ErrorKind::Refused);
        assert_eq!(kind(&dir.path().join("missing")), ErrorKind::NotFound);
        assert!(existing_dir(&ApiPath(dir.path().to_path_buf())).is_ok());
    }

    #[test]
    fn nothing_may_lie_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let (a, ab) = (dir.path().join("a"), dir.path().join("a/b"));
        fs::create_dir_all(&ab).unwrap();
        assert!(apart_from_state(&a, &ab).is_err());
        assert!(apart_from_state(&ab, &a).is_err());
        assert!(apart_from_state(&a, &dir.path().join("ab")).is_ok());
        assert!(apart_from_others(&a, [ab.as_path()].into_iter()).is_err());
        assert!(
            apart_from_others(&a, [a.as_path()].into_iter()).is_ok(),
            "the same is another matter"
        );
    }
}
