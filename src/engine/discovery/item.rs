//! Keeps a folder's DHT items (`docs/bep_xet.md` section 4): gets them for a device that knows nobody, puts what its own
//! writer published, and puts them again so that the folder stays findable while its writers sleep.
//!
//! [`Schedule`] says when, and knows neither the DHT nor the folder; [`Keeper`] does what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::dht::{Dht, DhtError, DhtView};
use super::{Stop, jittered};
use crate::clock::{self, Elapsed};
use crate::engine::swarm::{Outlook, SwarmHandle};
use crate::random;
use crate::share::dht_item::{DhtItem, ENDPOINTS_MAX, ItemKey, SignedItem, next_seq};
use crate::share::{DiscoverKey, FolderId, Head, OwnerSeed, WriteKey};

/// Least time between two puts of what changed.
const PUT_TIME: Duration = Duration::from_secs(5 * 60);
/// Items are put again this often: nodes keep them for two hours.
const KEEP_TIME: Duration = Duration::from_secs(60 * 60);
/// First wait after a failed put, or before a device that is alone looks again; doubled each time.
const RETRY_TIME: Duration = Duration::from_secs(15);
/// Longest such wait.
const RETRY_TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// How often the folder is asked for news.
const LOOK_TIME: Duration = Duration::from_secs(10);
/// An item numbered further ahead of our clock than this was written by a clock or a writer gone wrong: it is used, but
/// left to expire.
const AHEAD_MS_MAX: i64 = 10 * 60 * 1000;

/// What it takes to find a folder's items, and to sign them for who may.
#[derive(Debug, Clone)]
pub struct ItemKeys {
    pub folder: FolderId,
    pub discover: DiscoverKey,
    /// Of a writer.
    pub write: Option<WriteKey>,
    /// Of the owner.
    pub owner: Option<OwnerSeed>,
}

/// Time since the keeper's start.
type Now = Duration;

/// What is to be done about an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Get,
    /// Put what is new, or what there is again.
    Put,
    Wait,
}

/// How the folder stands, as far as the schedule minds.
#[derive(Debug, Clone, Copy, Default)]
struct Sight {
    /// There is something the DHT does not have, and we can sign it.
    news: bool,
    /// No member is connected.
    alone: bool,
    /// Another keeps the item alive.
    stands_down: bool,
}

/// When one item is got and put.
#[derive(Debug)]
struct Schedule {
    got: Option<Now>,
    /// Gets in a row while alone.
    lonely: u32,
    /// The last put that succeeded.
    put: Option<Now>,
    /// Puts in a row that failed, and the last of them.
    failures: u32,
    failed: Now,
    /// When it is to be put again at the latest.
    keep: Now,
}

impl Schedule {
    fn new(now: Now) -> Self {
        Self {
            got: None,
            lonely: 0,
            put: None,
            failures: 0,
            failed: now,
            keep: now + jittered(KEEP_TIME),
        }
    }

    fn step(&self, now: Now, sight: Sight) -> Step {
        let Some(got) = self.got else {
            return Step::Get;
        };
        let patience = if sight.alone {
            backoff(self.lonely)
        } else {
            KEEP_TIME
        };
        let keeping = now >= self.keep && !sight.stands_down;
        // Before an item is put again, somebody may have put a newer one.
        if now >= got + patience || (keeping && now >= got + RETRY_TIME_MAX) {
            return Step::Get;
        }
        if self.failures > 0 && now < self.failed + backoff(self.failures) {
            return Step::Wait;
        }
        let rested = self.put.is_none_or(|put| now >= put + PUT_TIME);
        if keeping || (sight.news && rested) {
            return Step::Put;
        }
        Step::Wait
    }

    fn got(&mut self, now: Now, sight: Sight) {
        self.got = Some(now);
        self.lonely = if sight.alone { self.lonely + 1 } else { 0 };
    }

    fn put(&mut self, now: Now, result: &Result<u32, DhtError>) {
        match result {
            Ok(_) => {
                self.put = Some(now);
                self.failures = 0;
                self.keep = now + jittered(KEEP_TIME);
            }
            Err(error) => {
                self.failures += 1;
                self.failed = now;
                if *error == DhtError::Newer {
                    self.got = None;
                }
            }
        }
    }

    /// There is nothing to put again; looks again in an hour.
    fn skipped(&mut self, now: Now) {
        self.keep = now + jittered(KEEP_TIME);
    }
}

