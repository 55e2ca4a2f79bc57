//! Where the piece space of a torrent lies on a web server: which file, by which URL, and what is a gap.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::url::{UrlError, WebUrl};
use crate::proto::blocks::Block;
use crate::proto::metainfo::Info;

/// What may stand in a path as it is (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[derive(Debug)]
struct WebFile {
    /// Its escaped names, the torrent's first, with `/` between them.
    path: String,
    offset: u64,
    length: u64,
}

/// The files of a torrent with at least one byte, by offset.
#[derive(Debug)]
pub struct WebFiles {
    files: Vec<WebFile>,
    /// The torrent is of one file, not of a folder.
    single: bool,
    piece_bytes: u64,
}

/// What lies at a place of the piece space, up to where that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Bytes of a file, the first of which is `begin`.
    File { number: usize, begin: u64, len: u64 },
    /// Zeros.
    Gap(u64),
}

impl WebFiles {
    pub fn new(info: &Info) -> Self {
        let listed = info.files.iter();
        let mut files: Vec<WebFile> = listed
            .filter(|file| file.length > 0)
            .map(|file| {
                let parts = file.path.parts().iter();
                let parts = parts.map(|part| percent_encode(part.as_bytes(), ESCAPED).to_string());
                WebFile {
                    path: parts.collect::<Vec<_>>().join("/"),
                    offset: file.offset,
                    length: file.length,
                }
            })
            .collect();
        files.sort_by_key(|file| file.offset);
        let single = match info.files.as_slice() {
            [file] => file.path.parts().len() == 1,
            _ => false,
        };
        Self {
            files,
            single,
            piece_bytes: info.piece_bytes.into(),
        }
    }

    /// The URL of a file, given the one in the torrent: that is a folder with everything below it, or the file itself.
    pub(super) fn url(&self, base: &WebUrl, number: usize) -> Result<WebUrl, UrlError> {
        let path = self.files.get(number).map_or("", |file| file.path.as_str());
        match (base.is_folder(), self.single) {
            (true, _) => base.with(path),
            (false, true) => Ok(base.clone()),
            (false, false) => base.with(&format!("/{path}")),
        }
    }

    /// The path of a file, escaped, for messages.
    pub(super) fn name(&self, number: usize) -> &str {
        self.files.get(number).map_or("", |file| file.path.as_str())
    }

    pub(super) fn length(&self, number: usize) -> u64 {
        self.files.get(number).map_or(0, |file| file.length)
    }

    /// What is at `at`, within the next `len` bytes.
    pub(super) fn place(&self, at: u64, len: u64) -> Place {
        let number = self
            .files
            .partition_point(|file| file.offset + file.length <= at);
        match self.files.get(number) {
            Some(file) if file.offset <= at => Place::File {
                number,
                begin: at - file.offset,
                len: len.min(file.offset + file.length - at),
            },
            Some(file) => Place::Gap(len.min(file.offset - at)),
            None => Place::Gap(len),
        }
    }

    /// The pieces in which the file lies.
    pub(super) fn pieces(&self, number: usize) -> std::ops::RangeInclusive<u32> {
        let Some(file) = self.files.get(number) else {
            return std::ops::RangeInclusive::new(1, 0);
        };
        let piece = |at: u64| u32::try_from(at / self.piece_bytes.max(1)).unwrap_or(u32::MAX);
        piece(file.offset)..=piece(file.offset + file.length - 1)
    }

    /// Where the block begins in the piece space.
    pub(super) fn offset(&self, block: &Block) -> u64 {
        u64::from(block.piece) * self.piece_bytes + u64::from(block.begin)
    }

    /// Number of files.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_urls() {
        let info = Info::parse(
            b"d5:filesld6:lengthi3e4:pathl1:aeed6:lengthi0e4:pathl1:eeed6:lengthi5e4:pathl3:d #1:beee4:name3:t%x12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae",
        )
        .unwrap();
        let files = WebFiles::new(&info);
        assert_eq!(files.len(), 2);
        let file = |number, begin, len| Place::File { number, begin, len };
        assert_eq!(files.place(0, 100), file(0, 0, 3));
        assert_eq!(files.place(4, 2), file(1, 1, 2));
        assert_eq!(files.place(8, 9), Place::Gap(9));
        assert_eq!(files.pieces(1), 0..=0);
        let url = |base: &str| {
            let base = WebUrl::parse(base).unwrap();
            files.url(&base, 1).unwrap().to_string()
        };
        assert_eq!(url("http://h/x/"), "http://h/x/t%25x/d%20%23/b");
        assert_eq!(url("http://h/x"), "http://h/x/t%25x/d%20%23/b");
        let one = Info::parse(
            b"d6:lengthi3e4:name3:t x12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae",
        );
        let files = WebFiles::new(&one.unwrap());
        let url = |base: &str| {
            let base = WebUrl::parse(base).unwrap();
            files.url(&base, 0).unwrap().to_string()
        };
        assert_eq!(url("http://h/x/"), "http://h/x/t%20x");
        assert_eq!(url("http://h/x.iso?v=1"), "http://h/x.iso?v=1");
    }
}
