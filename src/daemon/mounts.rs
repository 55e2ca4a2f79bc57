//! `mount`, `unmount` and the end of the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ccbt_mount::{Mount, MountEnd, MountError, MountId, MountOptions, UnmountError, Unmounted};
use tokio::time::Instant;

use super::handover::HANDOVER_TIME;
use super::open::{OpenFolder, blocking, wrong_suite};
use super::record::{FolderRecord, MountRecord};
use super::share::{forget_folder, name_of, new_folder};
use super::upkeep::close_store;
use super::{Daemon, MountOf, Mounted, place};
use crate::api::types::*;
use crate::api::{ApiError, ErrorKind, ProgressSink};
use crate::share::{FolderId, Link, Right, Suite};
use crate::volume::{FolderVolume, TorrentVolume};

/// How long `mount LINK` waits for the first listing before it mounts what there is.
const LISTING_TIME: Duration = Duration::from_secs(10);
const LISTING_POLL: Duration = Duration::from_millis(10);
/// How long a stop waits for a call under way.
const TURN_TIME: Duration = Duration::from_secs(3);

impl Daemon {
    pub(super) async fn mount_source(
        &self,
        request: MountRequest,
        progress: ProgressSink,
    ) -> Result<MountResponse, ApiError> {
        let turn = self.0.turn.lock().await;
        let is_made = make_live_dir(&request)?;
        let mounted = match torrent_source(&request.source) {
            Some(source) => {
                // Peers may take a minute to say what it is.
                drop(turn);
                self.mount_torrent_there(source, &request, &progress).await
            }
            None => self.mount_there(&request, &progress).await,
        };
        if mounted.is_err() && is_made {
            // It was made a moment ago and is empty; if it is not any more, it is somebody's.
            let _used = std::fs::remove_dir(&request.dir.0);
        }
        mounted
    }

    async fn mount_torrent_there(
        &self,
        source: TorrentSource,
        request: &MountRequest,
        progress: &ProgressSink,
    ) -> Result<MountResponse, ApiError> {
        let dir = self.mount_point(&request.dir)?;
        self.check_mount_point(&dir)?;
        self.mount_torrent_at(source, dir, &request.peers, progress)
            .await
    }

    async fn mount_there(
        &self,
        request: &MountRequest,
        progress: &ProgressSink,
    ) -> Result<MountResponse, ApiError> {
        let dir = self.mount_point(&request.dir)?;
        let mut read_only = request.read_only;
        let (opened, content) = match &request.source {
            MountSource::Link(secret) => {
                let link = parse_link(secret)?;
                read_only |= link.right() < Right::Write;
                self.check_mount_point(&dir)?;
                self.listen()?;
                let opened = self.open_link(&link, &dir).await?;
                remember_peers(&opened.open, &link.hints.peers);
                remember_peers(&opened.open, &request.peers);
                self.go_online(&opened.open)?;
                let content = self.wait_for_listing(&opened.open, progress).await;
                match content {
                    Ok(content) => (opened, content),
                    Err(error) => {
                        self.give_up(&opened).await;
                        return Err(error);
                    }
                }
            }
            MountSource::Dir(source) | MountSource::Torrent(source) => {
                let opened = self.open_source(source, &dir, progress).await?;
                remember_peers(&opened.open, &request.peers);
                let content = amount(&opened.open);
                (opened, Some(content))
            }
        };
        let Opened { open, is_new } = opened;
        let place = MountRecord {
            dir: ApiPath(dir.clone()),
            read_only,
            suid: request.suid,
            dev: request.dev,
        };
        let mounted = self.mount_folder(&open, place, request.persist).await;
        if let Err(error) = mounted {
            if is_new {
                self.unmark(&open).await;
            }
            self.give_up(&Opened { open, is_new }).await;
            return Err(error);
        }
        if request.offline {
            open.record.lock().pinned = true;
            open.swarm.set_replica(true);
        }
        open.save()?;
        self.announce_work();
        let name = open.record.lock().name.clone();
        let read_only = read_only || open.credentials.writer.is_none();
        Ok(MountResponse {
            folder: open.id.to_string(),
            name,
            dir: ApiPath(dir),
            read_only,
            content,
        })
    }

