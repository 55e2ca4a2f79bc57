//! One announce to a UDP tracker, or one scrape (BEP 15, with the URL option of BEP 41): connect, ask, repeat what got lost.
//!
//! [`UdpExchange`] is driven with datagrams and time and says what to send. Only a datagram that answers the open
//! transaction moves it; anything else is ignored, so a stranger who does not see our packets cannot end it.

use std::time::Duration;

use thiserror::Error;

use super::tracker::{AnnounceRequest, Announced, Event, Scraped, compact_v4, compact_v6, reason};
use crate::share::SwarmId;

/// Time since a start the caller chose.
type Now = Duration;

/// Longest datagram worth receiving: 500 IPv6 peers would be 9 KB, trackers keep below one Ethernet frame.
pub const DATAGRAM_LEN_MAX: usize = 4096;

/// The constant that opens a connect request.
const PROTOCOL: u64 = 0x0417_2710_1980;
const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;
/// Option of BEP 41 that carries path and query of the tracker's URL.
const OPTION_URL: u8 = 2;
/// Bytes one option can carry.
const OPTION_LEN_MAX: usize = 255;
/// A connection id is used for this long after it came (BEP 15).
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// Wait for the first answer; doubled with each repetition (BEP 15).
const RETRY_TIME: Duration = Duration::from_secs(15);
/// Requests sent before giving up: 15 + 30 + 60 + 120 s. BEP 15 allows nine, over an hour for the last; a tracker that
/// was silent for four minutes is better asked anew, by name, after the driver's own wait.
const ATTEMPTS_MAX: u32 = 4;

/// Whether peers in the answer have 4 or 16 bytes of address: that of the tracker's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 6 bytes a peer.
    V4,
    /// 18 bytes a peer.
    V6,
}

/// A tracker's permission to announce from our address.
#[derive(Debug)]
struct Connection {
    id: u64,
    expires: Now,
}

/// Why an announce to a UDP tracker came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UdpTrackerError {
    /// Nothing that answers came.
    #[error("no answer to {attempts} requests")]
    Silent {
        /// Requests sent.
        attempts: u32,
    },
    /// The tracker says no.
    #[error("the tracker refuses: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
    /// The tracker answers our transaction with something that is not an answer.
    #[error("the tracker's answer of {len} bytes with action {action} makes no sense")]
    Nonsense {
        /// Length of the datagram.
        len: usize,
        /// What it says it is.
        action: u32,
    },
}

#[derive(Debug)]
enum Phase {
    Connecting,
    Asking(Connection),
    Done,
}

/// What a UDP tracker is asked.
#[derive(Debug, Clone)]
pub enum Question {
    Announce {
        request: AnnounceRequest,
        /// Path and query of the tracker's URL.
        url_data: String,
        family: Family,
    },
    Scrape(SwarmId),
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpAnswer {
    Announced(Announced),
    Scraped(Scraped),
}

/// One question under way.
#[derive(Debug)]
pub struct UdpExchange {
    question: Question,
    phase: Phase,
    transaction: u32,
    attempts: u32,
    deadline: Now,
    transmit: Option<Vec<u8>>,
    outcome: Option<Result<UdpAnswer, UdpTrackerError>>,
}

impl UdpExchange {
    /// Starts with a connect request.
    pub fn new(now: Now, question: Question, random: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut this = Self {
            question,
            phase: Phase::Connecting,
            transaction: 0,
            attempts: 0,
            deadline: now,
            transmit: None,
            outcome: None,
        };
        this.begin_transaction(random);
        this.send(now, random);
        this
    }

    /// Takes a datagram from the tracker's address.
    pub fn handle_datagram(&mut self, now: Now, bytes: &[u8], random: &mut dyn FnMut(&mut [u8])) {
        let Some((action, rest)) = word(bytes) else {
            return;
        };
        let Some((transaction, body)) = word(rest) else {
            return;
        };
        if transaction != self.transaction || matches!(self.phase, Phase::Done) {
            return;
        }
        match (&self.phase, action) {
            (Phase::Connecting, CONNECT) if let Some((id, _)) = body.split_first_chunk::<8>() => {
                let id = u64::from_be_bytes(*id);
                let connection = Connection {
                    id,
                    expires: now + CONNECTION_TIME,
                };
                self.phase = Phase::Asking(connection);
                self.attempts = 0;
                self.begin_transaction(random);
                self.send(now, random);
            }
            (Phase::Asking(_), ANNOUNCE | SCRAPE)
                if let Some(answer) = self.answer(action, body) =>
            {
                self.finish(Ok(answer));
            }
            (_, ERROR) => {
                self.finish(Err(UdpTrackerError::Refused {
                    reason: reason(body),
                }));
            }
            _ => self.finish(Err(UdpTrackerError::Nonsense {
                len: bytes.len(),
                action,
            })),
        }
    }

