//! A web seed (BEP 19): an HTTP server with the files of a torrent, as a source of blocks.
//!
//! Sans-IO. Blocks that are asked for are put together into ranges of files, a few under way at once; the owner makes the
//! requests ([`WebSeed::poll_fetch`]) and hands in heads and bodies of answers as they come, and blocks come out. What they
//! are worth is not known here: their pieces are hashed like those of any peer.
//!
//! A server that answers something else than the range is off for good, with the reason; one that fails rests for a while,
//! and one that lacks a file is not asked for its pieces.
//!
//! - [`url`]: where it is. [`files`]: which bytes lie where. [`answer`]: what an answer means.

pub mod answer;
pub mod files;
pub mod url;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use self::answer::Answer;
use self::files::Place;
pub use self::files::WebFiles;
use self::url::{UrlError, WebUrl};
use super::blocks::Block;
use super::rate::Meter;

/// Time since the owner's start.
type Now = Duration;

/// Requests under way at once. One alone would stand still for a round trip after each range.
pub const LANES: usize = 4;
/// Bytes asked for in one request: what an urgent read may have to wait for.
const RUN_BYTES_MAX: u64 = 4 << 20;
/// What is left of a range that nobody wants any more and is not worth a new connection.
const LEFT_BYTES_MAX: u64 = 128 << 10;
/// Redirects followed for one request.
const REDIRECTS_MAX: u8 = 5;
/// Files whose redirects are remembered.
const MOVED_MAX: usize = 1024;
/// First rest after a failure, doubled each time up to the longest.
const REST_TIME_MIN: Duration = Duration::from_secs(2);
const REST_TIME_MAX: Duration = Duration::from_secs(600);
/// Longest rest that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Why a web seed is not asked any more, or not for a while.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WebError {
    #[error("the server does not answer with ranges of files")]
    NoRanges,
    #[error("the server answers with a page ({0}) instead of a file")]
    Page(String),
    #[error("{file} has {there} bytes there instead of {expected}")]
    Size {
        file: String,
        there: u64,
        expected: u64,
    },
    #[error("it answers with another range than it was asked for")]
    OtherRange,
    #[error("it encodes files ({0})")]
    Encoded(String),
    #[error("it redirects in circles")]
    Redirects,
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("it does not let us have the files (HTTP status {0})")]
    Refused(u16),
    #[error("it has none of the files")]
    Empty,
    #[error("it sent wrong bytes")]
    Lie,
    #[error("the server is busy (HTTP status {status})")]
    Busy {
        status: u16,
        retry_after: Option<Duration>,
    },
    #[error("it answers with HTTP status {0}")]
    Status(u16),
    #[error("{0}")]
    Broken(String),
    #[error("nothing has come for {} s", .0.as_secs())]
    Hangs(Duration),
    #[error("the IP filter blocks its address")]
    Filtered,
}

impl WebError {
    /// Asking again would not help.
    fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Busy { .. } | Self::Status(_) | Self::Broken(_) | Self::Hangs(_)
        )
    }
}

/// A request to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Which of the connections makes it.
    pub lane: usize,
    /// Tells it from earlier ones of the lane.
    pub id: u64,
    pub url: WebUrl,
    /// The first byte of the file, and the one behind the last.
    pub begin: u64,
    pub end: u64,
    /// A server sent us there, and it is another one.
    pub redirected: bool,
}

/// What is to be done with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Read this many bytes of the body.
    Take(u64),
    /// Make this request instead.
    Again(Fetch),
    /// Leave the body unread.
    Leave,
}

/// What the torrent has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It is not asked for anything at present: what it was asked for does not come.
    Rests,
    /// It may be asked.
    Ready,
    /// It does not have these pieces; what it was asked for of them does not come.
    Lacks(Vec<u32>),
    /// It is not asked for anything any more.
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Ready,
    Resting { until: Now, why: WebError },
    Off(WebError),
}

/// A range of a file under way.
#[derive(Debug)]
struct Asked {
    file: usize,
    url: WebUrl,
    /// Where an earlier redirect has led, so that an answer may say that it does so no longer.
    remembered: bool,
    redirects: u8,
    begin: u64,
    /// Bytes that have not come.
    left: u64,
}

