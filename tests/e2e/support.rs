//! Daemons as a user starts them, and how to wait for what they do.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; nothing waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A test's directory: sources, mount points, states, logs.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

/// One daemon in the foreground.
pub(crate) struct Daemon {
    pub(crate) state: PathBuf,
    pub(crate) port: u16,
    child: Option<Child>,
    log: PathBuf,
    mounts: Vec<PathBuf>,
}

impl World {
    pub(crate) fn new() -> Self {
        assert!(
            Path::new("/dev/fuse").exists(),
            "/dev/fuse is missing: run `modprobe fuse`"
        );
        let mut dir = tempfile::Builder::new()
            .prefix("ccbt-e2e.")
            .tempdir()
            .unwrap();
        // To look at what a failed run left.
        dir.disable_cleanup(std::env::var_os("CCBT_KEEP").is_some());
        Self { dir }
    }

    /// Lets every user into the test's directory.
    pub(crate) fn open_to_all(&self) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A directory in the test's directory, made if it is missing.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// `ccbt share DIR` with the state directory `state`; returns once the links are printed.
    pub(crate) fn share(&self, dir: &Path, state: &str) -> (Daemon, Links) {
        let daemon = self.start(state, &[], &["share", dir.to_str().unwrap()]);
        let links = daemon.links();
        (daemon, links)
    }

    /// `ccbt mount LINK DIR`; returns once it says so.
    pub(crate) fn mount(&self, link: &str, at: &Path, state: &str, peers: &[&Daemon]) -> Daemon {
        let ports: Vec<u16> = peers.iter().map(|d| d.port).collect();
        let mut daemon = self.start(state, &ports, &["mount", link, at.to_str().unwrap()]);
        daemon.mounts.push(at.to_path_buf());
        daemon.wait("the mount", || is_mounted(at) && daemon.says("Mounted "));
        daemon
    }

    /// Any command that stays in the foreground.
    pub(crate) fn start(&self, state: &str, peers: &[u16], args: &[&str]) -> Daemon {
        self.start_with(state, &Options::peers(peers), args)
    }

    /// The same with a DHT to look for peers in: that of the nodes named.
    pub(crate) fn start_in_dht(&self, state: &str, nodes: &[String], args: &[&str]) -> Daemon {
        let options = Options {
            dht_bootstrap: Some(nodes.to_vec()),
            ..Options::default()
        };
        self.start_with(state, &options, &[args, &["--no-lsd"]].concat())
    }

    /// [`Self::mount`] with options.
    pub(crate) fn mount_with(
        &self,
        link: &str,
        at: &Path,
        state: &str,
        options: &Options,
    ) -> Daemon {
        let mut daemon = self.start_with(state, options, &["mount", link, at.to_str().unwrap()]);
        daemon.mounts.push(at.to_path_buf());
        daemon.wait("the mount", || is_mounted(at) && daemon.says("Mounted "));
        daemon
    }

    /// [`Self::share`] with options.
    pub(crate) fn share_with(&self, dir: &Path, state: &str, options: &Options) -> (Daemon, Links) {
        let daemon = self.start_with(state, options, &["share", dir.to_str().unwrap()]);
        let links = daemon.links();
        (daemon, links)
    }

    /// [`Self::start`] with options.
    pub(crate) fn start_with(&self, state: &str, options: &Options, args: &[&str]) -> Daemon {
        let state = self.dir.path().join(state);
        self.spawn(free_port(), ccbt(&state), &state, options, args)
    }

    /// The same with a command that runs `ccbt --state STATE` in some surroundings.
    pub(crate) fn launch(
        &self,
        command: Command,
        state: &Path,
        peers: &[u16],
        args: &[&str],
    ) -> Daemon {
        self.launch_at(free_port(), command, state, peers, args)
    }

    /// The same where peers found an earlier daemon.
    pub(crate) fn launch_at(
        &self,
        port: u16,
        command: Command,
        state: &Path,
        peers: &[u16],
        args: &[&str],
    ) -> Daemon {
        self.spawn(port, command, state, &Options::peers(peers), args)
    }

