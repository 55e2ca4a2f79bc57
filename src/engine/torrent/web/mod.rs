//! One task per web seed: carries requests from the machine of `proto::web_seed` to its connections and what comes to the torrent's actor.
//!
//! - `lane`: a connection to the server, one request at a time.

mod lane;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use self::lane::{Lane, LaneEvent, LaneNews};
use super::slab::SlabPool;
use super::{DialTorrent, WebSeedStatus};
use crate::clock::Elapsed;
use crate::engine::limits::Limits;
use crate::proto::blocks::Block;
use crate::proto::scheduler::PeerKey;
use crate::proto::web_seed::url::WebUrl;
use crate::proto::web_seed::{LANES, News, WebError, WebFiles, WebSeed};
use crate::proto::wire::Message;

use super::peer::{FromPeer, ToPeer};

/// Parts of bodies waiting to be dealt with; beyond, connections are not read.
const EVENTS_MAX: usize = 8;

/// What a web seed tells the actor besides blocks.
pub(super) enum FromWeb {
    News(News),
    /// How it stands, for the user.
    Stands(WebSeedStatus),
}

/// A web seed to be run.
pub(super) struct Server {
    pub(super) key: PeerKey,
    pub(super) url: WebUrl,
    pub(super) files: Arc<WebFiles>,
    pub(super) slabs: SlabPool,
    pub(super) limits: Limits,
    pub(super) gate: Arc<dyn DialTorrent>,
    pub(super) events: mpsc::Sender<FromPeer>,
    pub(super) commands: mpsc::UnboundedReceiver<Vec<ToPeer>>,
}

/// Runs until the actor lets go of it, or the server turns out to be of no use.
pub(super) async fn run(mut server: Server) {
    let (sink, mut events) = mpsc::channel(EVENTS_MAX);
    let mut task = Task {
        clock: Elapsed::start(),
        machine: WebSeed::new(server.url.clone(), Arc::clone(&server.files)),
        lanes: Default::default(),
        sink,
    };
    loop {
        let until = task
            .machine
            .poll_timeout()
            .map(|at| task.clock.instant(at).into());
        tokio::select! {
            commands = server.commands.recv() => match commands {
                Some(commands) => task.commands(commands),
                None => return,
            },
            Some(event) = events.recv() => task.event(event),
            () = sleep(until) => task.machine.handle_timeout(task.clock.now()),
        }
        if task.turn(&server).await.is_none() {
            return;
        }
    }
}

async fn sleep(until: Option<tokio::time::Instant>) {
    match until {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Task {
    clock: Elapsed,
    machine: WebSeed,
    lanes: [Option<Lane>; LANES],
    sink: mpsc::Sender<LaneEvent>,
}

impl Task {
    fn commands(&mut self, commands: Vec<ToPeer>) {
        for command in commands {
            match command {
                ToPeer::Send(Message::Request(block)) => self.machine.ask(block),
                ToPeer::Send(Message::Cancel(block)) => self.machine.cancel(block),
                // What else a peer would be told does not concern a server.
                _ => {}
            }
        }
    }

    fn event(&mut self, event: LaneEvent) {
        let now = self.clock.now();
        let (lane, id) = (event.lane, event.id);
        match event.news {
            LaneNews::Answer(answer, reply) => {
                let next = self.machine.answered(now, lane, id, &answer);
                // The connection may have been cut off meanwhile.
                drop(reply.send(next));
            }
            LaneNews::Body(bytes) => self.machine.body(now, lane, id, &bytes),
            LaneNews::Ended(error) => self.machine.ended(now, lane, id, error),
        }
    }

    /// Does what the machine wants done. `None`: the actor is gone.
    async fn turn(&mut self, server: &Server) -> Option<()> {
        while let Some(n) = self.machine.poll_abort() {
            self.lanes[n] = None;
        }
        while let Some(fetch) = self.machine.poll_fetch() {
            let lane = self.lanes[fetch.lane].get_or_insert_with(|| {
                Lane::start(
                    server.limits.clone(),
                    Arc::clone(&server.gate),
                    self.sink.clone(),
                )
            });
            lane.give(fetch);
        }
        let mut blocks = Vec::new();
        while let Some((block, bytes)) = self.machine.poll_block() {
            blocks.push(piece(block, server.slabs.keep(bytes).await?));
        }
        if !blocks.is_empty() {
            let said = FromPeer::Said(server.key, blocks);
            server.events.send(said).await.ok()?;
        }
        while let Some(news) = self.machine.poll_news() {
            if let (News::Rests | News::Off, Some(why)) = (&news, self.machine.trouble()) {
                tracing::info!(url = %server.url, %why, "web seed is not asked");
            }
            let stands = FromWeb::Stands(self.stands(&server.url));
            for news in [stands, FromWeb::News(news)] {
                let news = FromPeer::Web(server.key, news);
                server.events.send(news).await.ok()?;
            }
        }
        Some(())
    }

    fn stands(&self, url: &WebUrl) -> WebSeedStatus {
        WebSeedStatus {
            url: url.to_string(),
            off: self.machine.is_off(),
            trouble: self.machine.trouble().map(WebError::to_string),
            ..WebSeedStatus::default()
        }
    }
}

fn piece(block: Block, data: Bytes) -> Message<Bytes> {
    Message::Piece {
        piece: block.piece,
        begin: block.begin,
        data,
    }
}
