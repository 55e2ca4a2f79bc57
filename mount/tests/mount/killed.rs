//! A process that was killed while one of its threads waits in the kernel for a directory, which a program has locked
//! that waits for the process: neither can end until the mount is aborted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ccbt_mount::{MemoryVolume, MountId, MountOptions, detach_dead, is_mount_point, mount};

use crate::stalling::StallingVolume;
use crate::support::{directory, eventually, owner, within};

/// Set for the process that the test starts: the directory to mount on.
const SERVE: &str = "CCBT_MOUNT_TEST_SERVE";

/// Mounts and never returns; says which mount it is.
fn serve(dir: &str) -> ! {
    let volume = StallingVolume::holding_renames(MemoryVolume::new(owner(), 1 << 20));
    let mounted =
        mount(Arc::new(volume), dir.as_ref(), &MountOptions::default()).expect("mounting");
    println!("mount {}", mounted.id().expect("it was just mounted"));
    loop {
        std::thread::park();
    }
}

#[test]
fn aborting_its_mount_ends_a_killed_process_and_the_program_it_holds() {
    if let Ok(dir) = std::env::var(SERVE) {
        serve(&dir);
    }
    let dir = directory();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("killed::aborting_its_mount_ends_a_killed_process_and_the_program_it_holds")
        .env(SERVE, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let id: MountId = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("mount ")?.1.parse().ok())
        .expect("the process mounts");

    fs::write(dir.path().join("file"), b"").unwrap();
    let (from, to) = (dir.path().join("file"), dir.path().join("moved"));
    let program = std::thread::spawn(move || fs::rename(from, to));
    let stuck = format!("/proc/{}/task", child.id());
    eventually("the process waits for the directory", || {
        fs::read_dir(&stuck).unwrap().flatten().any(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.contains("(ccbt-invalidate) D")
        })
    });
    child.kill().unwrap();
    let ends_by_itself = within(Duration::from_millis(500), || {
        child.try_wait().unwrap().is_some()
    });
    assert!(
        !ends_by_itself,
        "the kernel ends it by now: nothing needs to be aborted any more"
    );

    assert!(ccbt_mount::abort(id).unwrap());
    assert!(program.join().unwrap().is_err());
    child.wait().unwrap();
    detach_dead(dir.path()).unwrap();
    assert!(!is_mount_point(dir.path()).unwrap());
    assert!(!ccbt_mount::abort(id).unwrap(), "it is gone");
}
