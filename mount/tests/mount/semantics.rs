//! What programs see through the kernel: names, bytes, attributes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};

use crate::support::{Mounted, eventually};
use ccbt_mount::{Ino, MountOptions, Volume};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

#[test]
fn bytes_go_both_ways() {
    let m = Mounted::new();
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(m.path("file"), &content).unwrap();
    assert_eq!(fs::read(m.path("file")).unwrap(), content);
    let attr = m.volume.getattr(m.ino("file")).unwrap();
    assert_eq!(attr.size, content.len() as u64);

    let file = File::options()
        .read(true)
        .write(true)
        .open(m.path("file"))
        .unwrap();
    file.write_all_at(b"in the middle", 1_500_000).unwrap();
    file.set_len(2_000_000).unwrap();
    let mut back = [0; 13];
    file.read_exact_at(&mut back, 1_500_000).unwrap();
    assert_eq!(&back, b"in the middle");
    assert_eq!(fs::metadata(m.path("file")).unwrap().len(), 2_000_000);
    fs::write(m.path("file"), b"short").unwrap();
    assert_eq!(fs::read(m.path("file")).unwrap(), b"short", "O_TRUNC");
}

#[test]
fn appends_of_two_files_do_not_overwrite_each_other() {
    let m = Mounted::new();
    let open = || {
        File::options()
            .append(true)
            .create(true)
            .open(m.path("log"))
            .unwrap()
    };
    let (mut one, mut two) = (open(), open());
    for _ in 0..10 {
        one.write_all(b"one\n").unwrap();
        two.write_all(b"two\n").unwrap();
    }
    assert_eq!(
        fs::read_to_string(m.path("log")).unwrap(),
        "one\ntwo\n".repeat(10)
    );
}

#[test]
fn direct_io() {
    const BLOCK: usize = 4096;
    #[repr(align(4096))]
    struct Aligned([u8; BLOCK]);
    let m = Mounted::new();
    let direct = OFlags::DIRECT.bits().cast_signed();
    let mut options = File::options();
    let options = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(direct);
    let file = options.open(m.path("direct")).unwrap();
    file.write_all_at(&Aligned([7; BLOCK]).0, BLOCK as u64)
        .unwrap();
    let mut buffer = Aligned([1; BLOCK]);
    file.read_exact_at(&mut buffer.0, BLOCK as u64).unwrap();
    assert!(buffer.0.iter().all(|&byte| byte == 7));
    file.read_exact_at(&mut buffer.0, 0).unwrap();
    assert!(buffer.0.iter().all(|&byte| byte == 0));
}

#[test]
fn names_are_bytes() {
    let m = Mounted::new();
    let longest = [0xff; 255];
    for name in [&b"blank and\nnewline"[..], b"\xfe\x80", &longest] {
        fs::write(m.root().join(OsStr::from_bytes(name)), name).unwrap();
        assert_eq!(
            fs::read(m.root().join(OsStr::from_bytes(name))).unwrap(),
            name
        );
    }
    let too_long = m.root().join(OsStr::from_bytes(&[b'x'; 256]));
    let error = fs::metadata(too_long).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NAMETOOLONG));
    let mut listed: Vec<_> = fs::read_dir(m.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    listed.sort();
    assert_eq!(listed, [&b"blank and\nnewline"[..], b"\xfe\x80", &longest]);
}

