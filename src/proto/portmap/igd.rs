//! Mapping ports on a UPnP router (IGD:1 and :2): its description says where its service is, and that is asked by SOAP.
//!
//! The owner makes one HTTP request at a time ([`Igd::poll_ask`]) and hands in what came of it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use thiserror::Error;

use super::{LIFETIME, Mapped, Now, Protocol, Want, renewal, xml};
use crate::proto::web_seed::url::WebUrl;

/// Longest body of an answer.
pub const BODY_LEN_MAX: usize = 256 << 10;
/// Services that map ports, the best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// Other external ports tried when the first is taken.
const OTHER_PORTS_MAX: u32 = 8;
/// Services listed in a description that are looked at.
const SERVICES_MAX: usize = 64;

/// An HTTP request to the router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub url: WebUrl,
    /// The value of `SOAPAction` and the body of a POST; `None`: a GET.
    pub post: Option<(String, String)>,
}

/// Why there is no mapping.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IgdError {
    #[error("the router's description has no service that maps ports")]
    NoService,
    #[error("the router refuses: {0}")]
    Refused(String),
    #[error("the router cannot be asked: {0}")]
    Broken(String),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IgdEvent {
    Mapped(Mapped),
    /// This ends it.
    Failed(IgdError),
    Released,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Describe,
    Address,
    Add(usize),
    Remove(usize),
}

#[derive(Debug)]
struct Port {
    want: Want,
    /// The external port that is tried, or had.
    external: u16,
    others_tried: u32,
    mapped: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Igd {
    description: WebUrl,
    /// Where to ask, and what for.
    control: Option<(WebUrl, &'static str)>,
    client: Ipv4Addr,
    ports: Vec<Port>,
    external_ip: Option<IpAddr>,
    /// Seconds; 0 where the router knows only mappings without end.
    lease_s: u64,
    steps: VecDeque<Step>,
    asked: Option<Step>,
    renew_at: Option<Now>,
    releasing: bool,
    over: bool,
    random: u64,
    events: VecDeque<IgdEvent>,
}

impl Igd {
    /// `client` is our address as the router sees it, `seed` decides which other ports are tried.
    pub fn new(description: WebUrl, client: Ipv4Addr, wants: &[Want], seed: u64) -> Self {
        let port = |want: &Want| Port {
            want: *want,
            external: want.port,
            others_tried: 0,
            mapped: false,
        };
        Self {
            description,
            control: None,
            client,
            ports: wants.iter().map(port).collect(),
            external_ip: None,
            lease_s: LIFETIME.as_secs(),
            steps: VecDeque::from([Step::Describe, Step::Address]),
            asked: None,
            renew_at: None,
            releasing: false,
            over: false,
            random: seed | 1,
            events: VecDeque::new(),
        }
    }

    /// Takes the mappings back. What is under way is waited for.
    pub fn release(&mut self) {
        self.releasing = true;
        self.renew_at = None;
        let mapped = (0..self.ports.len()).filter(|n| self.ports.get(*n).is_some_and(|p| p.mapped));
        self.steps = mapped.map(Step::Remove).collect();
        self.note_end(Now::ZERO);
    }

    pub fn poll_event(&mut self) -> Option<IgdEvent> {
        self.events.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Now> {
        self.renew_at.filter(|_| !self.over)
    }

    pub fn handle_timeout(&mut self, now: Now) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.renew_at = None;
            self.steps.push_back(Step::Address);
            self.steps.extend((0..self.ports.len()).map(Step::Add));
        }
    }

    /// The next request to make, once the last one is answered.
    pub fn poll_ask(&mut self) -> Option<Ask> {
        if self.over || self.asked.is_some() {
            return None;
        }
        let step = self.steps.pop_front()?;
        self.asked = Some(step);
        let ask = match step {
            Step::Describe => Some(Ask {
                url: self.description.clone(),
                post: None,
            }),
            Step::Address => self.soap("GetExternalIPAddress", &[]),
            Step::Add(n) => self.add(n),
            Step::Remove(n) => self.remove(n),
        };
        if ask.is_none() {
            self.fail(IgdError::NoService);
        }
        ask
    }

    /// The answer to the last request.
    pub fn handle_answer(&mut self, now: Now, status: u16, body: &[u8]) {
        let Some(step) = self.asked.take().filter(|_| !self.over) else {
            return;
        };
        let body = body.get(..BODY_LEN_MAX).unwrap_or(body);
        let body = String::from_utf8_lossy(body);
        match (step, status) {
            (Step::Describe, 200) => self.described(&body),
            (Step::Describe, status) => {
                self.fail(IgdError::Broken(format!("HTTP status {status}")));
            }
            (Step::Address, 200) => {
                let ip = xml::text(&body, "NewExternalIPAddress");
                let ip = ip.and_then(|ip| ip.trim().parse().ok());
                self.external_ip = ip.filter(|ip: &IpAddr| !ip.is_unspecified());
            }
            // Ports are of use without it.
            (Step::Address, _) => {}
            (Step::Add(n), 200) => self.added(n),
            (Step::Add(n), status) => self.not_added(n, status, &body),
            (Step::Remove(_), _) => {}
        }
        self.note_end(now);
    }

    /// The last request could not be made, or was not answered.
    pub fn handle_failure(&mut self, now: Now, why: String) {
        let removing = matches!(self.asked.take(), Some(Step::Remove(_)));
        match removing || self.releasing {
            true => self.note_end(now),
            false => self.fail(IgdError::Broken(why)),
        }
    }

    fn described(&mut self, body: &str) {
        let base = xml::text(body, "URLBase").map(|url| xml::unescape(url.trim()));
        let base = base.filter(|url| !url.is_empty());
        let base = base.and_then(|url| WebUrl::parse(&url).ok());
        let base = base.filter(|url| url.host == self.description.host);
        let base = base.unwrap_or_else(|| self.description.clone());
        let service = |wanted: &'static str| {
            let mut listed = xml::elements(body, "service").take(SERVICES_MAX);
            let found = listed.find(|service| {
                xml::text(service, "serviceType").is_some_and(|kind| kind.trim() == wanted)
            })?;
            let path = xml::unescape(xml::text(found, "controlURL")?.trim());
            let url = base.redirected(&path).ok()?;
            // What it says about others is not its business.
            (url.host == self.description.host).then_some((url, wanted))
        };
        self.control = SERVICES.into_iter().find_map(service);
        match self.control {
            Some(_) => self.steps.extend((0..self.ports.len()).map(Step::Add)),
            None => self.fail(IgdError::NoService),
        }
    }

