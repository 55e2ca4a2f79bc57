//! PCP (RFC 6887) and NAT-PMP (RFC 6886): one request and one answer for each port, in datagrams to the router.
//!
//! PCP is asked first; a router that knows only its forerunner says so, and is asked by that.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use thiserror::Error;

use super::{LIFETIME, Mapped, Now, Protocol, Want, renewal};

/// Where routers listen.
pub const ROUTER_PORT: u16 = 5351;
/// Longest datagram (RFC 6887 §7).
pub const DATAGRAM_LEN_MAX: usize = 1100;
/// First wait for an answer, doubled each time (RFC 6886 §3.1).
const ANSWER_TIME: Duration = Duration::from_millis(250);
/// Requests sent before the router counts as one that does not answer: 7.75 s in all.
const TRIES_MAX: u32 = 5;
const MAP_REQUEST_LEN: usize = 60;
const UNSUPPORTED_VERSION: u8 = 1;

/// Which of the two is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Pcp,
    NatPmp,
}

/// Why there is no mapping.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PcpError {
    #[error("the router does not answer")]
    NoAnswer,
    #[error("the router refuses: {0}")]
    Refused(&'static str),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PcpEvent {
    Mapped(Mapped),
    /// This ends it.
    Failed(PcpError),
    /// Everything has been taken back, or cannot be.
    Released,
}

