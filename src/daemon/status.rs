//! `status`, `peers` and `keys`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::open::OpenFolder;
use super::{Daemon, stores};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind};
use crate::engine::swarm::SwarmStatus;
use crate::folder::home::problems::ProblemKind;
use crate::folder::home::{Home, Watching};
use crate::folder::work::FolderStats;
use crate::share::Right as ShareRight;

/// Hex digits of a root shown to people.
const ROOT_DIGITS: usize = 12;

impl Daemon {
    pub(super) async fn report_status(&self) -> Result<StatusResponse, ApiError> {
        let open: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let mut folders = Vec::new();
        for folder in open {
            if let Some(status) = folder.swarm.status().await {
                let (counted, elsewhere) = (folder.folder.clone(), status.elsewhere.clone());
                let home = folder.home.lock().clone();
                let look = move || {
                    let stats = counted.stats(&|dot| elsewhere.has(dot));
                    (stats, home.map(|home| home_status(&home)))
                };
                let looked = tokio::task::spawn_blocking(look).await;
                let (stats, home) = looked.unwrap_or_default();
                folders.push(self.folder_status(&folder, &status, &stats, home));
            }
        }
        let daemon = DaemonStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: ApiPath(self.0.state.path().to_path_buf()),
            uptime_s: self.0.clock.now().as_secs(),
            listen: *self.0.listening.lock(),
            dht_nodes: self.dht_nodes(),
            portmap: self.portmap_entry(),
            metrics: self.metrics(),
        };
        let jobs = self.0.jobs.lock().values().cloned().collect();
        Ok(StatusResponse {
            daemon,
            folders,
            unopened: self.0.unopened.lock().values().cloned().collect(),
            jobs,
        })
    }

    fn folder_status(
        &self,
        open: &OpenFolder,
        swarm: &SwarmStatus,
        stats: &FolderStats,
        directory: Option<HomeStatus>,
    ) -> FolderStatus {
        let record = open.record.lock().clone();
        let converged = swarm.peers.iter().filter(|peer| peer.converged).count();
        let held_back = directory.as_ref().and_then(|home| home.held_back.clone());
        let unwritten = directory.as_ref().and_then(|home| home.waiting.clone());
        let own = swarm.heads.iter().find(|head| head.own);
        FolderStatus {
            id: open.id.to_string(),
            name: record.name,
            right: open.right(),
            home: record.home,
            shared: self.0.gate.is_open(&open.credentials.swarm()),
            mounts: self.mounts_of(&open.id),
            content: Amount {
                files: stats.files,
                bytes: stats.bytes,
            },
            peers: count(swarm.peers.len()),
            heads: swarm
                .heads
                .iter()
                .map(|head| HeadStatus {
                    device: crate::api::escape(head.device.as_bytes()),
                    age_s: head.age_s,
                    snapshot: head.snapshot.clone(),
                    newest: head.newest,
                })
                .collect(),
            root: swarm.root.to_string().chars().take(ROOT_DIGITS).collect(),
            converged_with: count(converged),
            only_here: only_here(stats),
            missing: Amount {
                files: stats.missing_files,
                bytes: stats.missing_bytes,
            },
            pinned: swarm.replica,
            published: own.map(|head| PublishedStatus {
                snapshot: head.snapshot.clone(),
                age_s: head.age_s,
            }),
            dirty_files: stats.dirty,
            held_back,
            waiting: swarm.trouble.clone().or(unwritten),
            directory,
        }
    }

    fn metrics(&self) -> BTreeMap<String, u64> {
        let (metrics, store) = (&self.0.metrics, stores::stats(&self.0.stores.all()));
        metrics.peers_connected.set(self.0.gate.members() as u64);
        metrics.mounts.set(self.0.mounts.lock().len() as u64);
        metrics.store_bytes.set(store.bytes);
        metrics.store_memory_bytes.set(store.memory_bytes);
        metrics.packs_damaged.raise_to(store.quarantined);
        metrics.catalogues_rebuilt.raise_to(self.0.seen.rebuilt());
        let folders = self.0.folders.lock();
        let homes = folders.values().filter_map(|open| open.home.lock().clone());
        metrics
            .home_files_read
            .raise_to(homes.map(|home| home.opens()).sum());
        metrics.snapshot()
    }

    pub(super) async fn report_peers(
        &self,
        request: PeersRequest,
    ) -> Result<PeersResponse, ApiError> {
        let mut peers = Vec::new();
        for open in self.selected(request.folder.as_deref())? {
            let Some(status) = open.swarm.status().await else {
                continue;
            };
            let name = open.record.lock().name.clone();
            peers.extend(status.peers.into_iter().map(|peer| PeerStatus {
                folder: open.id.to_string(),
                folder_name: name.clone(),
                device: peer.device.map(|d| crate::api::escape(d.as_bytes())),
                addr: peer.addr,
                right: Some(if peer.writer {
                    Right::Write
                } else {
                    Right::Read
                }),
                incoming: peer.incoming,
                connected_s: peer.connected_s,
                bytes_in: peer.bytes_in,
                bytes_out: peer.bytes_out,
                converged: peer.converged,
            }));
        }
        Ok(PeersResponse { peers })
    }

    pub(super) fn report_keys(&self, request: &KeysRequest) -> Result<KeysResponse, ApiError> {
        let folders = self.selected(request.folder.as_deref())?;
        Ok(KeysResponse {
            device_name: self.0.device_name.to_string(),
            device_key: self.0.device.id().to_string(),
            folders: folders
                .iter()
                .map(|open| {
                    let link = |right| open.link_for(right).map(Secret::new);
                    let backup = request.action == KeysAction::Backup;
                    FolderKeys {
                        id: open.id.to_string(),
                        name: open.record.lock().name.clone(),
                        right: open.right(),
                        read_write: link(ShareRight::Write),
                        read_only: link(ShareRight::Read),
                        owner: backup.then(|| link(ShareRight::Owner)).flatten(),
                    }
                })
                .collect(),
        })
    }

    /// The open folders a request is about: all, or the one named by id, name or directory.
    fn selected(&self, folder: Option<&str>) -> Result<Vec<Arc<OpenFolder>>, ApiError> {
        let all: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let Some(wanted) = folder else { return Ok(all) };
        let at = std::fs::canonicalize(wanted)
            .ok()
            .and_then(|dir| self.folder_at(&dir));
        let found: Vec<Arc<OpenFolder>> = all
            .into_iter()
            .filter(|open| {
                let by_id = wanted.len() >= 8 && open.id.to_string().starts_with(wanted);
                let by_name = open.record.lock().name == wanted;
                by_id || by_name || at.as_ref().is_some_and(|at| at.id == open.id)
            })
            .collect();
        if found.is_empty() {
            let what = format!(
                "no open folder is called {}",
                crate::api::escape(wanted.as_bytes())
            );
            return Err(ApiError::new(ErrorKind::NotFound, what).hint("`ccbt status` lists them"));
        }
        Ok(found)
    }
}

