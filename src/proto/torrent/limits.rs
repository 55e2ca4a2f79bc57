//! What the user's limits mean for peers: how many are served at once, and whose fault it is when nothing comes.

use super::{Now, Torrent};

impl Torrent {
    /// How many peers are served for what they give, from the next round on.
    pub fn set_slots(&mut self, slots: usize) {
        self.choker.set_slots(slots);
    }

    /// We have not read what peers sent, so none of them lets us wait.
    pub fn excuse(&mut self, now: Now) {
        for peer in self.peers.values_mut() {
            peer.heard = now;
            peer.heard_block = now;
        }
    }
}