/// One port.
#[derive(Debug)]
struct Port {
    want: Want,
    nonce: [u8; 12],
    /// Requests sent without an answer.
    tries: u32,
    /// When to send the next.
    at: Now,
    /// The external port, once there is one.
    external: Option<u16>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Pcp {
    /// Our address as the router sees it.
    client: IpAddr,
    dialect: Dialect,
    ports: Vec<Port>,
    /// NAT-PMP tells the address of the router by itself.
    external_ip: Option<IpAddr>,
    /// When to ask for it, and how often that was done.
    ask_ip: Option<(Now, u32)>,
    releasing: bool,
    over: bool,
    events: VecDeque<PcpEvent>,
}

impl Pcp {
    /// `fill` makes random bytes: without the right ones nobody can answer for the router.
    pub fn new(now: Now, client: IpAddr, wants: &[Want], fill: &mut dyn FnMut(&mut [u8])) -> Self {
        let port = |want: &Want| {
            let mut nonce = [0; 12];
            fill(&mut nonce);
            Port {
                want: *want,
                nonce,
                tries: 0,
                at: now,
                external: None,
            }
        };
        Self {
            client,
            dialect: Dialect::Pcp,
            ports: wants.iter().map(port).collect(),
            external_ip: None,
            ask_ip: None,
            releasing: false,
            over: false,
            events: VecDeque::new(),
        }
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Takes the mappings back.
    pub fn release(&mut self, now: Now) {
        self.releasing = true;
        self.ask_ip = None;
        self.ports.retain(|port| port.external.is_some());
        for port in &mut self.ports {
            port.at = now;
            port.tries = 0;
        }
        self.note_released();
    }

    pub fn poll_event(&mut self) -> Option<PcpEvent> {
        self.events.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Now> {
        if self.over {
            return None;
        }
        let ports = self.ports.iter().map(|port| port.at);
        ports.chain(self.ask_ip.map(|(at, _)| at)).min()
    }

    /// The next datagram to send to the router.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Vec<u8>> {
        if self.over {
            return None;
        }
        if let Some((at, tries)) = self.ask_ip.filter(|(at, _)| *at <= now) {
            let wait = ANSWER_TIME * 2u32.saturating_pow(tries);
            // Not to know the address is no reason to give the ports up.
            self.ask_ip = (tries + 1 < TRIES_MAX).then(|| (at.max(now) + wait, tries + 1));
            return Some(vec![0, 0]);
        }
        let due = self.ports.iter().position(|port| port.at <= now)?;
        let port = self.ports.get_mut(due)?;
        if port.tries >= TRIES_MAX {
            if self.releasing {
                self.ports.remove(due);
                self.note_released();
            } else {
                self.fail(PcpError::NoAnswer);
            }
            return None;
        }
        port.at = now + ANSWER_TIME * 2u32.saturating_pow(port.tries);
        port.tries += 1;
        let lifetime = if self.releasing {
            0
        } else {
            LIFETIME.as_secs() as u32
        };
        Some(match self.dialect {
            Dialect::Pcp => pcp_request(self.client, port, lifetime),
            Dialect::NatPmp => nat_pmp_request(port, lifetime),
        })
    }

    /// The router has sent this. What is no answer to us is passed over.
    pub fn handle_datagram(&mut self, now: Now, datagram: &[u8]) {
        if self.over || datagram.len() > DATAGRAM_LEN_MAX {
            return;
        }
        match (self.dialect, datagram) {
            (Dialect::Pcp, [0, ..]) if self.ports.iter().all(|port| port.external.is_none()) => {
                self.begin_nat_pmp(now);
            }
            (Dialect::Pcp, [2, 0x81, _, result, rest @ ..]) => self.pcp_answer(now, *result, rest),
            (Dialect::NatPmp, [0, kind, high, low, rest @ ..]) => {
                let result = u16::from_be_bytes([*high, *low]);
                self.nat_pmp_answer(now, *kind, result, rest);
            }
            _ => {}
        }
    }

    fn begin_nat_pmp(&mut self, now: Now) {
        self.dialect = Dialect::NatPmp;
        self.ask_ip = Some((now, 0));
        for port in &mut self.ports {
            port.at = now;
            port.tries = 0;
        }
    }

    /// `rest` follows the result code.
    fn pcp_answer(&mut self, now: Now, result: u8, rest: &[u8]) {
        let (Some(lifetime), Some(nonce)) = (u32_at(rest, 0), rest.get(20..32)) else {
            return;
        };
        let (Some(port), Some(ip)) = (u16_at(rest, 38), rest.get(40..56)) else {
            return;
        };
        let protocol = rest.get(32).copied();
        let internal = u16_at(rest, 36);
        let fits = |p: &Port| {
            p.nonce == nonce
                && Some(number(p.want.protocol)) == protocol
                && Some(p.want.port) == internal
        };
        let Some(n) = self.ports.iter().position(fits) else {
            return;
        };
        if result != 0 {
            return match result {
                UNSUPPORTED_VERSION => self.begin_nat_pmp(now),
                _ => self.refused(n, pcp_refusal(result)),
            };
        }
        let ip = <[u8; 16]>::try_from(ip).map(Ipv6Addr::from).ok();
        self.external_ip = ip.map(|ip| IpAddr::from(ip).to_canonical());
        self.external_ip = self.external_ip.filter(|ip| !ip.is_unspecified());
        self.answered(now, n, port, lifetime);
    }

    fn nat_pmp_answer(&mut self, now: Now, kind: u8, result: u16, rest: &[u8]) {
        match kind {
            128 if result == 0 => {
                let ip = rest.get(4..8).and_then(|ip| <[u8; 4]>::try_from(ip).ok());
                let ip = ip.map(Ipv4Addr::from).filter(|ip| !ip.is_unspecified());
                self.ask_ip = None;
                if ip.is_some() && self.external_ip != ip.map(IpAddr::from) {
                    self.external_ip = ip.map(IpAddr::from);
                    // Who has heard of the ports already hears of the address too.
                    (0..self.ports.len()).for_each(|n| self.tell(n));
                }
            }
            129 | 130 => {
                let protocol = if kind == 129 {
                    Protocol::Udp
                } else {
                    Protocol::Tcp
                };
                let internal = u16_at(rest, 4);
                let fits = |p: &Port| p.want.protocol == protocol && Some(p.want.port) == internal;
                let Some(n) = self.ports.iter().position(fits) else {
                    return;
                };
                match (result, u16_at(rest, 6), u32_at(rest, 8)) {
                    (0, Some(port), Some(lifetime)) => self.answered(now, n, port, lifetime),
                    (0, ..) => {}
                    (result, ..) => self.refused(n, nat_pmp_refusal(result)),
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, now: Now, n: usize, external: u16, lifetime: u32) {
        if self.releasing {
            self.ports.remove(n);
            return self.note_released();
        }
        if external == 0 || lifetime == 0 {
            return self.fail(PcpError::Refused("it gives no port"));
        }
        if let Some(port) = self.ports.get_mut(n) {
            port.tries = 0;
            port.at = now + renewal(Duration::from_secs(lifetime.into()));
            port.external = Some(external);
        }
        self.tell(n);
    }

    fn tell(&mut self, n: usize) {
        let port = self.ports.get(n);
        if let Some((want, external)) = port.and_then(|port| Some((port.want, port.external?))) {
            self.events.push_back(PcpEvent::Mapped(Mapped {
                want,
                external: (self.external_ip, external),
            }));
        }
    }

    fn refused(&mut self, n: usize, why: &'static str) {
        if self.releasing {
            self.ports.remove(n);
            return self.note_released();
        }
        self.fail(PcpError::Refused(why));
    }

    fn fail(&mut self, error: PcpError) {
        self.over = true;
        self.events.push_back(PcpEvent::Failed(error));
    }

    fn note_released(&mut self) {
        if self.releasing && self.ports.is_empty() && !self.over {
            self.over = true;
            self.events.push_back(PcpEvent::Released);
        }
    }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn pcp_request(client: IpAddr, port: &Port, lifetime: u32) -> Vec<u8> {
    let any = match client {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut out = Vec::with_capacity(MAP_REQUEST_LEN);
    out.extend_from_slice(&[2, 1, 0, 0]);
    out.extend_from_slice(&lifetime.to_be_bytes());
    out.extend_from_slice(&mapped(client));
    out.extend_from_slice(&port.nonce);
    out.extend_from_slice(&[number(port.want.protocol), 0, 0, 0]);
    out.extend_from_slice(&port.want.port.to_be_bytes());
    let wished = port.external.unwrap_or(port.want.port);
    out.extend_from_slice(&wished.to_be_bytes());
    out.extend_from_slice(&mapped(any));
    out
}

fn nat_pmp_request(port: &Port, lifetime: u32) -> Vec<u8> {
    let kind = match port.want.protocol {
        Protocol::Udp => 1,
        Protocol::Tcp => 2,
    };
    let mut out = vec![0, kind, 0, 0];
    out.extend_from_slice(&port.want.port.to_be_bytes());
    // To take a mapping back, nothing is wished for (RFC 6886 §3.4).
    let wished = match lifetime {
        0 => 0,
        _ => port.external.unwrap_or(port.want.port),
    };
    out.extend_from_slice(&wished.to_be_bytes());
    out.extend_from_slice(&lifetime.to_be_bytes());
    out
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

fn pcp_refusal(result: u8) -> &'static str {
    match result {
        2 => "this is not allowed",
        3 | 6 => "it does not understand the request",
        4 | 5 | 9 => "it cannot do this",
        7 => "its network is down",
        8 => "it has no resources left",
        10 => "too many ports are mapped to this machine",
        11 => "it cannot give this port",
        12 => "there is another router between it and us",
        13 => "too many peers",
        _ => "for a reason it gives by a number we do not know",
    }
}

fn nat_pmp_refusal(result: u16) -> &'static str {
    match result {
        2 => "this is not allowed",
        3 => "its network is down",
        4 => "it has no resources left",
        _ => "it cannot do this",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 7);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

    fn wants() -> [Want; 2] {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Want {
            protocol,
            port: 6881,
        })
    }

    fn start() -> Pcp {
        Pcp::new(Now::ZERO, CLIENT.into(), &wants(), &mut |bytes| {
            bytes.fill(9);
        })
    }

    /// What a router of PCP answers: another port than was wished for.
    fn pcp_router(request: &[u8], result: u8) -> Vec<u8> {
        assert_eq!((request.len(), &request[..2]), (60, &[2, 1][..]));
        let mut answer = request.to_vec();
        answer[1] = 0x81;
        answer[3] = result;
        answer[8..24].fill(0);
        let port = u16_at(request, 42).unwrap();
        answer[42..44].copy_from_slice(&(port + 1).to_be_bytes());
        answer[44..60].copy_from_slice(&OUTSIDE.to_ipv6_mapped().octets());
        answer
    }

    fn events(pcp: &mut Pcp) -> Vec<PcpEvent> {
        std::iter::from_fn(|| pcp.poll_event()).collect()
    }

    #[test]
    fn ports_are_mapped_renewed_and_taken_back() {
        let mut pcp = start();
        let mut now = Now::ZERO;
        for renewed in 0..3u16 {
            for want in wants() {
                let request = pcp.poll_transmit(now).unwrap();
                pcp.handle_datagram(now, &pcp_router(&request, 0));
                let external = (Some(IpAddr::from(OUTSIDE)), 6882 + renewed);
                let mapped = PcpEvent::Mapped(Mapped { want, external });
                assert_eq!(events(&mut pcp), [mapped]);
            }
            assert_eq!(pcp.poll_transmit(now), None);
            assert_eq!(pcp.poll_timeout(), Some(now + LIFETIME / 2));
            now += LIFETIME / 2;
        }
        pcp.release(now);
        for _ in 0..2 {
            let request = pcp.poll_transmit(now).unwrap();
            assert_eq!(u32_at(&request, 4), Some(0));
            assert_eq!(events(&mut pcp), []);
            pcp.handle_datagram(now, &pcp_router(&request, 0));
        }
        assert_eq!(events(&mut pcp), [PcpEvent::Released]);
        assert_eq!((pcp.poll_transmit(now), pcp.poll_timeout()), (None, None));
    }

    #[test]
    fn a_router_of_old_is_asked_by_nat_pmp() {
        let mut pcp = start();
        let now = Now::ZERO;
        pcp.poll_transmit(now).unwrap();
        pcp.handle_datagram(now, &[0, 129, 0, 1, 0, 0, 0, 0]);
        assert_eq!(pcp.dialect(), Dialect::NatPmp);
        assert_eq!(pcp.poll_transmit(now).unwrap(), [0, 0]);
        let tcp = pcp.poll_transmit(now).unwrap();
        assert_eq!(tcp, [0, 2, 0, 0, 26, 225, 26, 225, 0, 0, 14, 16]);
        let udp = pcp.poll_transmit(now).unwrap();
        assert_eq!(udp[1], 1);
        let answer = [0, 130, 0, 0, 0, 0, 0, 9, 26, 225, 100, 0, 0, 0, 0, 120];
        pcp.handle_datagram(now, &answer);
        let mapped = |ip: Option<IpAddr>| {
            PcpEvent::Mapped(Mapped {
                want: wants()[0],
                external: (ip, 25_600),
            })
        };
        assert_eq!(events(&mut pcp), [mapped(None)]);
        pcp.handle_datagram(now, &[0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 5]);
        assert_eq!(events(&mut pcp), [mapped(Some(OUTSIDE.into()))]);
        pcp.handle_datagram(now, &[0, 129, 0, 2, 0, 0, 0, 9, 26, 225, 0, 0, 0, 0, 0, 0]);
        let why = PcpError::Refused("this is not allowed");
        assert_eq!(events(&mut pcp), [PcpEvent::Failed(why)]);
    }

    #[test]
    fn who_does_not_answer_is_asked_five_times() {
        let mut pcp = start();
        let (mut now, mut sent) = (Now::ZERO, 0);
        while let Some(at) = pcp.poll_timeout() {
            now = now.max(at);
            sent += usize::from(pcp.poll_transmit(now).is_some());
        }
        assert_eq!(sent, 2 * TRIES_MAX as usize);
        assert_eq!(events(&mut pcp), [PcpEvent::Failed(PcpError::NoAnswer)]);
        assert_eq!(now, Duration::from_millis(7750));
    }

    #[test]
    fn nobody_else_can_answer_for_the_router() {
        let mut pcp = start();
        let request = pcp.poll_transmit(Now::ZERO).unwrap();
        let good = pcp_router(&request, 0);
        for at in (24..37).chain(40..42) {
            let mut forged = good.clone();
            forged[at] ^= 1;
            pcp.handle_datagram(Now::ZERO, &forged);
        }
        assert_eq!(events(&mut pcp), []);
        pcp.handle_datagram(Now::ZERO, &pcp_router(&request, 8));
        let why = PcpError::Refused("it has no resources left");
        assert_eq!(events(&mut pcp), [PcpEvent::Failed(why)]);
    }

    proptest! {
        #[test]
        fn any_datagrams_are_survived(datagrams: Vec<Vec<u8>>, release: bool) {
            let mut pcp = start();
            for (n, datagram) in datagrams.iter().enumerate() {
                let now = Duration::from_millis(n as u64 * 100);
                while pcp.poll_transmit(now).is_some() {}
                pcp.handle_datagram(now, datagram);
                if release && n == 3 {
                    pcp.release(now);
                }
                prop_assert!(events(&mut pcp).len() <= 3);
                while pcp.poll_transmit(now).is_some() {}
                prop_assert!(pcp.poll_timeout().is_none_or(|at| at > now));
            }
        }
    }
}
