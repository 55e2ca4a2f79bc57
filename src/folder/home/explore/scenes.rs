//! Scenes that a schedule once came to: each is played on purpose, and where something can be cut short it is cut short
//! at every call.

use std::rc::Rc;

use bytes::Bytes;

use super::disk::{Disk, ROOT};
use super::faults::Random;
use super::{Kind, Schedule};
use crate::folder::home::marker::OWN_DIR;
use crate::folder::home::plan::FoundKind;
use crate::folder::state::{
    Body, By, Change, Content, Fid, FileKind, Name, NewFile, Node, OpError, RenameMode, State,
    Target, Time,
};

/// More calls than any scene makes.
const CALLS_MAX: u64 = 80;

type Done = Result<Vec<Change>, OpError>;

impl Schedule {
    fn scene(seed: u64, user: bool) -> Self {
        Self::of_kind(Random(seed), Kind::quiet(user))
    }

    /// What the peer does arrives.
    fn peer_does(&mut self, act: impl FnOnce(&mut State, By) -> Done) {
        let by = self.peer.by();
        act(&mut self.peer.state, by).expect("the peer can do that");
        self.exchange();
    }

    fn peer_makes(&mut self, name: &str, content: &'static str) {
        self.peer.all.insert(Bytes::from_static(content.as_bytes()));
        self.peer_does(|state, by| state.create(Fid::ROOT, name.as_bytes(), file(content), by));
    }

    fn user_makes(&mut self, dir: u64, name: &str, content: &'static str) -> u64 {
        let content = Bytes::from_static(content.as_bytes());
        let disk = &mut *self.device.fs.disk.borrow_mut();
        let user = &mut *self.device.user.borrow_mut();
        user.all.insert(content.clone());
        let ino = disk.make(dir, name.as_bytes(), FoundKind::File, content);
        ino.expect("the user can do that")
    }

    fn user_makes_dir(&mut self, dir: u64, name: &str) -> u64 {
        let disk = &mut *self.device.fs.disk.borrow_mut();
        let ino = disk.make(dir, name.as_bytes(), FoundKind::Dir, Bytes::new());
        ino.expect("the user can do that")
    }

    fn user_renames(&mut self, from: (u64, &str), to: (u64, &str)) {
        let disk = &mut *self.device.fs.disk.borrow_mut();
        let (from, to) = ((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()));
        disk.rename(from, to, None).expect("the user can do that");
    }

    /// What the user did is taken in, and is old enough to be believed.
    fn take_in(&mut self) {
        self.device.wait(5000);
        self.device.sync_all();
        self.device.scan();
        self.exchange();
        self.at_start = self.device.own_dots();
    }

    fn end(&mut self) -> Result<(), String> {
        self.come_to_rest()?;
        self.check()
    }

    fn paths(&self) -> Vec<String> {
        let paths = self.disk_tree().into_keys();
        paths
            .map(|path| String::from_utf8_lossy(&path).into_owned())
            .collect()
    }
}

fn file(content: &str) -> NewFile {
    NewFile {
        kind: FileKind::File,
        mode: 0o644,
        body: body(content),
    }
}

fn body(content: &str) -> Body {
    Body {
        content: Content::from(content.as_bytes()),
        size: content.len() as u64,
        mtime: Time {
            secs: 1_600_000_000,
            nanos: 5,
        },
    }
}

fn dir_of(state: &State, name: &str) -> Fid {
    match state.lookup(Fid::ROOT, name.as_bytes()) {
        Some(Node::Dir(node)) => node.fid,
        _ => panic!("{name} is no directory"),
    }
}

fn rename(state: &mut State, from: &str, to: (Fid, &str), by: By) -> Done {
    let from = (Fid::ROOT, from.as_bytes());
    state.rename(from, (to.0, to.1.as_bytes()), RenameMode::Replace, by)
}

/// What cuts a scene short at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    PowerFailure,
    /// From then on the disk fails.
    Disk,
    /// That call fails, and no other.
    Call,
}

/// Plays a scene once for every call it can be cut short at, by a power failure and by errors of the disk, where names
/// can be exchanged and where not. Nobody but the peer does anything, so nothing may be published.
fn cut_short(start: impl Fn(&mut Schedule), act: impl Fn(&mut Schedule)) {
    for can_exchange in [true, false] {
        cut_short_on(can_exchange, &start, &act);
    }
}

