"""The least a download can cost: sendfile on one side; recv, SHA-1 and pwrite of each MiB on the other. Prints seconds and CPU-s of both.

    floor.py SOURCE TARGET"""
import hashlib, json, os, resource, socket, sys, time

PIECE = 1 << 20


def send(port, path):
    with socket.create_connection(("127.0.0.1", port)) as s, open(path, "rb") as f:
        at, size = 0, os.fstat(f.fileno()).st_size
        while at < size:
            at += os.sendfile(s.fileno(), f.fileno(), at, size - at)


def main(source, target):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    child = os.fork()
    if child == 0:
        send(port, source)
        os._exit(0)
    stream, _ = listener.accept()
    buffer, at, digests = memoryview(bytearray(PIECE)), 0, []
    out = os.open(target, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    start = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = used.ru_utime + used.ru_stime
    while True:
        n = 0
        while n < PIECE and (got := stream.recv_into(buffer[n:])):
            n += got
        if n == 0:
            break
        digests.append(hashlib.sha1(buffer[:n]).digest())
        os.pwrite(out, buffer[:n], at)
        at += n
    seconds = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, status, sender = os.wait4(child, 0)
    assert status == 0 and at == os.path.getsize(source), (status, at)
    print(json.dumps({"s": seconds, "recv_cpu_s": used.ru_utime + used.ru_stime - before, "send_cpu_s": sender.ru_utime + sender.ru_stime}))


main(*sys.argv[1:])
