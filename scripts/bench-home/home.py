"""Plain directories kept in step, beside Debian's Syncthing and rsync, between two network namespaces.

Each row is measured with ccbt and with what it is compared to in the same run, in new directories on the same disk. CPU is
of both processes with all their threads, those that have ended too, but for the small figures of rows that nothing ends in: there it is
what the scheduler says the living threads ran (/proc/PID/task/*/schedstat).
"""
import glob, os, pathlib, random, re, shutil, statistics, subprocess, time
import xml.etree.ElementTree as ET

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# row -> (what is measured, must)
ROWS = {
    "edit": ("4 KiB file edited in home A: visible in home B / in a mount", "0.3 s / 0.2 s"),
    "copy1g": ("1 GiB initial copy into an empty home: wall against rsync / CPU against Syncthing", "2 x / 0.6 x"),
    "small20k": ("20,000 files of 8 KiB into an empty home: wall against Syncthing", "0.3 x"),
    "mid1m": ("1 MiB changed inside a 1 GiB plain file: change to visible in home B / wire", "2.5 s / 1.4 MiB"),
    "rename": ("rename of a 1 GiB file / of a directory of 10,000 files: seconds, wire, MB read by the daemons", "0.5 s, 20 KB, nothing"),
    "rescan": ("rescan of 1,000,000 unchanged files / RSS of the daemon", "20 s CPU / 300 MiB"),
    "idle": ("idle, 1,000,000 files", "0.2 % CPU"),
}