fn cut_short_on(can_exchange: bool, start: &impl Fn(&mut Schedule), act: &impl Fn(&mut Schedule)) {
    let kind = || Kind {
        can_exchange,
        ..Kind::quiet(false)
    };
    for call in 0..CALLS_MAX {
        let power = [1, 2, 3].map(|seed| (Cut::PowerFailure, seed));
        for (cut, seed) in power.into_iter().chain([(Cut::Disk, 4), (Cut::Call, 5)]) {
            let mut scene = Schedule::of_kind(Random(seed), kind());
            start(&mut scene);
            scene.take_in();
            assert!(scene.device.pull(), "nothing hinders it yet");
            act(&mut scene);
            match cut {
                Cut::Call => scene.device.faults.fail_once(call),
                Cut::PowerFailure | Cut::Disk => scene.device.faults.set(Some(call), None, false),
            }
            scene.device.pull();
            match cut {
                Cut::PowerFailure => scene.restart(),
                Cut::Disk | Cut::Call => scene.device.faults.set(None, None, false),
            }
            if let Err(what) = scene.end() {
                panic!("{cut:?} at call {call}, seed {seed}, exchange {can_exchange}: {what}");
            }
        }
    }
}

#[test]
fn a_directory_made_half_is_nobodys_edit() {
    cut_short(
        |_| (),
        |scene| scene.peer_does(|state, by| state.mkdir(Fid::ROOT, b"d", 0o750, by)),
    );
    // The peer has removed it again by the time somebody looks.
    for call in 0..CALLS_MAX {
        let mut scene = Schedule::scene(call, false);
        scene.take_in();
        scene.peer_does(|state, by| state.mkdir(Fid::ROOT, b"d", 0o750, by));
        scene.device.faults.set(Some(call), None, false);
        scene.device.pull();
        scene.restart();
        scene.peer_does(|state, by| state.rmdir(Fid::ROOT, b"d", by));
        scene
            .end()
            .unwrap_or_else(|what| panic!("call {call}: {what}"));
        assert_eq!(scene.paths(), [""; 0]);
    }
}

#[test]
fn whatever_is_cut_short_is_finished_and_published_by_nobody() {
    let start = |scene: &mut Schedule| {
        scene.user_makes(ROOT, "f", "user-0001");
        let dir = scene.user_makes_dir(ROOT, "d");
        scene.user_makes(dir, "g", "user-0002");
    };
    cut_short(start, |scene| scene.peer_makes("n", "peer-0001"));
    cut_short(start, |scene| {
        scene.peer.all.insert(Bytes::from_static(b"peer-0001"));
        scene.peer_does(|state, by| {
            let mut base = state.base(Fid::ROOT, b"f").ok_or(OpError::NotFound)?;
            state.write(&mut base, body("peer-0001"), by)
        });
    });
    cut_short(start, |scene| {
        scene.peer_does(|state, by| state.unlink(Fid::ROOT, b"f", by));
    });
    cut_short(start, |scene| {
        scene.peer_does(|state, by| rename(state, "f", (dir_of(state, "d"), "h"), by));
    });
    cut_short(start, |scene| {
        scene.peer_does(|state, by| rename(state, "d", (Fid::ROOT, "e"), by));
    });
    cut_short(start, |scene| {
        scene.peer_does(|state, by| state.chmod(Target::Name(Fid::ROOT, b"f"), 0o600, by));
    });
    cut_short(start, |scene| {
        let (one, two) = ((Fid::ROOT, &b"f"[..]), (Fid::ROOT, &b"d"[..]));
        scene.peer_does(|state, by| state.rename(one, two, RenameMode::Exchange, by));
    });
}

#[test]
fn a_name_taken_among_the_displaced_hinders_nothing() {
    let mut scene = Schedule::scene(1, true);
    scene.user_makes(ROOT, "f", "user-0001");
    scene.take_in();
    {
        let disk = &mut *scene.device.fs.disk.borrow_mut();
        let own = disk.lookup(ROOT, OWN_DIR.as_bytes()).expect("it is there");
        let made = disk.make(own, b"displaced", FoundKind::Dir, Bytes::new());
        let displaced = made.expect("there is none yet");
        for number in 0..6 {
            let name = format!("{number}-f");
            let there = Bytes::from(format!("there before {number}"));
            disk.make(displaced, name.as_bytes(), FoundKind::File, there)
                .expect("there is none yet");
        }
    }
    scene.peer_does(|state, by| state.unlink(Fid::ROOT, b"f", by));
    scene.end().unwrap();
    assert_eq!(scene.paths(), [""; 0]);
    let there = scene.device.contents();
    for number in 0..6 {
        assert!(there.contains(format!("there before {number}").as_bytes()));
    }
}

