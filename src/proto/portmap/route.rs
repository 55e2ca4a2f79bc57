//! Which router packets to the world go by: the kernel's table of routes (`/proc/net/route`).

use std::net::Ipv4Addr;

const UP: u16 = 1;
const GATEWAY: u16 = 2;

/// The router of the best default route, of `interface` alone if one is named.
pub fn default_gateway(table: &str, interface: Option<&str>) -> Option<Ipv4Addr> {
    let route = |line: &str| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        let destination = hex(fields.next()?)?;
        let gateway = hex(fields.next()?)?;
        let flags = u16::from_str_radix(fields.next()?, 16).ok()?;
        let metric: u32 = fields.nth(2)?.parse().ok()?;
        let mask = hex(fields.next()?)?;
        let fits = interface.is_none_or(|wanted| wanted == name);
        let default = destination == 0 && mask == 0 && gateway != 0;
        let used = flags & (UP | GATEWAY) == UP | GATEWAY;
        // Written as the machine holds it, which is in the order of the network.
        (fits && default && used).then(|| (metric, Ipv4Addr::from(gateway.to_ne_bytes())))
    };
    let routes = table.lines().skip(1).filter_map(route);
    routes.min_by_key(|(metric, _)| *metric).map(|(_, ip)| ip)
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_default_route_wins() {
        let n = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let (lan, vpn) = (n([192, 168, 1, 1]), n([10, 8, 0, 1]));
        let table = format!(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
             tun0\t00000000\t{vpn}\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t{lan}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
             eth1\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\nrubbish\n"
        );
        let lan = Some(Ipv4Addr::new(192, 168, 1, 1));
        assert_eq!(default_gateway(&table, None), lan);
        let vpn = Some(Ipv4Addr::new(10, 8, 0, 1));
        assert_eq!(default_gateway(&table, Some("tun0")), vpn);
        assert_eq!(default_gateway(&table, Some("eth1")), None);
        assert_eq!(default_gateway("", None), None);
    }
}