def ran(*pids):
    """Seconds that the living threads of processes and of their children ran."""
    total, todo = 0, list(pids)
    while todo:
        pid = todo.pop()
        for task in glob.glob(f"/proc/{pid}/task/*"):
            try:
                total += int(pathlib.Path(task, "schedstat").read_text().split()[0])
                todo += map(int, pathlib.Path(task, "children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                pass
    return total / 1e9


def same_file(one, other):
    return other.stat().st_size == one.stat().st_size and subprocess.run(["cmp", "-s", one, other]).returncode == 0


class Ccbt:
    """Two homes of one folder, the second empty at first; and a mount beside them if asked for."""
    name = "ccbt"

    def __init__(self, bench, dir):
        self.b, self.t, self.dir = bench, bench.tools, dir
        self.homes = [dir / "a", dir / "b"]
        self.mount = dir / "mount"
        for d in [*self.homes, self.mount]:
            d.mkdir(parents=True)
        self.daemons = []

    def start(self, side, args, port):
        n, t = self.b.net, self.t
        args = [*args, "--listen", f"{n.ip[side]}:{port}"]
        if port != 7001:
            args += ["--peer", f"{n.ip[0]}:7001"]
        d = t.Daemon(n, side, self.b.ccbt, self.dir / f"state{port}", args, self.dir / f"{port}.log")
        self.daemons.append(d)
        return d

    def share(self):
        d = self.start(0, ["share", self.homes[0]], 7001)
        self.t.until(1800, lambda: "\nread-only" in "\n" + d.text(), "share")
        self.link = re.search(r"read-write\s+(ccbt:\S+)", d.text())[1]

    def join(self):
        d = self.start(1, ["join", self.link, self.homes[1]], 7002)
        self.t.until(60, lambda: "Joined " in d.text(), "join")

    def lazy(self):
        d = self.start(1, ["mount", self.link, self.mount], 7003)
        self.t.until(60, lambda: "Mounted " in d.text(), "mount")

    def begin(self):
        self.share()
        self.join()

    def pids(self):
        return [d.pid for d in self.daemons]

    def read_mb(self):
        """What the daemons have read of files so far, from the page cache or not."""
        text = "".join(pathlib.Path(f"/proc/{pid}/io").read_text() for pid in self.pids())
        return sum(map(int, re.findall(r"rchar: (\d+)", text))) / 1e6

    def close(self):
        for d in reversed(self.daemons):
            d.stop()
        subprocess.run(["umount", "-l", str(self.mount)], capture_output=True)


class Syncthing:
    """Two instances of Debian's package that know each other's addresses and nobody else."""
    name = "syncthing"

    def __init__(self, bench, dir):
        self.b, self.t, self.dir = bench, bench.tools, dir
        self.homes = [dir / "a", dir / "b"]
        self.procs = []
        for d in self.homes:
            d.mkdir(parents=True)

    def begin(self):
        states = [self.dir / "state-a", self.dir / "state-b"]
        ids = []
        for state in states:
            subprocess.run(["syncthing", "generate", f"--home={state}", "--no-default-folder"], check=True, capture_output=True, env=self.env())
            out = subprocess.run(["syncthing", "--device-id", f"--home={state}"], check=True, capture_output=True, text=True, env=self.env())
            ids.append(out.stdout.split()[-1])
        for side, state in enumerate(states):
            self.configure(state / "config.xml", side, ids)
        for side, state in enumerate(states):
            log = open(self.dir / f"st{side}.log", "w")
            cmd = self.b.net.run(side) + ["syncthing", "serve", f"--home={state}", "--no-browser", "--no-restart", "--logflags=0"]
            self.procs.append(subprocess.Popen(cmd, stdout=log, stderr=log, env=self.env()))

    def env(self):
        return {**os.environ, "HOME": str(self.dir), "STNOUPGRADE": "1"}

    def configure(self, path, side, ids):
        tree = ET.parse(path)
        root, ip = tree.getroot(), self.b.net.ip
        for old in root.findall("folder") + root.findall("device"):
            root.remove(old)
        folder = ET.SubElement(root, "folder", id="bench", label="bench", path=str(self.homes[side]), type="sendreceive",
                               rescanIntervalS="3600", fsWatcherEnabled="true", fsWatcherDelayS="1")
        for n, device in enumerate(ids):
            ET.SubElement(folder, "device", id=device)
            entry = ET.SubElement(root, "device", id=device, name=f"side{n}", compression="metadata")
            ET.SubElement(entry, "address").text = f"tcp://{ip[n]}:22000"
        options = root.find("options")
        values = {"listenAddress": f"tcp://{ip[side]}:22000", "globalAnnounceEnabled": "false", "localAnnounceEnabled": "false",
                  "relaysEnabled": "false", "natEnabled": "false", "urAccepted": "-1", "crashReportingEnabled": "false", "setLowPriority": "false"}
        for name, value in values.items():
            for old in options.findall(name):
                options.remove(old)
            ET.SubElement(options, name).text = value
        root.find("gui").set("enabled", "false")
        tree.write(path)

    def pids(self):
        return [p.pid for p in self.procs]

    def close(self):
        for p in self.procs:
            p.terminate()
        for p in self.procs:
            try:
                p.wait(30)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


class Home:
    def __init__(self, args, tools):
        self.args, self.tools = args, tools
        self.dir = pathlib.Path(args.dir)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.scale = args.scale
        if shutil.which("syncthing") is None:
            subprocess.run(["apt-get", "install", "-y", "-q", "syncthing"], check=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        self.ccbt = tools.build()
        self.net = tools.Net()
        self.values = {}
        self.seed = 0

    def wants(self, *rows):
        return any(re.search(self.args.only, row) for row in rows)

    def put(self, row, **figures):
        for k, v in figures.items():
            self.values.setdefault(row, {}).setdefault(k, []).append(v)
        print(f"  {row}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)

    def run(self):
        for n in range(self.args.runs):
            print(f"run {n + 1} of {self.args.runs}", flush=True)
            self.seed = n
            if self.wants("copy1g", "mid1m", "rename"):
                self.within(Ccbt, self.big)
            if self.wants("copy1g", "mid1m"):
                self.within(Syncthing, self.big)
            if self.wants("small20k", "edit", "rename"):
                self.within(Ccbt, self.small)
            if self.wants("small20k", "edit"):
                self.within(Syncthing, self.small)
            if self.wants("rescan", "idle") and n == 0:
                self.within(Ccbt, self.million)

    def within(self, kind, work):
        world = kind(self, self.dir / kind.name)
        try:
            work(world)
        finally:
            world.close()
            shutil.rmtree(world.dir, ignore_errors=True)

    def rest(self, world):
        """Until the daemons are idle."""
        for _ in range(240):
            before = ran(*world.pids())
            time.sleep(0.5)
            if ran(*world.pids()) - before < 0.01:
                return

    def change(self, world, act, seen, seconds=120):
        """Seconds from an act to when it is seen, bytes on the wire, CPU until the daemons rest."""
        self.rest(world)
        wire, cpu = self.net.bytes(), self.cpu(world)
        start = time.monotonic()
        act()
        took = self.tools.until(seconds, seen, world.name) - start
        self.rest(world)
        return took, self.net.bytes() - wire, self.cpu(world) - cpu

    def cpu(self, world):
        return sum(map(self.tools.cpu, world.pids()))

    def size(self, n):
        return max(1, int(n * self.scale))

    def big(self, world):
        one, two = (home / "big" for home in world.homes)
        size = max(4 * MIB, self.size(GIB))
        self.tools.noise(one, size, self.seed)
        os.sync()
        start = time.monotonic()
        world.begin()
        seconds = self.tools.until(600, lambda: two.stat().st_size == size, "the copy") - start
        self.rest(world)
        assert same_file(one, two)
        p = world.name + "_"
        self.put("copy1g", **{p + "s": seconds, p + "cpu_s": self.cpu(world)})
        if world.name == "ccbt":
            self.rsync(world.homes[0], "copy1g")
        if self.wants("mid1m"):
            new = random.Random(self.seed + 1).randbytes(min(MIB, size // 4))
            at = size // 2

            def overwrite():
                with open(one, "r+b") as f:
                    f.seek(at)
                    f.write(new)

            def seen():
                with open(two, "rb") as f:
                    f.seek(at)
                    return f.read(len(new)) == new
            s, wire, cpu = self.change(world, overwrite, seen)
            self.put("mid1m", **{p + "s": s, p + "mib": wire / MIB, p + "cpu_s": cpu})
        if self.wants("rename") and world.name == "ccbt":
            read = world.read_mb()
            moved = world.homes[1] / "moved"
            s, wire, _ = self.change(world, lambda: one.rename(one.with_name("moved")), moved.exists)
            self.put("rename", file_s=s, file_kb=wire / 1000, file_read_mb=world.read_mb() - read)

    def small(self, world):
        files, r = self.size(20_000), random.Random(self.seed)
        for i in range(files):
            d = world.homes[0] / "tree" / f"d{i // 100:03}"
            d.mkdir(parents=True, exist_ok=True)
            (d / f"f{i:05}").write_bytes(r.randbytes(8 * KIB))
        os.sync()
        count = lambda: sum(len(names) for _, _, names in os.walk(world.homes[1] / "tree"))
        start = time.monotonic()
        world.begin()
        last = 0
        while last < files:
            time.sleep(0.05)
            last = count()
            assert time.monotonic() - start < 1200, f"{last} of {files} files"
        seconds = time.monotonic() - start
        self.rest(world)
        p = world.name + "_"
        self.put("small20k", **{p + "s": seconds, p + "cpu_s": self.cpu(world)})
        one, two = (home / "tree" / "d000" / "f00000" for home in world.homes)
        if self.wants("edit"):
            new = r.randbytes(4 * KIB)
            s, wire, _ = self.change(world, lambda: one.write_bytes(new), lambda: two.read_bytes() == new)
            self.put("edit", **{p + "home_s": s, p + "home_kb": wire / 1000})
            if world.name == "ccbt":
                world.lazy()
                at, new = world.mount / "tree" / "d000" / "f00000", r.randbytes(4 * KIB)
                self.tools.until(60, at.exists, "the mount")
                s, _, _ = self.change(world, lambda: one.write_bytes(new), lambda: at.read_bytes() == new)
                self.put("edit", ccbt_mount_s=s)
        if self.wants("rename") and world.name == "ccbt":
            read, moved = world.read_mb(), world.homes[1] / "moved"
            s, wire, _ = self.change(world, lambda: (world.homes[0] / "tree").rename(world.homes[0] / "moved"), moved.exists)
            self.put("rename", dir_s=s, dir_kb=wire / 1000, dir_read_mb=world.read_mb() - read)

    def million(self, world):
        dirs, each = self.size(10_000), 100
        for d in range(dirs):
            at = world.homes[0] / f"d{d:05}"
            at.mkdir()
            for f in range(each):
                (at / f"f{f:03}").write_bytes(b"%d/%d" % (d, f))
        os.sync()
        world.share()
        self.rest(world)
        if self.wants("rescan"):
            # New rules have everything looked at once.
            cpu = self.cpu(world)
            (world.homes[0] / ".ccbtignore").write_text("*.never\n")
            time.sleep(1)
            self.rest(world)
            self.put("rescan", cpu_s=self.cpu(world) - cpu, rss_mib=self.tools.rss_mib(world.pids()[0]))
        if self.wants("idle"):
            time.sleep(10 if self.scale < 1 else 60)
            cpu, seconds = ran(*world.pids()), self.args.idle
            time.sleep(seconds)
            self.put("idle", cpu_percent=(ran(*world.pids()) - cpu) / seconds * 100)

    def rsync(self, source, row):
        """The same bytes by an rsync daemon between the same namespaces."""
        conf, to = self.dir / "rsyncd.conf", self.dir / "rsync-to"
        conf.write_text(f"use chroot = no\nuid = 0\ngid = 0\n[m]\npath = {source}\nread only = yes\nexclude = /.ccbt\n")
        shutil.rmtree(to, ignore_errors=True)
        p = subprocess.Popen(self.net.run(0) + ["rsync", "--daemon", "--no-detach", f"--config={conf}", "--port=7873"])
        time.sleep(0.3)
        try:
            start = time.monotonic()
            subprocess.run(self.net.run(1) + ["rsync", "-a", f"rsync://{self.net.ip[0]}:7873/m/", str(to)], check=True)
            os.sync()
            self.put(row, rsync_s=time.monotonic() - start)
        finally:
            p.terminate()
            p.wait()
            shutil.rmtree(to, ignore_errors=True)

    def table(self):
        out = ["| what | must | measured (median, range) |", "|---|---|---|"]
        for row, (what, must) in ROWS.items():
            if row in self.values:
                cells = [f"{k} {statistics.median(v):.3g} ({min(v):.3g}..{max(v):.3g})" for k, v in self.values[row].items()]
                out.append(f"| {what} | ≤ {must} | {', '.join(cells)} |")
        return "\n".join(out)

    def section(self, commit):
        version = subprocess.run(["syncthing", "--version"], capture_output=True, text=True).stdout.split()
        return (f"## Plain directories\n\nMeasured by `scripts/bench home --runs {self.args.runs} --write` on {time.strftime('%Y-%m-%d')} at commit {commit}, on a machine with 2 cores: two daemons in two "
                f"network namespaces, plain directories on one disk, Syncthing {version[1] if len(version) > 1 else '?'} from Debian with a watcher delay of 1 s, without announcing and relays, and an rsync daemon, in the "
                "same run. `s` is seconds until the change is in the other directory, `cpu_s` what the threads of both daemons ran, `kb` and `mib` are bytes on the wire in both directions, `read` counts "
                "files that were read again.\n\n" + self.table() + "\n")
