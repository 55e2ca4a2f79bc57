//! From a request or a record to a running torrent, and waiting until it is as far as who asked wants.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::{Daemon, MountOf, place};
use super::command::pause;
use super::record::{METAINFO_FILE, TorrentRecord, save, save_metainfo};
use super::{OpenTorrent, Others, name_of, short_hashes};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::engine::discovery::Reach;
use crate::engine::torrent::select::Selection;
use crate::engine::torrent::{self, Metadata, Phase, TorrentConfig, TorrentHandle, TorrentStatus};
use crate::proto::magnet::Magnet;
use crate::proto::metainfo::chunks::ChunkLists;
use crate::proto::metainfo::{InfoHashes, TORRENT_BYTES_MAX, Torrent};
use crate::volume::TorrentVolume;

/// How long a mount waits for peers to say what the torrent is.
const METADATA_TIME: Duration = Duration::from_secs(60);

/// How often the note of a wait is made anew though the torrent itself has no news.
const NOTE_TIME: Duration = Duration::from_secs(1);

/// What was found out about a torrent before it runs.
pub(super) struct Known {
    hashes: InfoHashes,
    name: String,
    private: bool,
    /// In tiers (BEP 12); each tracker of a magnet link is a tier of its own.
    pub(super) trackers: Vec<Vec<String>>,
    pub(super) metadata: Option<Metadata>,
    peers: Vec<(String, u16)>,
    web_seeds: Vec<String>,
    chunks: ChunkLists,
}

impl Daemon {
    /// Begins a download, or goes on with one, and waits as far as the request wants.
    pub(in crate::daemon) async fn download_torrent(
        &self,
        request: DownloadRequest,
        progress: ProgressSink,
    ) -> Result<DownloadResponse, ApiError> {
        let until = request.until;
        let _turn = self.0.turn.lock().await;
        let open = self.add_torrent(request, false).await?;
        drop(_turn);
        self.announce_work();
        self.wait(&open.handle, until, &progress).await?;
        Ok(DownloadResponse {
            torrent: self.entry_of(&open),
        })
    }

    /// `lazy`: a mount wants it, so one that is here is taken wherever its files go. The caller holds `turn`.
    async fn add_torrent(
        &self,
        request: DownloadRequest,
        lazy: bool,
    ) -> Result<Arc<OpenTorrent>, ApiError> {
        if self.0.stopping.load(Ordering::Relaxed) {
            return Err(ApiError::new(
                ErrorKind::Busy,
                "the daemon is shutting down",
            ));
        }
        let (bytes, magnet) = match &request.source {
            TorrentSource::File(path) => (Some(read_torrent(&path.0)?), None),
            TorrentSource::Magnet(text) => (None, Some(text.clone())),
        };
        let known = know(bytes.as_deref(), magnet.as_deref())?;
        let hash = name_of(&known.hashes);
        if let Some(open) = self.0.torrents.lock().get(&hash).cloned() {
            request
                .peers
                .iter()
                .for_each(|peer| open.handle.give(*peer));
            if lazy {
                return Ok(open);
            }
            let settings = asked(&request);
            let open = same_place(open, &request.dir)?;
            return self
                .change_settings(&open, |own| {
                    own.lay(&settings);
                    Ok(())
                })
                .map(|()| open);
        }
        let state = self.torrents_dir().join(&hash);
        std::fs::create_dir_all(&state).map_err(|error| {
            ApiError::io(format_args!("cannot make {}", place::shown(&state)), &error)
        })?;
        if let Some(bytes) = &bytes {
            save_metainfo(&state, bytes)?;
        }
        let dir = match lazy {
            true => ApiPath(state.join("data")),
            false => request.dir.clone(),
        };
        let settings = asked(&request);
        let mut record = TorrentRecord::new(dir, lazy, magnet);
        record.selection.patterns = request.select;
        record.settings = settings;
        record.peers = request.peers;
        save(&state, &record)?;
        let open = self.open_torrent(state, record).await?;
        self.look_at_queue();
        Ok(open)
    }