    /// Repeats or gives up when [`Self::poll_timeout`] has passed.
    pub fn handle_timeout(&mut self, now: Now, random: &mut dyn FnMut(&mut [u8])) {
        if now < self.deadline || matches!(self.phase, Phase::Done) {
            return;
        }
        if self.attempts >= ATTEMPTS_MAX {
            let attempts = self.attempts;
            self.finish(Err(UdpTrackerError::Silent { attempts }));
        } else {
            self.send(now, random);
        }
    }

    /// The next datagram to send to the tracker.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmit.take()
    }

    /// When [`Self::handle_timeout`] has to be called; nothing once there is an outcome.
    pub fn poll_timeout(&self) -> Option<Now> {
        (!matches!(self.phase, Phase::Done)).then_some(self.deadline)
    }

    /// How it ended, once.
    pub fn poll_outcome(&mut self) -> Option<Result<UdpAnswer, UdpTrackerError>> {
        self.outcome.take()
    }

    /// A transaction id nobody who does not see our packets can know. Repetitions keep it, so that a late answer counts.
    fn begin_transaction(&mut self, random: &mut dyn FnMut(&mut [u8])) {
        let mut bytes = [0; 4];
        random(&mut bytes);
        self.transaction = u32::from_be_bytes(bytes);
    }

    fn send(&mut self, now: Now, random: &mut dyn FnMut(&mut [u8])) {
        if matches!(&self.phase, Phase::Asking(connection) if now >= connection.expires) {
            self.phase = Phase::Connecting;
            self.begin_transaction(random);
        }
        self.deadline = now + RETRY_TIME * 2_u32.pow(self.attempts.min(ATTEMPTS_MAX));
        self.attempts += 1;
        self.transmit = Some(match &self.phase {
            Phase::Asking(connection) => self.question_datagram(connection.id),
            Phase::Connecting | Phase::Done => self.connect_datagram(),
        });
    }

    fn finish(&mut self, outcome: Result<UdpAnswer, UdpTrackerError>) {
        self.phase = Phase::Done;
        self.transmit = None;
        self.outcome = Some(outcome);
    }

    fn connect_datagram(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        out.extend_from_slice(&PROTOCOL.to_be_bytes());
        out.extend_from_slice(&CONNECT.to_be_bytes());
        out.extend_from_slice(&self.transaction.to_be_bytes());
        out
    }

    fn question_datagram(&self, connection: u64) -> Vec<u8> {
        let (request, url_data) = match &self.question {
            Question::Announce {
                request, url_data, ..
            } => (request, url_data),
            Question::Scrape(swarm) => {
                let mut out = connection.to_be_bytes().to_vec();
                out.extend_from_slice(&SCRAPE.to_be_bytes());
                out.extend_from_slice(&self.transaction.to_be_bytes());
                out.extend_from_slice(swarm.as_bytes());
                return out;
            }
        };
        let event: u32 = match request.event {
            Event::Regular => 0,
            Event::Completed => 1,
            Event::Started => 2,
            Event::Stopped => 3,
        };
        let mut out = Vec::with_capacity(98);
        out.extend_from_slice(&connection.to_be_bytes());
        out.extend_from_slice(&ANNOUNCE.to_be_bytes());
        out.extend_from_slice(&self.transaction.to_be_bytes());
        out.extend_from_slice(request.swarm.as_bytes());
        out.extend_from_slice(&request.peer_id);
        out.extend_from_slice(&request.downloaded.to_be_bytes());
        out.extend_from_slice(&request.left.to_be_bytes());
        out.extend_from_slice(&request.uploaded.to_be_bytes());
        out.extend_from_slice(&event.to_be_bytes());
        // Address 0: the tracker takes the one the datagram comes from.
        out.extend_from_slice(&0_u32.to_be_bytes());
        out.extend_from_slice(&request.key.to_be_bytes());
        out.extend_from_slice(&u32::from(request.wanted()).to_be_bytes());
        out.extend_from_slice(&request.port.to_be_bytes());
        for part in url_data.as_bytes().chunks(OPTION_LEN_MAX) {
            out.push(OPTION_URL);
            out.push(part.len() as u8);
            out.extend_from_slice(part);
        }
        out
    }

