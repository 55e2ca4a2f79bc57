"""The rows of `scripts/bench torrent`: ccbt, libtorrent 2.1 (from PyPI), Debian's libtorrent and a plain loop, one after the other in each run."""
import hashlib, http.client, json, os, pathlib, random, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
TITLE = "## Torrents"
MIB = 1 << 20
# Debian's Python has Debian's libtorrent; the other one is installed here once.
DEBIAN = "/usr/bin/python3"
PIP = "libtorrent==2.1.1"
PATIENCE_S = 300

# row -> (what is measured, must)
ROWS = {
    "leech": ("{size} from a libtorrent 2.1 seeder: rate against libtorrent 2.1 and 2.0 from the same seeder; leecher CPU against the plain loop; peak RSS above idle",
              "≥ 1.1 x, ≥ 1.6 x; ≤ 1.3 x; ≤ 64 MiB"),
    "seed": ("seeding {size} to a libtorrent 2.1 leecher: CPU per GiB; the same of libtorrent 2.1", "≤ 1.0 s"),
    "small": ("2,000 small files, 265 MB: against libtorrent 2.1", "≥ 1.2 x"),
    "magnet": ("magnet to metadata of 328 KB, peer given", "≤ 150 ms"),
    "rtt50": ("one peer at 50 ms round trip over a link of 100 Mbit/s: against a plain TCP stream over it; part of the link that is used", "≥ 0.9 x"),
    "rtt200": ("the same at 200 ms", "≥ 0.9 x"),
    "mount64k": ("mount of a torrent, cold: mount and first 64 KiB at a random place", "≤ 0.1 s"),
    "mountseq": ("mount, sequential read of {size} from a seeder of 200 MB/s: cold against a plain download from it; warm against the mirror (--ptfs)", "≥ 0.9 x, ≥ 0.9 x"),
    "dedup": ("download of a changed copy of {size} that is here, chunk lists in the torrent (`ccbt create --xet`): bytes that come by the network, in percent, 1 % changed in one place / in scattered edits of 4 KiB",
              "≤ 3 %, ≤ 25 %"),
    "kill": ("SIGKILL at half of {size} from a seeder of 100 MB/s: bytes fetched again, in percent of all", "≤ 0.5 %"),
    "many": ("1,000 seeding torrents: start to all seeding, idle CPU, RSS", "≤ 3 s, ≤ 0.5 %, ≤ 150 MiB"),
}
# Bytes per second of the link in the rows with a delay.
LINK_RATE = 12_500_000
SEEDER_RATE = 200_000_000
KILL_RATE = 100_000_000
# What a seeder with a limit may send before its row begins, and for how long it does so.
RESTING_RATE, RESTING_S = 10_000, 1
WARM_READS = 5


def bencode(value):
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%s" % (len(value), value)
        case list():
            return b"l" + b"".join(map(bencode, value)) + b"e"
        case dict():
            return b"d" + b"".join(bencode(k) + bencode(value[k]) for k in sorted(value)) + b"e"
    raise TypeError(type(value))


def make_torrent(path, out, piece, hashes=None, length=None):
    """A v1 torrent of a file or folder; with `hashes`, of content that is nowhere."""
    info = {b"name": path.name.encode(), b"piece length": piece}
    if hashes is not None:
        info |= {b"length": length, b"pieces": hashes}
    else:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        pieces, held = [], b""
        for file in files:
            with open(file, "rb") as f:
                while data := f.read(piece - len(held)):
                    held += data
                    if len(held) == piece:
                        pieces.append(hashlib.sha1(held).digest())
                        held = b""
        if held:
            pieces.append(hashlib.sha1(held).digest())
        info[b"pieces"] = b"".join(pieces)
        if path.is_dir():
            info[b"files"] = [{b"length": f.stat().st_size, b"path": [p.encode() for p in f.relative_to(path).parts]} for f in files]
        else:
            info[b"length"] = path.stat().st_size
    raw = bencode(info)
    out.write_bytes(b"d4:info" + raw + b"e")
    return hashlib.sha1(raw).hexdigest()


