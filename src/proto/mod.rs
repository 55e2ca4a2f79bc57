//! Protocols and decisions without IO: each is fed events and the time, and asked what to do.

pub mod scheduler;
