//! A daemon that keeps everything in memory: the double behind which the server, the client and the foreground loop are
//! tested. Shares and mounts are only names here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;

use super::types::*;
use super::{ApiError, Control, ErrorKind, ProgressSink, Reply, Work, WorkItem, WorkKind};

/// Answers every call at once, except that `pin` reports progress, waits as long as the path's last part says (in ms), and
/// panics for `/panic`.
pub(crate) struct FakeControl {
    work: watch::Sender<Work>,
    pins: Mutex<BTreeMap<PathBuf, bool>>,
}

impl Default for FakeControl {
    fn default() -> Self {
        Self {
            work: watch::Sender::new(Work::default()),
            pins: Mutex::default(),
        }
    }
}

impl FakeControl {
    /// Whether a pin of `path` was begun (`Some(false)`) or has ended (`Some(true)`).
    pub(crate) fn pin_ended(&self, path: &str) -> Option<bool> {
        self.pins.lock().unwrap().get(Path::new(path)).copied()
    }

    fn add(&self, kind: WorkKind, dir: ApiPath) {
        self.work
            .send_modify(|work| work.items.push(WorkItem { kind, dir }));
    }

    fn remove(&self, kind: WorkKind, dir: &ApiPath) -> Result<(), ApiError> {
        let mut found = false;
        self.work.send_modify(|work| {
            work.items.retain(|item| {
                let same = item.kind == kind && item.dir == *dir;
                found |= same;
                !same
            });
        });
        let error = || ApiError::new(ErrorKind::NotFound, format_args!("nothing is at {dir}"));
        found.then_some(()).ok_or_else(error)
    }
}

fn name_of(dir: &ApiPath) -> String {
    dir.as_path()
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into())
}

fn reply<T: Send + 'static>(result: Result<T, ApiError>) -> Reply<'static, T> {
    Box::pin(std::future::ready(result))
}

fn folder() -> String {
    "ab".repeat(32)
}

