//! Drives the protocols with tokio: connections to peers, one actor per folder, discovery.
//!
//! - [`peer`]: one task per connection. Owns the socket and the session, serves what the peer asks from the store,
//!   verifies and stores what the peer sends.
//! - [`swarm`]: one actor per folder. Owns who is connected, which heads are believed, what is fetched from whom and when
//!   the folder is published. Everything reaches it as a message; nothing else holds its state.
//! - [`torrent`]: one actor per torrent, with its connections, its files and the threads that hash.
//! - [`discovery`]: finds peers by DHT, trackers and local multicast.
//! - `gate`: where connections come in and go out. `call`: by which way; `greet`: how those of torrents begin; `stream`: what carries them;
//!   `utp`: one of the two things that can.
//! - [`portmap`]: keeps our port reachable through the router.
//! - [`limits`]: how fast the connections of torrents may be.
//! - `dial`, `serve`, `allowance`: the plain data these two decide with.

mod allowance;
mod call;
pub mod create;
mod dial;
pub mod discovery;
pub mod gate;
mod greet;
pub mod limits;
pub mod peer;
pub mod portmap;
mod serve;
mod stream;
pub mod swarm;
pub mod torrent;
mod utp;