#[test]
fn a_directory_that_the_user_removed_is_not_taken_for_the_one_made_there() {
    let mut scene = Schedule::scene(1, true);
    let b = scene.user_makes_dir(ROOT, "b");
    scene.take_in();
    // The folder has it at `b` still when the user has renamed it and removed it again.
    scene.peer_does(|state, by| {
        let dir = dir_of(state, "b");
        state.create(dir, b"x", file("peer-0001"), by)
    });
    scene.peer.all.insert(Bytes::from_static(b"peer-0001"));
    scene.peer_does(|state, by| rename(state, "b", (Fid::ROOT, "c"), by));
    scene.peer_does(|state, by| state.mkdir(Fid::ROOT, b"b", 0o750, by));
    let removed = scene.device.fs.disk.borrow_mut().remove(ROOT, b"b");
    removed.expect("it is empty");
    assert_ne!(b, ROOT);
    scene.device.pull();
    scene.end().unwrap();
    assert_eq!(scene.paths(), ["b", "c", "c/x"]);
}

#[test]
fn temporary_names_that_a_crash_left_hinder_nothing() {
    let mut scene = Schedule::scene(1, true);
    scene.user_makes(ROOT, "f", "user-0001");
    scene.take_in();
    for number in 0..9 {
        let name = format!(".ccbt-tmp-{number}");
        let there = Bytes::from(format!("left {number}"));
        let disk = &mut *scene.device.fs.disk.borrow_mut();
        disk.make(ROOT, name.as_bytes(), FoundKind::File, there)
            .expect("there is none yet");
    }
    scene.peer_makes("n", "peer-0001");
    scene.peer_does(|state, by| state.mkdir(Fid::ROOT, b"d", 0o750, by));
    scene.device.pull();
    let there = scene.device.contents();
    assert!((0..9).all(|number| there.contains(format!("left {number}").as_bytes())));
    scene.end().unwrap();
    assert_eq!(scene.paths(), ["d", "f", "n"]);
}

#[test]
fn directories_moved_into_each_other_end_as_the_folder_shows_them() {
    let mut scene = Schedule::scene(1, true);
    let a = scene.user_makes_dir(ROOT, "a");
    let b = scene.user_makes_dir(ROOT, "b");
    scene.user_makes(a, "x", "user-0001");
    scene.user_makes(b, "y", "user-0002");
    scene.take_in();
    scene.peer_does(|state, by| rename(state, "a", (dir_of(state, "b"), "a"), by));
    scene.user_renames((ROOT, "b"), (a, "b"));
    scene.device.scan();
    scene.end().unwrap();
    assert_eq!(scene.paths(), ["b", "b/a", "b/a/x", "b/y"]);
}

#[test]
fn a_directory_that_became_another_may_be_moved_into_it() {
    let mut scene = Schedule::scene(1, true);
    let a = scene.user_makes_dir(ROOT, "a");
    let empty = scene.user_makes_dir(ROOT, "empty");
    scene.user_makes(a, "x", "user-0001");
    scene.take_in();
    // To the folder, what is at `empty` is now what is at `a` here.
    scene.peer_does(|state, by| rename(state, "a", (Fid::ROOT, "empty"), by));
    scene.user_makes(empty, "y", "user-0002");
    scene.device.scan();
    scene.user_renames((ROOT, "a"), (empty, "a"));
    scene.device.scan();
    scene.end().unwrap();
    let contents = scene.device.contents();
    assert!(contents.contains(&b"user-0001"[..]) && contents.contains(&b"user-0002"[..]));
}

#[test]
fn a_change_of_mode_at_the_wrong_moment_does_not_split_home_and_folder() {
    let mut scene = Schedule::scene(1, true);
    let ino = scene.user_makes(ROOT, "f", "user-0001");
    scene.take_in();
    let mut is_first = true;
    *scene.device.fs.others.borrow_mut() = Box::new(move |disk: &mut Disk| {
        if disk.nodes.get(&ino).is_some_and(|node| node.mode == 0o640) && is_first {
            is_first = false;
            disk.nodes.get_mut(&ino).expect("it is there").mode = 0o755;
            disk.touch(ino);
        }
    });
    scene.peer_does(|state, by| state.chmod(Target::Name(Fid::ROOT, b"f"), 0o640, by));
    scene.end().unwrap();
}