    pub(super) async fn open_torrent(
        &self,
        state: PathBuf,
        record: TorrentRecord,
    ) -> Result<Arc<OpenTorrent>, ApiError> {
        let bytes = std::fs::read(state.join(METAINFO_FILE)).ok();
        let known = know(bytes.as_deref(), record.magnet.as_deref())?;
        let reach = first_reach(&known);
        let port = self.listen()?.port();
        let peers = self.first_peers(&known, &record);
        let selection = selection_of(&record);
        let config = TorrentConfig {
            hashes: known.hashes,
            name: known.name,
            metadata: known.metadata,
            dir: record.dir.0.clone(),
            state: state.clone(),
            selection,
            settings: record.settings.resolve(&self.0.config),
            lazy: record.lazy,
            paused: record.paused,
            peers,
            web_seeds: match self.0.config.torrent.web_seeds {
                true => known.web_seeds,
                false => Vec::new(),
            },
            chunks: known.chunks,
            lenders: match self.0.config.torrent.dedup {
                true => Some(Arc::new(Others(Arc::downgrade(&self.0)))),
                false => None,
            },
            exchange: self.0.config.pex,
            port,
            shared: self.0.torrent_shared.clone(),
        };
        let incomplete = config.metadata.as_ref().is_none_or(Metadata::lacks_layers);
        let handle = torrent::spawn(config, self.0.gate.clone());
        let hash = name_of(&known.hashes);
        for short in short_hashes(&known.hashes) {
            self.0.gate.open_torrent(short, handle.clone());
            let tiers = known.trackers.clone();
            self.watch_for_peers(short, tiers, reach, &handle);
        }
        if incomplete {
            let kept = self.clone().keep_metadata(
                handle.clone(),
                state.clone(),
                known.trackers.clone(),
                reach,
            );
            tokio::spawn(kept);
        }
        let open = Arc::new(OpenTorrent {
            handle,
            hashes: known.hashes,
            record: Mutex::new(record),
            state,
            hash: hash.clone(),
            keeps: incomplete.then_some(known.trackers),
            waits: AtomicBool::new(false),
            rested: AtomicBool::new(false),
            counted: Mutex::default(),
        });
        self.0.torrents.lock().insert(hash, Arc::clone(&open));
        Ok(open)
    }

    /// Peers that the configuration, the user or the link name.
    fn first_peers(&self, known: &Known, record: &TorrentRecord) -> Vec<SocketAddr> {
        let mut peers: Vec<SocketAddr> = self
            .0
            .config
            .peers
            .iter()
            .chain(&record.peers)
            .copied()
            .collect();
        for (host, port) in known.peers.iter().take(16) {
            if let Ok(ip) = host.parse() {
                peers.push(SocketAddr::new(ip, *port));
            }
        }
        peers
    }

    /// Mounts a torrent; what is read is fetched.
    pub(in crate::daemon) async fn mount_torrent_at(
        &self,
        source: TorrentSource,
        dir: PathBuf,
        peers: &[SocketAddr],
        progress: &ProgressSink,
    ) -> Result<MountResponse, ApiError> {
        let request = DownloadRequest {
            source,
            dir: ApiPath(dir.clone()),
            select: Vec::new(),
            sequential: false,
            seed_percent: None,
            settings: TorrentSettings::default(),
            peers: peers.to_vec(),
            until: TorrentUntil::Started,
        };
        let turn = self.0.turn.lock().await;
        let open = self.add_torrent(request, true).await?;
        drop(turn);
        // Others go on meanwhile.
        let known = self.wait_for_metadata(&open.handle, progress);
        let known = tokio::time::timeout(METADATA_TIME, known).await;
        let late = || {
            ApiError::new(
                ErrorKind::Timeout,
                "no peer has sent the metadata of the torrent",
            )
            .hint("use the .torrent file, or name a peer with --peer IP:PORT")
        };
        let _turn = self.0.turn.lock().await;
        let mounted = match known.map_err(|_| late()).flatten() {
            Ok(()) => self.mount_known(&open, dir).await,
            Err(error) => Err(error),
        };
        if mounted.is_err() {
            self.close_unmounted(&MountOf::Torrent(open.hash.clone()))
                .await;
        }
        mounted
    }

    /// The caller holds `turn`.
    async fn mount_known(
        &self,
        open: &OpenTorrent,
        dir: PathBuf,
    ) -> Result<MountResponse, ApiError> {
        // Somebody may have used it while we waited.
        self.check_mount_point(&dir)?;
        let gone = || ApiError::new(ErrorKind::Refused, "the torrent was removed");
        let reader = open.handle.reader().await.ok_or_else(gone)?;
        let metadata = open.handle.metadata().await.ok_or_else(gone)?;
        let volume = TorrentVolume::new(
            &metadata.info,
            reader,
            &open.hash,
            self.0.config.read_timeout,
        );
        let entry = self.entry_of(open);
        self.mount_torrent(volume, open.hash.clone(), &entry.name, &dir)
            .await?;
        self.announce_work();
        Ok(MountResponse {
            folder: entry.hash,
            name: entry.name,
            dir: ApiPath(dir),
            read_only: true,
            content: entry.content,
        })
    }
}

impl Daemon {
    /// Waits until it is known what the torrent is and what of it is here.
    async fn wait_for_metadata(
        &self,
        handle: &TorrentHandle,
        progress: &ProgressSink,
    ) -> Result<(), ApiError> {
        let mut status = handle.status();
        loop {
            let now = status.borrow_and_update().clone();
            match now.phase {
                Phase::Metadata | Phase::Checking => {
                    progress.report(self.progress_of(handle, &now));
                }
                Phase::Stopped => {
                    return Err(ApiError::new(
                        ErrorKind::Io,
                        crate::api::escape(now.note.as_bytes()),
                    ));
                }
                _ => return Ok(()),
            }
            news(&mut status).await?;
        }
    }