/// How a plain directory stands; reads what is displaced in it.
fn home_status(home: &Home) -> HomeStatus {
    let displaced = home.displaced().unwrap_or_default();
    let kind = |kind| match kind {
        ProblemKind::Unreadable => HomeProblemKind::Unreadable,
        ProblemKind::Moving => HomeProblemKind::Moving,
        ProblemKind::Blocked => HomeProblemKind::Blocked,
        ProblemKind::Nested => HomeProblemKind::Nested,
        ProblemKind::Special => HomeProblemKind::Special,
    };
    let problems = home.problems().into_iter().map(|problem| HomeProblem {
        kind: kind(problem.kind),
        count: problem.count as u64,
        first: problem.first.into_iter().map(path_of).collect(),
    });
    HomeStatus {
        polling: match home.watching() {
            Watching::Events => None,
            Watching::Polling { why } => Some(why),
        },
        waiting: home.waiting(),
        held_back: home.held_back().map(|why| why.to_string()),
        problems: problems.collect(),
        displaced: Amount {
            files: displaced.len() as u64,
            bytes: displaced.iter().map(|one| one.bytes).sum(),
        },
    }
}

fn path_of(path: Vec<u8>) -> ApiPath {
    ApiPath(PathBuf::from(OsString::from_vec(path)))
}

/// What nobody else is known to hold.
pub(super) fn only_here(stats: &FolderStats) -> Amount {
    Amount {
        files: stats.only_here_files,
        bytes: stats.only_here_bytes,
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