#[test]
fn what_a_power_failure_takes_back_is_read_again_though_it_was_being_moved() {
    for seed in 0..200 {
        let mut scene = Schedule::scene(seed, true);
        let ino = scene.user_makes(ROOT, "f", "user-0001");
        scene.take_in();
        let new = Bytes::from_static(b"user-0002");
        scene.device.user.borrow_mut().all.insert(new.clone());
        scene.device.fs.disk.borrow_mut().write(ino, new, false);
        scene.device.wait(5000);
        scene.device.scan();
        scene.exchange();
        scene.peer_does(|state, by| rename(state, "f", (Fid::ROOT, "g"), by));
        scene.device.faults.set(Some(seed % 12), None, false);
        scene.device.pull();
        scene.restart();
        scene
            .end()
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

#[test]
fn one_operation_may_give_its_dot_to_two_names() {
    let mut scene = Schedule::scene(1, true);
    scene.user_makes(ROOT, "f", "user-0001");
    scene.user_makes(ROOT, "g", "user-0002");
    scene.take_in();
    // Both names get new versions with one dot: what is here at one of them is not what is there at the other.
    let (f, g) = ((Fid::ROOT, &b"f"[..]), (Fid::ROOT, &b"g"[..]));
    scene.peer_does(|state, by| state.rename(f, g, RenameMode::Exchange, by));
    scene.device.pull();
    scene.exchange();
    let before = scene.device.own_dots();
    let ino = scene.device.fs.disk.borrow().lookup(ROOT, b"f");
    let ino = ino.expect("it is there");
    let new = Bytes::from_static(b"user-0003");
    scene.device.user.borrow_mut().all.insert(new.clone());
    scene
        .device
        .fs
        .disk
        .borrow_mut()
        .write(ino, new.clone(), false);
    scene.end().unwrap();
    assert!(scene.device.own_dots() > before);
    let shown = |name: &str| match scene.peer.state.lookup(Fid::ROOT, name.as_bytes()) {
        Some(Node::File(node)) => node.version.content.0.to_vec(),
        _ => panic!("{name} is no file"),
    };
    assert_eq!(
        (shown("f"), shown("g")),
        (new.to_vec(), b"user-0001".to_vec())
    );
    let names: Vec<Name> = (scene.peer.state.list(Fid::ROOT).into_iter())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, [Name::from(&b"f"[..]), Name::from(&b"g"[..])]);
}

/// Has the user write to file `ino` just before call `first` of the next pull, and put another file at `f` before call
/// `second`.
fn user_acts_at(scene: &Schedule, ino: u64, first: u64, second: u64) {
    let user = Rc::clone(&scene.device.user);
    let mut calls = 0;
    *scene.device.fs.others.borrow_mut() = Box::new(move |disk: &mut Disk| {
        if calls == first {
            user.borrow_mut().overwrite(disk, ino);
        }
        if calls == second {
            let user = &mut *user.borrow_mut();
            match disk.lookup(ROOT, b"f") {
                Ok(_) => user.save(disk, ROOT, b"f"),
                Err(_) => drop(user.create(disk, (ROOT, b"f"))),
            }
        }
        calls += 1;
    });
}

fn user_rests(scene: &Schedule) {
    *scene.device.fs.others.borrow_mut() = Box::new(|_| ());
}

/// Plays `act` of the peer on the user's file `f` with the user at work between any two calls of the pull that follows.
fn user_at_work(act: impl Fn(&mut Schedule)) {
    const CALLS: u64 = 24;
    for (first, second) in (0..CALLS).flat_map(|first| (0..CALLS).map(move |n| (first, first + n)))
    {
        let mut scene = Schedule::scene(first, true);
        let ino = scene.user_makes(ROOT, "f", "user-9999");
        scene.take_in();
        act(&mut scene);
        user_acts_at(&scene, ino, first, second);
        scene.device.pull();
        user_rests(&scene);
        if let Err(what) = scene.end() {
            panic!("the user writes before call {first} and saves before {second}: {what}");
        }
    }
}

#[test]
fn what_was_edited_while_it_was_replaced_is_published_though_its_name_is_taken() {
    user_at_work(|scene| {
        scene.peer.all.insert(Bytes::from_static(b"peer-0001"));
        scene.peer_does(|state, by| {
            let mut base = state.base(Fid::ROOT, b"f").ok_or(OpError::NotFound)?;
            state.write(&mut base, body("peer-0001"), by)
        });
    });
}

#[test]
fn what_was_edited_while_it_was_taken_away_is_published_though_its_name_is_taken() {
    user_at_work(|scene| {
        scene.peer_does(|state, by| state.unlink(Fid::ROOT, b"f", by));
    });
    user_at_work(|scene| {
        scene.peer_does(|state, by| rename(state, "f", (Fid::ROOT, "g"), by));
        scene.peer_does(|state, by| state.mkdir(Fid::ROOT, b"f", 0o750, by));
    });
}

#[test]
fn what_was_edited_while_it_got_its_attributes_is_not_displaced_unread() {
    for call in 0..24 {
        let mut scene = Schedule::scene(call, true);
        let ino = scene.user_makes(ROOT, "f", "user-9999");
        scene.take_in();
        scene.peer_does(|state, by| state.chmod(Target::Name(Fid::ROOT, b"f"), 0o640, by));
        scene.peer_does(|state, by| {
            let time = Time { secs: 9, nanos: 5 };
            state.set_times(Target::Name(Fid::ROOT, b"f"), time, by)
        });
        user_acts_at(&scene, ino, call, u64::MAX);
        scene.device.pull();
        user_rests(&scene);
        // Before anybody has read it, its name is needed, and the one it is to have is taken.
        scene.peer_does(|state, by| rename(state, "f", (Fid::ROOT, "g"), by));
        scene.peer_does(|state, by| state.mkdir(Fid::ROOT, b"f", 0o750, by));
        scene.user_makes(ROOT, "g", "user-9998");
        scene.device.pull();
        if let Err(what) = scene.end() {
            panic!("the user writes before call {call}: {what}");
        }
    }
}

#[test]
fn a_mode_set_just_before_a_file_went_aside_makes_no_second_file() {
    for call in 0..24 {
        let mut scene = Schedule::scene(call, true);
        let dir = scene.user_makes_dir(ROOT, "d");
        let ino = scene.user_makes(dir, "f", "user-9999");
        scene.take_in();
        scene.peer_does(|state, by| {
            let d = dir_of(state, "d");
            let (from, to) = ((d, &b"f"[..]), (d, &b"g"[..]));
            state.rename(from, to, RenameMode::Replace, by)
        });
        scene.peer_does(|state, by| state.mkdir(dir_of(state, "d"), b"f", 0o750, by));
        let mut calls = 0;
        *scene.device.fs.others.borrow_mut() = Box::new(move |disk: &mut Disk| {
            if calls == call {
                disk.nodes.get_mut(&ino).expect("it is there").mode = 0o640;
                disk.touch(ino);
            }
            // The place it was to go to is taken.
            if calls == call + 1 {
                let content = Bytes::from_static(b"user-9998");
                let _taken = disk.make(dir, b"g", FoundKind::File, content);
            }
            calls += 1;
        });
        let taken = Bytes::from_static(b"user-9998");
        scene.device.user.borrow_mut().all.insert(taken);
        scene.device.pull();
        user_rests(&scene);
        if let Err(what) = scene.end() {
            panic!("the mode is set before call {call}: {what}");
        }
        let paths = scene.paths();
        assert!(
            !paths.iter().any(|path| path.contains("edited")),
            "call {call}: {paths:?}"
        );
    }
}

#[test]
fn what_comes_into_a_directory_that_is_going_is_published() {
    for call in 0..CALLS_MAX {
        let mut scene = Schedule::scene(call, true);
        let dir = scene.user_makes_dir(ROOT, "d");
        scene.user_makes(dir, "#ignored", "user-9999");
        scene.take_in();
        scene.peer_does(|state, by| state.rmdir(Fid::ROOT, b"d", by));
        let user = Rc::clone(&scene.device.user);
        let mut calls = 0;
        *scene.device.fs.others.borrow_mut() = Box::new(move |disk: &mut Disk| {
            // A program that works in it does not see that it has another name.
            let is_there = disk.names.values().any(|names| {
                let mut below = names.iter().filter(|(_, ino)| **ino == dir);
                below.any(|(name, _)| *name == b"d"[..])
            });
            if calls == call && is_there {
                let _made = user.borrow_mut().create(disk, (dir, b"f"));
            }
            calls += 1;
        });
        scene.device.pull();
        user_rests(&scene);
        if let Err(what) = scene.end() {
            panic!("the user writes before call {call}: {what}");
        }
        assert!(scene.device.contents().contains(&b"user-9999"[..]));
    }
}

#[test]
fn what_a_peer_sets_of_a_directory_alone_is_written() {
    let mut scene = Schedule::scene(1, true);
    let dir = scene.user_makes_dir(ROOT, "d");
    scene.take_in();
    assert!(scene.device.pull());
    scene.peer_does(|state, by| state.chmod(Target::Dir(dir_of(state, "d")), 0o751, by));
    assert!(scene.device.pull());
    assert_eq!(scene.device.fs.disk.borrow().nodes[&dir].mode, 0o751);
    scene.end().unwrap();
}