    /// What was opened is not mounted after all. Of a folder that is new nothing is kept.
    async fn give_up(&self, opened: &Opened) {
        let Opened { open, is_new } = opened;
        self.close_if_idle(open).await;
        if *is_new && self.folder(&open.id).is_none() {
            forget_folder(&open.dir);
        }
    }

    /// The mount point as an absolute path without symbolic links, with nothing of FUSE on it.
    fn mount_point(&self, dir: &ApiPath) -> Result<PathBuf, ApiError> {
        ccbt_mount::detach_dead(&dir.0).map_err(|error| ApiError::new(ErrorKind::Busy, error))?;
        let real = place::existing_dir(dir)?;
        if self.0.mounts.lock().contains_key(&real) {
            let what = format!("{dir} is mounted already");
            return Err(ApiError::new(ErrorKind::Busy, what).hint(format!("ccbt unmount {dir}")));
        }
        if ccbt_mount::is_fuse_mount(&real).unwrap_or(false) {
            let what = format!("another program has mounted a file system on {dir}");
            return Err(ApiError::new(ErrorKind::Busy, what)
                .hint("unmount that first, or choose another directory"));
        }
        Ok(real)
    }

    pub(super) fn check_mount_point(&self, dir: &Path) -> Result<(), ApiError> {
        place::apart_from_state(dir, self.0.state.path())?;
        place::outside_mounts(dir)?;
        place::outside_homes(dir, &self.homes())?;
        if !place::is_empty(dir)? {
            let what = format!("{} is not empty", place::shown(dir));
            return Err(ApiError::new(ErrorKind::Refused, what)
                .hint("choose an empty directory as the mount point"));
        }
        Ok(())
    }

    /// `ccbt mount DIR [MNT]`: a folder that is open at DIR, or DIR itself: with its files as a folder that they hold, or
    /// empty as a new live folder.
    async fn open_source(
        &self,
        source: &ApiPath,
        dir: &Path,
        progress: &ProgressSink,
    ) -> Result<Opened, ApiError> {
        let source_dir = place::existing_dir(source)?;
        let itself = source_dir == dir;
        if let Some(open) = self.folder_at(&source_dir)
            && !itself
        {
            self.check_mount_point(dir)?;
            return Ok(Opened::known(open));
        }
        if !itself {
            let what = format!("{source} is neither shared nor mounted here");
            return Err(ApiError::new(ErrorKind::NotFound, what)
                .hint(format!("share it first: ccbt share {source}")));
        }
        if let Some(open) = self.folder_at(dir) {
            return Ok(Opened::known(open));
        }
        if self.remembered_home(dir)?.is_some() || !place::is_empty(dir)? {
            let (open, is_new) = self
                .new_home(dir, None, Suite::Blake3, Arc::clone(progress))
                .await?;
            return Ok(Opened { open, is_new });
        }
        self.check_mount_point(dir)?;
        let (known, is_new) = match self.remembered_live(dir)? {
            Some(known) => (known, false),
            None => (new_folder(dir, None, Suite::Blake3), true),
        };
        let (record, link) = known;
        if let Some(open) = self.folder(&link.folder()) {
            return Ok(Opened::known(open));
        }
        let mut record = record;
        record.live = Some(ApiPath(dir.to_path_buf()));
        let shared = record.shared;
        let open = self.open_folder(record, &link).await?;
        if shared {
            self.go_online(&open)?;
        }
        Ok(Opened { open, is_new })
    }

    /// The folder that was live at `dir` in an earlier run.
    fn remembered_live(&self, dir: &Path) -> Result<Option<(FolderRecord, Link)>, ApiError> {
        let Ok(entries) = std::fs::read_dir(self.0.state.path().join("folders")) else {
            return Ok(None);
        };
        for entry in entries.flatten() {
            if let Ok(record) = FolderRecord::load(&entry.path())
                && record.live.as_ref().is_some_and(|live| live.0 == dir)
            {
                let link = record.link(&entry.path())?;
                return Ok(Some((record, link)));
            }
        }
        Ok(None)
    }

