//! What of a plain directory is not shared: the rules of `.ccbtignore` at its top, in the syntax of gitignore, after a
//! list of what editors and downloads leave for a moment. The file is shared like any other.
//!
//! Rules only keep names out of the folder that are not in it yet: what has a base record or is shown is followed
//! whatever they say, so none of them loses a file or hides an edit.

use std::io::Read;

use bytes::Bytes;

use super::Inner;
use super::base::{FileTime, Stamp, unsure_for};
use super::contents;
use super::files::HomeFiles;
use super::ledger::Ledger;
use super::plan::{FoundKind, join};
use crate::folder::state::{Fid, FileKind, Node};

/// The file with the rules.
pub const FILE: &[u8] = b".ccbtignore";

/// A larger file has no rules: it comes from whoever may write the folder.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is matched costs the product of these and of the length of a path.
const PATTERNS_MAX: usize = 10_000;
const PATTERN_BYTES_MAX: usize = 4096;

/// Files, not directories, of these names come and go while programs save: swap files of vim, the file it tries a
/// directory with, locks of office programs and of emacs, what GNOME writes before it renames, downloads, and what NFS
/// keeps of removed files.
const DEFAULTS: &[u8] =
    b"*.swp\n*.swx\n.*.sw?\n4913\n.~lock.*#\n~$*\n.#*\n.goutputstream-*\n*.part\n.nfs*\n";

/// Rules, the last that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// It takes names out again that earlier ones took in.
    is_negated: bool,
    kinds: Kinds,
    /// Matched against the path from the top, else against the name.
    is_anchored: bool,
    glob: Glob,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kinds {
    All,
    Dirs,
    Files,
}

