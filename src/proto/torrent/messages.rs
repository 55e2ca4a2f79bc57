//! What a peer says, and what follows from it.

use bytes::Bytes;

use super::hello::{Hello, LT_DONTHAVE, REQUESTS_MAX, UT_HOLEPUNCH, UT_METADATA, UT_PEX};
use super::peer::Has;
use super::{Action, Fault, Now, Torrent};
use crate::proto::bitfield::Bitfield;
use crate::proto::blocks::Block;
use crate::proto::scheduler::PeerKey;
use crate::proto::ut_metadata::{self, Progress, UtMetadata};
use crate::proto::wire::{Message, REQUEST_BYTES_MAX};

/// A message that breaks a rule.
type Checked = Result<(), Fault>;

const NOT_A_PIECE: Fault = Fault::Protocol("it names a piece that does not exist");

impl Torrent {
    /// A message has come. Blocks go to [`Torrent::block_arrived`].
    pub fn message(&mut self, now: Now, key: PeerKey, message: Message<Bytes>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.heard = now;
        let checked = match message {
            Message::Choke => self.choked(now, key),
            Message::Unchoke => {
                peer.unchoked = true;
                self.refill(now, key);
                Ok(())
            }
            Message::Interested => self.interested(now, key),
            Message::NotInterested => {
                peer.interested_in_us = false;
                self.unchoke_waiting(now);
                Ok(())
            }
            Message::Have(piece) => self.has_piece(now, key, piece),
            Message::Bitfield(field) => self.has_field(now, key, field),
            Message::HaveAll => self.has_all_or_none(now, key, true),
            Message::HaveNone => self.has_all_or_none(now, key, false),
            Message::Request(block) => self.requested(now, key, block),
            Message::Cancel(block) => {
                self.actions.push_back(Action::Unserve(key, block));
                Ok(())
            }
            Message::Reject(block) => self.rejected(now, key, block),
            Message::AllowedFast(piece) => self.allowed(now, key, piece),
            Message::Suggest(piece) => {
                peer.suggest(piece);
                Ok(())
            }
            Message::Extended { id, payload } => self.extended(now, key, id, &payload),
            Message::HashRequest(range) => {
                self.hashes_wanted(now, key, range);
                Ok(())
            }
            Message::Hashes { range, hashes } => {
                self.hashes_came(now, key, &range, &hashes);
                Ok(())
            }
            Message::HashReject(range) => {
                self.hashes_refused(now, key, &range);
                Ok(())
            }
            Message::KeepAlive | Message::Piece { .. } | Message::Port(_) | Message::Unknown(_) => {
                Ok(())
            }
        };
        if let Err(fault) = checked {
            self.drop_peer(key, fault);
        }
    }

    fn choked(&mut self, now: Now, key: PeerKey) -> Checked {
        let Some(peer) = self.peers.get_mut(&key) else {
            return Ok(());
        };
        peer.unchoked = false;
        // With BEP 6 every request is answered, by a reject if need be; without it they are void.
        if !peer.fast {
            drop(self.take_back(key));
        }
        self.consider_all(now);
        Ok(())
    }

