"""What a link lets through: a file sent over one TCP connection and thrown away.

    stream.py send ADDRESS FILE      prints its port, sends to the first who calls
    stream.py take ADDRESS PORT      prints the seconds from the call to the last byte"""
import os, socket, sys, time


def send(address, path):
    with socket.create_server((address, 0)) as listener, open(path, "rb") as f:
        print(listener.getsockname()[1], flush=True)
        s, _ = listener.accept()
        at, size = 0, os.fstat(f.fileno()).st_size
        with s:
            while at < size:
                at += os.sendfile(s.fileno(), f.fileno(), at, size - at)


def take(address, port):
    start, buffer = time.monotonic(), bytearray(1 << 20)
    with socket.create_connection((address, int(port))) as s:
        while s.recv_into(buffer):
            pass
    print(time.monotonic() - start)


{"send": send, "take": take}[sys.argv[1]](*sys.argv[2:])
