#!/usr/bin/python3
"""libtorrent as the other side. Usage: torrent_peer.py [--set NAME=VALUE]... seed|leech ...
--set is a setting of libtorrent's session, such as out_enc_policy=0.
torrent_peer.py seed TORRENT DIR [UPLOAD_BYTES_PER_SECOND]   says {"port": n} once it seeds; ends when stdin does
torrent_peer.py leech TORRENT|MAGNET DIR PEER_PORT [PEER_IP] ends when all is there, says {"done": true}"""

import json
import sys
import time

import libtorrent as lt

SETTINGS = {}


def session():
    settings = {"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
                       "enable_upnp": False, "enable_natpmp": False, "enable_outgoing_utp": False,
                       "enable_incoming_utp": False, "allow_multiple_connections_per_ip": True,
                       "alert_mask": lt.alert.category_t.all_categories}
    return lt.session(settings | SETTINGS)


def only_v2(handle):
    hashes = handle.info_hashes()
    return hashes.has_v2() and not hashes.has_v1()


def say(value):
    print(json.dumps(value), flush=True)


def seed(torrent, folder, limit=0):
    ses = session()
    ses.apply_settings({"upload_rate_limit": int(limit)})
    ses.set_peer_class_filter(lt.ip_filter())
    handle = ses.add_torrent({"ti": lt.torrent_info(torrent), "save_path": folder})
    while not handle.status().is_seeding:
        time.sleep(0.02)
    say({"port": ses.listen_port()})
    sys.stdin.read()


# How a peer is to be called (pex_flags): as one that knows v2, beside what connect_peer says by default. Without it libtorrent
# names a torrent by its v1 hash, which a v2-only one does not have.
FLAGS, FLAG_V2 = 0x0d, 0x80

# Seconds without a block before a leecher is stuck.
PATIENCE_S = 120


def leech(torrent, folder, port, host="127.0.0.1"):
    ses = session()
    if torrent.startswith("magnet:"):
        params = lt.parse_magnet_uri(torrent)
        params.save_path = folder
        handle = ses.add_torrent(params)
    else:
        handle = ses.add_torrent({"ti": lt.torrent_info(torrent), "save_path": folder})
    # A slow machine is no reason to give up; nothing arriving is.
    deadline, done = time.time() + PATIENCE_S, 0
    asked = 0
    while time.time() < deadline:
        status = handle.status()
        if status.total_done > done:
            deadline, done = time.time() + PATIENCE_S, status.total_done
        if status.is_seeding:
            # Blocks may still be on their way to the files.
            handle.flush_cache()
            time.sleep(0.2)
            say({"done": True})
            return
        if status.num_peers == 0 and time.time() - asked > 1:
            asked = time.time()
            flags = FLAGS | (FLAG_V2 if only_v2(handle) else 0)
            handle.connect_peer((host, int(port)), 0, flags)
        time.sleep(0.02)
    for alert in ses.pop_alerts():
        print(alert, file=sys.stderr)
    say({"done": False, "state": str(handle.status().state), "progress": handle.status().progress})


args = sys.argv[1:]
while args[0] == "--set":
    name, value = args[1].split("=", 1)
    SETTINGS[name] = int(value) if value.isdigit() else value
    args = args[2:]
if args[0] == "seed":
    seed(*args[1:])
else:
    leech(*args[1:])