    /// Reads what answers our question: interval, leechers, seeders and peers, or seeders, downloads and leechers.
    fn answer(&self, action: u32, body: &[u8]) -> Option<UdpAnswer> {
        let (first, rest) = word(body)?;
        let (second, rest) = word(rest)?;
        let (third, peers) = word(rest)?;
        let announced = |announced: Announced| {
            UdpAnswer::Announced(Announced {
                seeds: Some(third),
                leechers: Some(second),
                ..announced
            })
        };
        match (&self.question, action) {
            (
                Question::Announce {
                    family: Family::V4, ..
                },
                ANNOUNCE,
            ) => Some(announced(Announced::new(
                u64::from(first),
                compact_v4(peers),
            ))),
            (
                Question::Announce {
                    family: Family::V6, ..
                },
                ANNOUNCE,
            ) => Some(announced(Announced::new(
                u64::from(first),
                compact_v6(peers),
            ))),
            (Question::Scrape(_), SCRAPE) => Some(UdpAnswer::Scraped(Scraped {
                seeds: first,
                downloads: second,
                leechers: third,
            })),
            _ => None,
        }
    }
}

/// A big-endian word off the front.
fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tracker::tests::request;
    use super::*;

    fn secs(n: u64) -> Now {
        Duration::from_secs(n)
    }

    /// Transaction ids 1, 2, 3, ..
    fn counting() -> impl FnMut(&mut [u8]) {
        let mut n = 0;
        move |out| {
            n += 1;
            out.fill(0);
            *out.last_mut().unwrap() = n;
        }
    }

    fn start(random: &mut dyn FnMut(&mut [u8])) -> UdpExchange {
        let question = Question::Announce {
            request: request(Event::Started),
            url_data: "/announce?pass=1".to_owned(),
            family: Family::V4,
        };
        UdpExchange::new(secs(0), question, random)
    }

    fn announced(udp: &mut UdpExchange) -> Announced {
        match udp.poll_outcome() {
            Some(Ok(UdpAnswer::Announced(announced))) => announced,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_scrape_has_the_layout_of_bep_15() {
        let mut random = counting();
        let swarm = SwarmId::from_bytes([7; 20]);
        let mut udp = UdpExchange::new(secs(0), Question::Scrape(swarm), &mut random);
        udp.handle_datagram(secs(0), &words(&[0, 1, 0xaabb, 0xccdd]), &mut random);
        let mut want = words(&[0xaabb, 0xccdd, 2, 2]);
        want.extend([7; 20]);
        assert_eq!(udp.poll_transmit(), Some(want));
        udp.handle_datagram(secs(1), &words(&[2, 2, 5, 50, 10]), &mut random);
        let scraped = Scraped {
            seeds: 5,
            leechers: 10,
            downloads: 50,
        };
        assert_eq!(udp.poll_outcome(), Some(Ok(UdpAnswer::Scraped(scraped))));
        let mut udp = UdpExchange::new(secs(0), Question::Scrape(swarm), &mut counting());
        let mut random = counting();
        udp.handle_datagram(secs(0), &words(&[0, 1, 0, 7]), &mut random);
        udp.handle_datagram(secs(0), &words(&[1, 1, 900, 0, 0]), &mut random);
        assert!(matches!(
            udp.poll_outcome(),
            Some(Err(UdpTrackerError::Nonsense { .. }))
        ));
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    #[test]
    fn connects_then_announces_with_the_layout_of_bep_15() {
        let mut random = counting();
        let mut udp = start(&mut random);
        assert_eq!(
            udp.poll_transmit().unwrap(),
            words(&[0x417, 0x2710_1980, 0, 1])
        );
        udp.handle_datagram(secs(1), &words(&[0, 1, 0xaabb, 0xccdd]), &mut random);
        let sent = udp.poll_transmit().unwrap();
        let mut want = words(&[0xaabb, 0xccdd, 1, 2]);
        want.extend(0..20_u8);
        want.extend(b"-CC0001-abcdefghijkl");
        want.extend(words(&[0, 8, 0, 9, 0, 7, 2, 0, 0xdead_beef, 100]));
        want.extend(51413_u16.to_be_bytes());
        assert_eq!((sent.len(), &sent[..98]), (98 + 2 + 16, &want[..]));
        assert_eq!(&sent[98..], b"\x02\x10/announce?pass=1");
        let mut answer = words(&[1, 2, 900, 5, 6]);
        answer.extend([10, 0, 0, 1, 0, 80]);
        udp.handle_datagram(secs(2), &answer, &mut random);
        let announced = announced(&mut udp);
        assert_eq!(announced.interval, secs(900));
        assert_eq!((announced.seeds, announced.leechers), (Some(6), Some(5)));
        assert_eq!(announced.peers, ["10.0.0.1:80".parse().unwrap()]);
        assert_eq!((udp.poll_timeout(), udp.poll_transmit()), (None, None));
    }

    #[test]
    fn silence_is_answered_by_doubling_waits_and_an_end() {
        let mut random = counting();
        let mut udp = start(&mut random);
        let mut at = 0;
        for wait in [15, 30, 60, 120] {
            assert!(udp.poll_transmit().is_some(), "at {at}");
            at += wait;
            assert_eq!(udp.poll_timeout(), Some(secs(at)));
            udp.handle_timeout(secs(at - 1), &mut random);
            assert_eq!(udp.poll_transmit(), None);
            udp.handle_timeout(secs(at), &mut random);
        }
        assert_eq!(
            udp.poll_outcome(),
            Some(Err(UdpTrackerError::Silent { attempts: 4 }))
        );
    }

    #[test]
    fn an_expired_connection_is_asked_for_again() {
        let mut random = counting();
        let mut udp = start(&mut random);
        udp.handle_datagram(secs(0), &words(&[0, 1, 0, 7]), &mut random);
        for at in [15, 45] {
            udp.handle_timeout(secs(at), &mut random);
            assert_eq!(
                udp.poll_transmit().unwrap()[8..12],
                words(&[1]),
                "announce at {at}"
            );
        }
        udp.handle_timeout(secs(105), &mut random);
        assert_eq!(
            udp.poll_transmit().unwrap(),
            words(&[0x417, 0x2710_1980, 0, 3])
        );
    }

    #[test]
    fn only_the_open_transaction_is_listened_to() {
        let mut random = counting();
        let mut udp = start(&mut random);
        let first = udp.poll_transmit();
        assert!(first.is_some());
        for other in [
            words(&[0, 9, 1, 1]),
            words(&[3, 2]),
            words(&[0]),
            vec![0; 7],
            vec![],
        ] {
            udp.handle_datagram(secs(1), &other, &mut random);
            assert_eq!(
                (udp.poll_outcome(), udp.poll_transmit()),
                (None, None),
                "{other:?}"
            );
        }
        udp.handle_datagram(
            secs(1),
            &[&words(&[3, 1])[..], b"full\x07"].concat(),
            &mut random,
        );
        let refused = UdpTrackerError::Refused {
            reason: "full".into(),
        };
        assert_eq!(udp.poll_outcome(), Some(Err(refused)));
    }

    #[test]
    fn short_or_misplaced_answers_end_it() {
        for (datagram, action) in [(words(&[0, 1, 1]), 0), (words(&[1, 1, 1, 1, 1]), 1)] {
            let mut random = counting();
            let mut udp = start(&mut random);
            udp.handle_datagram(secs(1), &datagram, &mut random);
            let nonsense = UdpTrackerError::Nonsense {
                len: datagram.len(),
                action,
            };
            assert_eq!(udp.poll_outcome(), Some(Err(nonsense)));
        }
    }

    #[test]
    fn who_leaves_wants_no_peers_and_a_tracker_at_ipv6_lists_those() {
        let mut random = counting();
        let stop = request(Event::Stopped);
        let question = Question::Announce {
            request: stop,
            url_data: String::new(),
            family: Family::V6,
        };
        let mut udp = UdpExchange::new(secs(0), question, &mut random);
        udp.handle_datagram(secs(0), &words(&[0, 1, 0, 7]), &mut random);
        let sent = udp.poll_transmit().unwrap();
        assert_eq!((sent.len(), &sent[92..96]), (98, &words(&[0])[..]));
        let answer = [words(&[1, 2, 900, 0, 0, 0, 0, 0, 1]), vec![0, 81]].concat();
        udp.handle_datagram(secs(1), &answer, &mut random);
        let announced = announced(&mut udp);
        assert_eq!(announced.peers, ["[::1]:81".parse().unwrap()]);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic_or_grow(
            datagrams in prop::collection::vec(
                (0_u32..4, 0_u32..4, prop::collection::vec(any::<u8>(), 0..64)), 0..8),
            v6 in any::<bool>(),
        ) {
            let mut random = counting();
            let family = if v6 { Family::V6 } else { Family::V4 };
            let request = request(Event::Regular);
            let question = Question::Announce { request, url_data: String::new(), family };
            let mut udp = UdpExchange::new(secs(0), question, &mut random);
            for (n, (action, transaction, rest)) in datagrams.iter().enumerate() {
                let datagram = [words(&[*action, *transaction]), rest.clone()].concat();
                udp.handle_datagram(secs(n as u64), &datagram, &mut random);
                udp.handle_timeout(secs(n as u64 * 20), &mut random);
            }
            let done = udp.poll_outcome().is_some();
            prop_assert_eq!(done, udp.poll_timeout().is_none());
        }
    }
}
