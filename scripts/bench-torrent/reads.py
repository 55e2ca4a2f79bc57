#!/usr/bin/env python3
"""What reading a torrent's files costs by `pread`, by `mmap` and by `sendfile`: the numbers of docs/decisions/0015-content-is-read-by-pread.md.

    scripts/bench-torrent/reads.py [--mib 1024] [--runs 5] [--dir DIR]       needs root, to drop caches

check: pieces of 1 MiB in order, hashed with SHA-1. serve: blocks of 16 KiB in random order, sent into a socket that a child empties. mount: the
same with 128 KiB in order, as the kernel asks. Each from the page cache (warm) and from the disk (cold); CPU is of the reading process alone."""
import argparse, hashlib, mmap, os, pathlib, random, resource, socket, statistics, sys, tempfile, time

MIB = 1 << 20
PIECE, STEP, BLOCK, ASKED = MIB, 256 << 10, 16 << 10, 128 << 10


class Source:
    """A file, open and mapped."""

    def __init__(self, path, advice):
        self.fd, self.size = os.open(path, os.O_RDONLY), os.path.getsize(path)
        self.map = mmap.mmap(self.fd, self.size, prot=mmap.PROT_READ)
        self.map.madvise(advice)
        self.view, self.buffer = memoryview(self.map), memoryview(bytearray(STEP))

    def pread(self, at, count):
        got = 0
        while got < count:
            got += os.preadv(self.fd, [self.buffer[got:count]], at + got)
        return self.buffer[:count]

    def mmap(self, at, count):
        return self.view[at:at + count]

    def close(self):
        self.view.release(), self.map.close(), os.close(self.fd)


def check(source, read):
    for piece in range(0, source.size, PIECE):
        digest = hashlib.sha1()
        for at in range(piece, min(piece + PIECE, source.size), STEP):
            digest.update(read(at, min(STEP, source.size - at)))
        digest.digest()


def send(source, sink, read, places, count):
    for at in places:
        if read is None:
            done = 0
            while done < count:
                done += os.sendfile(sink.fileno(), source.fd, at + done, count - done)
        else:
            sink.sendall(read(at, count))


def drained():
    """A socket whose other end is emptied by a child."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        sink, buffer = socket.create_connection(listener.getsockname()), bytearray(MIB)
        while sink.recv_into(buffer):
            pass
        os._exit(0)
    stream, _ = listener.accept()
    listener.close()
    return stream, child


def measure(path, what, how, cold):
    source = Source(path, mmap.MADV_RANDOM if what == "serve" else mmap.MADV_SEQUENTIAL)
    read = {"pread": source.pread, "mmap": source.mmap, "sendfile": None}[how]
    step = BLOCK if what == "serve" else ASKED
    places = list(range(0, source.size - step + 1, step))
    if what == "serve":
        random.Random(1).shuffle(places)
    if cold:
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    else:
        for at in range(0, source.size, STEP):
            source.pread(at, min(STEP, source.size - at))
    sink, child = (None, None) if what == "check" else drained()
    used, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    if what == "check":
        check(source, read)
    else:
        send(source, sink, read, places, step)
    seconds, now = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    if child:
        sink.close()
        os.waitpid(child, 0)
    source.close()
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return seconds, cpu


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--mib", type=int, default=1024)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--dir", default="/var/tmp")
    args = p.parse_args()
    if os.geteuid() != 0:
        sys.exit("reads: needs root, to drop caches")
    cases = [(what, how, cold) for what in ("check", "serve", "mount") for cold in (False, True)
             for how in (("pread", "mmap") if what == "check" else ("pread", "mmap", "sendfile"))]
    found = {case: [] for case in cases}
    with tempfile.NamedTemporaryFile(dir=args.dir, prefix="ccbt-reads.") as f:
        for _ in range(args.mib):
            f.write(random.randbytes(MIB))
        f.flush(), os.sync()
        for run in range(args.runs):
            for case in random.sample(cases, len(cases)):
                found[case].append(measure(f.name, *case))
    print("| what | read | MB/s | CPU-s per GiB |\n|---|---|---|---|")
    for (what, how, cold), runs in found.items():
        rates, cpus = [args.mib * MIB / 1e6 / s for s, _ in runs], [c * 1024 / args.mib for _, c in runs]
        cell = lambda values, digits: f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"
        print(f"| {what}, {'cold' if cold else 'warm'} | {how} | {cell(rates, 0)} | {cell(cpus, 2)} |", flush=True)


main()
