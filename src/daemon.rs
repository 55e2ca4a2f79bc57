//! The daemon of a state directory.

use std::sync::Arc;

use crate::api::{ApiError, Control, ErrorKind};
use crate::config::{Config, StateDir};

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("the daemon is not implemented yet")]
    NotImplemented,
}

impl From<DaemonError> for ApiError {
    fn from(error: DaemonError) -> Self {
        Self::new(ErrorKind::Internal, error)
    }
}

/// Starts the daemon of the locked directory `state`, which it holds until it is shut down.
pub async fn start(
    _config: Arc<Config>,
    _state: StateDir,
) -> Result<Arc<dyn Control>, DaemonError> {
    Err(DaemonError::NotImplemented)
}
