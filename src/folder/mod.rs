//! One folder on one device.

pub mod home;
