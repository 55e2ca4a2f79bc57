//! A home: the plain directory a folder is published from.

pub mod base;
pub mod guard;
pub mod plan;