/// One request at a time, for blocks that lie one behind the other.
#[derive(Debug, Default)]
struct Lane {
    id: u64,
    /// With whether they are still wanted.
    run: VecDeque<(Block, bool)>,
    /// Where the next byte belongs in the piece space, and where the run ends.
    at: u64,
    end: u64,
    /// What has come of the first block.
    bytes: Vec<u8>,
    asked: Option<Asked>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct WebSeed {
    base: WebUrl,
    files: Arc<WebFiles>,
    state: State,
    /// Rests without a block between them.
    failures: u32,
    queue: VecDeque<Block>,
    lanes: [Lane; LANES],
    /// Lanes that are used.
    open: usize,
    next_id: u64,
    moved: HashMap<usize, WebUrl>,
    lacks: HashSet<usize>,
    aborted: Vec<usize>,
    done: VecDeque<(Block, Vec<u8>)>,
    news: VecDeque<News>,
    received: Meter,
}

impl WebSeed {
    pub fn new(base: WebUrl, files: Arc<WebFiles>) -> Self {
        Self {
            base,
            files,
            state: State::Ready,
            failures: 0,
            queue: VecDeque::new(),
            lanes: Default::default(),
            open: LANES,
            next_id: 0,
            moved: HashMap::new(),
            lacks: HashSet::new(),
            aborted: Vec::new(),
            done: VecDeque::new(),
            news: VecDeque::new(),
            received: Meter::default(),
        }
    }

    /// The block is wanted. One that is asked for while it rests or is off is not fetched.
    pub fn ask(&mut self, block: Block) {
        if self.state == State::Ready {
            self.queue.push_back(block);
        }
    }

    /// The block is not wanted any more.
    pub fn cancel(&mut self, block: Block) {
        self.queue.retain(|queued| *queued != block);
        for n in 0..LANES {
            let lane = &mut self.lanes[n];
            for (asked, wanted) in &mut lane.run {
                *wanted &= *asked != block;
            }
            let idle = lane.run.iter().all(|(_, wanted)| !wanted);
            if idle && lane.asked.is_some() && lane.end - lane.at > LEFT_BYTES_MAX {
                self.abort(n);
            }
        }
    }

    /// The next request to make.
    pub fn poll_fetch(&mut self) -> Option<Fetch> {
        if self.state != State::Ready {
            return None;
        }
        // After a failure one request shows whether it works again; several would fail together.
        let lanes = if self.failures > 0 { 1 } else { self.open };
        (0..lanes).find_map(|n| self.fetch_by(n))
    }

    /// A connection whose request is not wanted any more.
    pub fn poll_abort(&mut self) -> Option<usize> {
        self.aborted.pop()
    }

    /// A whole block.
    pub fn poll_block(&mut self) -> Option<(Block, Vec<u8>)> {
        self.done.pop_front()
    }

    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Now> {
        match &self.state {
            State::Resting { until, .. } => Some(*until),
            _ => None,
        }
    }

    pub fn handle_timeout(&mut self, now: Now) {
        if self.poll_timeout().is_some_and(|until| until <= now) {
            self.state = State::Ready;
            self.news.push_back(News::Ready);
        }
    }

    /// Why it is not asked, if it is not.
    pub fn trouble(&self) -> Option<&WebError> {
        match &self.state {
            State::Ready => None,
            State::Resting { why, .. } | State::Off(why) => Some(why),
        }
    }

    /// It is not asked any more.
    pub fn is_off(&self) -> bool {
        matches!(self.state, State::Off(_))
    }

    /// Bytes of blocks in all, and per second of late.
    pub fn received(&mut self, now: Now) -> (u64, u64) {
        (self.received.total(), self.received.rate(now))
    }

    /// The head of an answer has come.
    pub fn answered(&mut self, now: Now, lane: usize, id: u64, answer: &Answer) -> Next {
        let Some(asked) = self.asked(lane, id) else {
            return Next::Leave;
        };
        let (file, remembered) = (asked.file, asked.remembered);
        let (begin, left) = (asked.begin, asked.left);
        let judged = answer::judge(answer, begin, left, self.files.length(file));
        match judged {
            Ok(answer::Judged::Bytes(bytes)) => return Next::Take(bytes.min(left)),
            Ok(answer::Judged::Elsewhere(location)) => {
                return match self.redirect(lane, &location) {
                    Ok(fetch) => Next::Again(fetch),
                    Err(error) => self.leave(now, error),
                };
            }
            // What was remembered may be out of date.
            Ok(answer::Judged::Missing) | Err(_) if remembered => {
                self.moved.remove(&file);
                return self.restart(now, lane);
            }
            Ok(answer::Judged::Missing) => self.lacks(lane, file),
            Err(error) => {
                let error = self.with_name(error, file);
                self.fail(now, error);
            }
        }
        Next::Leave
    }

