//! `pin`, `unpin` and `evict`: what of a folder's content stays on this device.

use std::path::Path;
use std::sync::Arc;

use super::Daemon;
use super::open::OpenFolder;
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
