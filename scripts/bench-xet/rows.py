"""The rows of `scripts/bench xet`: what is called, what is computed from it, and what must come out."""
import json, os, pathlib, re, shutil, signal, statistics, subprocess, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
TITLE = "## The Xet store"

# row -> (what is measured, must)
ROWS = {
    "hash1": ("cut and hash, one core, 1 GiB of noise in memory, against xet-data", "≥ 1.1 x"),
    "hash2": ("the same on two cores, against one", "≥ 1.8 x"),
    "noise": ("ingest of 1 GiB of noise from a file into packs, CPU, against xet-data's pipeline into its local store", "≤ 0.5 x"),
    "text": ("the same, 1 GiB of text", "≤ 0.6 x"),
    "edited": ("the same, a copy with 1 % changed of 1 GiB that is held", "≤ 0.4 x"),
    "read": ("read of 1 GiB out of packs, one thread, page cache warm, against `cat` of the plain file", "≥ 0.5 x"),
    "random": ("random reads of 4 KiB, second pass, page cache warm, one core: stored chunks, LZ4 chunks", "≥ 150,000 / s, ≥ 20,000 / s"),
    "index": ("store of 16 M chunks: memory, start after a clean stop, start after kill -9", "≤ 256 MiB, ≤ 1 s, ≤ 3 s"),
    "gc": ("gc of 1 M chunks of 8 KiB, every second one dead: CPU, part of the disk given back", "≤ 30 s, ≥ 0.45"),
}


class Xet:
    """Runs the bench program and collects figures."""

    def __init__(self, args):
        if args.write and args.only:
            raise SystemExit("bench: --write writes the whole table, so it takes no --only")
        self.args, self.values = args, {}
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="ccbt-bench-xet.", dir=args.dir or "/var/tmp"))
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=HERE, check=True)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")).resolve()
        self.program = target / "release" / "bench-xet"

    def call(self, *args, core=None, killed=False):
        """One measurement. With `killed` the program has to end by a SIGKILL of its own and gives no figures."""
        cmd = ["taskset", "-c", str(core)] if core is not None else []
        p = subprocess.run(cmd + [str(self.program), *map(str, args)], text=True, stdout=subprocess.PIPE)
        if p.returncode != (-signal.SIGKILL if killed else 0):
            raise SystemExit(f"bench-xet {' '.join(map(str, args))} ended with {p.returncode}")
        return None if killed else json.loads(p.stdout)

    def put(self, row, **figures):
        for name, value in figures.items():
            self.values.setdefault(row, {}).setdefault(name, []).append(value)
        print(row, {k: round(v, 3) for k, v in figures.items()}, flush=True)

    def fresh(self):
        store = self.dir / "store"
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        return store

    def run(self):
        wanted = [row for row in ROWS if re.search(self.args.only, row)]
        self.noise, self.text, self.edited = (self.dir / name for name in ("noise", "text", "edited"))
        self.call("noise", self.noise, 1024)
        self.call("text", self.text, 1024)
        self.call("edited", self.noise, self.edited)
        try:
            for _ in range(self.args.runs):
                for row in wanted:
                    getattr(self, "row_" + row)()
        except KeyboardInterrupt:
            print("ended early: the table has what was measured until then", flush=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def row_hash1(self):
        ours, ref = (self.call("chunkhash", side, 1, 1024, core=0)["cpu_s"] for side in ("ours", "ref"))
        self.put("hash1", x=ref / ours, ours_s=ours, ref_s=ref)

    def row_hash2(self):
        one, two = (self.call("chunkhash", "ours", threads, 1024) for threads in (1, 2))
        # By CPU: what it would be if nothing else ran.
        by_cpu = 2 * one["cpu_s"] / two["cpu_s"]
        self.put("hash2", x=two["mb_s"] / one["mb_s"], x_by_cpu=by_cpu, one_mb_s=one["mb_s"], two_mb_s=two["mb_s"])

    def ingest(self, row, *files):
        figures = {}
        for side in ("ours", "ref", "ref-memory"):
            store = self.fresh()
            # What was written before is not written back meanwhile.
            os.sync()
            for file in files:
                subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
            cpu = self.call("ingest", side, files[0], store, *files[1:])["cpu_s"]
            figures[side.replace("-", "_") + "_s"] = cpu
        ours = figures["ours_s"]
        self.put(row, x=ours / figures["ref_s"], x_of_memory_store=ours / figures["ref_memory_s"], **figures)

    def row_noise(self):
        self.ingest("noise", self.noise)

    def row_text(self):
        self.ingest("text", self.text)

    def row_edited(self):
        self.ingest("edited", self.edited, self.noise)

    def row_read(self):
        ours = self.call("read", self.fresh(), self.noise, core=0)
        with open(os.devnull, "wb") as nothing:
            start = time.monotonic()
            subprocess.run(["taskset", "-c", "0", "cat", str(self.noise)], stdout=nothing, check=True)
        cat = self.noise.stat().st_size / 1e6 / (time.monotonic() - start)
        self.put("read", x=ours["second_mb_s"] / cat, x_verifying=ours["first_mb_s"] / cat, cat_mb_s=cat, **ours)

    def row_random(self):
        stored = self.call("random", self.fresh(), self.noise, core=0)["second_per_s"]
        lz4 = self.call("random", self.fresh(), self.text, core=0)["second_per_s"]
        self.put("random", stored_per_s=stored, lz4_per_s=lz4)

    def row_index(self):
        store = self.dir / "index"
        if not store.exists():
            self.call("packs", store, 16_000_000)
            self.put("index", from_footers_s=self.call("start", store)["s"])
        clean = self.call("start", store)
        self.call("start-and-die", store, killed=True)
        killed = self.call("start", store)
        memory = max(clean["rss_mib"], killed["rss_mib"])
        self.put("index", memory_mib=memory, clean_s=clean["s"], killed_s=killed["s"])

    def row_gc(self):
        done = self.call("gc", self.fresh(), 1_000_000)
        self.put("gc", cpu_s=done["cpu_s"], given_back=done["fallen"], s=done["s"])

    def table(self):
        out = ["| what | must | measured (median, range) |", "|---|---|---|"]
        for row, (what, must) in ROWS.items():
            if row in self.values:
                figures = self.values[row].items()
                cells = [f"{k} {statistics.median(v):.3g} ({min(v):.3g}..{max(v):.3g})" for k, v in figures]
                out.append(f"| {what} | {must} | {', '.join(cells)} |")
        return "\n".join(out)

    def section(self, commit):
        head = (HERE / "section.md").read_text()
        date, cpu = time.strftime("%Y-%m-%d"), cpu_name()
        head = head.format(commit=commit, runs=self.args.runs, date=date, cpu=cpu, cores=os.cpu_count())
        return f"{TITLE}\n\n{head}\n{self.table()}\n"


def cpu_name():
    """What lscpu calls the processor, with its family and model: virtual machines often name but the maker."""
    out = subprocess.run(["lscpu", "--json"], check=True, text=True, stdout=subprocess.PIPE).stdout
    fields = {}

    def collect(rows):
        for row in rows:
            fields.setdefault(row["field"].rstrip(":"), row["data"])
            collect(row.get("children", []))
    collect(json.loads(out)["lscpu"])
    name = fields.get("Model name") or fields.get("Architecture", "unknown processor")
    return f"{name} (family {fields.get('CPU family', '?')}, model {fields.get('Model', '?')})"
