//! As much of XML as UPnP needs: the text of elements, by their names without prefixes. What is not well-formed has no elements.

/// The text between the first `<name …>` and its end. Elements of the same name inside are not counted.
pub fn text<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    elements(xml, name).next()
}

/// The same of all such elements, one after the other.
pub fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let mut rest = xml;
    std::iter::from_fn(move || {
        let begin = tag(rest, name, false)?;
        let inner = rest.get(begin.1..)?;
        let end = tag(inner, name, true)?;
        rest = inner.get(end.1..)?;
        inner.get(..end.0)
    })
}

/// Where the next tag of this name begins and ends.
fn tag(xml: &str, name: &str, closing: bool) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let begin = from + xml.get(from..)?.find('<')?;
        let inner = xml.get(begin + 1..)?;
        let len = inner.find('>')?;
        let inside = inner.get(..len)?;
        let (named, is_closing) = match inside.strip_prefix('/') {
            Some(named) => (named, true),
            None => (inside, false),
        };
        let named = named.split([' ', '\t', '\r', '\n', '/']).next()?;
        let local = named.rsplit(':').next()?;
        let end = begin + 1 + len + 1;
        let empty = !is_closing && inside.ends_with('/');
        if local == name && is_closing == closing && !empty {
            return Some((begin, end));
        }
        from = end;
    }
}

/// Text with its five named references replaced.
pub fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (reference, meant) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ] {
        out = out.replace(reference, meant);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_whatever_their_prefixes() {
        let xml = "<?xml v?><a x=\"1\"><s:b>one</s:b><b/><b >two &amp; three</b></a>";
        assert_eq!(
            elements(xml, "b").collect::<Vec<_>>(),
            ["one", "two &amp; three"]
        );
        assert_eq!(unescape(elements(xml, "b").last().unwrap()), "two & three");
        assert_eq!(text(xml, "c"), None);
        for broken in ["<b>", "<b", "</b><b>x", "", "<<b>>"] {
            assert_eq!(text(broken, "b"), None, "{broken}");
        }
    }
}