    fn spawn(
        &self,
        port: u16,
        mut command: Command,
        state: &Path,
        options: &Options,
        args: &[&str],
    ) -> Daemon {
        let state = state.to_path_buf();
        static STARTS: AtomicU16 = AtomicU16::new(0);
        let n = STARTS.fetch_add(1, Ordering::Relaxed);
        let name = state.file_name().unwrap().display();
        let log = self.dir.path().join(format!("{name}-{n}.log"));
        let out = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        command.args(args).arg("-v");
        if !options.portmap {
            command.arg("--no-portmap");
        }
        if let Some(bootstrap) = &options.dht_bootstrap {
            command.env("CCBT_DHT_BOOTSTRAP", bootstrap.join(","));
        } else {
            command.args(["--no-dht", "--no-lsd"]);
        }
        let listen = SocketAddr::new(options.listen, port);
        command.arg("--listen").arg(listen.to_string());
        for peer in &options.peers {
            command.arg("--peer").arg(peer.to_string());
        }
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let child = command.spawn().unwrap();
        Daemon {
            state,
            port,
            child: Some(child),
            log,
            mounts: Vec::new(),
        }
    }
}

/// How a daemon is started; by default on loopback, without discovery.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) listen: IpAddr,
    pub(crate) peers: Vec<SocketAddr>,
    /// DHT and LSD are on, and these are the first nodes.
    pub(crate) dht_bootstrap: Option<Vec<String>>,
    /// The router is asked to let peers in.
    pub(crate) portmap: bool,
}

impl Options {
    /// Without DHT, knowing the daemons on these ports of this machine.
    fn peers(ports: &[u16]) -> Self {
        let local = |port: &u16| SocketAddr::from(([127, 0, 0, 1], *port));
        Self {
            peers: ports.iter().map(local).collect(),
            ..Self::default()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: IpAddr::from([127, 0, 0, 1]),
            peers: Vec::new(),
            dht_bootstrap: None,
            portmap: false,
        }
    }
}

/// What `ccbt share` prints.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    pub(crate) write: String,
    pub(crate) read: String,
}

impl Daemon {
    /// A mount that is to be taken away when the test ends, whatever happens.
    pub(crate) fn watch_mount(&mut self, at: &Path) {
        self.mounts.push(at.to_path_buf());
    }

    pub(crate) fn links(&self) -> Links {
        let find = |what: &str| {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let line = text
                .lines()
                .rev()
                .find(|line| line.starts_with(what))?
                .to_owned();
            Some(line.split_whitespace().last()?.to_owned())
        };
        self.wait("the links", || find("read-only").is_some());
        Links {
            write: find("read-write").unwrap(),
            read: find("read-only").unwrap(),
        }
    }

    /// A command to this daemon, which must succeed; its standard output.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        assert!(
            output.status.success(),
            "ccbt {args:?}: {}\n{}",
            text(&output),
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn try_run(&self, args: &[&str]) -> Output {
        ccbt(&self.state).args(args).output().unwrap()
    }

    /// `ccbt status --json`.
    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["status", "--json"])).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// One of the metrics in `ccbt status --json`.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.status()["daemon"]["metrics"][name].as_u64().unwrap()
    }

    /// Mounts one of its folders at a second place.
    pub(crate) fn mount_again(&mut self, dir: &Path, at: &Path) {
        self.run(&["mount", dir.to_str().unwrap(), at.to_str().unwrap()]);
        self.mounts.push(at.to_path_buf());
    }

    /// Waits until `ready`, or fails with the daemon's log.
    pub(crate) fn wait(&self, what: &str, ready: impl Fn() -> bool) {
        if !eventually(ready) {
            panic!("gave up waiting for {what}\n{}", self.log());
        }
    }

    /// kill -9. Its mounts stay, dead, for the next daemon to find.
    ///
    /// The kernel may be unable to end it while it waits for a directory that a program has locked and that program for
    /// its answer; then one of the mounts is taken away as a user would.
    pub(crate) fn kill(&mut self) {
        let mounts = std::mem::take(&mut self.mounts);
        let Some(mut child) = self.child.take() else {
            return;
        };
        child.kill().unwrap();
        let killed = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(
                killed.elapsed() < PATIENCE,
                "the killed daemon does not end"
            );
            if killed.elapsed() > Duration::from_secs(2)
                && let Some(at) = mounts.first()
            {
                eprintln!(
                    "the killed daemon does not end: ccbt unmount {}",
                    at.display()
                );
                eprintln!(
                    "{}",
                    text(&self.try_run(&["unmount", at.to_str().unwrap()]))
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(&mut self) -> i32 {
        let Some(mut child) = self.child.take() else {
            return 0;
        };
        self.mounts.clear();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        panic!("the daemon does not stop\n{}", self.log());
    }

    /// The most memory it has had in use so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let pid = self.child.as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    }

    pub(crate) fn says(&self, what: &str) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|text| text.contains(what))
    }

    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        format!("--- {}:\n{tail}", self.log.display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let end = Instant::now() + Duration::from_secs(10);
            while Instant::now() < end && !matches!(child.try_wait(), Ok(Some(_))) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _dead = child.kill();
            let _reaped = child.wait();
        }
        for mount in &self.mounts {
            let _detached = Command::new("umount").arg("-l").arg(mount).output();
        }
    }
}