    /// Bytes of the body have come.
    pub fn body(&mut self, now: Now, lane: usize, id: u64, bytes: &[u8]) {
        let Some(asked) = self.asked(lane, id) else {
            return;
        };
        let take = (bytes.len() as u64).min(asked.left) as usize;
        asked.left -= take as u64;
        if asked.left == 0
            && let Some(lane) = self.lanes.get_mut(lane)
        {
            lane.asked = None;
        }
        self.feed(now, lane, bytes.get(..take).unwrap_or_default());
    }

    /// The body has ended, or the request has failed.
    pub fn ended(&mut self, now: Now, lane: usize, id: u64, error: Option<WebError>) {
        if self.asked(lane, id).is_none() {
            return;
        }
        let early = || WebError::Broken("it closes the connection too early".to_owned());
        match error.unwrap_or_else(early) {
            // Something has come since the last time, so it is worth another try at once.
            WebError::Broken(_) if self.failures == 0 => {
                self.failures = 1;
                self.requeue(lane);
            }
            error => self.fail(now, error),
        }
    }

    /// What it sent was wrong, or somebody else says that it is of no use any more.
    pub fn fail(&mut self, now: Now, error: WebError) {
        if self.is_off() {
            return;
        }
        self.queue.clear();
        (0..LANES).for_each(|n| self.abort(n));
        if let WebError::Busy { .. } = error {
            self.open = 1;
        }
        if error.is_final() {
            self.state = State::Off(error);
            self.news.push_back(News::Off);
            return;
        }
        let rest = REST_TIME_MIN.saturating_mul(1 << self.failures.min(16));
        let rest = match &error {
            WebError::Busy {
                retry_after: Some(time),
                ..
            } => (*time).clamp(REST_TIME_MIN, RETRY_AFTER_MAX),
            _ => rest.min(REST_TIME_MAX),
        };
        self.failures += 1;
        self.state = State::Resting {
            until: now.saturating_add(rest),
            why: error,
        };
        self.news.push_back(News::Rests);
    }

    /// What is missing of a lane's run is asked for again.
    fn requeue(&mut self, lane: usize) {
        let Some(lane) = self.lanes.get_mut(lane) else {
            return;
        };
        let run = std::mem::take(lane).run;
        for (block, _) in run.into_iter().filter(|(_, wanted)| *wanted).rev() {
            self.queue.push_front(block);
        }
    }

    fn leave(&mut self, now: Now, error: WebError) -> Next {
        self.fail(now, error);
        Next::Leave
    }

    fn asked(&mut self, lane: usize, id: u64) -> Option<&mut Asked> {
        let lane = self.lanes.get_mut(lane).filter(|lane| lane.id == id)?;
        lane.asked.as_mut()
    }

    fn abort(&mut self, n: usize) {
        if let Some(lane) = self.lanes.get_mut(n) {
            if lane.asked.is_some() {
                self.aborted.push(n);
            }
            *lane = Lane::default();
        }
    }

    /// The next range for a lane that has nothing under way.
    fn fetch_by(&mut self, n: usize) -> Option<Fetch> {
        if self.lanes[n].asked.is_some() {
            return None;
        }
        loop {
            if self.lanes[n].run.is_empty() {
                self.begin_run(n)?;
            }
            let lane = &self.lanes[n];
            match self.files.place(lane.at, lane.end - lane.at) {
                Place::Gap(len) => {
                    let zeros = vec![0; len as usize];
                    // Nothing has been received.
                    self.feed(Duration::ZERO, n, &zeros);
                }
                Place::File { number, begin, len } => {
                    return self.fetch_file(n, number, begin, len);
                }
            }
        }
    }

    fn fetch_file(&mut self, n: usize, file: usize, begin: u64, len: u64) -> Option<Fetch> {
        let moved = self.moved.get(&file).cloned();
        let url = match &moved {
            Some(url) => Ok(url.clone()),
            None => self.files.url(&self.base, file),
        };
        let url = match url {
            Ok(url) => url,
            Err(error) => {
                self.fail(Duration::ZERO, error.into());
                return None;
            }
        };
        let asked = Asked {
            file,
            url,
            remembered: moved.is_some(),
            redirects: 0,
            begin,
            left: len,
        };
        Some(self.begin_fetch(n, asked))
    }