    /// The folder of a link. One that is new here is called what the link says, else what `dir`, its first place here, is.
    pub(super) async fn open_link(&self, link: &Link, dir: &Path) -> Result<Opened, ApiError> {
        if let Some(open) = self.folder(&link.folder()) {
            if open.link.suite() != link.suite() {
                return Err(wrong_suite());
            }
            if open.link.right() >= link.right() {
                return Ok(Opened::known(open));
            }
            let what = "the folder is open here with a link of a lower right";
            return Err(ApiError::new(ErrorKind::Busy, what)
                .hint("unmount it, then mount it with the new link"));
        }
        let known = self.known(&link.folder())?;
        let is_new = known.is_none();
        let (record, link) = match known {
            Some(mut record) => {
                let dir = super::record::folder_dir(self.0.state.path(), &link.folder());
                let old = record.link(&dir)?;
                if old.right() < link.right() {
                    record.set_link(link);
                    (record, link.clone())
                } else {
                    (record, old)
                }
            }
            None => {
                let name = link.hints.name.clone().unwrap_or_else(|| name_of(dir));
                (FolderRecord::new(name, link), link.clone())
            }
        };
        let open = self.open_folder(record, &link).await?;
        Ok(Opened { open, is_new })
    }

    /// Mounts an open folder. `persist`: again at every start.
    pub(super) async fn mount_folder(
        &self,
        open: &Arc<OpenFolder>,
        mut place: MountRecord,
        persist: bool,
    ) -> Result<(), ApiError> {
        place.read_only |= open.credentials.writer.is_none();
        let dir = place.dir.0.clone();
        let options = MountOptions {
            fsname: open
                .record
                .lock()
                .name
                .replace(|c: char| c.is_control() || c == ',', "-"),
            read_only: place.read_only,
            suid: place.suid,
            dev: place.dev,
            ..MountOptions::default()
        };
        let volume = Arc::new(FolderVolume::new(Arc::new(open.folder.clone())));
        // Before its path leads to the mount.
        open.set_home_mounted(&dir, true);
        let point = dir.clone();
        let mount =
            blocking(move || ccbt_mount::mount(volume, &point, &options).map_err(unmountable));
        let mount = mount
            .await
            .inspect_err(|_| open.set_home_mounted(&dir, false))?;
        let number = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        let end = mount.end();
        let entry = Mounted {
            of: MountOf::Folder(open.id),
            read_only: place.read_only,
            persist,
            number,
            mount,
        };
        if persist {
            let mut record = open.record.lock();
            record.mounts.retain(|known| known.dir != place.dir);
            record.mounts.push(place);
        }
        self.0.mounts.lock().insert(dir.clone(), entry);
        self.note_mounts();
        self.watch_mount(dir, number, end);
        Ok(())
    }

    /// Tells whoever finds this process killed which mounts it had.
    fn note_mounts(&self) {
        let mounts = self.0.mounts.lock();
        let ids: Vec<MountId> = mounts.values().filter_map(|m| m.mount.id()).collect();
        if let Err(error) = self.0.state.note_mounts(&ids) {
            tracing::warn!(%error, "the mounts are not noted in the lock file");
        }
    }

    /// Mounts a torrent at `dir`, read-only.
    pub(super) async fn mount_torrent(
        &self,
        volume: TorrentVolume,
        torrent: String,
        name: &str,
        dir: &Path,
    ) -> Result<(), ApiError> {
        let options = MountOptions {
            fsname: name.replace(|c: char| c.is_control() || c == ',', "-"),
            read_only: true,
            ..MountOptions::default()
        };
        let (volume, point) = (Arc::new(volume), dir.to_path_buf());
        let mount =
            tokio::task::spawn_blocking(move || ccbt_mount::mount(volume, &point, &options))
                .await
                .map_err(|error| ApiError::new(ErrorKind::Internal, error))?
                .map_err(unmountable)?;
        let number = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        let end = mount.end();
        let entry = Mounted {
            of: MountOf::Torrent(torrent),
            read_only: true,
            persist: false,
            number,
            mount,
        };
        self.0.mounts.lock().insert(dir.to_path_buf(), entry);
        self.note_mounts();
        self.watch_mount(dir.to_path_buf(), number, end);
        Ok(())
    }