class Unix(http.client.HTTPConnection):
    """The API of a daemon through its socket."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


class Other:
    """A libtorrent in a process of its own."""

    def __init__(self, python, address="127.0.0.1", settings=None, prefix=()):
        cmd = [*prefix, python, str(HERE / "peer.py"), address, json.dumps(settings or {})]
        self.proc = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self.answer()["version"]

    def answer(self):
        line = self.proc.stdout.readline()
        if not line:
            raise SystemExit("bench: a libtorrent has ended; its error is above (scripts/setup installs Debian's)")
        return json.loads(line)

    def do(self, what, **more):
        self.proc.stdin.write(json.dumps({"do": what, **{k: str(v) if isinstance(v, pathlib.Path) else v for k, v in more.items()}}) + "\n")
        self.proc.stdin.flush()
        return self.answer()

    def close(self):
        self.proc.stdin.close()
        try:
            self.proc.wait(30)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()


class Ours:
    """A ccbt daemon."""

    def __init__(self, torrents, name, listen="127.0.0.1:0", prefix=()):
        self.bench, self.state = torrents.bench, torrents.dir / name
        self.cmd = [*prefix, str(torrents.ccbt), "daemon", "--state", str(self.state), "--listen", listen, "--no-dht", "--no-lsd", "--no-portmap"]
        self.log = open(torrents.dir / f"{name}.log", "w")
        self.proc = None
        self.start()

    def start(self):
        begun = time.monotonic()
        self.proc = subprocess.Popen(self.cmd, stdout=self.log, stderr=self.log)
        self.pid = self.proc.pid
        self.bench.until(PATIENCE_S, lambda: self.call("torrents") is not None, "the daemon")
        return begun

    def call(self, name, **request):
        connection = Unix(self.state / "api.sock")
        try:
            connection.request("POST", f"/v1/{name}", json.dumps(request), {"Host": "localhost", "Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise SystemExit(f"bench: {name}: {body.decode()}")
            return json.loads(body)
        finally:
            connection.close()

    def download(self, torrent, out, peer=None, until="finished", magnet=None):
        source = {"magnet": magnet} if magnet else {"file": str(torrent)}
        return self.call("download", source=source, dir=str(out), peers=[f"{peer[0]}:{peer[1]}"] if peer else [], until=until)["torrent"]

    def port(self):
        return int(self.call("status")["daemon"]["listen"].rsplit(":", 1)[1])

    def cpu(self):
        return self.bench.cpu(self.pid)

    def rss(self):
        return self.bench.rss_mib(self.pid)

    def reset_peak(self):
        pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak(self):
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{self.pid}/status").read_text())[1]) / 1024

    def stop(self, how=signal.SIGTERM):
        if self.proc.poll() is None:
            self.proc.send_signal(how)
            try:
                self.proc.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()


class Torrents:
    """Makes the content, runs the rows, collects figures. `bench`: the module with what all groups use."""

    def __init__(self, args, bench, ccbt):
        self.args, self.bench, self.ccbt, self.values = args, bench, ccbt, {}
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="ccbt-bench-torrent.", dir=args.dir or "/var/tmp"))
        self.new = self.libtorrent()
        self.size = args.mib * MIB
        self.big = self.dir / "src" / "big"
        self.big.parent.mkdir()

    def libtorrent(self):
        """A Python with libtorrent 2.1."""
        venv = pathlib.Path(self.args.venv)
        python = venv / "bin" / "python"
        if not python.exists():
            subprocess.run([DEBIAN, "-m", "venv", str(venv)], check=True)
        if subprocess.run([str(python), "-c", "import libtorrent"], capture_output=True).returncode != 0:
            subprocess.run([str(python), "-m", "pip", "install", "-q", PIP], check=True)
        return str(python)

    def put(self, row, **figures):
        for name, value in figures.items():
            self.values.setdefault(row, {}).setdefault(name, []).append(value)
        print(f"  {row}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)

    def run(self):
        wanted = [row for row in ROWS if re.search(self.args.only, row)]
        self.bench.noise(self.big, self.size, 1)
        self.torrent = self.dir / "big.torrent"
        make_torrent(self.big, self.torrent, MIB)
        try:
            for n in range(self.args.runs):
                print(f"run {n + 1} of {self.args.runs}", flush=True)
                for row in wanted:
                    if row != "many" or n == 0:
                        getattr(self, "row_" + row)()
        except KeyboardInterrupt:
            print("ended early: the table has what was measured until then", flush=True)

    def fresh(self):
        out = self.dir / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        os.sync()
        return out

    def same(self, out, source=None):
        subprocess.run(["diff", "-r", "-q", str(source or self.big), str(out / (source or self.big).name)], check=True)

    def lt_leech(self, python, port, torrent=None, source=None):
        out, leecher = self.fresh(), Other(python)
        figures = leecher.do("leech", torrent=torrent or self.torrent, dir=out, peer=["127.0.0.1", port])
        leecher.close()
        self.same(out, source)
        return figures

    def our_leech(self, port, torrent=None, source=None, address="127.0.0.1", listen="127.0.0.1:0", prefix=()):
        out = self.fresh()
        ours = Ours(self, "leecher", listen, prefix)
        try:
            # The socket is opened with the first torrent; that and what else happens once is not the download.
            idle = ours.rss()
            ours.reset_peak()
            before, start = ours.cpu(), time.monotonic()
            ours.download(torrent or self.torrent, out, [address, port])
            figures = {"s": time.monotonic() - start, "cpu_s": ours.cpu() - before, "rss_mib": ours.peak() - idle}
        finally:
            ours.stop()
            shutil.rmtree(ours.state, ignore_errors=True)
        self.same(out, source)
        return figures

    def row_leech(self):
        seeder = Other(self.new)
        port = seeder.do("seed", torrent=self.torrent, dir=self.big.parent)["port"]
        ours = self.our_leech(port)
        before = seeder.do("stats")["cpu_s"]
        lt21 = self.lt_leech(self.new, port)
        self.lt_seed_cpu = seeder.do("stats")["cpu_s"] - before
        lt20 = self.lt_leech(DEBIAN, port)
        seeder.close()
        floor = self.dir / "out" / "floor"
        shutil.rmtree(floor.parent)
        floor.parent.mkdir()
        os.sync()
        out = subprocess.run([sys.executable, str(HERE / "floor.py"), str(self.big), str(floor)], check=True, text=True, stdout=subprocess.PIPE)
        floor = json.loads(out.stdout)
        gib = self.size / (1 << 30)
        self.put("leech", x21=lt21["s"] / ours["s"], x20=lt20["s"] / ours["s"], x_cpu_of_loop=ours["cpu_s"] / floor["recv_cpu_s"], rss_mib=ours["rss_mib"],
                 mb_s=self.size / 1e6 / ours["s"], lt21_mb_s=self.size / 1e6 / lt21["s"], lt20_mb_s=self.size / 1e6 / lt20["s"],
                 loop_mb_s=self.size / 1e6 / floor["s"], cpu_s_per_gib=ours["cpu_s"] / gib, lt21_cpu_s_per_gib=lt21["cpu_s"] / gib,
                 loop_cpu_s_per_gib=floor["recv_cpu_s"] / gib, lt21_rss_mib=lt21["rss_mib"])

    def row_seed(self):
        gib = self.size / (1 << 30)
        ours = Ours(self, "seeder")
        try:
            ours.download(self.torrent, self.big.parent)
            before, port = ours.cpu(), ours.port()
            self.lt_leech(self.new, port)
            cpu = ours.cpu() - before
        finally:
            ours.stop()
            shutil.rmtree(ours.state, ignore_errors=True)
        seeder = Other(self.new)
        port = seeder.do("seed", torrent=self.torrent, dir=self.big.parent)["port"]
        before = seeder.do("stats")["cpu_s"]
        self.lt_leech(self.new, port)
        other = seeder.do("stats")["cpu_s"] - before
        seeder.close()
        self.put("seed", cpu_s_per_gib=cpu / gib, lt21_cpu_s_per_gib=other / gib)

    def row_small(self):
        top = self.dir / "src" / "small"
        torrent = self.dir / "small.torrent"
        if not torrent.exists():
            r = random.Random(7)
            for n in range(2000):
                folder = top / f"d{n // 100:02}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"f{n:04}").write_bytes(r.randbytes(r.randrange(1, 265_000)))
            make_torrent(top, torrent, 256 << 10)
        seeder = Other(self.new)
        port = seeder.do("seed", torrent=torrent, dir=top.parent)["port"]
        ours = self.our_leech(port, torrent, top)
        other = self.lt_leech(self.new, port, torrent, top)
        seeder.close()
        self.put("small", x=other["s"] / ours["s"], s=ours["s"], lt21_s=other["s"], cpu_s=ours["cpu_s"], lt21_cpu_s=other["cpu_s"])

    def row_magnet(self):
        torrent, pieces = self.dir / "wide.torrent", 16_400
        hash = make_torrent(pathlib.Path("wide"), torrent, 256 << 10, random.Random(3).randbytes(20 * pieces), pieces * (256 << 10))
        seeder, magnet = Other(self.new), f"magnet:?xt=urn:btih:{hash}"
        port = seeder.do("hold", torrent=torrent, dir=self.dir / "src")["port"]
        ours = Ours(self, "magnet")
        try:
            start = time.monotonic()
            ours.download(None, self.fresh(), ["127.0.0.1", port], "started", magnet)
            self.bench.until(PATIENCE_S, lambda: ours.call("torrents")["torrents"][0]["content"], "the metadata")
            seconds = time.monotonic() - start
        finally:
            ours.stop()
            shutil.rmtree(ours.state, ignore_errors=True)
        leecher = Other(self.new)
        other = leecher.do("metadata", magnet=magnet, dir=self.fresh(), peer=["127.0.0.1", port])["s"]
        leecher.close()
        seeder.close()
        self.put("magnet", ms=seconds * 1000, lt21_ms=other * 1000)

    def row_rtt50(self):
        self.delayed("rtt50", 50)

    def row_rtt200(self):
        self.delayed("rtt200", 200)

    def delayed(self, row, ms):
        """From a seeder on the other side of a slow link."""
        net = self.bench.Net()
        ips = ["10.214.7.1", "10.214.7.2"]
        size = min(self.size, 256 * MIB)
        source, torrent = self.dir / "src" / "part", self.dir / "part.torrent"
        if not torrent.exists():
            self.bench.noise(source, size, 2)
            make_torrent(source, torrent, MIB)
        link = subprocess.Popen([sys.executable, str(HERE / "link.py"), *net.ns, *ips, str(ms), str(LINK_RATE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert link.stdout.readline() == "up\n", "the link does not come up: is /dev/net/tun there?"
            seeder = Other(self.new, ips[0], prefix=net.run(0))
            port = seeder.do("seed", torrent=torrent, dir=source.parent)["port"]
            ours = self.our_leech(port, torrent, source, ips[0], f"{ips[1]}:0", net.run(1))
            out, leecher = self.fresh(), Other(self.new, ips[1], prefix=net.run(1))
            other = leecher.do("leech", torrent=torrent, dir=out, peer=[ips[0], port])
            leecher.close()
            seeder.close()
            stream = self.stream(net, ips[0], source)
        finally:
            link.stdin.close()
            link.wait()
            net.close()
        self.put(row, x_stream=stream / ours["s"], part=size / ours["s"] / LINK_RATE, lt21_part=size / other["s"] / LINK_RATE, stream_part=size / stream / LINK_RATE)

    def stream(self, net, ip, source):
        """Seconds that a plain TCP stream of the file takes over the link."""
        script = [sys.executable, str(HERE / "stream.py")]
        sender = subprocess.Popen([*net.run(0), *script, "send", ip, str(source)], text=True, stdout=subprocess.PIPE)
        port = sender.stdout.readline().strip()
        taker = subprocess.run([*net.run(1), *script, "take", ip, port], check=True, text=True, stdout=subprocess.PIPE)
        sender.wait()
        return float(taker.stdout)

    def mounted(self, ours, port):
        """Mounts the big torrent; how long that took, and the file."""
        mount = self.dir / "mnt"
        mount.mkdir(exist_ok=True)
        start = time.monotonic()
        ours.call("mount", source={"torrent": str(self.torrent)}, dir=str(mount), peers=[f"127.0.0.1:{port}"])
        return time.monotonic() - start, mount / "big"

    def unmounted(self, ours):
        subprocess.run([str(self.ccbt), "unmount", str(self.dir / "mnt"), "--state", str(ours.state)], capture_output=True)
        ours.stop()
        shutil.rmtree(ours.state, ignore_errors=True)

    def row_mount64k(self):
        seeder = Other(self.new)
        port = seeder.do("seed", torrent=self.torrent, dir=self.big.parent)["port"]
        ours = Ours(self, "mount")
        try:
            at = random.randrange(self.size - 65536)
            mount, path = self.mounted(ours, port)
            start = time.monotonic()
            fd = os.open(path, os.O_RDONLY)
            data = os.pread(fd, 65536, at)
            read = time.monotonic() - start
            os.close(fd)
            with open(self.big, "rb") as f:
                f.seek(at)
                assert data == f.read(65536), "the mount has shown wrong bytes"
        finally:
            self.unmounted(ours)
            seeder.close()
        self.put("mount64k", s=mount + read, mount_s=mount, read_s=read)

    def limited(self, rate):
        """A seeder that sends no faster, and its port. libtorrent saves up three seconds of a limit: it begins with next to none."""
        seeder = Other(self.new, settings={"upload_rate_limit": RESTING_RATE})
        port = seeder.do("seed", torrent=self.torrent, dir=self.big.parent)["port"]
        time.sleep(RESTING_S)
        seeder.do("limit", rate=rate)
        return seeder, port

    def warm(self, path):
        """Seconds of a read of what the kernel has in its cache."""
        self.bench.drop_caches()
        self.bench.read_whole(path)
        times = []
        for _ in range(WARM_READS):
            start = time.monotonic()
            self.bench.read_whole(path)
            times.append(time.monotonic() - start)
        return statistics.median(times)

    def row_mountseq(self):
        seeder, port = self.limited(SEEDER_RATE)
        plain = self.our_leech(port)["s"]
        seeder.close()
        seeder, port = self.limited(SEEDER_RATE)
        ours = Ours(self, "mount")
        try:
            before, start = ours.cpu(), time.monotonic()
            _, path = self.mounted(ours, port)
            assert self.bench.read_whole(path) == self.size
            cold, cpu = time.monotonic() - start, ours.cpu() - before
            warm = self.warm(path)
        finally:
            self.unmounted(ours)
            seeder.close()
        figures = {"x_cold": plain / cold, "cold_mb_s": self.size / 1e6 / cold, "plain_mb_s": self.size / 1e6 / plain, "warm_mb_s": self.size / 1e6 / warm, "cold_cpu_s": cpu}
        if self.args.ptfs:
            figures = {"x_cold": figures.pop("x_cold"), "x_warm": self.mirror() / warm, **figures}
        self.put("mountseq", **figures)

    def mirror(self):
        """Seconds of a warm read through a mirror file system."""
        mount = self.dir / "ptmnt"
        mount.mkdir(exist_ok=True)
        p = subprocess.Popen([self.args.ptfs, str(self.big.parent), str(mount), "--ttl=60", "--keep-cache"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.bench.until(10, lambda: (mount / "big").exists(), "ptfs")
            return self.warm(mount / "big")
        finally:
            subprocess.run(["umount", str(mount)])
            p.wait()

    def row_dedup(self):
        """The changed copies are made here, by a block of each part of the file, so that edits lie evenly."""
        copies, edits, r = self.dir / "copies", self.size // 100 // 4096, random.Random(11)
        figures, ours = {}, Ours(self, "dedup")
        try:
            old = self.dir / "old.torrent"
            subprocess.run([str(self.ccbt), "create", str(self.big), "-o", str(old), "--piece-size", "1MiB", "--force", "-q"], check=True)
            ours.download(old, self.big.parent)
            for kind in ("contiguous", "scattered"):
                source, torrent = copies / kind / "big", self.dir / f"{kind}.torrent"
                source.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.big, source)
                with open(source, "r+b") as f:
                    part = self.size // edits
                    for n in range(edits):
                        f.seek(self.size // 3 + n * 4096 if kind == "contiguous" else n * part + r.randrange(part - 4096))
                        f.write(r.randbytes(4096))
                subprocess.run([str(self.ccbt), "create", str(source), "-o", str(torrent), "--piece-size", "1MiB", "--xet", "--force", "-q"], check=True)
                seeder = Other(self.new)
                port = seeder.do("seed", torrent=torrent, dir=source.parent)["port"]
                out, start = self.fresh(), time.monotonic()
                ours.download(torrent, out, ["127.0.0.1", port])
                figures[f"{kind}_s"] = time.monotonic() - start
                figures[f"{kind}_percent"] = seeder.do("stats")["sent"] / self.size * 100
                seeder.close()
                self.same(out, source)
                shutil.rmtree(source.parent)
        finally:
            ours.stop()
            shutil.rmtree(ours.state, ignore_errors=True)
        order = ("contiguous_percent", "scattered_percent", "contiguous_s", "scattered_s")
        self.put("dedup", **{name: figures[name] for name in order})

    def row_kill(self):
        seeder, port = self.limited(KILL_RATE)
        out, ours = self.fresh(), Ours(self, "killed")
        try:
            ours.download(self.torrent, out, ["127.0.0.1", port], "started")
            half = lambda: ours.call("torrents")["torrents"][0]["bytes_done"] >= self.size // 2
            self.bench.until(PATIENCE_S, half, "half of it")
            ours.stop(signal.SIGKILL)
            if seeder.do("stats")["sent"] >= self.size:
                return print("  kill: it was done before it could be killed; a larger --mib is needed", flush=True)
            ours.start()
            # It is there already; this waits for it.
            ours.download(self.torrent, out, ["127.0.0.1", port])
            sent = seeder.do("stats")["sent"]
        finally:
            ours.stop()
            shutil.rmtree(ours.state, ignore_errors=True)
            seeder.close()
        self.same(out)
        self.put("kill", percent=(sent - self.size) / self.size * 100)

    def row_many(self):
        src, ours = self.dir / "src" / "many", Ours(self, "many")
        src.mkdir(exist_ok=True)
        try:
            r = random.Random(5)
            for n in range(self.args.torrents):
                file, torrent = src / f"f{n}", self.dir / "one.torrent"
                file.write_bytes(r.randbytes(r.randrange(50_000, 500_000)))
                make_torrent(file, torrent, 16 << 10)
                ours.download(torrent, src, until="started")
            seeding = lambda: sum(t["state"] == "seeding" for t in ours.call("torrents")["torrents"]) == self.args.torrents
            self.bench.until(PATIENCE_S, seeding, "the torrents")
            begun = time.monotonic()
            ours.stop()
            stop = time.monotonic() - begun
            begun = ours.start()
            self.bench.until(PATIENCE_S, seeding, "the torrents")
            start = time.monotonic() - begun
            time.sleep(min(self.args.idle, 30))
            before = ours.cpu()
            time.sleep(self.args.idle)
            percent = (ours.cpu() - before) / self.args.idle * 100
            rss = ours.rss()
        finally:
            ours.stop()
            shutil.rmtree(ours.state, ignore_errors=True)
        self.put("many", start_s=start, idle_cpu_percent=percent, rss_mib=rss, stop_s=stop)

    def table(self):
        out = ["| what | must | measured (median, range) |", "|---|---|---|"]
        size = "1 GiB" if self.args.mib == 1024 else f"{self.args.mib} MiB"
        for row, (what, must) in ROWS.items():
            if row in self.values:
                figures = self.values[row].items()
                cells = [f"{k} {statistics.median(v):.3g} ({min(v):.3g}..{max(v):.3g})" for k, v in figures]
                out.append(f"| {what.format(size=size)} | {must} | {', '.join(cells)} |")
        return "\n".join(out)

    def section(self, commit):
        head = (HERE / "section.md").read_text()
        head = head.format(commit=commit, runs=self.args.runs, date=time.strftime("%Y-%m-%d"))
        return f"{TITLE}\n\n{head}\n{self.table()}\n"