/// The command itself, with a state directory.
pub(crate) fn ccbt(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ccbt"));
    command.arg("--state").arg(state).env_remove("CCBT_LINK");
    command
}

/// The same as an ordinary user, whose `PATH` is `path`. Only root can become one.
pub(crate) fn ccbt_as_nobody(state: &Path, path: &str) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(env!("CARGO_BIN_EXE_ccbt"))
        .arg("--state")
        .arg(state)
        .env("PATH", path)
        .env("HOME", "/nonexistent")
        .env_remove("CCBT_LINK");
    command
}

/// Gives a directory to the ordinary user.
pub(crate) fn give_to_nobody(path: &Path) {
    std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
}

/// For tests that need another user, a file system or a namespace of their own.
pub(crate) fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "only root can make what this test needs: run scripts/test as root"
    );
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

pub(crate) fn eventually(ready: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_mounted(path: &Path) -> bool {
    ccbt_mount::is_ccbt_mount(path).unwrap_or(false)
}

/// A port nobody else in this process was given and nobody listens on.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id() as u16 % 200) * 200 + n % 200;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Relative path -> what is there: `d`, `l TARGET`, or `f SIZE HASH`. `.ccbt` is left out.
pub(crate) fn tree(root: &Path) -> io::Result<BTreeMap<Vec<u8>, String>> {
    let mut out = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec();
            if name == b".ccbt" {
                continue;
            }
            let kind = fs::symlink_metadata(&path)?;
            let what = if kind.is_dir() {
                todo.push(path);
                "d".to_owned()
            } else if kind.is_symlink() {
                format!("l {}", fs::read_link(&path)?.display())
            } else {
                let content = fs::read(&path)?;
                format!("f {} {}", content.len(), blake3::hash(&content).to_hex())
            };
            out.insert(name, what);
        }
    }
    Ok(out)
}

/// Waits until two trees are equal, content and all.
pub(crate) fn wait_equal(a: &Path, b: &Path, daemons: &[&Daemon]) {
    let equal = || matches!((tree(a), tree(b)), (Ok(x), Ok(y)) if x == y);
    if eventually(equal) {
        return;
    }
    let (x, y) = (tree(a).unwrap_or_default(), tree(b).unwrap_or_default());
    let differ: Vec<String> = x
        .iter()
        .filter(|(k, v)| y.get(*k) != Some(v))
        .map(|(k, v)| format!("a {} {v}", String::from_utf8_lossy(k)))
        .chain(
            y.iter()
                .filter(|(k, v)| x.get(*k) != Some(v))
                .map(|(k, v)| format!("b {} {v}", String::from_utf8_lossy(k))),
        )
        .take(20)
        .collect();
    let logs: Vec<String> = daemons.iter().map(|d| d.log()).collect();
    panic!(
        "{} and {} differ:\n{}\n{}",
        a.display(),
        b.display(),
        differ.join("\n"),
        logs.join("\n")
    );
}

/// Splitmix64, for content and schedules that a seed repeats.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}
