//! The part of the actor that deals with web seeds: which there are, and which of them are asked.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::actor::Actor;
use super::peer::ToPeer;
use super::web::{self, FromWeb, Server};
use super::{Phase, WebSeedStatus};
use crate::engine::limits::{Level, Limits};
use crate::proto::rate::Meter;
use crate::proto::scheduler::PeerKey;
use crate::proto::torrent::{Fault, Now};
use crate::proto::web_seed::url::WebUrl;
use crate::proto::web_seed::{News, WebError, WebFiles};

/// Web seeds of a torrent that are remembered; what follows is left out.
const WEB_SEEDS_MAX: usize = 64;
/// Web seeds that are asked at once; the others come in when some of these are off.
const ASKED_MAX: usize = 8;

struct Web {
    /// `None`: it is no URL of a web seed.
    url: Option<WebUrl>,
    status: WebSeedStatus,
    received: Meter,
    task: Option<Running>,
}

struct Running {
    key: PeerKey,
    tx: mpsc::UnboundedSender<Vec<ToPeer>>,
    limits: Arc<Level>,
}

/// The web seeds of a torrent.
pub(super) struct Webs {
    seeds: Vec<Web>,
    files: Option<Arc<WebFiles>>,
}

impl Webs {
    pub(super) fn new(urls: &[String]) -> Self {
        let mut seeds: Vec<Web> = Vec::new();
        for text in urls.iter().take(WEB_SEEDS_MAX) {
            let url = WebUrl::parse(text);
            if url.is_ok()
                && seeds
                    .iter()
                    .any(|seed| seed.url.as_ref() == url.as_ref().ok())
            {
                continue;
            }
            let (shown, trouble) = match &url {
                Ok(url) => (url.to_string(), None),
                // It may have a password.
                Err(error) => {
                    let end = text.rsplit('@').next().unwrap_or_default();
                    (end.to_owned(), Some(error.to_string()))
                }
            };
            seeds.push(Web {
                status: WebSeedStatus {
                    url: shown,
                    off: url.is_err(),
                    trouble,
                    ..WebSeedStatus::default()
                },
                url: url.ok(),
                received: Meter::default(),
                task: None,
            });
        }
        Self { seeds, files: None }
    }

    fn running(&self) -> impl Iterator<Item = &Running> {
        self.seeds.iter().filter_map(|seed| seed.task.as_ref())
    }

    pub(super) fn way_to(&self, key: PeerKey) -> Option<&mpsc::UnboundedSender<Vec<ToPeer>>> {
        self.running()
            .find(|task| task.key == key)
            .map(|task| &task.tx)
    }

    pub(super) fn limits(&self) -> impl Iterator<Item = &Arc<Level>> {
        self.running().map(|task| &task.limits)
    }

    fn of(&mut self, key: PeerKey) -> Option<&mut Web> {
        let is = |task: &Running| task.key == key;
        self.seeds
            .iter_mut()
            .find(|seed| seed.task.as_ref().is_some_and(is))
    }

    /// Bytes have come, if it is one of these.
    pub(super) fn count(&mut self, now: Now, key: PeerKey, bytes: u32) {
        if let Some(seed) = self.of(key) {
            seed.received.add(now, bytes.into());
        }
    }

    /// The machine has forgotten a peer.
    pub(super) fn dropped(&mut self, key: PeerKey, fault: Fault) {
        let Some(seed) = self.of(key) else { return };
        seed.task = None;
        seed.status.active = false;
        if fault == Fault::Lie {
            let why = WebError::Lie.to_string();
            tracing::info!(url = seed.status.url, why, "web seed is not asked");
            seed.status.off = true;
            seed.status.trouble = Some(why);
        }
    }

    /// How many are asked.
    pub(super) fn active(&self) -> usize {
        self.seeds.iter().filter(|seed| seed.status.active).count()
    }

    /// Why none of them gives anything, if there are any.
    pub(super) fn trouble(&self) -> Option<String> {
        let mut troubles = self.seeds.iter().filter_map(|seed| {
            let why = seed.status.trouble.as_ref()?;
            Some(format!("no peers; web seed {}: {why}", seed.status.url))
        });
        troubles.next()
    }

    pub(super) fn list(&mut self, now: Now) -> Vec<WebSeedStatus> {
        let status = |seed: &mut Web| WebSeedStatus {
            rate_down: seed.received.rate(now),
            bytes_down: seed.received.total(),
            ..seed.status.clone()
        };
        self.seeds.iter_mut().map(status).collect()
    }
}

impl Actor {
    /// Web seeds are asked while something is missing, and left alone otherwise.
    pub(super) fn look_at_webs(&mut self, now: Now) {
        if self.webs.seeds.is_empty() {
            return;
        }
        let begun = self.machine.pieces().is_some() && !self.machine.is_finished();
        let wanted = begun && !self.is_resting() && self.phase == Phase::Downloading;
        if !wanted {
            for seed in &mut self.webs.seeds {
                if let Some(task) = seed.task.take() {
                    seed.status.active = false;
                    self.machine.peer_left(now, task.key);
                }
            }
            return;
        }
        let mut free = ASKED_MAX.saturating_sub(self.webs.running().count());
        for n in 0..self.webs.seeds.len() {
            let idle = |seed: &Web| seed.task.is_none() && !seed.status.off;
            if free > 0 && self.webs.seeds.get(n).is_some_and(idle) {
                free -= 1;
                self.ask_web(now, n);
            }
        }
    }

    fn ask_web(&mut self, now: Now, n: usize) {
        let (Some(metadata), key) = (self.metadata.clone(), self.new_key()) else {
            return;
        };
        let files = self
            .webs
            .files
            .get_or_insert_with(|| Arc::new(WebFiles::new(&metadata.info)));
        let files = Arc::clone(files);
        let shared = &self.config.shared.limits;
        let limits = Level::new(shared.clock(), self.config.settings.peer_rates);
        let Some(seed) = self.webs.seeds.get_mut(n) else {
            return;
        };
        let Some(url) = seed.url.clone() else { return };
        let (tx, commands) = mpsc::unbounded_channel();
        let server = Server {
            key,
            url,
            files,
            slabs: self.config.shared.slabs.clone(),
            limits: Limits::new([&limits, &self.limits, shared].map(Arc::clone)),
            gate: Arc::clone(&self.gate),
            events: self.peer_events.clone(),
            commands,
        };
        tokio::spawn(tracing::Instrument::in_current_span(web::run(server)));
        seed.task = Some(Running { key, tx, limits });
        seed.status.active = true;
        seed.status.trouble = None;
        self.machine.web_joined(now, key);
    }

    pub(super) fn web_news(&mut self, now: Now, key: PeerKey, news: FromWeb) {
        let Some(seed) = self.webs.of(key) else {
            return;
        };
        match news {
            FromWeb::Stands(status) => {
                seed.status = WebSeedStatus {
                    active: status.trouble.is_none(),
                    ..status
                };
            }
            FromWeb::News(News::Rests) => self.machine.web_rests(now, key, true),
            FromWeb::News(News::Ready) => self.machine.web_rests(now, key, false),
            FromWeb::News(News::Lacks(pieces)) => self.machine.web_lacks(now, key, &pieces),
            FromWeb::News(News::Off) => {
                seed.task = None;
                self.machine.peer_left(now, key);
            }
        }
    }
}
