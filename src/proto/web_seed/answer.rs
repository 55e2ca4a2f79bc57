//! What the head of a web server's answer means for the range that was asked for.

use std::time::Duration;

use super::WebError;

/// The head of an answer, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// `Content-Length`
    pub length: Option<u64>,
    /// `Content-Range`
    pub range: Option<String>,
    /// `Location`
    pub location: Option<String>,
    /// `Content-Type`
    pub kind: Option<String>,
    /// `Content-Encoding`
    pub encoding: Option<String>,
    /// `Retry-After`
    pub retry_after: Option<String>,
}

/// A head that is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judged {
    /// So many bytes follow, from the first that was asked for on.
    Bytes(u64),
    Elsewhere(String),
    /// There is no such file.
    Missing,
}

/// Judges the answer to a request for `len` bytes from `begin` of a file of `length`.
pub(super) fn judge(
    answer: &Answer,
    begin: u64,
    len: u64,
    length: u64,
) -> Result<Judged, WebError> {
    let plain = |encoding: &&String| !encoding.eq_ignore_ascii_case("identity");
    match answer.status {
        200 | 206 => {
            if let Some(encoding) = answer.encoding.as_ref().filter(plain) {
                return Err(WebError::Encoded(short(encoding)));
            }
            match answer.status {
                206 => part(answer, begin, len, length),
                _ => whole(answer, begin, len, length),
            }
        }
        301 | 302 | 303 | 307 | 308 => match &answer.location {
            Some(location) => Ok(Judged::Elsewhere(location.clone())),
            None => Err(WebError::Redirects),
        },
        404 | 410 => Ok(Judged::Missing),
        416 => Err(WebError::Size {
            file: String::new(),
            there: total(answer.range.as_deref()).unwrap_or(0),
            expected: length,
        }),
        429 | 503 => Err(WebError::Busy {
            status: answer.status,
            retry_after: answer.retry_after.as_deref().and_then(seconds),
        }),
        408 | 425 | 500..=599 => Err(WebError::Status(answer.status)),
        status => Err(WebError::Refused(status)),
    }
}

fn part(answer: &Answer, begin: u64, len: u64, length: u64) -> Result<Judged, WebError> {
    let range = answer.range.as_deref().and_then(parse_range);
    let (first, last, all) = range.ok_or(WebError::OtherRange)?;
    if let Some(there) = all.filter(|there| *there != length) {
        let file = String::new();
        return Err(WebError::Size {
            file,
            there,
            expected: length,
        });
    }
    let bytes = last - first + 1;
    let fits = first == begin && bytes == len && answer.length.is_none_or(|n| n == bytes);
    match fits {
        true => Ok(Judged::Bytes(bytes)),
        false => Err(WebError::OtherRange),
    }
}

/// The whole file is of use only if all of it was asked for.
fn whole(answer: &Answer, begin: u64, len: u64, length: u64) -> Result<Judged, WebError> {
    if begin == 0 && len == length && answer.length.is_none_or(|n| n == length) {
        return Ok(Judged::Bytes(length));
    }
    match answer.kind.as_deref() {
        Some(kind) if kind.to_ascii_lowercase().starts_with("text/html") => {
            Err(WebError::Page(short(kind)))
        }
        _ => Err(WebError::NoRanges),
    }
}

/// `bytes FIRST-LAST/ALL`, of which ALL may be `*`.
fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let rest = text.trim().strip_prefix("bytes")?.trim_start();
    let (range, all) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let all = match all.trim() {
        "*" => None,
        all => Some(all.parse().ok()?),
    };
    let sane = first <= last && last < u64::MAX && all.is_none_or(|all| last < all);
    sane.then_some((first, last, all))
}

/// Of `bytes */ALL`.
fn total(text: Option<&str>) -> Option<u64> {
    text?.rsplit_once('/')?.1.trim().parse().ok()
}

fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// What of a header goes into a message.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(range: &str, length: Option<u64>) -> Answer {
        Answer {
            status: 206,
            range: Some(range.to_owned()),
            length,
            ..Answer::default()
        }
    }

    #[test]
    fn only_the_range_that_was_asked_for_is_taken() {
        let judge = |range: &str, length| judge(&partial(range, length), 100, 50, 1000);
        assert_eq!(judge("bytes 100-149/1000", Some(50)), Ok(Judged::Bytes(50)));
        assert_eq!(judge("bytes 100-149/*", None), Ok(Judged::Bytes(50)));
        for other in [
            "bytes 0-49/1000",
            "bytes 100-150/1000",
            "bytes 100-148/1000",
            "bytes 149-100/1000",
            "bytes 100-149",
            "100-149/1000",
            "bytes 100-18446744073709551615/*",
        ] {
            assert_eq!(judge(other, None), Err(WebError::OtherRange), "{other}");
        }
        assert_eq!(
            judge("bytes 100-149/1000", Some(51)),
            Err(WebError::OtherRange)
        );
        assert!(matches!(
            judge("bytes 100-149/999", None),
            Err(WebError::Size { there: 999, .. })
        ));
    }

    #[test]
    fn a_whole_file_is_taken_where_all_of_it_was_asked_for() {
        let answer = |kind: &str, length| Answer {
            status: 200,
            kind: Some(kind.to_owned()),
            length,
            ..Answer::default()
        };
        let file = answer("application/octet-stream", Some(1000));
        assert_eq!(judge(&file, 0, 1000, 1000), Ok(Judged::Bytes(1000)));
        assert_eq!(judge(&file, 0, 999, 1000), Err(WebError::NoRanges));
        assert_eq!(judge(&file, 1, 999, 1000), Err(WebError::NoRanges));
        assert_eq!(
            judge(&answer("x", Some(2 << 30)), 0, 1000, 1000),
            Err(WebError::NoRanges)
        );
        let page = judge(&answer("text/HTML; charset=x", Some(99)), 0, 1000, 1000);
        assert!(matches!(page, Err(WebError::Page(_))), "{page:?}");
        let packed = Answer {
            encoding: Some("gzip".to_owned()),
            ..file
        };
        assert_eq!(
            judge(&packed, 0, 1000, 1000),
            Err(WebError::Encoded("gzip".to_owned()))
        );
    }

    #[test]
    fn what_fails_for_good_and_what_may_work_later() {
        let status = |status| {
            let answer = Answer {
                status,
                retry_after: Some("120".to_owned()),
                ..Answer::default()
            };
            judge(&answer, 0, 1, 1)
        };
        assert_eq!(status(404), Ok(Judged::Missing));
        for refused in [100, 204, 304, 400, 401, 403, 407, 451] {
            assert_eq!(status(refused), Err(WebError::Refused(refused)));
        }
        assert!(status(403).unwrap_err().is_final());
        assert!(!status(500).unwrap_err().is_final());
        let wait = Some(Duration::from_secs(120));
        let busy = WebError::Busy {
            status: 503,
            retry_after: wait,
        };
        assert_eq!(status(503), Err(busy));
        assert_eq!(
            status(302),
            Err(WebError::Redirects),
            "it says not where to"
        );
    }
}
