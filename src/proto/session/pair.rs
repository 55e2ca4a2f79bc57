//! Two sessions joined in memory, with latency, arbitrary segmentation and a line that can be cut,
//! all from one seed. Time jumps to whatever happens next, so hours take no time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::{Config, Event, PeerInfo, Reason, Session};
use crate::proto::noise::StaticKey;
use crate::proto::ut_xet::Frame;
use crate::share::FolderCredentials;

/// SplitMix64: enough randomness for a simulation, and the same everywhere.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn fill(&mut self, dest: &mut [u8]) {
        dest.fill_with(|| self.next() as u8);
    }
}

/// One end, with what has come out of it.
pub(super) struct End {
    pub(super) session: Session,
    pub(super) established: Option<PeerInfo>,
    pub(super) frames: Vec<Frame>,
    pub(super) closed: Option<Reason>,
    /// Everything this end put on the line.
    pub(super) sent: Vec<u8>,
    input: BytesMut,
    line: VecDeque<(Duration, Bytes)>,
}

impl End {
    pub(super) fn new(session: Session) -> Self {
        Self {
            session,
            established: None,
            frames: vec![],
            closed: None,
            sent: vec![],
            input: BytesMut::new(),
            line: VecDeque::new(),
        }
    }

    /// Hands bytes to the session as a socket would and collects what happens.
    pub(super) fn receive(&mut self, now: Duration, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.session.handle_input(now, &mut self.input);
        assert!(
            self.input.len() <= self.session.input_len_max(),
            "{:?}",
            self.session
        );
        self.collect();
    }

    pub(super) fn timeout(&mut self, now: Duration) {
        self.session.handle_timeout(now);
        self.collect();
    }

    pub(super) fn transmit(&mut self, now: Duration) -> Bytes {
        let mut out = BytesMut::new();
        while self.session.poll_transmit(now, &mut out) {}
        self.sent.extend_from_slice(&out);
        out.freeze()
    }

    fn collect(&mut self) {
        while let Some(event) = self.session.poll_event() {
            assert_eq!(self.closed, None, "an event after the last: {event:?}");
            match event {
                Event::Established(info) => {
                    assert!(self.frames.is_empty() && self.established.is_none());
                    self.established = Some(*info);
                }
                Event::Frame(frame) => {
                    assert!(self.established.is_some(), "{frame:?} from a stranger");
                    self.frames.push(frame);
                }
                Event::Closed(reason) => self.closed = Some(reason),
            }
        }
    }
}

/// How the line behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) latency: Duration,
    /// Longest piece that arrives at once, in bytes.
    pub(super) segment_max: u64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(20),
            segment_max: 1460,
        }
    }
}

/// The simulation.
pub(super) struct Pair {
    pub(super) caller: End,
    pub(super) called: End,
    pub(super) now: Duration,
    pub(super) is_cut: bool,
    line: Line,
    rng: Rng,
}

impl Pair {
    /// `called` answers for whatever swarm the caller asks for, so that a test can mismatch them.
    pub(super) fn new(
        caller: FolderCredentials,
        called: FolderCredentials,
        line: Line,
        seed: u64,
    ) -> Self {
        let mut rng = Rng(seed);
        let now = Duration::from_secs(1000);
        let caller_config = config(&mut rng);
        let called_config = config(&mut rng);
        let mut random = |dest: &mut [u8]| rng.fill(dest);
        let caller = Session::connect(now, Arc::new(caller), caller_config, &mut random);
        let called = Arc::new(called);
        let lookup = Box::new(move |_: &_| Some(called.clone()));
        let called = Session::accept(now, lookup, called_config, &mut random);
        let (caller, called) = (End::new(caller), End::new(called));
        Self {
            caller,
            called,
            now,
            is_cut: false,
            line,
            rng,
        }
    }

    /// Does the next thing that is due; false when nothing ever will be.
    pub(super) fn step(&mut self) -> bool {
        let Self {
            caller,
            called,
            now,
            is_cut,
            line,
            rng,
        } = self;
        for end in [&mut *caller, &mut *called] {
            let bytes = end.transmit(*now);
            if !*is_cut {
                put_on_line(&mut end.line, *now, bytes, *line, rng);
            }
        }
        let arrival = |end: &End| end.line.front().map(|(at, _)| *at);
        let due = |end: &End| end.session.poll_timeout();
        let times = [arrival(caller), arrival(called), due(caller), due(called)];
        let Some(next) = times.into_iter().flatten().min() else {
            return false;
        };
        *now = next.max(*now);
        deliver(caller, called, *now);
        deliver(called, caller, *now);
        for end in [caller, called] {
            if end.session.poll_timeout().is_some_and(|due| due <= *now) {
                end.timeout(*now);
            }
        }
        true
    }

    /// Steps until `done` or until `limit` of simulated time has passed.
    pub(super) fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            if self.now > end || !self.step() {
                return done(self);
            }
        }
        true
    }

    /// Until both ends are established or closed.
    pub(super) fn settle(&mut self) {
        let is_settled = |end: &End| end.established.is_some() || end.closed.is_some();
        let limit = Duration::from_secs(20);
        let done = self.run(limit, |pair| {
            is_settled(&pair.caller) && is_settled(&pair.called)
        });
        assert!(done, "{:?} {:?}", self.caller.session, self.called.session);
    }
}

pub(super) fn config(rng: &mut Rng) -> Config {
    let mut nonce = [0; 8];
    rng.fill(&mut nonce);
    let static_key = Arc::new(StaticKey::generate(&mut |dest| rng.fill(dest)));
    Config {
        static_key,
        nonce,
        listen_port: 6881,
        today: 20_000,
    }
}

fn put_on_line(
    queue: &mut VecDeque<(Duration, Bytes)>,
    now: Duration,
    mut bytes: Bytes,
    line: Line,
    rng: &mut Rng,
) {
    let mut at = queue
        .back()
        .map_or(now, |(at, _)| *at)
        .max(now + line.latency);
    while !bytes.is_empty() {
        let len = (1 + rng.below(line.segment_max)).min(bytes.len() as u64) as usize;
        at += Duration::from_micros(rng.below(20));
        queue.push_back((at, bytes.split_to(len)));
    }
}

fn deliver(from: &mut End, to: &mut End, now: Duration) {
    while let Some((_, bytes)) = from.line.pop_front_if(|(at, _)| *at <= now) {
        to.receive(now, &bytes);
    }
}