    /// The folder a mount shows, if it is one and open.
    pub(super) fn mounted_folder(&self, of: &MountOf) -> Option<Arc<OpenFolder>> {
        match of {
            MountOf::Folder(folder) => self.folder(folder),
            MountOf::Torrent(_) => None,
        }
    }

    /// Notices when somebody else (`umount`, `fusermount3 -u`) takes the mount away.
    fn watch_mount(&self, dir: PathBuf, number: u64, end: MountEnd) {
        let daemon = self.clone();
        tokio::spawn(async move {
            let _gone = tokio::task::spawn_blocking(move || end.wait()).await;
            let _turn = daemon.0.turn.lock().await;
            let removed = {
                let mut mounts = daemon.0.mounts.lock();
                let same = mounts.get(&dir).is_some_and(|mount| mount.number == number);
                same.then(|| mounts.remove(&dir)).flatten()
            };
            if let Some(mounted) = removed {
                daemon.note_mounts();
                tracing::info!(dir = %dir.display(), "unmounted from outside");
                if let Some(open) = daemon.mounted_folder(&mounted.of) {
                    open.set_home_mounted(&dir, false);
                    daemon.close_if_idle(&open).await;
                }
                daemon.close_unmounted(&mounted.of).await;
                daemon.announce_work();
            }
        });
    }

    pub(super) async fn unmount_dir(
        &self,
        request: UnmountRequest,
        progress: ProgressSink,
    ) -> Result<UnmountResponse, ApiError> {
        let _turn = self.0.turn.lock().await;
        let dir = std::fs::canonicalize(&request.dir.0).unwrap_or_else(|_| request.dir.0.clone());
        let mounted = self.0.mounts.lock().remove(&dir);
        let Some(mounted) = mounted else {
            return self.unmount_absent(&request.dir, &dir).await;
        };
        let of = mounted.of.clone();
        let mut only_here = Amount::default();
        if let Some(open) = self.mounted_folder(&of) {
            // What cannot be published now stays in the journal and is published at the next start.
            let _later = open.swarm.publish_now().await;
            let end = match request.force {
                true => Instant::now(),
                false => Instant::now() + HANDOVER_TIME,
            };
            only_here = self.hand_over(&open, end, &progress).await;
            if mounted.persist {
                open.record.lock().mounts.retain(|known| known.dir.0 != dir);
                open.save()?;
            }
        }
        let end = mounted.mount.end();
        let left = self.take_down(mounted, request.force).await?;
        self.note_mounts();
        match (self.mounted_folder(&of), left) {
            (Some(open), Unmounted::Done) => {
                open.set_home_mounted(&dir, false);
                open.write_back().await;
                self.close_if_idle(&open).await;
            }
            (Some(open), Unmounted::StillInUse) => self.close_later(open, dir.clone(), end),
            (None, _) => self.close_unmounted(&of).await,
        }
        self.announce_work();
        Ok(UnmountResponse {
            folder: Some(match of {
                MountOf::Folder(folder) => folder.to_string(),
                MountOf::Torrent(torrent) => torrent,
            }),
            dir: ApiPath(dir),
            only_here,
        })
    }

    /// There is no mount of this daemon at `dir`: perhaps one that a killed daemon left, or one that is to come back and
    /// cannot.
    async fn unmount_absent(
        &self,
        asked: &ApiPath,
        dir: &Path,
    ) -> Result<UnmountResponse, ApiError> {
        let was_dead = ccbt_mount::detach_dead(&asked.0)
            .map_err(|error| ApiError::new(ErrorKind::Busy, error))?;
        let folders: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let awaited = |open: &&Arc<OpenFolder>| {
            let mut record = open.record.lock();
            let before = record.mounts.len();
            record.mounts.retain(|known| known.dir.0 != dir);
            record.mounts.len() < before
        };
        let of = folders.iter().find(awaited);
        if let Some(open) = of {
            open.save()?;
            self.0.unopened.lock().remove(&open.dir);
            self.close_if_idle(open).await;
        } else if !was_dead {
            let what = format!("{asked} is not mounted by this daemon");
            return Err(
                ApiError::new(ErrorKind::NotFound, what).hint("`ccbt status` lists what is")
            );
        }
        Ok(UnmountResponse {
            folder: of.map(|open| open.id.to_string()),
            dir: ApiPath(dir.to_path_buf()),
            only_here: Amount::default(),
        })
    }

