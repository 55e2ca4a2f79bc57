//! What is looked at every second for all torrents together: who may be active, who has seeded enough, how fast all may be, and what
//! is counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::Daemon;
use super::OpenTorrent;
use super::command::pause;
use super::settings::shared_rates;
use crate::engine::torrent::{Phase, TorrentStatus};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A torrent as far as the queue cares.
#[derive(Debug, Clone, Copy)]
struct Waiter {
    finished: bool,
    forced: bool,
}

impl Daemon {
    /// Looks after torrents until the daemon stops.
    pub(in crate::daemon) fn start_torrent_upkeep(&self) {
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(daemon) = inner.upgrade().map(Self) else {
                    return;
                };
                if daemon.0.stopping.load(Ordering::Relaxed) {
                    return;
                }
                daemon.look_after_torrents();
            }
        });
    }

    fn look_after_torrents(&self) {
        let config = &self.0.config;
        self.0.torrent_shared.limits.set(shared_rates(config));
        let torrents: Vec<_> = self.0.torrents.lock().values().cloned().collect();
        for open in &torrents {
            end_seeding(open);
        }
        self.count_torrents(&torrents);
        self.let_in(torrents);
    }

    /// Something has changed in it.
    pub(super) fn look_at_queue(&self) {
        let all = self.0.torrents.lock().values().cloned().collect();
        self.let_in(all);
    }

    /// Lets as many torrents be active as the user wants, the oldest first.
    fn let_in(&self, mut torrents: Vec<Arc<OpenTorrent>>) {
        let keys = &self.0.config.torrent;
        if keys.downloads_max.or(keys.seeds_max).is_none() {
            return;
        }
        torrents.retain(|open| {
            let record = open.record.lock();
            !record.lazy && !record.paused
        });
        torrents.sort_by_key(|open| (open.record.lock().order, open.hash.clone()));
        let waiter = |open: &Arc<OpenTorrent>| Waiter {
            finished: open.handle.status().borrow().finished,
            forced: open.record.lock().settings.forced.unwrap_or(false),
        };
        let waiters: Vec<Waiter> = torrents.iter().map(waiter).collect();
        let waits = who_waits(&waiters, keys.downloads_max, keys.seeds_max);
        for (open, waits) in torrents.iter().zip(waits) {
            if open.waits.swap(waits, Ordering::Relaxed) != waits {
                open.handle.queue(waits);
            }
        }
    }

    fn count_torrents(&self, torrents: &[Arc<OpenTorrent>]) {
        let metrics = &self.0.metrics;
        let (mut downloading, mut seeding, mut peers) = (0, 0, 0);
        for open in torrents {
            let receiver = open.handle.status();
            let status = receiver.borrow();
            downloading += u64::from(status.phase == Phase::Downloading);
            seeding += u64::from(status.phase == Phase::Seeding);
            peers += status.peers as u64;
            let news = |now: &TorrentStatus| (now.bytes_down, now.bytes_up, now.bytes_wasted);
            let now = news(&status);
            let before = std::mem::replace(&mut *open.counted.lock(), now);
            metrics.torrent_bytes_in.add(now.0.saturating_sub(before.0));
            metrics
                .torrent_bytes_out
                .add(now.1.saturating_sub(before.1));
            metrics
                .torrent_bytes_wasted
                .add(now.2.saturating_sub(before.2));
        }
        metrics.torrents.set(torrents.len() as u64);
        metrics.torrents_downloading.set(downloading);
        metrics.torrents_seeding.set(seeding);
        metrics.torrent_peers.set(peers);
    }
}

/// One that has seeded as much as it was to rests until the user wants more of it.
fn end_seeding(open: &OpenTorrent) {
    let done = open.handle.status().borrow().done_seeding;
    if done
        && !open.rested.swap(true, Ordering::Relaxed)
        && let Err(error) = pause(open, true)
    {
        tracing::warn!(error = error.message, "it will seed again after a restart");
    }
}

/// For each of the torrents, in the order in which they come, whether it has to wait.
fn who_waits(torrents: &[Waiter], downloads_max: Option<u64>, seeds_max: Option<u64>) -> Vec<bool> {
    let (mut downloads, mut seeds) = (downloads_max, seeds_max);
    let wait = |torrent: &Waiter| {
        let places = if torrent.finished {
            &mut seeds
        } else {
            &mut downloads
        };
        match places {
            // It goes on whatever the number; it takes no place from others.
            _ if torrent.forced => false,
            None => false,
            Some(0) => true,
            Some(n) => {
                *n -= 1;
                false
            }
        }
    };
    torrents.iter().map(wait).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_let_in_and_forced_ones_always() {
        let torrent = |finished, forced| Waiter { finished, forced };
        let all = [
            torrent(false, false),
            torrent(true, false),
            torrent(false, true),
            torrent(false, false),
            torrent(true, false),
            torrent(false, false),
        ];
        assert_eq!(who_waits(&all, None, None), [false; 6]);
        assert_eq!(
            who_waits(&all, Some(2), Some(1)),
            [false, false, false, false, true, true]
        );
        assert_eq!(
            who_waits(&all, Some(1), None),
            [false, false, false, true, false, true]
        );
    }
}
