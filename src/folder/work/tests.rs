//! The working tree as a mount drives it, on a disk that can crash.

mod basic;
mod faults;
mod garbage;
mod keeping;
mod merging;
mod patching;
mod random;
mod restore;
mod rig;
mod runs;
