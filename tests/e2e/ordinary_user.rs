//! Everything works without being root: mounts by the set-uid helper fusermount3, without `user_allow_other`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::support::{World, ccbt_as_nobody, give_to_nobody, is_mounted, need_root, text};

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a shell command as the ordinary user: root may not look into their mounts.
fn sh(script: &str) -> String {
    let output = Command::new("/usr/bin/setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .args(["/bin/sh", "-ec", script])
        .env("PATH", PATH)
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn eventually(script: &str, wanted: &str) -> bool {
    crate::support::eventually(|| sh(script) == wanted)
}

#[test]
fn share_mount_read_edit_and_unmount_as_an_ordinary_user() {
    need_root();
    let world = World::new();
    world.open_to_all();
    let (src, at, states) = (world.dir("src"), world.dir("at"), world.dir("states"));
    fs::write(src.join("notes"), b"first\n").unwrap();
    for mine in [&src, &src.join("notes"), &at, &states] {
        give_to_nobody(mine);
    }
    let (state_a, state_b) = (states.join("a"), states.join("b"));
    let share = ["share", src.to_str().unwrap()];
    let mut a = world.launch(ccbt_as_nobody(&state_a, PATH), &state_a, &[], &share);
    let links = a.links();
    let mount = ["mount", &links.write, at.to_str().unwrap()];
    let mut b = world.launch(ccbt_as_nobody(&state_b, PATH), &state_b, &[a.port], &mount);
    b.watch_mount(&at);
    b.wait("the mount", || is_mounted(&at) && b.says("Mounted "));

    let dir = at.display();
    assert_eq!(sh(&format!("cat {dir}/notes")), "first\n");
    sh(&format!(
        "echo second >> {dir}/notes; mkdir {dir}/sub; echo new > {dir}/sub/file"
    ));
    assert_eq!(sh(&format!("stat -c %u {dir}/sub/file")), "65534\n");
    let at_a = world.dir("at-a");
    give_to_nobody(&at_a);
    let again = as_nobody(&state_a, &["mount", share[1], at_a.to_str().unwrap()]);
    assert!(again.status.success(), "{}", text(&again));
    a.watch_mount(&at_a);
    let cat = format!("cat {0}/notes {0}/sub/file 2>&1 || true", at_a.display());
    assert!(
        eventually(&cat, "first\nsecond\nnew\n"),
        "{}\n{}",
        a.log(),
        b.log()
    );

    sh(&format!("echo third > {}", src.join("third").display()));
    assert!(
        eventually(&format!("cat {dir}/third 2>&1 || true"), "third\n"),
        "{}",
        b.log()
    );

    let unmounted = as_nobody(&state_b, &["unmount", at.to_str().unwrap()]);
    assert!(unmounted.status.success(), "{}", text(&unmounted));
    assert!(!is_mounted(&at));
    assert_eq!(fs::metadata(&at).unwrap().uid(), 65534);
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    assert_eq!((a.stop(), b.stop()), (0, 0));
    assert!(!is_mounted(&at_a));
}

fn as_nobody(state: &Path, args: &[&str]) -> std::process::Output {
    ccbt_as_nobody(state, PATH).args(args).output().unwrap()
}
