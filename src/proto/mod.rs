//! Sans-IO protocols: state machines driven by `handle_*(now, ..)` and emptied by `poll_*`. No
//! sockets, clocks, threads or sources of randomness live here; time is a [`std::time::Duration`]
//! since a start the caller chose, random bytes come from a function the caller passes in.

pub mod bencode;
pub mod bitfield;
pub mod blocks;
pub mod choker;
pub mod extension;
pub mod frame;
pub mod handshake;
pub mod http_tracker;
pub mod ip_filter;
pub mod lsd;
pub mod magnet;
pub mod metainfo;
pub mod mse;
pub mod noise;
pub mod pex;
pub mod picker;
pub mod portmap;
pub mod proxy;
pub mod rate;
pub mod scheduler;
pub mod session;
pub mod torrent;
pub mod tracker;
pub mod udp_tracker;
pub mod ut_metadata;
pub mod ut_xet;
pub mod web_seed;
pub mod wire;