/// A pattern, in the form that is cheapest to match.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Glob {
    Literal(Vec<u8>),
    /// `*` and then this.
    Suffix(Vec<u8>),
    /// What it begins with, and the rest.
    Tokens(Vec<u8>, Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`: any byte but `/`.
    Any,
    /// `[a-z]`
    Class(Box<[bool; 256]>),
    /// `*`: any number of bytes but `/`.
    Star,
    /// `**/`: any number of directories.
    Dirs,
    /// `**` at the end: everything below.
    Rest,
}

/// The rules as they bear on the names in one directory.
#[derive(Debug)]
pub struct Within<'r> {
    rules: &'r Rules,
    path: Vec<u8>,
    /// The directory is ignored, so everything in it is.
    is_ignored: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self::parse(b"")
    }
}

impl Rules {
    /// The default list and then the rules in `text`. What is no rule is passed over.
    pub fn parse(text: &[u8]) -> Self {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let defaults = DEFAULTS
            .split(|byte| *byte == b'\n')
            .filter_map(Rule::parse);
        let defaults = defaults.map(|rule| Rule {
            kinds: Kinds::Files,
            ..rule
        });
        let own = text.split(|byte| *byte == b'\n').filter_map(Rule::parse);
        Self(defaults.chain(own.take(PATTERNS_MAX)).collect())
    }

    /// The rules for the names in the directory `path`, which is `/`-separated and empty for the top.
    pub fn within(&self, path: &[u8]) -> Within<'_> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends = ends.map(|(at, _)| at).chain([path.len()]);
        let mut above = ends
            .filter_map(|end| path.get(..end))
            .filter(|p| !p.is_empty());
        Within {
            rules: self,
            path: path.to_vec(),
            is_ignored: above.any(|path| self.decide(path, true)),
        }
    }

    /// Whether the last rule that matches says so, the directories above apart.
    fn decide(&self, path: &[u8], is_dir: bool) -> bool {
        let rules = self.0.iter().rev();
        let found = rules.into_iter().find(|rule| rule.matches(path, is_dir));
        found.is_some_and(|rule| !rule.is_negated)
    }
}

impl Within<'_> {
    /// Whether something of this name that is not in the folder stays out of it.
    pub fn ignores(&self, name: &[u8], is_dir: bool) -> bool {
        let is_rules = self.path.is_empty() && name == FILE;
        !is_rules && (self.is_ignored || self.rules.decide(&join(&self.path, name), is_dir))
    }
}

impl Rule {
    /// None for an empty line, a comment, and what can never match.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.starts_with(b"#") || line.len() > PATTERN_BYTES_MAX {
            return None;
        }
        let line = trim_spaces(line);
        let (is_negated, line) = match line.strip_prefix(b"!") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let (kinds, line) = match line.strip_suffix(b"/") {
            Some(rest) => (Kinds::Dirs, rest),
            None => (Kinds::All, line),
        };
        let is_anchored = line.contains(&b'/');
        let line = line.strip_prefix(b"/").unwrap_or(line);
        if line.is_empty() {
            return None;
        }
        Some(Self {
            is_negated,
            kinds,
            is_anchored,
            glob: Glob::parse(line)?,
        })
    }

    fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        let is_kind = match self.kinds {
            Kinds::All => true,
            Kinds::Dirs => is_dir,
            Kinds::Files => !is_dir,
        };
        let name = || path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        is_kind
            && self
                .glob
                .matches(if self.is_anchored { path } else { name() })
    }
}

/// Without the spaces at the end that are not escaped.
fn trim_spaces(line: &[u8]) -> &[u8] {
    let mut end = line.len();
    while end > 0 && line.get(end - 1) == Some(&b' ') {
        let before = line.get(..end - 1).unwrap_or_default();
        let escapes = before
            .iter()
            .rev()
            .take_while(|byte| **byte == b'\\')
            .count();
        if escapes % 2 == 1 {
            break;
        }
        end -= 1;
    }
    line.get(..end).unwrap_or_default()
}

impl Glob {
    fn parse(pattern: &[u8]) -> Option<Self> {
        let tokens = tokens(pattern)?;
        let literal = |tokens: &[Token]| -> Option<Vec<u8>> {
            let byte = |token: &Token| match token {
                Token::Byte(byte) => Some(*byte),
                _ => None,
            };
            tokens.iter().map(byte).collect()
        };
        if let Some(bytes) = literal(&tokens) {
            return Some(Self::Literal(bytes));
        }
        if let Some((Token::Star, rest)) = tokens.split_first()
            && let Some(bytes) = literal(rest).filter(|bytes| !bytes.contains(&b'/'))
        {
            return Some(Self::Suffix(bytes));
        }
        let head = tokens
            .iter()
            .take_while(|token| matches!(token, Token::Byte(_)));
        let head = head.count();
        let (head, rest) = tokens.split_at(head);
        Some(Self::Tokens(literal(head)?, rest.to_vec()))
    }

    fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Literal(bytes) => text == bytes,
            Self::Suffix(bytes) => text
                .strip_suffix(&bytes[..])
                .is_some_and(|rest| !rest.contains(&b'/')),
            Self::Tokens(head, rest) => text
                .strip_prefix(&head[..])
                .is_some_and(|text| matches_tokens(rest, text)),
        }
    }
}

/// None if the pattern ends inside a class or an escape: it matches nothing.
fn tokens(pattern: &[u8]) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut left = pattern;
    while let Some((first, rest)) = left.split_first() {
        let is_start = matches!(tokens.last(), None | Some(Token::Byte(b'/') | Token::Dirs));
        (left, _) = match *first {
            b'*' if is_start && rest.starts_with(b"*/") => (&rest[2..], tokens.push(Token::Dirs)),
            b'*' if is_start && rest == b"*" => (&rest[1..], tokens.push(Token::Rest)),
            b'*' => {
                let stars = rest.iter().take_while(|byte| **byte == b'*').count();
                (&rest[stars..], tokens.push(Token::Star))
            }
            b'?' => (rest, tokens.push(Token::Any)),
            b'[' => {
                let (class, rest) = class(rest)?;
                (rest, tokens.push(Token::Class(class)))
            }
            b'\\' => {
                let (byte, rest) = rest.split_first()?;
                (rest, tokens.push(Token::Byte(*byte)))
            }
            byte => (rest, tokens.push(Token::Byte(byte))),
        };
    }
    Some(tokens)
}

/// Reads what follows a `[`. Returns what it stands for, and what follows the `]`.
fn class(pattern: &[u8]) -> Option<(Box<[bool; 256]>, &[u8])> {
    let (is_negated, mut left) = match pattern.split_first()? {
        (b'!' | b'^', rest) => (true, rest),
        _ => (false, pattern),
    };
    let mut set = Box::new([false; 256]);
    let mut is_first = true;
    loop {
        let (byte, rest) = left.split_first()?;
        left = rest;
        match byte {
            b']' if !is_first => break,
            b'[' if left.starts_with(b":") => {
                let end = left.windows(2).position(|pair| pair == b":]")?;
                let of = named_class(left.get(1..end)?)?;
                (0..=255u8)
                    .filter(of)
                    .for_each(|byte| set[usize::from(byte)] = true);
                left = &left[end + 2..];
            }
            byte => {
                let low = unescaped(*byte, &mut left)?;
                let high = match left {
                    [b'-', next, ..] if *next != b']' => {
                        let next = *next;
                        left = &left[2..];
                        unescaped(next, &mut left)?
                    }
                    _ => low,
                };
                (low..=high).for_each(|byte| set[usize::from(byte)] = true);
            }
        }
        is_first = false;
    }
    if is_negated {
        set.iter_mut().for_each(|is_in| *is_in = !*is_in);
    }
    // No pattern but `**` goes over the end of a name.
    set[usize::from(b'/')] = false;
    Some((set, left))
}

fn unescaped(byte: u8, left: &mut &[u8]) -> Option<u8> {
    if byte != b'\\' {
        return Some(byte);
    }
    let (byte, rest) = left.split_first()?;
    *left = rest;
    Some(*byte)
}

fn named_class(name: &[u8]) -> Option<fn(&u8) -> bool> {
    Some(match name {
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"digit" => u8::is_ascii_digit,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |byte| matches!(byte, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"space" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return None,
    })
}

/// Follows every way through the pattern at once, so no pattern takes longer than its length for each byte.
fn matches_tokens(tokens: &[Token], text: &[u8]) -> bool {
    let len = tokens.len();
    // Where in the pattern a match may be; inside one of the directories that a `**/` stands for, in the second.
    let (mut at, mut inside) = (vec![false; len + 1], vec![false; len]);
    at[0] = true;
    for byte in text {
        let (mut next, mut next_inside) = (vec![false; len + 1], vec![false; len]);
        skip_optional(tokens, &mut at);
        for (index, token) in tokens.iter().enumerate() {
            if at[index] || inside[index] {
                match token {
                    Token::Byte(wanted) => next[index + 1] |= byte == wanted,
                    Token::Any => next[index + 1] |= *byte != b'/',
                    Token::Class(set) => next[index + 1] |= set[usize::from(*byte)],
                    Token::Star => next[index] |= *byte != b'/',
                    Token::Dirs if *byte == b'/' => next[index] |= inside[index],
                    Token::Dirs => next_inside[index] = true,
                    Token::Rest => next[index] = true,
                }
            }
        }
        (at, inside) = (next, next_inside);
    }
    skip_optional(tokens, &mut at);
    let is_below = matches!(tokens.last(), Some(Token::Rest)) && !text.is_empty();
    at[len] || (is_below && at[len - 1])
}

/// What may stand for nothing is passed.
fn skip_optional(tokens: &[Token], at: &mut [bool]) {
    for (index, token) in tokens.iter().enumerate() {
        if matches!(token, Token::Star | Token::Dirs) {
            at[index + 1] |= at[index];
        }
    }
}

/// The rules of one home, read again when they change.
#[derive(Debug, Default)]
pub(super) struct HomeRules {
    pub(super) rules: Rules,
    source: Source,
    text: Vec<u8>,
}

/// What the rules were read from.
#[derive(Debug, Default, PartialEq, Eq)]
enum Source {
    /// Nothing yet.
    #[default]
    Unread,
    Nowhere,
    /// The file in the directory as it was.
    Disk(Stamp),
    /// The folder's, while the directory has none: it is on its way.
    Folder {
        content: Bytes,
        size: u64,
    },
}

/// Reads a content of the folder, if all of it is here.
pub(super) type ReadContent<'r> = &'r dyn Fn(&Bytes, u64) -> Option<Vec<u8>>;

impl HomeRules {
    /// Reads the rules if they may be others. Whether they are, and were read before: then what is in the directory is
    /// to be judged anew.
    pub(super) fn refresh(&mut self, home: &Inner) -> bool {
        let source = source(&home.files, &*home.ledger);
        let now = FileTime::from_unix_nanos((home.clock)());
        // A file that was changed a moment ago may be changed again within the same time.
        let is_settled =
            |stamp: &Stamp| stamp.mtime.distance(now) > unsure_for(stamp.mtime).as_nanos();
        let is_known = match &source {
            Source::Disk(stamp) => source == self.source && is_settled(stamp),
            _ => source == self.source,
        };
        if is_known {
            return false;
        }
        let Some(text) = read(&source, &home.files, &|content, size| {
            contents::content(&home.store, &home.files, content, size)
        }) else {
            // It is on its way, or being replaced.
            return false;
        };
        let is_first = self.source == Source::Unread;
        self.source = source;
        if text == self.text && !is_first {
            return false;
        }
        self.rules = Rules::parse(&text);
        self.text = text;
        !is_first
    }
}

/// The rules a directory would have as the home of a folder.
pub(super) fn rules_of(files: &HomeFiles, ledger: &dyn Ledger, content: ReadContent<'_>) -> Rules {
    let text = read(&source(files, ledger), files, content);
    Rules::parse(&text.unwrap_or_default())
}

fn source(files: &HomeFiles, ledger: &dyn Ledger) -> Source {
    match files.stat(FILE) {
        Ok(found) if found.kind == FoundKind::File => return Source::Disk(found.stamp),
        Ok(_) => return Source::Nowhere,
        Err(_) => {}
    }
    let mut shown = None;
    ledger.read(&mut |state| shown = state.lookup(Fid::ROOT, FILE));
    match shown {
        Some(Node::File(node)) if node.version.kind == FileKind::File => Source::Folder {
            content: Bytes::copy_from_slice(&node.version.content.0),
            size: node.version.size,
        },
        _ => Source::Nowhere,
    }
}

/// The text of the rules; none if it cannot be had now.
fn read(source: &Source, files: &HomeFiles, content: ReadContent<'_>) -> Option<Vec<u8>> {
    let size = match source {
        Source::Unread | Source::Nowhere => return Some(Vec::new()),
        Source::Disk(stamp) => stamp.size,
        Source::Folder { size, .. } => *size,
    };
    if size > FILE_BYTES_MAX {
        tracing::warn!(
            size,
            "the file .ccbtignore is too large: it is not followed"
        );
        return Some(Vec::new());
    }
    if let Source::Folder { content: of, size } = source {
        return content(of, *size);
    }
    let mut text = Vec::new();
    let file = std::fs::File::from(files.open_file(FILE).ok()?);
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ignores(rules: &str, path: &str) -> bool {
        let (path, is_dir) = match path.strip_suffix('/') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let rules = Rules::parse(rules.as_bytes());
        rules
            .within(dir.as_bytes())
            .ignores(name.as_bytes(), is_dir)
    }

    /// What git says of the same, by `git check-ignore` (a path that ends with `/` is a directory).
    const TABLE: &[(&str, &[&str], &[&str])] = &[
        (
            "foo",
            &["foo", "foo/", "a/foo", "foo/bar"],
            &["foobar", "afoo"],
        ),
        ("/foo", &["foo", "foo/bar"], &["a/foo"]),
        ("foo/", &["foo/", "a/foo/", "foo/bar"], &["foo", "a/foo"]),
        ("a/foo", &["a/foo", "a/foo/b"], &["foo", "b/a/foo"]),
        ("a/foo/", &["a/foo/"], &["a/foo", "b/a/foo/"]),
        ("*.o", &["x.o", "a/b/x.o", ".o"], &["x.oo", "o"]),
        ("a/*.o", &["a/x.o"], &["a/b/x.o", "b/a/x.o", "x.o"]),
        ("*/x", &["a/x"], &["x", "a/b/x"]),
        ("**/foo", &["foo", "a/foo", "a/b/foo"], &["afoo", "a/foob"]),
        ("**/a/foo", &["a/foo", "b/a/foo"], &["foo", "ba/foo"]),
        ("a/**", &["a/b", "a/b/c", "a/b/"], &["a/", "a", "b/a/b"]),
        (
            "a/**/b",
            &["a/b", "a/x/b", "a/x/y/b"],
            &["ab", "a/xb", "c/a/b"],
        ),
        ("a**b", &["ab", "axxb", "c/ab"], &["a/b"]),
        ("a/**b", &["a/xb", "a/b"], &["a/x/b"]),
        ("f?o", &["foo", "fxo"], &["fo", "f/o"]),
        ("f[a-c]o", &["fbo"], &["fdo", "f-o"]),
        ("f[!a-c]o", &["fdo"], &["fbo"]),
        ("f[^a-c]o", &["fdo"], &["fbo"]),
        ("f[]x]o", &["f]o", "fxo"], &["fo"]),
        ("f[a-]o", &["f-o", "fao"], &["fbo"]),
        ("f[[:digit:]x]o", &["f7o", "fxo"], &["f:o", "fdo"]),
        ("f[[:nonsense:]]o", &[], &["fno", "f:o"]),
        ("f[a", &[], &["fa", "f[a"]),
        ("f[\\]]o", &["f]o"], &["f\\o"]),
        ("#foo", &[], &["#foo", "foo"]),
        ("\\#foo", &["#foo"], &["foo"]),
        ("\\!foo", &["!foo"], &["foo"]),
        ("foo\\", &[], &["foo", "foo\\"]),
        ("foo   ", &["foo"], &["foo   "]),
        ("foo\\ ", &["foo "], &["foo"]),
        ("foo\t", &["foo\t"], &["foo"]),
        ("foo\r\nbar\r", &["foo", "bar"], &["foo\r"]),
        ("\u{feff}foo", &["foo"], &[]),
        ("*\n!keep", &["x", "a/x"], &["keep"]),
        ("*.o\n!x.o", &["y.o"], &["x.o", "a/x.o"]),
        ("!x.o\n*.o", &["x.o"], &[]),
        ("a/\n!a/x", &["a/x"], &[]),
        ("a/*\n!a/x", &["a/y"], &["a/x", "a/"]),
        ("/*\n!/a/\n/a/*\n!/a/b", &["c", "a/c"], &["a/", "a/b"]),
        ("foo/*/bar", &["foo/x/bar"], &["foo/bar", "foo/x/y/bar"]),
        ("/", &[], &["a", "a/"]),
        ("", &[], &["a"]),
        ("**", &["a", "a/b", "a/"], &[]),
        ("*", &["a", ".a", "a/"], &[".ccbtignore"]),
    ];

    #[test]
    fn rules_mean_what_they_mean_to_git() {
        for (rules, ignored, kept) in TABLE {
            for path in *ignored {
                assert!(ignores(rules, path), "{rules:?} ignores {path:?}");
            }
            for path in *kept {
                assert!(!ignores(rules, path), "{rules:?} keeps {path:?}");
            }
        }
    }

    /// The table itself, against the git that is installed.
    #[test]
    fn git_agrees_with_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| {
            let mut command = std::process::Command::new("git");
            command.current_dir(dir.path()).args(args);
            command
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .output()
                .expect("git is needed: scripts/setup")
        };
        assert!(git(&["init", "-q", "."]).status.success());
        for (rules, ignored, kept) in TABLE {
            std::fs::write(dir.path().join(".gitignore"), rules).unwrap();
            let paths = ignored.iter().map(|path| (path, true));
            for (path, is_ignored) in paths.chain(kept.iter().map(|path| (path, false))) {
                if *path == ".ccbtignore" {
                    continue;
                }
                let at = dir.path().join(path);
                let made = match path.ends_with('/') {
                    true => std::fs::create_dir_all(&at),
                    false => std::fs::create_dir_all(at.parent().unwrap())
                        .and_then(|()| std::fs::write(&at, b"")),
                };
                made.unwrap();
                let said = git(&[
                    "check-ignore",
                    "-q",
                    "--no-index",
                    "--",
                    path.trim_end_matches('/'),
                ]);
                let first = path.split('/').next().unwrap();
                let first = dir.path().join(first);
                let _file = std::fs::remove_file(&first);
                let _dir = std::fs::remove_dir_all(&first);
                assert_eq!(
                    said.status.code(),
                    Some(i32::from(!is_ignored)),
                    "{rules:?} {path:?}"
                );
            }
        }
    }

    #[test]
    fn what_editors_leave_is_ignored_and_can_be_wanted() {
        for path in [
            ".f.swp",
            "a/.f.txt.swx",
            ".f.swo",
            "4913",
            ".~lock.x.odt#",
            "~$x.docx",
            ".#x",
            ".goutputstream-A1B2",
            "film.part",
            ".nfs0000",
        ] {
            assert!(ignores("", path), "{path}");
            assert!(!ignores("", &format!("{path}/")), "a directory {path}");
        }
        for path in ["swp", "f.swpx", "14913", "x~", "part", "a.partial", "#x#"] {
            assert!(!ignores("", path), "{path}");
        }
        assert!(!ignores("!*.part\n", "film.part"));
    }

    #[test]
    fn no_pattern_takes_long() {
        let stars = "a*".repeat(1000) + "/**/".repeat(200).as_str() + "b";
        let path = "a".repeat(4000);
        assert!(!ignores(&stars, &path));
    }

    proptest! {
        #[test]
        fn any_bytes_are_rules_and_a_name_is_ignored_by_itself(
            text: Vec<u8>, path: Vec<u8>, name in "[a-z0-9]{1,20}",
        ) {
            let _any = Rules::parse(&text).within(&path).ignores(name.as_bytes(), false);
            prop_assert!(ignores(&name, &name));
            let starred = format!("/{}*", &name[..1]);
            prop_assert!(ignores(&starred, &name));
        }
    }
}