    fn added(&mut self, n: usize) {
        let Some(port) = self.ports.get_mut(n) else {
            return;
        };
        port.mapped = true;
        let external = (self.external_ip, port.external);
        let want = port.want;
        if self.releasing {
            self.steps.push_back(Step::Remove(n));
        } else {
            self.events
                .push_back(IgdEvent::Mapped(Mapped { want, external }));
        }
    }

    fn not_added(&mut self, n: usize, status: u16, body: &str) {
        if self.releasing {
            return;
        }
        let code: Option<u32> = xml::text(body, "errorCode").and_then(|c| c.trim().parse().ok());
        let other = self.other_port();
        let Some(port) = self.ports.get_mut(n) else {
            return;
        };
        match code {
            // It knows no mappings that end.
            Some(725) if self.lease_s > 0 => {
                self.lease_s = 0;
                self.steps.push_front(Step::Add(n));
            }
            // The external port is somebody else's.
            Some(718 | 727 | 729) if port.others_tried < OTHER_PORTS_MAX => {
                port.others_tried += 1;
                port.external = other;
                port.mapped = false;
                self.steps.push_front(Step::Add(n));
            }
            code => {
                let text = xml::text(body, "errorDescription").unwrap_or_default();
                let text: String = xml::unescape(text.trim()).chars().take(100).collect();
                let why = match code {
                    Some(code) => format!("{text} (error {code})"),
                    None => format!("HTTP status {status}"),
                };
                self.fail(IgdError::Refused(why));
            }
        }
    }