    /// Waits until the torrent is as far as it shall be. Trouble only the user can end ends the wait.
    async fn wait(
        &self,
        handle: &TorrentHandle,
        until: TorrentUntil,
        progress: &ProgressSink,
    ) -> Result<(), ApiError> {
        let mut status = handle.status();
        loop {
            let now = status.borrow_and_update().clone();
            let done = match until {
                TorrentUntil::Started => true,
                TorrentUntil::Finished => now.finished,
                TorrentUntil::Seeded => now.done_seeding,
            };
            if done {
                return Ok(());
            }
            if now.phase == Phase::Stopped {
                return Err(
                    ApiError::new(ErrorKind::Io, crate::api::escape(now.note.as_bytes()))
                        .hint("put that right, then give the same command again"),
                );
            }
            progress.report(self.progress_of(handle, &now));
            news(&mut status).await?;
        }
    }

    fn progress_of(&self, handle: &TorrentHandle, status: &TorrentStatus) -> Progress {
        Progress {
            bytes_done: status.bytes_done,
            bytes_total: status.bytes_total,
            note: self.note_of(handle, status),
            ..Progress::default()
        }
    }
}

/// Waits until something has changed, or trackers may have said something.
async fn news(status: &mut watch::Receiver<TorrentStatus>) -> Result<(), ApiError> {
    match tokio::time::timeout(NOTE_TIME, status.changed()).await {
        Ok(Err(_)) => Err(ApiError::new(ErrorKind::Refused, "the torrent was removed")),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// The user's choice, and that of the magnet link.
pub(super) fn selection_of(record: &TorrentRecord) -> Selection {
    let mut selection = record.selection.clone();
    let magnet = record.magnet.as_deref().map(Magnet::parse);
    if let Some(Ok(magnet)) = magnet {
        selection.numbers.extend(magnet.select);
    }
    selection
}

/// What the request wants to be different for the torrent.
fn asked(request: &DownloadRequest) -> TorrentSettings {
    let mut settings = request.settings.clone();
    if request.sequential {
        settings.order = Some(PieceOrder::Sequential);
    }
    settings.seed_percent = request.seed_percent.or(settings.seed_percent);
    settings
}

fn same_place(open: Arc<OpenTorrent>, dir: &ApiPath) -> Result<Arc<OpenTorrent>, ApiError> {
    let known = open.dir();
    if known != *dir {
        let what = format!("this torrent is here already, in {known}");
        return Err(
            ApiError::new(ErrorKind::Busy, what).hint(format!("ccbt torrent {} remove", open.hash))
        );
    }
    pause(&open, false)?;
    Ok(open)
}

/// Where a torrent is looked for at first.
fn first_reach(known: &Known) -> Reach {
    let unknown = known.metadata.is_none() && !known.trackers.is_empty();
    match known.private {
        true => Reach::TrackersOnly,
        false if unknown => Reach::TrackersFirst,
        false => Reach::Everywhere,
    }
}

pub(super) fn know(bytes: Option<&[u8]>, magnet: Option<&str>) -> Result<Known, ApiError> {
    let magnet = magnet.map(Magnet::parse).transpose();
    let magnet = magnet.map_err(|error| ApiError::new(ErrorKind::Usage, error))?;
    let torrent = bytes.map(Torrent::parse).transpose();
    let torrent = torrent.map_err(|error| ApiError::new(ErrorKind::Usage, error))?;
    let mut trackers: Vec<Vec<String>> = torrent
        .iter()
        .flat_map(|t| t.trackers.iter().cloned())
        .collect();
    let linked = magnet.iter().flat_map(|m| &m.trackers);
    for url in linked.filter(|url| {
        !torrent
            .iter()
            .any(|t| t.trackers.iter().flatten().any(|u| u == *url))
    }) {
        trackers.push(vec![url.clone()]);
    }
    let peers = magnet
        .iter()
        .flat_map(|m| m.peers.iter().cloned())
        .collect();
    let named = torrent.iter().flat_map(|t| &t.web_seeds);
    let linked = magnet.iter().flat_map(|m| &m.web_seeds);
    let web_seeds = named.chain(linked).cloned().collect();
    match (torrent, magnet) {
        (
            Some(Torrent {
                info,
                layers,
                chunks,
                ..
            }),
            _,
        ) => Ok(Known {
            hashes: info.hashes,
            name: String::from_utf8_lossy(info.name.as_bytes()).into_owned(),
            private: info.private,
            trackers,
            metadata: Some(Metadata { info, layers }),
            peers,
            web_seeds,
            chunks,
        }),
        (None, Some(magnet)) => Ok(Known {
            hashes: magnet.hashes,
            name: magnet.name.unwrap_or_else(|| name_of(&magnet.hashes)),
            private: false,
            trackers,
            metadata: None,
            peers,
            web_seeds,
            chunks: ChunkLists::default(),
        }),
        (None, None) => Err(ApiError::new(
            ErrorKind::Io,
            "the torrent's record names no torrent",
        )),
    }
}

fn read_torrent(path: &Path) -> Result<Vec<u8>, ApiError> {
    let shown = place::shown(path);
    let failed = |error| ApiError::io(format_args!("cannot read {shown}"), &error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(TORRENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > TORRENT_BYTES_MAX {
        let message = format!("{shown} is too large to be a torrent file");
        return Err(ApiError::new(ErrorKind::Usage, message));
    }
    Ok(bytes)
}
