//! Torrents of the daemon: begun by `download`, remembered in a folder of their own each, opened again at every start.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::open::blocking;
use super::{Daemon, MountOf, place};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::engine::torrent::disk::DiskPool;
use crate::engine::torrent::select::Selection;
use crate::engine::torrent::slab::SlabPool;
use crate::engine::torrent::{
    self, Metadata, Phase, TorrentConfig, TorrentHandle, TorrentPeer, TorrentStatus,
};
use crate::proto::magnet::Magnet;
use crate::proto::metainfo::{InfoHashes, TORRENT_BYTES_MAX, Torrent};
use crate::random;
use crate::state_file;
use crate::volume::TorrentVolume;

const RECORD_FILE: &str = "torrent.json";
const METAINFO_FILE: &str = "metainfo.torrent";
/// Raised when the meaning of a field changes; a newer file is refused.
const VERSION: u32 = 1;
/// How long a mount waits for peers to say what the torrent is.
const METADATA_TIME: Duration = Duration::from_secs(60);
/// Client and version in our peer id (BEP 20).
const PEER_ID_HEAD: &[u8; 8] = b"-CC0100-";

/// What is remembered of a torrent over restarts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TorrentRecord {
    version: u32,
    /// As given; the metadata lies in a file beside this one.
    magnet: Option<String>,
    dir: ApiPath,
    selection: Selection,
    sequential: bool,
    /// Only what is read is fetched: it was made by a mount.
    #[serde(default)]
    lazy: bool,
    paused: bool,
    seed_percent: Option<u64>,
    peers: Vec<SocketAddr>,
}

/// A torrent that runs.
pub(super) struct OpenTorrent {
    handle: TorrentHandle,
    hashes: InfoHashes,
    record: Mutex<TorrentRecord>,
    /// The folder of the record.
    state: PathBuf,
    hash: String,
}

/// What was found out about a torrent before it runs.
struct Known {
    hashes: InfoHashes,
    name: String,
    private: bool,
    trackers: Vec<String>,
    metadata: Option<Metadata>,
    peers: Vec<(String, u16)>,
}

/// What all torrents of a daemon have in common.
pub(super) fn shared() -> Result<torrent::Shared, ApiError> {
    let disk = DiskPool::start().map_err(|error| ApiError::io("cannot start threads", &error))?;
    let mut peer_id = random::bytes::<20>();
    if let Some(head) = peer_id.first_chunk_mut() {
        *head = *PEER_ID_HEAD;
    }
    Ok(torrent::Shared {
        disk,
        slabs: SlabPool::default(),
        peer_id,
    })
}

impl OpenTorrent {
    pub(super) fn dir(&self) -> ApiPath {
        self.record.lock().dir.clone()
    }

    /// It is there for mounts alone.
    pub(super) fn is_lazy(&self) -> bool {
        self.record.lock().lazy
    }

    fn entry(&self) -> TorrentEntry {
        let status = self.handle.status().borrow().clone();
        TorrentEntry {
            hash: self.hash.clone(),
            name: status.name,
            state: match status.phase {
                Phase::Metadata => TorrentState::Metadata,
                Phase::Checking => TorrentState::Checking,
                Phase::Downloading => TorrentState::Downloading,
                Phase::Seeding => TorrentState::Seeding,
                Phase::Paused => TorrentState::Paused,
                Phase::Stopped => TorrentState::Stopped,
            },
            note: status.note,
            dir: self.dir(),
            content: status.bytes_total.map(|bytes| Amount {
                files: status.files_total,
                bytes,
            }),
            bytes_done: status.bytes_done,
            rate_down: status.rate_down,
            rate_up: status.rate_up,
            bytes_down: status.bytes_down,
            bytes_up: status.bytes_up,
            bytes_wasted: status.bytes_wasted,
            peers: u32::try_from(status.peers).unwrap_or(u32::MAX),
            seeds: u32::try_from(status.seeds).unwrap_or(u32::MAX),
        }
    }

    fn save(&self) -> Result<(), ApiError> {
        save(&self.state, &self.record.lock())
    }
}