    /// A port that others hardly have.
    fn other_port(&mut self) -> u16 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        20_000 + (self.random % 40_000) as u16
    }

    /// Everything has been done.
    fn note_end(&mut self, now: Now) {
        if self.over || self.asked.is_some() || !self.steps.is_empty() {
            return;
        }
        if self.releasing {
            self.over = true;
            self.events.push_back(IgdEvent::Released);
        } else {
            // Routers forget when they start again, so mappings without end are renewed too.
            self.renew_at = Some(now + renewal(LIFETIME));
        }
    }

    fn fail(&mut self, error: IgdError) {
        self.over = true;
        self.events.push_back(IgdEvent::Failed(error));
    }

    fn add(&self, n: usize) -> Option<Ask> {
        let port = self.ports.get(n)?;
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", port.external.to_string()),
            ("NewProtocol", port.want.protocol.to_string()),
            ("NewInternalPort", port.want.port.to_string()),
            ("NewInternalClient", self.client.to_string()),
            ("NewEnabled", "1".to_owned()),
            ("NewPortMappingDescription", "ccbt".to_owned()),
            ("NewLeaseDuration", self.lease_s.to_string()),
        ];
        self.soap("AddPortMapping", &arguments)
    }

    fn remove(&self, n: usize) -> Option<Ask> {
        let port = self.ports.get(n)?;
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", port.external.to_string()),
            ("NewProtocol", port.want.protocol.to_string()),
        ];
        self.soap("DeletePortMapping", &arguments)
    }

    fn soap(&self, action: &str, arguments: &[(&str, String)]) -> Option<Ask> {
        let (url, service) = self.control.clone()?;
        let argument = |(name, value): &(&str, String)| format!("<{name}>{value}</{name}>");
        let arguments: String = arguments.iter().map(argument).collect();
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{service}\">\
             {arguments}</u:{action}></s:Body></s:Envelope>\r\n"
        );
        let header = format!("\"{service}#{action}\"");
        Some(Ask {
            url,
            post: Some((header, body)),
        })
    }

    /// The longest a request may take, for the owner.
    pub const ANSWER_TIME: Duration = Duration::from_secs(8);
}