fn backoff(times: u32) -> Duration {
    (RETRY_TIME * 2_u32.pow(times.saturating_sub(1).min(10))).min(RETRY_TIME_MAX)
}

/// One item: when it is due, and the newest version seen.
#[derive(Debug)]
struct Shelf {
    schedule: Schedule,
    newest: Option<SignedItem>,
}

/// Keeps the items of one folder.
pub(super) struct Keeper {
    keys: ItemKeys,
    swarm: SwarmHandle,
    /// Where we listen; the address may be unspecified.
    listen: Option<SocketAddr>,
    clock: Elapsed,
    heads: Shelf,
    manifest: Shelf,
}

impl Keeper {
    pub(super) fn new(keys: ItemKeys, swarm: SwarmHandle, listen: Option<SocketAddr>) -> Self {
        let clock = Elapsed::start();
        let shelf = || Shelf {
            schedule: Schedule::new(clock.now()),
            newest: None,
        };
        Self {
            keys,
            swarm,
            listen: listen.filter(|addr| addr.port() != 0),
            clock,
            heads: shelf(),
            manifest: shelf(),
        }
    }

    /// Works until told to stop or the folder is closed.
    pub(super) async fn run(mut self, mut view: DhtView, mut stop: Stop) {
        let work = async {
            let Some(dht) = view.ready().await else {
                return;
            };
            while let Some(outlook) = self.swarm.outlook().await {
                match self.look(&dht, outlook).await {
                    Ok(true) => {}
                    Ok(false) => tokio::time::sleep(LOOK_TIME).await,
                    Err(DhtError::Stopped) => return,
                    Err(error) => {
                        tracing::debug!(%error, folder = %self.keys.folder, "DHT item");
                    }
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.stopped() => {}
        }
    }

    /// Does what is due; whether anything was.
    async fn look(&mut self, dht: &Arc<dyn Dht>, outlook: Outlook) -> Result<bool, DhtError> {
        let did = self.look_at_manifest(dht, &outlook).await?;
        Ok(self.look_at_heads(dht, &outlook).await? || did)
    }

    async fn look_at_manifest(
        &mut self,
        dht: &Arc<dyn Dht>,
        outlook: &Outlook,
    ) -> Result<bool, DhtError> {
        let (now, salt) = (self.clock.now(), self.keys.discover.salt());
        let known = outlook.manifest.is_some();
        let stored = self.manifest.newest.as_ref();
        let owner = self.keys.owner.as_ref().filter(|_| known);
        let sight = Sight {
            news: owner.is_some() && !stored.is_some_and(|item| self.is_current(item, outlook)),
            // Who knows the manifest misses nothing here.
            alone: outlook.alone && !known,
            stands_down: outlook.stands_down,
        };
        match self.manifest.schedule.step(now, sight) {
            Step::Wait => Ok(false),
            Step::Get => {
                self.manifest.schedule.got(now, sight);
                let found = dht.get_item(self.keys.folder.into(), salt).await?;
                if let Some(item) = found {
                    match item.open_manifest(&self.keys.discover) {
                        Ok(manifest) => self.swarm.manifest(manifest),
                        Err(error) => tracing::debug!(%error, "the DHT's manifest"),
                    }
                    self.manifest.take(item);
                }
                Ok(true)
            }
            Step::Put => {
                let item = if sight.news {
                    self.sealed_manifest(outlook)
                } else {
                    self.manifest.worth_keeping()
                };
                self.manifest.put(dht, item, now).await?;
                Ok(true)
            }
        }
    }

    fn is_current(&self, item: &SignedItem, outlook: &Outlook) -> bool {
        let opened = item.open_manifest(&self.keys.discover);
        opened.is_ok_and(|stored| Some(stored.claimed()) == outlook.manifest.as_ref())
    }

    /// Nothing if it is too long for the DHT: members tell it.
    fn sealed_manifest(&self, outlook: &Outlook) -> Option<SignedItem> {
        let (manifest, owner) = (outlook.manifest.as_ref()?, self.keys.owner.as_ref()?);
        let seq = self.manifest.next_seq();
        SignedItem::seal_manifest(manifest, owner, seq, random::bytes()).ok()
    }

    async fn look_at_heads(
        &mut self,
        dht: &Arc<dyn Dht>,
        outlook: &Outlook,
    ) -> Result<bool, DhtError> {
        // A reader may have to learn the key from the manifest first.
        let Some(key) = outlook.write.map(ItemKey::from) else {
            return Ok(false);
        };
        let now = self.clock.now();
        let content = self.content(dht, outlook).await?;
        let stored = self.heads.newest.as_ref();
        let stored = stored.and_then(|item| item.open(&self.keys.discover).ok());
        let sight = Sight {
            news: self.keys.write.is_some() && is_news(&content, outlook, stored.as_ref()),
            alone: outlook.alone,
            stands_down: outlook.stands_down,
        };
        match self.heads.schedule.step(now, sight) {
            Step::Wait => Ok(false),
            Step::Get => {
                self.heads.schedule.got(now, sight);
                let found = dht.get_item(key, self.keys.discover.salt()).await?;
                if let Some(item) = found {
                    match item.open(&self.keys.discover) {
                        Ok(told) => self.swarm.hinted(told),
                        Err(error) => tracing::debug!(%error, "the DHT's item"),
                    }
                    self.heads.take(item);
                }
                Ok(true)
            }
            Step::Put => {
                let fresh = !content.heads.is_empty() && stored.as_ref() != Some(&content);
                let write = self.keys.write.as_ref().filter(|_| fresh);
                let sealed = write.and_then(|write| {
                    SignedItem::seal(&content, write, self.heads.next_seq(), random::bytes()).ok()
                });
                let item = sealed.or_else(|| self.heads.worth_keeping());
                self.heads.put(dht, item, now).await?;
                Ok(true)
            }
        }
    }

    /// What the item should say.
    async fn content(&self, dht: &Arc<dyn Dht>, outlook: &Outlook) -> Result<DhtItem, DhtError> {
        let mut endpoints = Vec::new();
        if let Some(mut listen) = self.listen.filter(|_| self.keys.write.is_some()) {
            if listen.ip().is_unspecified()
                && let Some(ip) = dht.public_ip().await?
            {
                listen.set_ip(ip.into());
            }
            endpoints.extend(Some(listen).filter(|addr| !addr.ip().is_unspecified()));
        }
        for member in &outlook.endpoints {
            if endpoints.len() < ENDPOINTS_MAX && !endpoints.contains(member) {
                endpoints.push(*member);
            }
        }
        let heads = outlook.heads.iter().cloned().map(Into::into).collect();
        Ok(DhtItem { heads, endpoints })
    }
}

/// Whether the item lacks what only we can tell in time: that we published, or where we are now. What other writers did
/// they tell themselves.
fn is_news(content: &DhtItem, outlook: &Outlook, stored: Option<&DhtItem>) -> bool {
    let Some(own) = &outlook.own else {
        return false;
    };
    let Some(stored) = stored else { return true };
    let clock = |head: &Head| head.claims().hlc;
    let newest = stored.heads.iter().map(|head| clock(head.claimed())).max();
    let moved = content
        .endpoints
        .first()
        .is_some_and(|here| !stored.endpoints.contains(here));
    newest.is_none_or(|newest| clock(own) > newest) || moved
}

impl Shelf {
    /// Takes what the DHT gave, unless we put something newer since.
    fn take(&mut self, item: SignedItem) {
        if self.newest.as_ref().is_none_or(|old| item.seq >= old.seq) {
            self.newest = Some(item);
        }
    }

    fn next_seq(&self) -> i64 {
        next_seq(
            clock::unix_millis(),
            self.newest.as_ref().map(|item| item.seq),
        )
    }

    /// The newest version, to be put again unchanged.
    fn worth_keeping(&self) -> Option<SignedItem> {
        let now = next_seq(clock::unix_millis(), None);
        let sane = |item: &&SignedItem| item.seq <= now.saturating_add(AHEAD_MS_MAX);
        self.newest.as_ref().filter(sane).cloned()
    }

    async fn put(
        &mut self,
        dht: &Arc<dyn Dht>,
        item: Option<SignedItem>,
        now: Now,
    ) -> Result<(), DhtError> {
        let Some(item) = item else {
            self.schedule.skipped(now);
            return Ok(());
        };
        let replaced = self.newest.as_ref().map(|old| old.seq);
        let result = dht.put_item(item.clone(), replaced).await;
        tracing::debug!(?result, seq = item.seq, "DHT item put");
        self.schedule.put(now, &result);
        if result.is_ok() {
            self.newest = Some(item);
        }
        result.map(drop)
    }
}

#[cfg(test)]
mod tests;
