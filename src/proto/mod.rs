//! Protocols and decisions without IO: each is fed events and the time, and asked what to do.

pub mod scheduler;
//! Sans-IO protocols: state machines driven by `handle_*(now, ..)` and emptied by `poll_*`. No
//! sockets, clocks, threads or sources of randomness live here; time is a [`std::time::Duration`]
//! since a start the caller chose, random bytes come from a function the caller passes in.
