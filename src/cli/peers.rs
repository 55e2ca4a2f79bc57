//! `ccbt peers`

use clap::Args;

use super::options::Context;
use super::output::{age, bytes, table};
use super::{CommandResult, connect};
use crate::api::escape;
use crate::api::types::{PeerStatus, PeersRequest, PeersResponse, Right};

/// Show the peers that are connected
#[derive(Debug, Args)]
pub(super) struct PeersCommand {
    /// Only of this folder: its id, its name, or a directory of it
    folder: Option<String>,
}

impl PeersCommand {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let response = connect::ask(
            context,
            &PeersRequest {
                folder: self.folder,
            },
        )
        .await?;
        context.output.result(&response, text)?;
        Ok(0)
    }
}

fn text(response: &PeersResponse) -> String {
    if response.peers.is_empty() {
        return "no peers are connected\n".into();
    }
    let head = [
        "FOLDER", "DEVICE", "ADDRESS", "RIGHT", "SINCE", "IN", "OUT", "STATE",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(response.peers.iter().map(row));
    table(&rows)
}

fn row(peer: &PeerStatus) -> Vec<String> {
    let direction = if peer.incoming { "from" } else { "to" };
    vec![
        escape(peer.folder_name.as_bytes()),
        peer.device
            .as_ref()
            .map_or_else(|| "-".into(), |device| escape(device.as_bytes())),
        format!("{direction} {}", peer.addr),
        peer.right.map_or("-", right).to_owned(),
        age(peer.connected_s),
        bytes(peer.bytes_in),
        bytes(peer.bytes_out),
        if peer.converged { "same" } else { "differs" }.to_owned(),
    ]
}

/// As the links are called.
pub(super) fn right(right: Right) -> &'static str {
    match right {
        Right::Read => "read-only",
        Right::Write => "read-write",
        Right::Owner => "owner",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_one_line_whatever_its_name() {
        let peer = PeerStatus {
            folder: "ab".into(),
            folder_name: "photos".into(),
            device: Some("x\n\u{1b}[2J".into()),
            addr: "192.0.2.1:5".parse().unwrap(),
            right: Some(Right::Write),
            incoming: true,
            connected_s: 5,
            bytes_in: 2048,
            bytes_out: 0,
            converged: true,
        };
        let shown = text(&PeersResponse { peers: vec![peer] });
        let line = shown.lines().nth(1).unwrap();
        assert_eq!(
            line,
            "photos  x\\n\\x1b[2J  from 192.0.2.1:5  read-write  5 s    2.0 KiB  0 B  same"
        );
    }
}