impl Control for FakeControl {
    fn share(&self, request: ShareRequest, _: ProgressSink) -> Reply<'_, ShareResponse> {
        self.add(WorkKind::Share, request.dir.clone());
        reply(Ok(ShareResponse {
            folder: folder(),
            name: request.name.unwrap_or_else(|| name_of(&request.dir)),
            read_write: Secret::new("ccbt:wfake"),
            read_only: Secret::new("ccbt:rfake"),
            content: Amount {
                files: 2,
                bytes: 3 << 20,
            },
        }))
    }

    fn unshare(&self, request: UnshareRequest, _: ProgressSink) -> Reply<'_, UnshareResponse> {
        let done = self.remove(WorkKind::Share, &request.dir);
        reply(done.map(|()| UnshareResponse {
            folder: folder(),
            name: name_of(&request.dir),
        }))
    }

    fn join(&self, request: JoinRequest, _: ProgressSink) -> Reply<'_, JoinResponse> {
        if !request.dry_run {
            self.add(WorkKind::Share, request.dir.clone());
        }
        reply(Ok(JoinResponse {
            folder: folder(),
            name: name_of(&request.dir),
            same: 1,
            different: 0,
            different_paths: Vec::new(),
            local_only: 0,
            local_only_paths: Vec::new(),
            missing: Amount { files: 2, bytes: 3 },
            dry_run: request.dry_run,
            dir: request.dir,
        }))
    }

    fn confirm(&self, request: ConfirmRequest, _: ProgressSink) -> Reply<'_, ConfirmResponse> {
        reply(Ok(ConfirmResponse {
            folder: folder(),
            name: name_of(&request.dir),
            held_back: None,
            content: Amount { files: 2, bytes: 3 },
        }))
    }

    fn conflicts(&self, _: ConflictsRequest, _: ProgressSink) -> Reply<'_, ConflictsResponse> {
        reply(Ok(ConflictsResponse {
            conflicts: Vec::new(),
            more: false,
        }))
    }

    fn resolve(&self, request: ResolveRequest, _: ProgressSink) -> Reply<'_, ResolveResponse> {
        reply(Ok(ResolveResponse {
            folder: folder(),
            kept: vec![request.path],
            removed: 1,
        }))
    }

    fn displaced(&self, _: DisplacedRequest, _: ProgressSink) -> Reply<'_, DisplacedResponse> {
        reply(Ok(DisplacedResponse {
            displaced: Vec::new(),
            restored: Vec::new(),
        }))
    }

    fn download(&self, request: DownloadRequest, _: ProgressSink) -> Reply<'_, DownloadResponse> {
        self.add(WorkKind::Torrent, request.dir);
        reply(Err(nothing()))
    }

    fn torrents(&self, _: TorrentsRequest, _: ProgressSink) -> Reply<'_, TorrentsResponse> {
        let torrents = Vec::new();
        reply(Ok(TorrentsResponse { torrents }))
    }

    fn torrent(&self, _: TorrentRequest, _: ProgressSink) -> Reply<'_, TorrentResponse> {
        reply(Err(nothing()))
    }

    fn mount(&self, request: MountRequest, _: ProgressSink) -> Reply<'_, MountResponse> {
        self.add(WorkKind::Mount, request.dir.clone());
        reply(Ok(MountResponse {
            folder: folder(),
            name: name_of(&request.dir),
            dir: request.dir,
            read_only: request.read_only,
            content: None,
        }))
    }

    fn unmount(&self, request: UnmountRequest, _: ProgressSink) -> Reply<'_, UnmountResponse> {
        let done = self.remove(WorkKind::Mount, &request.dir);
        reply(done.map(|()| UnmountResponse {
            folder: Some(folder()),
            dir: request.dir,
            only_here: Amount::default(),
        }))
    }

    fn status(&self, _: StatusRequest, _: ProgressSink) -> Reply<'_, StatusResponse> {
        let daemon = DaemonStatus {
            pid: std::process::id(),
            version: "0".into(),
            state: ApiPath("/s".into()),
            uptime_s: 61,
            listen: None,
            dht_nodes: None,
            portmap: None,
            metrics: BTreeMap::from([("ccbt_mounts".into(), 2)]),
        };
        let folder = FolderStatus {
            id: folder(),
            name: "photos\u{1b}[31m".into(),
            right: Right::Write,
            home: Some(ApiPath("/home/a/photos".into())),
            shared: true,
            mounts: vec![MountStatus {
                dir: ApiPath("/m".into()),
                read_only: false,
            }],
            content: Amount {
                files: 1204,
                bytes: 3_328_599_654,
            },
            peers: 1,
            heads: vec![HeadStatus {
                device: "laptop".into(),
                age_s: 5,
                snapshot: "0123456789".into(),
                newest: true,
            }],
            root: "deadbeef".into(),
            converged_with: 1,
            only_here: Amount {
                files: 1,
                bytes: 10,
            },
            missing: Amount::default(),
            pinned: false,
            published: Some(PublishedStatus {
                snapshot: "0123456789".into(),
                age_s: 5,
            }),
            dirty_files: 3,
            held_back: None,
            waiting: None,
            directory: None,
        };
        reply(Ok(StatusResponse {
            daemon,
            folders: vec![folder],
            unopened: Vec::new(),
            jobs: Vec::new(),
        }))
    }

    fn peers(&self, _: PeersRequest, _: ProgressSink) -> Reply<'_, PeersResponse> {
        reply(Ok(PeersResponse { peers: Vec::new() }))
    }

    fn pin(&self, request: PinRequest, progress: ProgressSink) -> Reply<'_, PinResponse> {
        Box::pin(async move {
            let path = request.path.0;
            assert!(path != Path::new("/panic"), "told to panic");
            self.pins.lock().unwrap().insert(path.clone(), false);
            let wait_ms = name_of(&ApiPath(path.clone())).parse().unwrap_or(0);
            for step in 0..4 {
                progress.report(Progress {
                    files_done: step,
                    files_total: Some(4),
                    bytes_done: step << 20,
                    bytes_total: Some(4 << 20),
                    note: "fetching".into(),
                });
                tokio::time::sleep(Duration::from_millis(wait_ms / 4)).await;
            }
            self.pins.lock().unwrap().insert(path, true);
            Ok(PinResponse {
                kept: Amount {
                    files: 4,
                    bytes: 4 << 20,
                },
            })
        })
    }

    fn unpin(&self, _: UnpinRequest, _: ProgressSink) -> Reply<'_, UnpinResponse> {
        reply(Ok(UnpinResponse {
            released: Amount { files: 1, bytes: 1 },
        }))
    }

    fn evict(&self, request: EvictRequest, _: ProgressSink) -> Reply<'_, EvictResponse> {
        let error = ApiError::new(
            ErrorKind::Refused,
            format_args!("{} is pinned", request.path),
        );
        reply(Err(error.hint("unpin it first")))
    }

    fn keys(&self, request: KeysRequest, _: ProgressSink) -> Reply<'_, KeysResponse> {
        let owner = request.action == KeysAction::Backup;
        reply(Ok(KeysResponse {
            device_name: "desk".into(),
            device_key: "cd".repeat(32),
            folders: vec![FolderKeys {
                id: folder(),
                name: "photos".into(),
                right: Right::Owner,
                read_write: Some(Secret::new("ccbt:wfake")),
                read_only: Some(Secret::new("ccbt:rfake")),
                owner: owner.then(|| Secret::new("ccbt:ofake")),
            }],
        }))
    }

    fn store(&self, request: StoreRequest, _: ProgressSink) -> Reply<'_, StoreResponse> {
        let dry_run = request.action == StoreAction::Gc { dry_run: true };
        reply(Ok(StoreResponse::Gc(GcResponse {
            dry_run,
            dropped: 3,
            dropped_bytes: 3000,
            freed_bytes: 2000,
        })))
    }

    fn shutdown(&self, _: ShutdownRequest, _: ProgressSink) -> Reply<'_, ShutdownResponse> {
        let mut unmounted = Vec::new();
        self.work.send_modify(|work| {
            let mounts = work
                .items
                .drain(..)
                .filter(|item| item.kind == WorkKind::Mount);
            unmounted = mounts.map(|item| item.dir).collect();
            work.ended = true;
        });
        reply(Ok(ShutdownResponse {
            unmounted,
            only_here: Amount::default(),
        }))
    }

    fn work(&self) -> watch::Receiver<Work> {
        self.work.subscribe()
    }
}

/// This daemon has no torrents.
fn nothing() -> ApiError {
    ApiError::new(ErrorKind::NotFound, "there is no such torrent")
}
