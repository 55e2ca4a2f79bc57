//! The kernel side of a ccbt mount.