    fn begin_fetch(&mut self, n: usize, asked: Asked) -> Fetch {
        self.next_id += 1;
        let fetch = Fetch {
            lane: n,
            id: self.next_id,
            url: asked.url.clone(),
            begin: asked.begin,
            end: asked.begin + asked.left,
            redirected: (&asked.url.host, asked.url.port) != (&self.base.host, self.base.port),
        };
        let lane = &mut self.lanes[n];
        lane.id = fetch.id;
        lane.asked = Some(asked);
        fetch
    }

    /// Takes blocks that lie one behind the other from the queue.
    fn begin_run(&mut self, n: usize) -> Option<()> {
        let first = self.queue.pop_front()?;
        let at = self.files.offset(&first);
        let mut end = at + u64::from(first.length);
        let mut run = VecDeque::from([(first, true)]);
        while let Some(next) = self.queue.front() {
            let longer = end + u64::from(next.length) - at;
            if self.files.offset(next) != end || longer > RUN_BYTES_MAX {
                break;
            }
            end += u64::from(next.length);
            run.extend(self.queue.pop_front().map(|block| (block, true)));
        }
        self.lanes[n] = Lane {
            run,
            at,
            end,
            ..Lane::default()
        };
        Some(())
    }

    /// The next bytes of a lane's run are here.
    fn feed(&mut self, now: Now, n: usize, mut bytes: &[u8]) {
        let Some(lane) = self.lanes.get_mut(n) else {
            return;
        };
        while let (Some((block, wanted)), false) = (lane.run.front().copied(), bytes.is_empty()) {
            let missing = block.length as usize - lane.bytes.len();
            let (now_here, later) = bytes.split_at(missing.min(bytes.len()));
            lane.bytes.extend_from_slice(now_here);
            lane.at += now_here.len() as u64;
            bytes = later;
            if lane.bytes.len() == block.length as usize {
                let whole = std::mem::take(&mut lane.bytes);
                lane.run.pop_front();
                if wanted {
                    self.failures = 0;
                    self.received.add(now, block.length.into());
                    self.done.push_back((block, whole));
                }
            }
        }
    }

    /// Where a request of this lane is to be put instead.
    fn redirect(&mut self, n: usize, location: &str) -> Result<Fetch, WebError> {
        let mut asked = self.lanes[n].asked.take().ok_or(WebError::Redirects)?;
        asked.redirects += 1;
        if asked.redirects > REDIRECTS_MAX {
            return Err(WebError::Redirects);
        }
        asked.url = asked.url.redirected(location)?;
        if self.moved.len() < MOVED_MAX || self.moved.contains_key(&asked.file) {
            self.moved.insert(asked.file, asked.url.clone());
        }
        Ok(self.begin_fetch(n, asked))
    }

    /// The request again, from where the torrent says the file is.
    fn restart(&mut self, now: Now, n: usize) -> Next {
        let Some(mut asked) = self.lanes[n].asked.take() else {
            return Next::Leave;
        };
        match self.files.url(&self.base, asked.file) {
            Ok(url) => {
                asked.url = url;
                asked.remembered = false;
                Next::Again(self.begin_fetch(n, asked))
            }
            Err(error) => self.leave(now, error.into()),
        }
    }

    /// The server does not have the file.
    fn lacks(&mut self, lane: usize, file: usize) {
        self.lacks.insert(file);
        if self.lacks.len() == self.files.len() {
            return self.fail(Duration::ZERO, WebError::Empty);
        }
        let pieces = self.files.pieces(file);
        self.queue.retain(|block| !pieces.contains(&block.piece));
        let run = std::mem::take(&mut self.lanes[lane].run);
        // The other blocks of the run are fetched from where they are.
        let others = run.into_iter().filter(|(_, wanted)| *wanted).rev();
        for (block, _) in others.filter(|(block, _)| !pieces.contains(&block.piece)) {
            self.queue.push_front(block);
        }
        self.lanes[lane] = Lane::default();
        self.news.push_back(News::Lacks(pieces.collect()));
    }

    /// Errors about a file name it.
    fn with_name(&self, error: WebError, file: usize) -> WebError {
        match error {
            WebError::Size {
                there, expected, ..
            } => WebError::Size {
                file: self.files.name(file).to_owned(),
                there,
                expected,
            },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
