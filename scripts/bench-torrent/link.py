"""A link with a delay and a rate between two network namespaces, in user space: what one side's TUN device sends arrives at the
other's after half the round trip, no faster than the rate. Packets are large, so that Python keeps up. No packet is lost.

    link.py NAMESPACE_A NAMESPACE_B IP_A IP_B ROUND_TRIP_MS BYTES_PER_SECOND       prints "up", ends when stdin does"""
import collections, fcntl, os, select, struct, subprocess, sys, time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
MTU = 32768
DEVICE = "ccdelay"


def device(namespace, ip, other):
    with open(f"/run/netns/{namespace}") as ns:
        os.setns(ns.fileno(), os.CLONE_NEWNET) if hasattr(os, "setns") else setns(ns.fileno())
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22s", DEVICE.encode(), IFF_TUN | IFF_NO_PI, b""))
    for args in (["addr", "add", ip, "peer", other, "dev", DEVICE], ["link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "10000", "up"]):
        subprocess.run(["ip", *args], check=True)
    return fd


def setns(fd):
    import ctypes
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Way:
    """One direction: packets with the time they are due."""

    def __init__(self, source, target, delay, rate):
        self.source, self.target, self.delay, self.rate = source, target, delay, rate
        self.queue, self.free_at = collections.deque(), 0.0

    def take(self, now):
        while True:
            try:
                packet = os.read(self.source, MTU + 64)
            except BlockingIOError:
                return
            self.free_at = max(self.free_at, now) + len(packet) / self.rate
            self.queue.append((self.free_at + self.delay, packet))

    def give(self, now):
        while self.queue and self.queue[0][0] <= now:
            try:
                os.write(self.target, self.queue[0][1])
            except BlockingIOError:
                return
            self.queue.popleft()


def main(ns_a, ns_b, ip_a, ip_b, round_trip_ms, rate):
    a, b = device(ns_a, ip_a, ip_b), device(ns_b, ip_b, ip_a)
    delay, rate = float(round_trip_ms) / 2000, float(rate)
    ways = [Way(a, b, delay, rate), Way(b, a, delay, rate)]
    print("up", flush=True)
    while True:
        now = time.monotonic()
        for way in ways:
            way.give(now)
        due = min((way.queue[0][0] for way in ways if way.queue), default=now + 1)
        ready, _, _ = select.select([a, b, sys.stdin], [], [], max(0.0, due - time.monotonic()))
        if sys.stdin in ready:
            return
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(now)


main(*sys.argv[1:])
