//! What `.ccbtignore` and the default list keep out of a folder, between two plain directories and with a real editor.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Daemon, Links, World, text, tree, wait_equal};

fn join(
    world: &World,
    links: &Links,
    dir: &Path,
    state: &str,
    to: &Daemon,
    more: &[&str],
) -> Daemon {
    let join = ["join", &links.write, dir.to_str().unwrap()];
    let args = [&join[..], more].concat();
    let daemon = world.start(state, &[to.port], &args);
    daemon.wait("the join", || daemon.says("Joined "));
    daemon
}

fn names(dir: &Path) -> Vec<String> {
    let names = tree(dir).unwrap().into_keys();
    names.map(|name| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn the_rules_travel_with_the_folder_and_hold_on_every_side() {
    let world = World::new();
    let (home_a, home_b) = (world.dir("home-a"), world.dir("home-b"));
    fs::write(home_a.join(".ccbtignore"), "*.o\n/out/\n").unwrap();
    fs::write(home_a.join("a.c"), "source").unwrap();
    fs::write(home_a.join("a.o"), "object of a").unwrap();
    let (a, links) = world.share(&home_a, "a");
    // What the joining directory has of what is ignored is neither in the way nor published, though the rules are not
    // in it yet.
    fs::create_dir(home_b.join("out")).unwrap();
    fs::write(home_b.join("out/program"), "built by b").unwrap();
    fs::write(home_b.join("b.o"), "object of b").unwrap();
    let b = join(&world, &links, &home_b, "b", &a, &[]);
    b.wait("the source", || home_b.join("a.c").exists());
    fs::write(home_b.join("b.c"), "source of b").unwrap();
    a.wait("the other source", || home_a.join("b.c").exists());
    assert_eq!(names(&home_a), [".ccbtignore", "a.c", "a.o", "b.c"]);
    assert_eq!(
        names(&home_b),
        [".ccbtignore", "a.c", "b.c", "b.o", "out", "out/program"]
    );

    // The rules change on one side, and the other publishes what they kept out.
    fs::write(home_a.join(".ccbtignore"), "*.o\n").unwrap();
    a.wait("what is not ignored any more", || {
        home_a.join("out/program").exists()
    });
    assert_eq!(fs::read(home_a.join("out/program")).unwrap(), b"built by b");
    assert!(!home_a.join("b.o").exists());
}

#[test]
fn swap_files_of_vim_stay_where_they_are() {
    let world = World::new();
    let (home_a, home_b) = (world.dir("home-a"), world.dir("home-b"));
    fs::write(home_a.join("text"), "one\n").unwrap();
    let (a, links) = world.share(&home_a, "a");
    let b = join(&world, &links, &home_b, "b", &a, &[]);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    // Edits, has the swap file written, saves, and goes on with it open until it is told to end.
    let mut vim = Command::new("vim")
        .args([
            "-Nu",
            "NONE",
            "-i",
            "NONE",
            "-es",
            "-c",
            "call append(0, 'by vim')",
            "-c",
            "preserve",
        ])
        .args([
            "-c",
            "write",
            "-c",
            "call append(0, 'unsaved')",
            "-c",
            "preserve",
            "-c",
            "sleep 3",
            "-c",
            "quit!",
        ])
        .arg(home_a.join("text"))
        .stdin(Stdio::null())
        .spawn()
        .expect("vim is needed: scripts/setup");
    let swap = home_a.join(".text.swp");
    a.wait("the swap file", || swap.exists());
    b.wait("what was saved", || {
        fs::read(home_b.join("text")).is_ok_and(|text| text == b"by vim\none\n")
    });
    fs::write(home_a.join("later"), "later").unwrap();
    b.wait("what came later", || home_b.join("later").exists());
    assert!(swap.exists(), "vim is still there");
    assert_eq!(names(&home_b), ["later", "text"]);
    assert!(vim.wait().unwrap().success());
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let displaced = b.try_run(&["displaced", home_b.to_str().unwrap()]);
    assert!(!text(&displaced).contains("swp"), "{}", text(&displaced));
}

#[test]
fn everything_a_peer_removed_comes_back_at_once() {
    let world = World::new();
    let (home_a, home_b) = (world.dir("home-a"), world.dir("home-b"));
    // An empty directory would be held back.
    fs::write(home_a.join("stays"), "stays").unwrap();
    fs::create_dir_all(home_a.join("d/e")).unwrap();
    for n in 0..6 {
        fs::write(home_a.join(format!("d/f{n}")), format!("content {n}")).unwrap();
    }
    fs::write(home_a.join("d/e/deep"), "deep").unwrap();
    let (a, links) = world.share(&home_a, "a");
    let b = join(&world, &links, &home_b, "b", &a, &[]);
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let whole = tree(&home_a).unwrap();
    fs::write(home_b.join("d/f0"), "replaced").unwrap();
    wait_equal(&home_a, &home_b, &[&a, &b]);
    fs::remove_dir_all(home_b.join("d")).unwrap();
    a.wait("the removal", || !home_a.join("d").exists());
    wait_equal(&home_a, &home_b, &[&a, &b]);

    let dir = home_a.to_str().unwrap();
    let listed: serde_json::Value = serde_json::from_str(&a.run(&["displaced", "--json"])).unwrap();
    let replaced = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["why"] == "replaced")
        .unwrap();
    assert_eq!(
        (&replaced["path"], &replaced["dir"]),
        (&"d/f0".into(), &dir.into())
    );
    let device = replaced["device"].as_str().unwrap();
    let none = a.run(&["displaced", dir, "--restore-all", "--device", "nobody"]);
    assert_eq!(none, "Nothing was restored\n");
    let by = a.run(&[
        "displaced",
        dir,
        "--restore-all",
        "--since",
        "1h",
        "--device",
        device,
    ]);
    assert_eq!(by, format!("Restored {dir}/d/f0\n"));
    a.run(&["displaced", dir, "--restore-all"]);
    assert_eq!(a.run(&["displaced", dir]), "Nothing was displaced\n");
    wait_equal(&home_a, &home_b, &[&a, &b]);
    let back = tree(&home_b).unwrap();
    for (path, what) in &whole {
        assert_eq!(
            back.get(path),
            Some(what),
            "{}",
            String::from_utf8_lossy(path)
        );
    }
    assert_eq!(
        fs::read(home_b.join("d/f0 (restored)")).unwrap(),
        b"replaced"
    );
}