    /// `now`: programs that still have files open get errors from now on.
    async fn take_down(&self, mounted: Mounted, now: bool) -> Result<Unmounted, ApiError> {
        let done = tokio::task::spawn_blocking(move || end_mount(mounted.mount, now)).await;
        match done {
            Ok(Ok(left)) => Ok(left),
            Ok(Err(error)) => Err(ApiError::new(ErrorKind::Busy, error)),
            Err(error) => Err(ApiError::new(ErrorKind::Internal, error)),
        }
    }

    /// Programs still have files of the mount open: the folder serves them until they have closed them.
    fn close_later(&self, open: Arc<OpenFolder>, dir: PathBuf, end: MountEnd) {
        let daemon = self.clone();
        tokio::spawn(async move {
            let _gone = tokio::task::spawn_blocking(move || end.wait()).await;
            let _turn = daemon.0.turn.lock().await;
            open.set_home_mounted(&dir, false);
            daemon.close_if_idle(&open).await;
        });
    }

    pub(super) fn mounts_of(&self, folder: &FolderId) -> Vec<MountStatus> {
        let mounts = self.0.mounts.lock();
        mounts
            .iter()
            .filter(|(_, m)| m.of == MountOf::Folder(*folder))
            .map(|(dir, m)| MountStatus {
                dir: ApiPath(dir.clone()),
                read_only: m.read_only,
            })
            .collect()
    }

    /// A folder that is neither shared nor mounted is closed.
    pub(super) async fn close_if_idle(&self, open: &Arc<OpenFolder>) {
        if !open.record.lock().shared && self.mounts_of(&open.id).is_empty() {
            self.close_folder(open).await;
        }
    }

    /// Takes everything down in order.
    pub(super) async fn stop(&self, progress: ProgressSink) -> Result<ShutdownResponse, ApiError> {
        let only_here = self.hand_over_all(&progress).await;
        self.0.stopping.store(true, Ordering::Relaxed);
        for open in self.0.folders.lock().values() {
            open.stop_scanning();
        }
        // A call that does not end in time is cut short by what is taken down below it.
        let _turn = tokio::time::timeout(TURN_TIME, self.0.turn.lock()).await;
        let mounts = std::mem::take(&mut *self.0.mounts.lock());
        let mut unmounted = Vec::new();
        for (dir, mounted) in mounts {
            if let Err(error) = self.take_down(mounted, false).await {
                tracing::error!(dir = %dir.display(), error = error.message, "not unmounted");
            } else {
                unmounted.push(ApiPath(dir));
            }
        }
        self.close_torrents().await;
        let folders: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        for open in folders {
            self.close_folder(&open).await;
        }
        tokio::join!(self.close_discovery(), self.close_portmap());
        let seen = Arc::clone(&self.0.seen);
        let _closed = tokio::task::spawn_blocking(move || seen.close()).await;
        for store in self.0.stores.all() {
            let _closed = tokio::task::spawn_blocking(move || close_store(&store)).await;
        }
        self.0.work.send_modify(|work| {
            work.items.clear();
            work.ended = true;
        });
        Ok(ShutdownResponse {
            unmounted,
            only_here,
        })
    }

    /// Publishes what there is and waits until keepers have it. Returns what is left.
    async fn hand_over_all(&self, progress: &ProgressSink) -> Amount {
        let end = Instant::now() + HANDOVER_TIME;
        let folders: Vec<Arc<OpenFolder>> = self.0.folders.lock().values().cloned().collect();
        let mut left = Amount::default();
        for open in folders {
            if tokio::time::timeout_at(end, open.swarm.publish_now())
                .await
                .is_ok()
            {
                let more = self.hand_over(&open, end, progress).await;
                left.files += more.files;
                left.bytes += more.bytes;
            }
        }
        left
    }
}

fn end_mount(mount: Mount, now: bool) -> Result<Unmounted, UnmountError> {
    let aborted = match now {
        true => mount.abort(),
        false => Ok(()),
    };
    // Out of the tree it goes in any case.
    let left = mount.unmount()?;
    match left {
        Unmounted::Done => Ok(left),
        Unmounted::StillInUse => aborted.map(|()| left),
    }
}