#[test]
fn renames_and_links() {
    let m = Mounted::new();
    fs::write(m.path("a"), b"a").unwrap();
    fs::write(m.path("b"), b"b").unwrap();
    fs::hard_link(m.path("a"), m.path("a2")).unwrap();
    let (one, two) = (
        fs::metadata(m.path("a")).unwrap(),
        fs::metadata(m.path("a2")).unwrap(),
    );
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    fs::write(m.path("a2"), b"through the other name").unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"through the other name");

    fs::rename(m.path("a"), m.path("b")).unwrap();
    assert_eq!(
        fs::metadata(m.path("a")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(fs::metadata(m.path("b")).unwrap().ino(), one.ino());

    fs::create_dir_all(m.path("d/e")).unwrap();
    let rename = |from: &str, to: &str, flags| {
        rustix::fs::renameat_with(CWD, m.path(from), CWD, m.path(to), flags)
    };
    assert_eq!(rename("d", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("d/e", "b", RenameFlags::EXCHANGE).unwrap();
    assert!(fs::metadata(m.path("b")).unwrap().is_dir());
    assert_eq!(fs::read(m.path("d/e")).unwrap(), b"through the other name");
    assert_eq!(rename("d", "d2", RenameFlags::WHITEOUT), Err(Errno::INVAL));

    symlink("d/e", m.path("s")).unwrap();
    assert_eq!(fs::read_link(m.path("s")).unwrap().to_str(), Some("d/e"));
    assert_eq!(fs::read(m.path("s")).unwrap(), b"through the other name");
    assert_eq!(
        fs::remove_dir(m.path("d")).unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
}

#[test]
fn a_file_without_a_name_works_until_closed_and_is_then_forgotten() {
    let m = Mounted::new();
    let mut file = File::create_new(m.path("gone")).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(m.path("gone")).unwrap();
    file.write_all(b" and after").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(m.volume.inodes(), 2);
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    drop(file);
    assert_eq!(std::io::read_to_string(&again).unwrap(), "before and after");
    drop(again);
    eventually("the inode is freed", || m.volume.inodes() == 1);
}

#[test]
fn the_kernels_references_are_given_back() {
    let m = Mounted::new();
    fs::create_dir(m.path("d")).unwrap();
    for n in 0..500 {
        fs::write(m.path(&format!("d/{n}")), b"x").unwrap();
    }
    // Plain and detailed listings and lookups all take references of their own kind.
    for _ in 0..3 {
        let sizes = fs::read_dir(m.path("d")).unwrap();
        let sizes: u64 = sizes
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(sizes, 500);
    }
    assert_eq!(m.volume.inodes(), 502);
    fs::remove_dir_all(m.path("d")).unwrap();
    eventually("all inodes are freed", || m.volume.inodes() == 1);
}

#[test]
fn a_listing_survives_removals() {
    let m = Mounted::new();
    for n in 0..2000 {
        fs::write(m.path(&format!("file number {n}")), b"").unwrap();
    }
    let mut seen = 0;
    for entry in fs::read_dir(m.root()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 2000);
    assert_eq!(fs::read_dir(m.root()).unwrap().count(), 0);
}

#[test]
fn holes() {
    const PAGE: u64 = 4096;
    let m = Mounted::new();
    let mut file = File::create_new(m.path("sparse")).unwrap();
    file.write_all_at(&[1; PAGE as usize], 100 * PAGE).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), PAGE / 512);
    assert_eq!(
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)),
        Ok(100 * PAGE)
    );
    assert_eq!(
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)),
        Ok(0)
    );
    let beyond = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(200 * PAGE));
    assert_eq!(beyond, Err(Errno::NXIO));

    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 100 * PAGE, PAGE).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
    assert_eq!(file.metadata().unwrap().len(), 101 * PAGE);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 200 * PAGE).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 200 * PAGE);
    let collapse = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, PAGE);
    assert_eq!(collapse, Err(Errno::OPNOTSUPP));
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 200 * PAGE);
}

#[test]
fn copying_falls_back_to_reads_and_writes() {
    let m = Mounted::new();
    fs::write(m.path("from"), vec![9; 300_000]).unwrap();
    assert_eq!(fs::copy(m.path("from"), m.path("to")).unwrap(), 300_000);
    assert_eq!(fs::read(m.path("to")).unwrap(), vec![9; 300_000]);
}