    fn interested(&mut self, now: Now, key: PeerKey) -> Checked {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.interested_in_us = true;
        }
        self.unchoke_waiting(now);
        let choked = |peer: &super::Peer| peer.unchoked_since.is_none();
        if self.peers.get(&key).is_some_and(choked) {
            self.allow_fast(now, key);
        }
        Ok(())
    }

    fn has_piece(&mut self, now: Now, key: PeerKey, piece: u32) -> Checked {
        let Some(peer) = self.peers.get_mut(&key) else {
            return Ok(());
        };
        peer.spoke = true;
        let Has::Known(has) = &mut peer.has else {
            let noted = peer.early_have(piece);
            return noted.ok_or(Fault::Protocol("it has too many pieces"));
        };
        if piece >= has.len() {
            return Err(NOT_A_PIECE);
        }
        if !has.set(piece) {
            return Ok(());
        }
        let Some(content) = &mut self.content else {
            return Ok(());
        };
        content.picker.peer_got(piece, has);
        if self.super_seed.is_some() {
            self.super_seed_saw(now, key, piece);
            return Ok(());
        }
        let lazily = self.settings.lazy && !content.have.has(piece);
        if content.picker.needs(piece) || lazily {
            if !peer.we_are_interested {
                peer.we_are_interested = true;
                self.send(now, key, Message::Interested);
            }
            self.refill(now, key);
        }
        Ok(())
    }

    fn has_field(&mut self, now: Now, key: PeerKey, field: Bytes) -> Checked {
        let Some(peer) = self.peers.get_mut(&key) else {
            return Ok(());
        };
        let again = std::mem::replace(&mut peer.spoke, true);
        match &mut peer.has {
            Has::Early { field: early, .. } => *early = Some(field),
            Has::Known(has) => {
                let wrong = Fault::Protocol("a bitfield that does not fit the torrent");
                let new = Bitfield::from_bytes(&field, has.len()).map_err(|_| wrong)?;
                if again {
                    return self.has_more(now, key, &new);
                }
                self.now_has(key, new);
            }
        }
        self.consider(now, key);
        Ok(())
    }

    fn has_all_or_none(&mut self, now: Now, key: PeerKey, everything: bool) -> Checked {
        let Some(peer) = self.peers.get_mut(&key) else {
            return Ok(());
        };
        let again = std::mem::replace(&mut peer.spoke, true);
        if !peer.fast || (again && !everything) {
            return Err(Fault::Protocol("have all or have none out of place"));
        }
        match &mut peer.has {
            Has::Early { all, .. } => *all = everything,
            Has::Known(has) if everything => {
                let new = Bitfield::full(has.len());
                if again {
                    return self.has_more(now, key, &new);
                }
                self.now_has(key, new);
            }
            Has::Known(_) => {}
        }
        self.consider(now, key);
        Ok(())
    }

    /// Instead of many pieces one by one, aria2 names all that it has anew. What it has said before stays said.
    fn has_more(&mut self, now: Now, key: PeerKey, new: &Bitfield) -> Checked {
        let Some(Has::Known(has)) = self.peers.get(&key).map(|peer| &peer.has) else {
            return Ok(());
        };
        if has.is_full() {
            return Ok(());
        }
        let more: Vec<u32> = new.iter().filter(|piece| !has.has(*piece)).collect();
        more.into_iter()
            .try_for_each(|piece| self.has_piece(now, key, piece))
    }

    pub(super) fn now_has(&mut self, key: PeerKey, new: Bitfield) {
        let (Some(content), Some(peer)) = (&mut self.content, self.peers.get_mut(&key)) else {
            return;
        };
        if let Has::Known(old) = &peer.has {
            content.picker.peer_left(old);
        }
        content.picker.peer_joined(&new);
        peer.has = Has::Known(new);
    }

    fn requested(&mut self, now: Now, key: PeerKey, block: Block) -> Checked {
        let (Some(peer), Some(content)) = (self.peers.get_mut(&key), &self.content) else {
            return Ok(());
        };
        let sensible =
            content.picker.layout().may_be_asked(&block) && block.length <= REQUEST_BYTES_MAX;
        if !sensible {
            return Err(Fault::Protocol("it asks for what is no part of a piece"));
        }
        let hidden = self.super_seed.as_ref();
        let hidden = hidden.is_some_and(|state| !state.has_shown(key, block.piece));
        let served = (peer.unchoked_since.is_some() || peer.gives_fast.contains(&block.piece))
            && content.have.has(block.piece)
            && !hidden
            && peer.serving < REQUESTS_MAX;
        if served {
            peer.serving += 1;
            self.actions.push_back(Action::Serve(key, block));
        } else if peer.fast {
            self.send(now, key, Message::Reject(block));
        }
        Ok(())
    }

    fn rejected(&mut self, now: Now, key: PeerKey, block: Block) -> Checked {
        let (Some(peer), Some(content)) = (self.peers.get_mut(&key), &mut self.content) else {
            return Ok(());
        };
        if !peer.fast {
            return Err(Fault::Protocol("a reject without the fast extension"));
        }
        if peer.asked.remove(&block).is_none() {
            return Ok(());
        }
        content.picker.unasked(key, &block);
        // Asked again at once it would be rejected again: the next block, message or tick asks.
        if !peer.unchoked {
            peer.allowed_fast.retain(|piece| *piece != block.piece);
            self.consider_all(now);
        }
        Ok(())
    }

    fn allowed(&mut self, now: Now, key: PeerKey, piece: u32) -> Checked {
        if self.pieces().is_some_and(|count| piece >= count) {
            return Err(NOT_A_PIECE);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.allow_fast(piece);
        }
        self.refill(now, key);
        Ok(())
    }

    fn extended(&mut self, now: Now, key: PeerKey, id: u8, payload: &Bytes) -> Checked {
        match id {
            0 => self.hello(now, key, payload),
            UT_METADATA => {
                self.metadata_message(now, key, payload);
                Ok(())
            }
            UT_PEX => {
                self.told_of(key, payload);
                Ok(())
            }
            LT_DONTHAVE => self.no_longer_has(now, key, payload),
            UT_HOLEPUNCH => {
                self.holepunch(now, key, payload);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn hello(&mut self, now: Now, key: PeerKey, payload: &[u8]) -> Checked {
        let hello = Hello::decode(payload)
            .ok_or(Fault::Protocol("its extension handshake is malformed"))?;
        let Some(peer) = self.peers.get_mut(&key) else {
            return Ok(());
        };
        let hello = match &peer.hello {
            Some(before) => hello.after(before),
            None => hello,
        };
        if let (None, Some(size), Some(_)) =
            (&self.metadata, hello.metadata_size, hello.ut_metadata)
        {
            self.fetch.offered(key, size);
        }
        self.our_ip = hello.your_ip.or(self.our_ip);
        peer.hello = Some(hello);
        self.pex_news(now);
        self.ask_for_metadata(now);
        self.refill(now, key);
        Ok(())
    }

    /// Asks for pieces of the metadata, while it is missing.
    pub(super) fn ask_for_metadata(&mut self, now: Now) {
        if self.metadata.is_some() {
            return;
        }
        for (key, piece) in self.fetch.requests(now) {
            self.send_metadata(now, key, &UtMetadata::Request { piece });
        }
    }

    fn send_metadata(&mut self, now: Now, key: PeerKey, message: &UtMetadata<'_>) {
        let hello = self.peers.get(&key).and_then(|peer| peer.hello.as_ref());
        if let Some(id) = hello.and_then(|hello| hello.ut_metadata) {
            let payload = message.encode().into();
            self.send(now, key, Message::Extended { id, payload });
        }
    }

    fn metadata_message(&mut self, now: Now, key: PeerKey, payload: &[u8]) {
        match UtMetadata::decode(payload) {
            Some(UtMetadata::Request { piece }) => {
                let raw = self.metadata.clone().unwrap_or_default();
                let answer = match ut_metadata::piece_of(&raw, piece) {
                    Some(data) => UtMetadata::Data {
                        piece,
                        total: raw.len() as u64,
                        data,
                    },
                    None => UtMetadata::Reject { piece },
                };
                self.send_metadata(now, key, &answer);
            }
            Some(UtMetadata::Data { piece, data, .. }) if self.metadata.is_none() => {
                match self.fetch.received(key, piece, data) {
                    Progress::Going => self.ask_for_metadata(now),
                    Progress::Done(raw) => {
                        self.metadata = Some(raw.clone().into());
                        self.actions.push_back(Action::Metadata(raw));
                    }
                    Progress::Wrong(liars) => {
                        // With several senders nobody knows who lied; each has to try again alone or is gone.
                        liars
                            .into_iter()
                            .for_each(|liar| self.drop_peer(liar, Fault::Lie));
                        self.ask_for_metadata(now);
                    }
                }
            }
            Some(UtMetadata::Reject { piece }) => {
                self.fetch.rejected(key, piece);
                self.ask_for_metadata(now);
            }
            _ => {}
        }
    }

    fn no_longer_has(&mut self, now: Now, key: PeerKey, payload: &[u8]) -> Checked {
        let piece = payload.try_into().map(u32::from_be_bytes);
        let (Ok(piece), Some(peer)) = (piece, self.peers.get_mut(&key)) else {
            return Ok(());
        };
        if let Has::Known(has) = &peer.has
            && has.has(piece)
        {
            let mut new = has.clone();
            new.clear(piece);
            self.now_has(key, new);
            self.consider(now, key);
        }
        Ok(())
    }
}
