//! Keys and entries of a folder's state <-> the bytes of the tree (docs/formats/tree.md, "Keys and
//! entries").
//!
//! Equal entries have equal bytes: a decoder takes only what the encoder would write, and the
//! encoder writes only what decodes to the same entry, so nothing is published that peers refuse.

use bytes::Bytes;

use super::content::check_content;
use super::encoding::{DecodeError, Reader, in_range, put_prefixed, put_varint, put_zigzag};
use super::state::{
    BIRTH_LEVELS_MAX, BirthPath, Content, ContentDigest, DirMeta, Dot, Entry, EntryRef, Fid,
    FileEntry, FileKind, FileMeta, Head, Hlc, Inc, Key, LinkId, Name, Place, Time, Version, Xattrs,
};
use super::tree::MAX_VALUE_LEN;

const FLAGS_HEAD: u8 = 0;
const FLAGS_FILE: u8 = 1;
/// Permission bits, set-id and sticky bits.
const MAX_MODE: u64 = 0o7777;
const NANOS_PER_SEC: u64 = 1_000_000_000;
/// Longest target of a symbolic link in bytes (Linux `PATH_MAX`, less the closing NUL).
const MAX_TARGET_LEN: usize = 4095;
/// Extended attributes of one value, names and values together, in bytes.
const MAX_XATTRS_LEN: usize = 64 << 10;
/// The only attributes that are shared: others mean something to the kernel of one machine.
const XATTR_PREFIX: &[u8] = b"user.";
/// No shared entry of this name stands in the root: it is where a home keeps its own files.
const RESERVED_IN_ROOT: &[u8] = b".ccbt";
/// Shortest value of any kind in bytes: dot and hlc.
const MIN_STAMP_LEN: usize = 10;

/// The bytes of a key.
pub fn encode_key(key: &Key) -> Bytes {
    [&key.dir.0[..], key.name.as_bytes()].concat().into()
}

/// Reads the bytes of a key.
pub fn decode_key(bytes: &[u8]) -> Result<Key, DecodeError> {
    let mut reader = Reader::new(bytes);
    let dir = Fid(reader.array()?);
    let name = reader.take(reader.remaining())?;
    if name.is_empty() {
        return Ok(Key::head(dir));
    }
    Ok(Key::file(dir, checked_name(dir, name)?))
}

/// The bytes of the entry at `key`. Fails for what no peer would take.
pub fn encode_entry(key: &Key, entry: EntryRef<'_>) -> Result<Bytes, DecodeError> {
    let mut out = Vec::new();
    match &entry {
        EntryRef::Head {
            birth,
            places,
            metas,
        } => {
            out.push(FLAGS_HEAD);
            put_birth(&mut out, birth);
            put_list(&mut out, places, |place| (place.dot, encode_place(place)));
            put_list(&mut out, metas, |meta| (meta.dot, encode_dir_meta(meta)));
        }
        EntryRef::File(file) => {
            out.push(FLAGS_FILE);
            put_list(&mut out, &file.versions, |version| {
                (version.dot, encode_version(version))
            });
            put_list(&mut out, &file.metas, |meta| {
                (meta.dot, encode_file_meta(meta))
            });
        }
    }
    if decode_entry(key, &out)?.as_ref() != entry {
        return Err(DecodeError::Rule("the values of an entry are not in order"));
    }
    Ok(out.into())
}

/// Reads the bytes of the entry at `key`.
pub fn decode_entry(key: &Key, bytes: &[u8]) -> Result<Entry, DecodeError> {
    in_range("entry length", bytes.len() as u64, 1, MAX_VALUE_LEN as u64)?;
    let mut reader = Reader::new(bytes);
    let flags = if key.name.is_empty() {
        FLAGS_HEAD
    } else {
        FLAGS_FILE
    };
    let stated = u64::from(reader.u8()?);
    in_range(
        "flags of an entry",
        stated,
        u64::from(flags),
        u64::from(flags),
    )?;
    let entry = if flags == FLAGS_HEAD {
        Entry::Head(read_head(key.dir, &mut reader)?)
    } else {
        Entry::File(read_file(&mut reader)?)
    };
    reader.finish()?;
    Ok(entry)
}

fn read_head(dir: Fid, reader: &mut Reader<'_>) -> Result<Head, DecodeError> {
    let birth = read_birth(reader)?;
    if birth.fid() != dir {
        return Err(DecodeError::Rule(
            "a directory is not the one its birth path leads to",
        ));
    }
    let places = read_list(reader, read_place)?;
    let metas = read_list(reader, read_dir_meta)?;
    if dir == Fid::ROOT && !places.is_empty() {
        return Err(DecodeError::Rule("the root has a place"));
    }
    Ok(Head {
        birth,
        places,
        metas,
    })
}

fn read_file(reader: &mut Reader<'_>) -> Result<FileEntry, DecodeError> {
    let versions = read_list(reader, read_version)?;
    let file = FileEntry {
        versions,
        metas: read_list(reader, read_file_meta)?,
    };
    if file.is_empty() {
        return Err(DecodeError::Rule("an entry has no value"));
    }
    Ok(file)
}