#[test]
fn extended_attributes() {
    let m = Mounted::new();
    let path = m.path("file");
    fs::write(&path, b"").unwrap();
    let set = |name: &str, flags| rustix::fs::setxattr(&path, name, b"value", flags);
    assert_eq!(set("user.a", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(set("user.a", XattrFlags::CREATE), Ok(()));
    assert_eq!(set("user.a", XattrFlags::CREATE), Err(Errno::EXIST));
    let get = |name: &str, size| {
        let mut value = vec![0; size];
        rustix::fs::getxattr(&path, name, &mut value).map(|len| value[..len].to_vec())
    };
    assert_eq!(get("user.a", 64), Ok(b"value".to_vec()));
    assert_eq!(get("user.a", 2), Err(Errno::RANGE));
    assert_eq!(get("security.capability", 64), Err(Errno::NODATA));
    assert_eq!(get("system.posix_acl_access", 64), Err(Errno::OPNOTSUPP));
    let mut list = [0; 64];
    let len = rustix::fs::listxattr(&path, &mut list).unwrap();
    assert_eq!(&list[..len], b"user.a\0");
    assert_eq!(rustix::fs::removexattr(&path, "user.a"), Ok(()));
    assert_eq!(get("user.a", 64), Err(Errno::NODATA));
}

#[test]
fn times_before_1970() {
    let m = Mounted::new();
    fs::write(m.path("old"), b"").unwrap();
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let cases = [
        (-1, 999_999_999),
        (-86_400, 500_000_000),
        (-5, 0),
        (0, 1),
        (5_000_000_000, 7),
    ];
    for (secs, nanos) in cases {
        let times = Timestamps {
            last_access: time(secs, nanos),
            last_modification: time(secs, nanos),
        };
        rustix::fs::utimensat(CWD, m.path("old"), &times, AtFlags::empty()).unwrap();
        let meta = fs::metadata(m.path("old")).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs, nanos));
        assert_eq!((meta.atime(), meta.atime_nsec()), (secs, nanos));
        let attr = m.volume.getattr(m.ino("old")).unwrap();
        assert_eq!(
            (attr.mtime.secs, i64::from(attr.mtime.nanos)),
            (secs, nanos)
        );
    }
}

#[test]
fn modes_and_special_files() {
    let m = Mounted::new();
    fs::write(m.path("file"), b"").unwrap();
    fs::set_permissions(m.path("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    assert_eq!(fs::metadata(m.path("file")).unwrap().mode(), 0o104_751);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, m.path("fifo"), fifo, 0o600.into(), 0).unwrap();
    assert!(fs::metadata(m.path("fifo")).unwrap().file_type().is_fifo());
    let socket = std::os::unix::net::UnixListener::bind(m.path("socket")).unwrap();
    let client = std::os::unix::net::UnixStream::connect(m.path("socket"));
    assert!(client.is_ok(), "sockets are served by the kernel");
    drop(socket);
    assert!(
        fs::metadata(m.path("socket"))
            .unwrap()
            .file_type()
            .is_socket()
    );
}

#[test]
fn sizes_of_the_file_system() {
    let m = Mounted::new();
    fs::write(m.path("file"), vec![1; 1 << 20]).unwrap();
    let stat = rustix::fs::statvfs(m.root()).unwrap();
    let expected = m.volume.statfs().unwrap();
    assert_eq!(stat.f_blocks * stat.f_frsize, expected.bytes_total);
    assert_eq!(
        stat.f_bavail * stat.f_frsize,
        expected.bytes_total - (1 << 20)
    );
    assert_eq!(stat.f_namemax, 255);
}

#[test]
fn a_read_only_mount_refuses_writes() {
    let m = Mounted::with(&MountOptions {
        read_only: true,
        ..MountOptions::default()
    });
    m.create_outside("file", b"content");
    assert_eq!(fs::read(m.path("file")).unwrap(), b"content");
    for result in [fs::write(m.path("file"), b"x"), fs::create_dir(m.path("d"))] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    assert!(m.volume.lookup(Ino::ROOT, b"d").is_err());
}

#[test]
fn the_mount_is_nosuid_and_nodev_unless_asked() {
    use rustix::fs::StatVfsMountFlags as Flags;
    let flags = |m: &Mounted| rustix::fs::statvfs(m.root()).unwrap().f_flag;
    assert!(flags(&Mounted::new()).contains(Flags::NOSUID | Flags::NODEV));
    if rustix::process::geteuid().is_root() {
        let open = MountOptions {
            suid: true,
            dev: true,
            ..MountOptions::default()
        };
        assert!(!flags(&Mounted::with(&open)).intersects(Flags::NOSUID | Flags::NODEV));
    }
}