/// Both protocols of one port.
pub fn both(port: u16) -> [Want; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| Want { protocol, port })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DESCRIPTION: &str = "<?xml version=\"1.0\"?><root><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3</controlURL></service></serviceList>\
        <deviceList><device><deviceList><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
        </serviceType><controlURL>/ctl?a&amp;b</controlURL></service></serviceList></device></deviceList></device></deviceList></device></root>";

    fn start() -> Igd {
        let url = WebUrl::parse("http://192.168.1.1:5000/root.xml").unwrap();
        Igd::new(url, Ipv4Addr::new(192, 168, 1, 7), &both(6881), 5)
    }

    fn error(code: u32) -> Vec<u8> {
        format!("<s:Fault><UPnPError><errorCode>{code}</errorCode><errorDescription>No &amp; no</errorDescription></UPnPError></s:Fault>")
            .into_bytes()
    }

    fn events(igd: &mut Igd) -> Vec<IgdEvent> {
        std::iter::from_fn(|| igd.poll_event()).collect()
    }

    /// Up to the first port.
    fn described(now: Now) -> Igd {
        let mut igd = start();
        let ask = igd.poll_ask().unwrap();
        assert_eq!((ask.url.path.as_str(), ask.post), ("/root.xml", None));
        assert_eq!(igd.poll_ask(), None, "one at a time");
        igd.handle_answer(now, 200, DESCRIPTION.as_bytes());
        let ask = igd.poll_ask().unwrap();
        assert_eq!(ask.url.to_string(), "http://192.168.1.1:5000/ctl?a&b");
        let (action, _) = ask.post.unwrap();
        let service = SERVICES[1];
        assert_eq!(action, format!("\"{service}#GetExternalIPAddress\""));
        let answer = "<u:R><NewExternalIPAddress>203.0.113.5</NewExternalIPAddress></u:R>";
        igd.handle_answer(now, 200, answer.as_bytes());
        igd
    }

    fn body(igd: &mut Igd) -> String {
        igd.poll_ask().unwrap().post.unwrap().1
    }

    #[test]
    fn ports_are_mapped_renewed_and_taken_back() {
        let mut igd = described(Now::ZERO);
        for want in both(6881) {
            let asked = body(&mut igd);
            assert!(asked.contains("<NewInternalClient>192.168.1.7</NewInternalClient>"));
            assert!(asked.contains(&format!("<NewProtocol>{}</NewProtocol>", want.protocol)));
            assert!(asked.contains("<NewLeaseDuration>3600</NewLeaseDuration>"));
            igd.handle_answer(Now::ZERO, 200, b"");
            let external = (Some("203.0.113.5".parse().unwrap()), 6881);
            let mapped = IgdEvent::Mapped(Mapped { want, external });
            assert_eq!(events(&mut igd), [mapped]);
        }
        let renew = igd.poll_timeout().unwrap();
        assert_eq!((igd.poll_ask(), renew), (None, LIFETIME / 2));
        igd.handle_timeout(renew);
        for _ in 0..3 {
            igd.poll_ask().unwrap();
            igd.handle_answer(renew, 200, b"");
        }
        assert_eq!(igd.poll_timeout(), Some(LIFETIME));
        igd.release();
        for _ in 0..2 {
            assert!(body(&mut igd).contains("u:DeletePortMapping"));
            igd.handle_failure(renew, "gone".to_owned());
        }
        assert_eq!(events(&mut igd).last(), Some(&IgdEvent::Released));
    }

    #[test]
    fn a_port_that_is_taken_is_another_one_and_a_lease_may_be_for_ever() {
        let mut igd = described(Now::ZERO);
        body(&mut igd);
        igd.handle_answer(Now::ZERO, 500, &error(725));
        assert!(body(&mut igd).contains("<NewLeaseDuration>0</NewLeaseDuration>"));
        igd.handle_answer(Now::ZERO, 500, &error(718));
        let asked = body(&mut igd);
        let port: u16 = xml::text(&asked, "NewExternalPort")
            .unwrap()
            .parse()
            .unwrap();
        assert_ne!(port, 6881);
        igd.handle_answer(Now::ZERO, 200, b"");
        let found = events(&mut igd);
        assert!(
            matches!(&found[..], [IgdEvent::Mapped(m)] if m.external.1 == port),
            "{found:?}"
        );
        for _ in 0..=OTHER_PORTS_MAX {
            body(&mut igd);
            igd.handle_answer(Now::ZERO, 500, &error(718));
        }
        let why = IgdError::Refused("No & no (error 718)".to_owned());
        assert_eq!(events(&mut igd), [IgdEvent::Failed(why)]);
    }

    #[test]
    fn a_description_leads_to_nobody_else() {
        for elsewhere in ["http://192.168.1.9/ctl", "//192.168.1.9/ctl", "https://h/"] {
            let mut igd = start();
            igd.poll_ask().unwrap();
            let text = DESCRIPTION.replace("/ctl?a&amp;b", elsewhere);
            igd.handle_answer(Now::ZERO, 200, text.as_bytes());
            assert_eq!(events(&mut igd), [IgdEvent::Failed(IgdError::NoService)]);
        }
        let text = format!("<URLBase>http://192.168.1.9/</URLBase>{DESCRIPTION}");
        let mut igd = start();
        igd.poll_ask().unwrap();
        igd.handle_answer(Now::ZERO, 200, text.as_bytes());
        assert_eq!(igd.poll_ask().unwrap().url.host, "192.168.1.1");
    }

    proptest! {
        #[test]
        fn any_answers_come_to_an_end(answers in prop::collection::vec((any::<u16>(), ".{0,200}"), 0..40), seed: u64) {
            let mut igd = if seed % 2 == 0 { start() } else { described(Now::ZERO) };
            for (n, (status, answer)) in answers.iter().enumerate() {
                let now = Duration::from_secs(n as u64 * 600);
                igd.handle_timeout(now);
                if igd.poll_ask().is_none() {
                    continue;
                }
                let status = if status % 2 == 0 { 200 } else { 500 };
                igd.handle_answer(now, status, answer.as_bytes());
                prop_assert!(igd.poll_timeout().is_none_or(|at| at > now));
            }
            igd.release();
            while igd.poll_ask().is_some() {
                igd.handle_failure(Now::ZERO, "gone".to_owned());
            }
            prop_assert!(events(&mut igd).iter().any(|e| matches!(e, IgdEvent::Released | IgdEvent::Failed(_))));
        }
    }
}
