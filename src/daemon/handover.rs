//! What would be out of everybody's reach if this daemon went now: waits, for a while, until a keeper has it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Daemon;
use super::open::OpenFolder;
use super::status::only_here;
use crate::api::ProgressSink;
use crate::api::types::{Amount, Progress};

/// Longest wait of an unmount, or of a stop for all folders together.
pub(super) const HANDOVER_TIME: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(100);

impl Daemon {
    /// Waits until `end` for keepers to have what only we hold, while there is one that may come to have it. Returns
    /// what is left. Of a folder that is not shared nobody else is to have anything.
    pub(super) async fn hand_over(
        &self,
        open: &Arc<OpenFolder>,
        end: Instant,
        progress: &ProgressSink,
    ) -> Amount {
        if !self.0.gate.is_open(&open.credentials.swarm()) {
            return Amount::default();
        }
        let mut most = 0;
        loop {
            let Some(status) = open.swarm.status().await else {
                return Amount::default();
            };
            let (folder, elsewhere) = (open.folder.clone(), status.elsewhere);
            let count = move || folder.stats(&|dot| elsewhere.has(dot));
            let left = only_here(&tokio::task::spawn_blocking(count).await.unwrap_or_default());
            if left.files == 0 || status.keepers == 0 || Instant::now() >= end {
                return left;
            }
            most = most.max(left.files);
            progress.report(Progress {
                files_done: most - left.files,
                files_total: Some(most),
                note: "waiting until another device keeps what is only here".to_owned(),
                ..Progress::default()
            });
            sleep(POLL).await;
        }
    }
}
