"""libtorrent as the other side of a measurement: takes one JSON object a line on stdin, answers with one on stdout.

    peer.py ADDRESS [SETTINGS]

{"do": "seed", torrent, dir}: adds it and waits until all is there; {"do": "hold", ...}: adds it; {"do": "leech", torrent, dir, peer}: until
all is there; {"do": "metadata", magnet, dir, peer}: until the metadata is there; {"do": "limit", rate}: of all that is sent, in bytes per second; {"do": "stats"}. Times are seconds of this process's clock."""
import json, resource, sys, time

import libtorrent as lt

CATEGORY = lt.alert.category_t


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mib():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / (1 << 20)


class Peer:
    def __init__(self, address, settings):
        self.session = lt.session({
            "listen_interfaces": f"{address}:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
            "enable_outgoing_utp": False, "enable_incoming_utp": False, "allow_multiple_connections_per_ip": True,
            "alert_mask": CATEGORY.status_notification | CATEGORY.error_notification, **settings})
        # Limits count on the loopback too.
        everybody = lt.ip_filter()
        everybody.add_rule("0.0.0.0", "255.255.255.255", 1 << lt.session.global_peer_class_id)
        self.session.set_peer_class_filter(everybody)
        self.handle = None

    def params(self, ask):
        if "magnet" in ask:
            params = lt.parse_magnet_uri(ask["magnet"])
        elif hasattr(lt, "load_torrent_file"):
            params = lt.load_torrent_file(ask["torrent"])
        else:
            params = lt.add_torrent_params()
            params.ti = lt.torrent_info(ask["torrent"])
        params.save_path = ask["dir"]
        return params

    def add(self, ask):
        if self.handle is not None:
            self.session.remove_torrent(self.handle)
            self.until("torrent_removed_alert")
        params = self.params(ask)
        self.session.pop_alerts()
        start, before = time.monotonic(), cpu()
        self.handle = self.session.add_torrent(params)
        self.handle.unset_flags(lt.torrent_flags.auto_managed)
        self.handle.resume()
        if "peer" in ask:
            self.handle.connect_peer(tuple(ask["peer"]))
        return start, before

    def until(self, name, also=lambda: False):
        while not also():
            self.session.wait_for_alert(50)
            if any(type(alert).__name__ == name for alert in self.session.pop_alerts()):
                return

    def do(self, ask):
        match ask["do"]:
            case "seed":
                self.add(ask)
                self.until("torrent_finished_alert", lambda: self.handle.status().is_seeding)
                return {"port": self.session.listen_port()}
            case "hold":
                self.add(ask)
                return {"port": self.session.listen_port()}
            case "leech":
                idle = rss_mib()
                start, before = self.add(ask)
                self.until("torrent_finished_alert", lambda: self.handle.status().is_finished)
                return {"s": time.monotonic() - start, "cpu_s": cpu() - before, "rss_mib": peak_mib() - idle}
            case "metadata":
                start, _ = self.add(ask)
                self.until("metadata_received_alert", lambda: self.handle.status().has_metadata)
                return {"s": time.monotonic() - start}
            case "limit":
                self.session.apply_settings({"upload_rate_limit": ask["rate"]})
                return {}
            case "stats":
                sent = self.handle.status().total_payload_upload if self.handle else 0
                return {"cpu_s": cpu(), "sent": sent}
        raise ValueError(ask["do"])


peer = Peer(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
print(json.dumps({"version": lt.__version__}), flush=True)
for line in sys.stdin:
    print(json.dumps(peer.do(json.loads(line))), flush=True)
