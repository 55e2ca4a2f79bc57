//! How the daemon reaches peers, from its configuration: the route of the process, and the list of addresses it avoids.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::api::{ApiError, ErrorKind};
use crate::config::Config;
use crate::net::{self, Network};
use crate::proto::ip_filter::IpFilter;

/// Longest list read: the largest in use have about 20 MiB.
const FILTER_BYTES_MAX: u64 = 64 << 20;

/// Sets the route of this process, and says what the gate has to know.
pub(super) fn prepare(config: &Config) -> Result<Network, ApiError> {
    net::configure(config.network.route.clone());
    let mut network = config.network.clone();
    if let Some(path) = &config.ip_filter {
        network.filter = Some(Arc::new(read_filter(path)?));
    }
    if network.route.proxy.is_some() {
        network.utp = false;
    }
    Ok(network)
}

fn read_filter(path: &Path) -> Result<IpFilter, ApiError> {
    let shown = super::place::shown(path);
    let failed = |error| ApiError::io(format_args!("cannot read the IP filter {shown}"), &error);
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILTER_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let refused = |why: String| Err(ApiError::new(ErrorKind::Usage, why));
    if text.len() as u64 > FILTER_BYTES_MAX {
        return refused(format!("the IP filter {shown} is over 64 MiB"));
    }
    let parsed = IpFilter::parse(&text);
    if let Some(line) = parsed.first_unknown {
        if parsed.filter.is_empty() {
            return refused(format!(
                "the IP filter {shown} has no range of addresses (p2p, dat or CIDR); its line {line} is none"
            ));
        }
        tracing::warn!(%shown, lines = parsed.unknown, first = line, "lines of the IP filter are not understood");
    }
    tracing::info!(%shown, ranges = parsed.filter.len(), "IP filter read");
    Ok(parsed.filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_or_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        std::fs::write(&path, "what?\n10.0.0.0/8\n").unwrap();
        let filter = read_filter(&path).unwrap();
        assert!(filter.blocks("10.1.1.1".parse().unwrap()));
        std::fs::write(&path, "\x1f\u{8b}a compressed list").unwrap();
        let error = read_filter(&path).unwrap_err();
        assert!(error.message.contains("line 1 is none"), "{error:?}");
        assert!(read_filter(&dir.path().join("missing")).is_err());
    }
}