impl Daemon {
    fn torrents_dir(&self) -> PathBuf {
        self.0.state.path().join("torrents")
    }

    /// Opens every torrent that was here before.
    pub(super) async fn resume_torrents(&self) {
        let Ok(entries) = std::fs::read_dir(self.torrents_dir()) else {
            return;
        };
        for entry in entries.flatten() {
            let state = entry.path();
            let opened = match load(&state) {
                // What a mount has left is opened by the next one.
                Ok(record) if record.lazy => Ok(()),
                Ok(record) => self.open_torrent(state.clone(), record).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = opened {
                let torrent = place::shown(&state);
                tracing::error!(torrent, error = error.message, "torrent not opened");
            }
        }
    }

    /// Begins a download, or goes on with one, and waits as far as the request wants.
    pub(super) async fn download_torrent(
        &self,
        request: DownloadRequest,
        progress: ProgressSink,
    ) -> Result<DownloadResponse, ApiError> {
        let until = request.until;
        let _turn = self.0.turn.lock().await;
        let open = self.add_torrent(request, false).await?;
        drop(_turn);
        self.announce_work();
        wait(&open.handle, until, &progress).await?;
        Ok(DownloadResponse {
            torrent: open.entry(),
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
            return if lazy {
                Ok(open)
            } else {
                same_place(open, &request.dir)
            };
        }
        let state = self.torrents_dir().join(&hash);
        std::fs::create_dir_all(&state).map_err(|error| {
            ApiError::io(format_args!("cannot make {}", place::shown(&state)), &error)
        })?;
        if let Some(bytes) = &bytes {
            save_metainfo(&state, bytes)?;
        }
        let record = TorrentRecord {
            version: VERSION,
            magnet,
            dir: match lazy {
                true => ApiPath(state.join("data")),
                false => request.dir,
            },
            selection: Selection {
                patterns: request.select,
                numbers: Vec::new(),
            },
            sequential: request.sequential,
            lazy,
            paused: false,
            seed_percent: request.seed_percent,
            peers: request.peers,
        };
        save(&state, &record)?;
        self.open_torrent(state, record).await
    }

    async fn open_torrent(
        &self,
        state: PathBuf,
        record: TorrentRecord,
    ) -> Result<Arc<OpenTorrent>, ApiError> {
        let bytes = std::fs::read(state.join(METAINFO_FILE)).ok();
        let known = know(bytes.as_deref(), record.magnet.as_deref())?;
        let port = self.listen()?.port();
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
        let mut selection = record.selection.clone();
        if let Some(magnet) = record
            .magnet
            .as_deref()
            .and_then(|text| Magnet::parse(text).ok())
        {
            selection.numbers.extend(magnet.select);
        }
        let config = TorrentConfig {
            hashes: known.hashes,
            name: known.name,
            metadata: known.metadata,
            dir: record.dir.0.clone(),
            state: state.clone(),
            selection,
            sequential: record.sequential,
            lazy: record.lazy,
            paused: record.paused,
            seed_ratio: record.seed_percent.map(|percent| percent as f64 / 100.0),
            peers,
            exchange: self.0.config.pex,
            port,
            shared: self.0.torrent_shared.clone(),
        };
        let needs_metadata = config.metadata.is_none();
        let handle = torrent::spawn(config, self.0.gate.clone());
        let hash = name_of(&known.hashes);
        for short in short_hashes(&known.hashes) {
            self.0.gate.open_torrent(short, handle.clone());
            self.watch_for_peers(short, known.trackers.clone(), known.private, handle.clone());
        }
        if needs_metadata {
            tokio::spawn(
                self.clone()
                    .keep_metadata(handle.clone(), state.clone(), known.trackers),
            );
        }
        let open = Arc::new(OpenTorrent {
            handle,
            hashes: known.hashes,
            record: Mutex::new(record),
            state,
            hash: hash.clone(),
        });
        self.0.torrents.lock().insert(hash, Arc::clone(&open));
        Ok(open)
    }

    /// Mounts a torrent; what is read is fetched.
    pub(super) async fn mount_torrent_at(
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
            peers: peers.to_vec(),
            until: TorrentUntil::Started,
        };
        let open = self.add_torrent(request, true).await?;
        let known = wait_for_metadata(&open.handle, progress);
        let known = tokio::time::timeout(METADATA_TIME, known).await;
        known.map_err(|_| {
            ApiError::new(
                ErrorKind::Timeout,
                "no peer has sent the metadata of the torrent",
            )
            .hint("use the .torrent file, or name a peer with --peer IP:PORT")
        })??;
        let gone = || ApiError::new(ErrorKind::Refused, "the torrent was removed");
        let reader = open.handle.reader().await.ok_or_else(gone)?;
        let metadata = open.handle.metadata().await.ok_or_else(gone)?;
        let volume = TorrentVolume::new(
            &metadata.info,
            reader,
            &open.hash,
            self.0.config.read_timeout,
        );
        let entry = open.entry();
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

    pub(super) fn list_torrents(&self) -> Vec<TorrentEntry> {
        let torrents: Vec<_> = self.0.torrents.lock().values().cloned().collect();
        torrents.iter().map(|open| open.entry()).collect()
    }

    pub(super) async fn torrent_call(
        &self,
        request: TorrentRequest,
    ) -> Result<TorrentResponse, ApiError> {
        let open = self.find_torrent(&request.torrent)?;
        let (mut files, mut peers) = (Vec::new(), Vec::new());
        match request.action {
            TorrentAction::Show => {}
            TorrentAction::Files => files = list_files(&open).await,
            TorrentAction::Peers => {
                peers = open
                    .handle
                    .peers()
                    .await
                    .into_iter()
                    .map(peer_entry)
                    .collect();
            }
            TorrentAction::Pause => pause(&open, true)?,
            TorrentAction::Resume => pause(&open, false)?,
            TorrentAction::Recheck => open.handle.recheck(),
            TorrentAction::Remove => self.remove_torrent(&open).await?,
        }
        Ok(TorrentResponse {
            torrent: open.entry(),
            files,
            peers,
        })
    }

    /// The torrent that is meant: by hash, by the beginning of one, or by name.
    fn find_torrent(&self, text: &str) -> Result<Arc<OpenTorrent>, ApiError> {
        let torrents = self.0.torrents.lock();
        let lower = text.to_ascii_lowercase();
        let named = |open: &&Arc<OpenTorrent>| open.handle.status().borrow().name == text;
        let begins = |open: &&Arc<OpenTorrent>| !lower.is_empty() && open.hash.starts_with(&lower);
        let mut found: Vec<_> = torrents.values().filter(begins).cloned().collect();
        if found.is_empty() {
            found = torrents.values().filter(named).cloned().collect();
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(
                ApiError::new(ErrorKind::NotFound, "there is no such torrent")
                    .hint("`ccbt torrents` lists them"),
            ),
            _ => Err(
                ApiError::new(ErrorKind::Usage, "several torrents are meant by this")
                    .hint("give more digits of the info-hash"),
            ),
        }
    }

    async fn remove_torrent(&self, open: &Arc<OpenTorrent>) -> Result<(), ApiError> {
        self.0.torrents.lock().remove(&open.hash);
        self.close_torrent(open).await;
        self.announce_work();
        let state = open.state.clone();
        blocking(move || {
            std::fs::remove_dir_all(&state).map_err(|error| {
                ApiError::io(
                    format_args!("cannot remove {}", place::shown(&state)),
                    &error,
                )
            })
        })
        .await
    }

    /// Keeps what peers said the torrent is, so that the next start need not ask. If it turns out to be private, peers are
    /// looked for at its trackers alone from then on.
    async fn keep_metadata(self, handle: TorrentHandle, state: PathBuf, trackers: Vec<String>) {
        let mut status = handle.status();
        let known = status.wait_for(|status| status.bytes_total.is_some());
        if known.await.is_err() {
            return;
        }
        let Some(metadata) = handle.metadata().await else {
            return;
        };
        if metadata.info.private {
            for short in short_hashes(&metadata.info.hashes) {
                self.watch_for_peers(short, trackers.clone(), true, handle.clone());
            }
        }
        let bytes = metainfo_of(metadata.info.raw(), &trackers);
        if let Err(error) = save_metainfo(&state, &bytes) {
            tracing::warn!(error = error.message, "the metadata will be fetched again");
        }
    }

    async fn close_torrent(&self, open: &OpenTorrent) {
        for short in short_hashes(&open.hashes) {
            self.0.gate.close_torrent(&short);
            self.stop_looking_for(short);
        }
        open.handle.shutdown().await;
    }

    /// A torrent that was there for a mount alone ends with its last one. What was read stays for the next.
    pub(super) async fn close_unmounted(&self, of: &MountOf) {
        let MountOf::Torrent(hash) = of else { return };
        let mounted = self.0.mounts.lock().values().any(|mount| mount.of == *of);
        let open = self.0.torrents.lock().get(hash).cloned();
        if let Some(open) = open.filter(|open| !mounted && open.is_lazy()) {
            self.0.torrents.lock().remove(hash);
            self.close_torrent(&open).await;
        }
    }

    pub(super) async fn close_torrents(&self) {
        let torrents = std::mem::take(&mut *self.0.torrents.lock());
        for open in torrents.values() {
            self.close_torrent(open).await;
        }
    }
}

/// Waits until it is known what the torrent is and what of it is here.
async fn wait_for_metadata(
    handle: &TorrentHandle,
    progress: &ProgressSink,
) -> Result<(), ApiError> {
    let mut status = handle.status();
    loop {
        let now = status.borrow_and_update().clone();
        match now.phase {
            Phase::Metadata | Phase::Checking => progress.report(progress_of(&now)),
            Phase::Stopped => {
                return Err(ApiError::new(
                    ErrorKind::Io,
                    crate::api::escape(now.note.as_bytes()),
                ));
            }
            _ => return Ok(()),
        }
        if status.changed().await.is_err() {
            return Err(ApiError::new(ErrorKind::Refused, "the torrent was removed"));
        }
    }
}

/// Waits until the torrent is as far as it shall be. Trouble only the user can end ends the wait.
async fn wait(
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
        progress.report(progress_of(&now));
        if status.changed().await.is_err() {
            return Err(ApiError::new(ErrorKind::Refused, "the torrent was removed"));
        }
    }
}

fn progress_of(status: &TorrentStatus) -> Progress {
    Progress {
        bytes_done: status.bytes_done,
        bytes_total: status.bytes_total,
        note: status.note.clone(),
        ..Progress::default()
    }
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

fn pause(open: &OpenTorrent, paused: bool) -> Result<(), ApiError> {
    open.record.lock().paused = paused;
    open.handle.pause(paused);
    open.save()
}

async fn list_files(open: &OpenTorrent) -> Vec<TorrentFile> {
    let Some(metadata) = open.handle.metadata().await else {
        return Vec::new();
    };
    let selection = open.record.lock().selection.clone();
    let file = |file: &crate::proto::metainfo::File| TorrentFile {
        path: ApiPath(file.path.to_path()),
        bytes: file.length,
        wanted: selection.wants(file),
    };
    metadata.info.files.iter().map(file).collect()
}

fn peer_entry(peer: TorrentPeer) -> TorrentPeerEntry {
    let summary = peer.summary;
    TorrentPeerEntry {
        addr: peer.addr,
        incoming: peer.incoming,
        client: summary.client,
        pieces: summary.pieces,
        rate_down: summary.rate_down,
        rate_up: summary.rate_up,
        bytes_down: summary.bytes_down,
        bytes_up: summary.bytes_up,
        asked: u32::try_from(summary.asked).unwrap_or(u32::MAX),
        unchoked: summary.unchoked,
        served: summary.served,
    }
}

/// A `.torrent` file of an info dictionary and trackers.
fn metainfo_of(info: &[u8], trackers: &[String]) -> Vec<u8> {
    let mut bytes = b"d".to_vec();
    if let Some(first) = trackers.first() {
        bytes.extend_from_slice(format!("8:announce{}:{first}", first.len()).as_bytes());
        bytes.extend_from_slice(b"13:announce-listl");
        for url in trackers {
            bytes.extend_from_slice(format!("l{}:{url}e", url.len()).as_bytes());
        }
        bytes.push(b'e');
    }
    bytes.extend_from_slice(b"4:info");
    bytes.extend_from_slice(info);
    bytes.push(b'e');
    bytes
}

fn know(bytes: Option<&[u8]>, magnet: Option<&str>) -> Result<Known, ApiError> {
    let magnet = magnet.map(Magnet::parse).transpose();
    let magnet = magnet.map_err(|error| ApiError::new(ErrorKind::Usage, error))?;
    let torrent = bytes.map(Torrent::parse).transpose();
    let torrent = torrent.map_err(|error| ApiError::new(ErrorKind::Usage, error))?;
    let mut trackers: Vec<String> = torrent
        .iter()
        .flat_map(|t| t.trackers.iter().flatten().cloned())
        .collect();
    trackers.extend(magnet.iter().flat_map(|m| m.trackers.iter().cloned()));
    let peers = magnet
        .iter()
        .flat_map(|m| m.peers.iter().cloned())
        .collect();
    match (torrent, magnet) {
        (Some(Torrent { info, layers, .. }), _) => Ok(Known {
            hashes: info.hashes,
            name: String::from_utf8_lossy(info.name.as_bytes()).into_owned(),
            private: info.private,
            trackers,
            metadata: Some(Metadata { info, layers }),
            peers,
        }),
        (None, Some(magnet)) => Ok(Known {
            hashes: magnet.hashes,
            name: magnet.name.unwrap_or_else(|| name_of(&magnet.hashes)),
            private: false,
            trackers,
            metadata: None,
            peers,
        }),
        (None, None) => Err(ApiError::new(
            ErrorKind::Io,
            "the torrent's record names no torrent",
        )),
    }
}

/// 40 hex digits that name the torrent.
fn name_of(hashes: &InfoHashes) -> String {
    let short = short_hashes(hashes).next().unwrap_or_default();
    data_encoding::HEXLOWER.encode(&short)
}

/// What stands for the torrent in handshakes, the v1 hash first.
fn short_hashes(hashes: &InfoHashes) -> impl Iterator<Item = [u8; 20]> + use<> {
    let v1 = hashes.v1.map(|hash| hash.0);
    v1.into_iter().chain(hashes.v2.map(|hash| hash.short()))
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

fn load(state: &Path) -> Result<TorrentRecord, ApiError> {
    let path = state.join(RECORD_FILE);
    let shown = place::shown(&path);
    let bytes = std::fs::read(&path)
        .map_err(|error| ApiError::io(format_args!("cannot read {shown}"), &error))?;
    parse_record(&bytes, &shown)
}

pub(super) fn parse_record(bytes: &[u8], shown: &str) -> Result<TorrentRecord, ApiError> {
    let record: TorrentRecord = serde_json::from_slice(bytes).map_err(|error| {
        ApiError::new(ErrorKind::Io, format_args!("{shown} is damaged: {error}"))
    })?;
    match record.version {
        VERSION => Ok(record),
        version => Err(ApiError::new(
            ErrorKind::Refused,
            format_args!("{shown} was written by a newer ccbt (version {version})"),
        )),
    }
}

fn save(state: &Path, record: &TorrentRecord) -> Result<(), ApiError> {
    let path = state.join(RECORD_FILE);
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|error| ApiError::new(ErrorKind::Internal, error))?;
    write(&path, &bytes)
}

fn save_metainfo(state: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    write(&state.join(METAINFO_FILE), bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ApiError> {
    state_file::replace(path, bytes)
        .map_err(|error| ApiError::io(format_args!("cannot write {}", place::shown(path)), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_magnet_is_a_torrent() {
        let info = b"d6:lengthi1e4:name1:a12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        for trackers in [
            vec![],
            vec!["udp://a:1".to_owned(), "http://b/announce".to_owned()],
        ] {
            let torrent = Torrent::parse(&metainfo_of(info, &trackers)).unwrap();
            assert_eq!(torrent.info.raw(), info);
            assert_eq!(torrent.trackers.concat(), trackers);
        }
    }
}
