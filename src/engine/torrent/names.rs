//! Names that are different in a torrent and the same to a file system that does not tell capitals apart: two files would write into one.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Made and removed again to find out.
const PROBE: &str = ".ccbt-probe-of-capitals";

/// The paths as they can be used below `root`: on such a file system, those that collide with an earlier one get a number.
pub(super) fn distinct(root: &Path, paths: &mut [&mut PathBuf]) {
    let fixed = renamed(paths);
    if !fixed.is_empty() && is_blind(root) {
        for (n, path) in fixed {
            if let Some(old) = paths.get_mut(n) {
                **old = path;
            }
        }
    }
}

/// What must have another name, by its number.
fn renamed(paths: &[&mut PathBuf]) -> Vec<(usize, PathBuf)> {
    let mut taken: HashSet<String> = HashSet::new();
    // Folders come first: a file can have another name more easily.
    for path in paths {
        taken.extend(path.ancestors().skip(1).map(folded));
    }
    let mut out = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        if taken.insert(folded(path)) {
            continue;
        }
        let mut free = (2..).map(|number| numbered(path, number));
        let other = free.find(|other| taken.insert(folded(other)));
        out.extend(other.map(|other| (n, other)));
    }
    out
}

fn folded(path: &Path) -> String {
    path.to_string_lossy().to_lowercase()
}

/// `name (2).ext`
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().map(OsString::from).unwrap_or_default();
    name.push(format!(" ({number})"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Whether the file system takes `A` for `a`. One that cannot be written to is taken at its word.
fn is_blind(root: &Path) -> bool {
    let Some(folder) = root.ancestors().find(|folder| folder.is_dir()) else {
        return false;
    };
    let probe = folder.join(PROBE);
    if fs::write(&probe, "").is_err() {
        return false;
    }
    let blind = folder.join(PROBE.to_uppercase()).exists();
    if let Err(error) = fs::remove_file(&probe) {
        tracing::warn!(%error, path = %probe.display(), "a file of ours stays behind");
    }
    blind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(names: &[&str]) -> Vec<String> {
        let mut paths: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        let mut all: Vec<&mut PathBuf> = paths.iter_mut().collect();
        for (n, path) in renamed(&all) {
            *all[n] = path;
        }
        paths
            .iter()
            .map(|path| path.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn later_names_give_way() {
        let names = [
            "t/Makefile",
            "t/makefile",
            "t/a.TXT",
            "t/A.txt",
            "t/a (2).txt",
            "T/b",
        ];
        let expected = [
            "t/Makefile",
            "t/makefile (2)",
            "t/a.TXT",
            "t/A (2).txt",
            "t/a (2) (2).txt",
            "T/b",
        ];
        assert_eq!(fixed(&names), expected);
        assert_eq!(
            fixed(&["t/sub", "t/Sub/x", "t/É", "t/é"]),
            ["t/sub (2)", "t/Sub/x", "t/É", "t/é (2)"]
        );
        assert_eq!(fixed(&["a", "b", "A/c"]), ["a (2)", "b", "A/c"]);
    }

    #[test]
    fn on_this_file_system_names_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (PathBuf::from("A"), PathBuf::from("a"));
        distinct(&dir.path().join("not/yet"), &mut [&mut one, &mut other]);
        assert_eq!((one.to_str(), other.to_str()), (Some("A"), Some("a")));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing stays behind"
        );
    }
}
