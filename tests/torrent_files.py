#!/usr/bin/python3
"""What libtorrent makes of torrents. Usage: torrent_files.py check TORRENT DIR | make PATH TORRENT VERSION"""

import json
import os
import sys
import time

import libtorrent as lt


def hashes(info):
    both = info.info_hashes()
    return {
        "v1": str(both.v1) if both.has_v1() else None,
        "v2": str(both.v2) if both.has_v2() else None,
    }


def check(torrent, folder):
    """Rereads the content below `folder` against the torrent, as a client does that is to seed it."""
    info = lt.torrent_info(torrent)
    session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
                          "enable_upnp": False, "enable_natpmp": False})
    handle = session.add_torrent({"ti": info, "save_path": folder})
    deadline = time.time() + 60
    while time.time() < deadline:
        status = handle.status()
        if status.state in (lt.torrent_status.seeding, lt.torrent_status.finished):
            break
        if status.state == lt.torrent_status.downloading:
            break
        time.sleep(0.05)
    status = handle.status()
    files = [[info.files().file_path(n), info.files().file_size(n)] for n in range(info.num_files())
             if not info.files().file_flags(n) & lt.file_storage.flag_pad_file]
    print(json.dumps({"hashes": hashes(info), "whole": status.is_seeding, "files": files}))


def make(path, torrent, version):
    flags = {"v1": lt.create_torrent.v1_only, "v2": lt.create_torrent.v2_only, "hybrid": 0}[version]
    storage = lt.file_storage()
    lt.add_files(storage, path)
    creator = lt.create_torrent(storage, 16384, flags)
    creator.add_tracker("http://tracker.example/announce")
    lt.set_piece_hashes(creator, os.path.dirname(path))
    with open(torrent, "wb") as out:
        out.write(lt.bencode(creator.generate()))
    print(json.dumps({"hashes": hashes(lt.torrent_info(torrent))}))


if sys.argv[1] == "check":
    check(*sys.argv[2:])
else:
    make(*sys.argv[2:])