/// A folder to be mounted.
pub(super) struct Opened {
    pub(super) open: Arc<OpenFolder>,
    /// This device had not heard of it before.
    pub(super) is_new: bool,
}

impl Opened {
    fn known(open: Arc<OpenFolder>) -> Self {
        Self {
            open,
            is_new: false,
        }
    }
}

/// The directory of `ccbt mount DIR` may be missing: a new one becomes a live folder. Whether it was made.
fn make_live_dir(request: &MountRequest) -> Result<bool, ApiError> {
    let dir = &request.dir;
    let is_live = matches!(&request.source, MountSource::Dir(source) if source == dir);
    if !is_live {
        return Ok(false);
    }
    match std::fs::create_dir(&dir.0) {
        Ok(()) => Ok(true),
        // Whatever it is, a dead mount too: it is looked at next.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(ApiError::io(format_args!("cannot create {dir}"), &error)
            .hint("name a directory in one that is there and that you can write to")),
    }
}

/// The torrent that is to be mounted, if it is one.
fn torrent_source(source: &MountSource) -> Option<TorrentSource> {
    match source {
        MountSource::Torrent(path) => Some(TorrentSource::File(path.clone())),
        MountSource::Link(link) if link.reveal().starts_with("magnet:") => {
            Some(TorrentSource::Magnet(link.reveal().to_owned()))
        }
        _ => None,
    }
}

/// Why a mount did not come about.
fn unmountable(error: MountError) -> ApiError {
    let kind = match &error {
        MountError::NotFound { .. } | MountError::NoDevice | MountError::NoHelper => {
            ErrorKind::NotFound
        }
        MountError::NotDirectory { .. } | MountError::FsName { .. } => ErrorKind::Usage,
        MountError::AlreadyMounted { .. } | MountError::Dead { .. } => ErrorKind::Busy,
        MountError::DeviceDenied | MountError::HelperRefused { .. } => ErrorKind::Denied,
        MountError::Io { path, source } => {
            let path = place::shown(path);
            return ApiError::io(format_args!("{path} cannot be mounted on"), source);
        }
    };
    ApiError::new(kind, error)
}

/// Addresses the user gave are called now and after every start.
pub(super) fn remember_peers(open: &OpenFolder, peers: &[SocketAddr]) {
    let mut record = open.record.lock();
    for peer in peers {
        open.swarm.give(*peer);
        if !record.peers.contains(peer) {
            record.peers.push(*peer);
        }
    }
}

pub(super) fn parse_link(secret: &Secret) -> Result<Link, ApiError> {
    let text = secret.reveal();
    if text.starts_with("magnet:") || text.starts_with("xet:") {
        let what = "torrents and single Xet files cannot be mounted yet";
        return Err(
            ApiError::new(ErrorKind::Refused, what).hint("mount a ccbt: link or a directory")
        );
    }
    text.parse().map_err(|error: crate::share::LinkError| {
        ApiError::new(ErrorKind::Usage, error).hint("copy the whole link, from `ccbt:` to the end")
    })
}

fn amount(open: &OpenFolder) -> Amount {
    let stats = open.folder.stats(&|_| true);
    Amount {
        files: stats.files,
        bytes: stats.bytes,
    }
}

impl Daemon {
    /// Waits until a first head was merged, or there is something to see from an earlier run.
    pub(super) async fn wait_for_listing(
        &self,
        open: &OpenFolder,
        progress: &ProgressSink,
    ) -> Result<Option<Amount>, ApiError> {
        progress.report(Progress {
            note: "waiting for peers".to_owned(),
            ..Progress::default()
        });
        let end = Instant::now() + LISTING_TIME;
        while Instant::now() < end && !self.0.stopping.load(Ordering::Relaxed) {
            match open.swarm.status().await {
                Some(status) if status.wrong_suite => return Err(wrong_suite()),
                Some(status) if status.heads.is_empty() => {}
                _ => return Ok(Some(amount(open))),
            }
            tokio::time::sleep(LISTING_POLL).await;
        }
        Ok(None)
    }
}