/// Appends a list of values, ascending by dot and then by bytes.
fn put_list<T>(out: &mut Vec<u8>, values: &[T], encode: impl Fn(&T) -> (Dot, Vec<u8>)) {
    let mut encoded: Vec<_> = values.iter().map(encode).collect();
    encoded.sort_unstable();
    put_varint(out, encoded.len() as u64);
    encoded
        .iter()
        .for_each(|(_, bytes)| out.extend_from_slice(bytes));
}

/// Reads a list of values; returns them as states hold them, largest first.
fn read_list<T: Ord>(
    reader: &mut Reader<'_>,
    read: impl Fn(Dot, Hlc, &mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.count("values of an entry", MIN_STAMP_LEN)?;
    let mut values = Vec::with_capacity(count);
    let mut last: Option<(Dot, &[u8])> = None;
    for _ in 0..count {
        let mut start = reader.clone();
        let dot = read_dot(reader)?;
        let hlc = Hlc(reader.varint()?);
        values.push(read(dot, hlc, reader)?);
        let bytes = start.take(reader.position() - start.position())?;
        if last.is_some_and(|last| last >= (dot, bytes)) {
            return Err(DecodeError::Order("values of an entry"));
        }
        last = Some((dot, bytes));
    }
    values.sort_by(|a, b| b.cmp(a));
    Ok(values)
}

fn put_birth(out: &mut Vec<u8>, birth: &BirthPath) {
    let steps = birth.steps();
    put_varint(out, steps.len() as u64);
    for (name, n) in steps {
        put_name(out, &name);
        put_varint(out, u64::from(n));
    }
}

fn read_birth(reader: &mut Reader<'_>) -> Result<BirthPath, DecodeError> {
    let count = reader.varint_in("levels of a birth path", 0, BIRTH_LEVELS_MAX as u64)?;
    let mut steps = Vec::new();
    for _ in 0..count {
        let len = reader.u8()?;
        let name = reader.take(usize::from(len))?;
        let n = reader.varint_in("number of a directory", 0, u64::from(u32::MAX))?;
        steps.push((name, n as u32));
    }
    if steps
        .first()
        .is_some_and(|(name, _)| *name == RESERVED_IN_ROOT)
    {
        return Err(DecodeError::Rule("a name is reserved"));
    }
    BirthPath::from_steps(steps).ok_or(DecodeError::Rule("not a name"))
}

fn encode_place(place: &Place) -> Vec<u8> {
    let mut out = stamp(place.dot, place.hlc);
    out.extend_from_slice(&place.parent.0);
    put_name(&mut out, &place.name);
    put_varint(&mut out, u64::from(place.mode));
    out.push(u8::from(place.was.is_some()));
    if let Some((parent, name)) = &place.was {
        out.extend_from_slice(&parent.0);
        put_name(&mut out, name);
    }
    out
}

fn read_place(dot: Dot, hlc: Hlc, reader: &mut Reader<'_>) -> Result<Place, DecodeError> {
    let (parent, name) = read_location(reader)?;
    let mode = read_mode(reader)?;
    let was = read_option(reader, read_location)?;
    Ok(Place {
        hlc,
        dot,
        parent,
        name,
        mode,
        was,
    })
}

fn encode_dir_meta(meta: &DirMeta) -> Vec<u8> {
    let mut out = stamp(meta.dot, meta.hlc);
    put_varint(&mut out, u64::from(meta.mode));
    out.push(u8::from(meta.mtime.is_some()));
    if let Some(time) = meta.mtime {
        put_time(&mut out, time);
    }
    put_xattrs(&mut out, &meta.xattrs);
    out
}

fn read_dir_meta(dot: Dot, hlc: Hlc, reader: &mut Reader<'_>) -> Result<DirMeta, DecodeError> {
    let mode = read_mode(reader)?;
    let mtime = read_option(reader, read_time)?;
    Ok(DirMeta {
        hlc,
        dot,
        mode,
        mtime,
        xattrs: read_xattrs(reader)?,
    })
}

fn encode_version(version: &Version) -> Vec<u8> {
    let mut out = stamp(version.dot, version.hlc);
    out.push(match version.kind {
        FileKind::File => 0,
        FileKind::Symlink => 1,
    });
    put_varint(&mut out, version.size);
    put_time(&mut out, version.mtime);
    put_varint(&mut out, u64::from(version.mode));
    out.push(u8::from(version.link.is_some()));
    if let Some(LinkId(dot)) = version.link {
        put_dot(&mut out, dot);
    }
    put_prefixed(&mut out, &version.content.0);
    out
}

fn read_version(dot: Dot, hlc: Hlc, reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let kind = match reader.u8()? {
        0 => FileKind::File,
        1 => FileKind::Symlink,
        _ => return Err(DecodeError::Rule("unknown kind of file")),
    };
    let size = reader.varint()?;
    let mtime = read_time(reader)?;
    let mode = read_mode(reader)?;
    let link = read_option(reader, read_dot)?.map(LinkId);
    let content = reader.prefixed("content length", MAX_TARGET_LEN)?;
    match kind {
        FileKind::File => check_content(content, size)?,
        FileKind::Symlink => check_target(content, size)?,
    }
    Ok(Version {
        hlc,
        dot,
        kind,
        content: Content::from(content),
        size,
        mtime,
        mode,
        link,
    })
}

fn encode_file_meta(meta: &FileMeta) -> Vec<u8> {
    let mut out = stamp(meta.dot, meta.hlc);
    put_varint(&mut out, u64::from(meta.mode));
    out.push(u8::from(meta.mtime.is_some()));
    if let Some((of, time)) = meta.mtime {
        out.extend_from_slice(&of.0);
        put_time(&mut out, time);
    }
    put_xattrs(&mut out, &meta.xattrs);
    out
}

fn read_file_meta(dot: Dot, hlc: Hlc, reader: &mut Reader<'_>) -> Result<FileMeta, DecodeError> {
    let mode = read_mode(reader)?;
    let mtime = read_option(reader, |reader| {
        let of = ContentDigest(reader.array()?);
        Ok((of, read_time(reader)?))
    })?;
    Ok(FileMeta {
        hlc,
        dot,
        mode,
        mtime,
        xattrs: read_xattrs(reader)?,
    })
}

/// What every value begins with.
fn stamp(dot: Dot, hlc: Hlc) -> Vec<u8> {
    let mut out = Vec::new();
    put_dot(&mut out, dot);
    put_varint(&mut out, hlc.0);
    out
}

fn put_dot(out: &mut Vec<u8>, dot: Dot) {
    out.extend_from_slice(&dot.inc.0);
    put_varint(out, dot.ctr);
}

fn read_dot(reader: &mut Reader<'_>) -> Result<Dot, DecodeError> {
    let inc = Inc(reader.array()?);
    Ok(Dot {
        inc,
        ctr: reader.varint_in("counter", 1, u64::MAX)?,
    })
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    put_zigzag(out, time.secs);
    put_varint(out, u64::from(time.nanos));
}

fn read_time(reader: &mut Reader<'_>) -> Result<Time, DecodeError> {
    let secs = reader.zigzag()?;
    let nanos = reader.varint_in("nanoseconds", 0, NANOS_PER_SEC - 1)?;
    Ok(Time {
        secs,
        nanos: nanos as u32,
    })
}

fn read_mode(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    reader
        .varint_in("mode", 0, MAX_MODE)
        .map(|mode| mode as u16)
}

fn put_name(out: &mut Vec<u8>, name: &Name) {
    out.push(name.as_bytes().len() as u8);
    out.extend_from_slice(name.as_bytes());
}

/// A directory and a name in it.
fn read_location(reader: &mut Reader<'_>) -> Result<(Fid, Name), DecodeError> {
    let dir = Fid(reader.array()?);
    let len = reader.u8()?;
    let name = reader.take(usize::from(len))?;
    Ok((dir, checked_name(dir, name)?))
}

fn checked_name(dir: Fid, name: &[u8]) -> Result<Name, DecodeError> {
    if !Name::is_valid(name) {
        return Err(DecodeError::Rule("not a name"));
    }
    if dir == Fid::ROOT && name == RESERVED_IN_ROOT {
        return Err(DecodeError::Rule("a name is reserved"));
    }
    Ok(Name::from(name))
}

fn check_target(target: &[u8], size: u64) -> Result<(), DecodeError> {
    in_range(
        "length of a link target",
        target.len() as u64,
        1,
        MAX_TARGET_LEN as u64,
    )?;
    if target.contains(&0) || target.len() as u64 != size {
        return Err(DecodeError::Rule("a symbolic link has no proper target"));
    }
    Ok(())
}

fn read_option<T>(
    reader: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match reader.u8()? {
        0 => Ok(None),
        1 => read(reader).map(Some),
        _ => Err(DecodeError::Rule("neither absent nor present")),
    }
}

fn put_xattrs(out: &mut Vec<u8>, xattrs: &Xattrs) {
    put_varint(out, xattrs.len() as u64);
    for (name, value) in xattrs {
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        put_prefixed(out, value);
    }
}

fn read_xattrs(reader: &mut Reader<'_>) -> Result<Xattrs, DecodeError> {
    let count = reader.count("extended attributes", XATTR_PREFIX.len() + 3)?;
    let mut xattrs = Xattrs::new();
    let mut total = 0;
    for _ in 0..count {
        let len = reader.u8()?;
        let name = reader.take(usize::from(len))?;
        let proper = name.starts_with(XATTR_PREFIX) && name.len() > XATTR_PREFIX.len();
        if !proper || name.contains(&0) {
            return Err(DecodeError::Rule(
                "not the name of a shared extended attribute",
            ));
        }
        if xattrs
            .last_key_value()
            .is_some_and(|(last, _)| *last >= name)
        {
            return Err(DecodeError::Order("extended attributes"));
        }
        let value = reader.prefixed("length of an extended attribute", MAX_XATTRS_LEN)?;
        total += name.len() + value.len();
        in_range(
            "bytes of extended attributes",
            total as u64,
            0,
            MAX_XATTRS_LEN as u64,
        )?;
        xattrs.insert(Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests;
