//! Whom we serve: tit for tat with optimistic unchoking (BEP 3), decided once a round; a free place is given at once.

use std::cmp::Reverse;
use std::time::Duration;

use super::scheduler::PeerKey;

/// Time since the owner's start.
type Now = Duration;

/// Time between two rounds.
pub const ROUND: Duration = Duration::from_secs(10);
/// An optimistic unchoke lasts this many rounds.
const OPTIMISTIC_ROUNDS: u32 = 3;
/// While seeding, a peer that was served this long gives its place to the one that has waited longest.
const SEED_TURN: Duration = Duration::from_secs(60);

/// A peer that wants something from us.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    pub peer: PeerKey,
    /// What it gives us, in bytes per second.
    pub gives: u64,
    /// What it takes from us, in bytes per second.
    pub takes: u64,
    /// Since when it has been unchoked; `None` while it is choked.
    pub unchoked_since: Option<Now>,
    /// When it was choked last, or connected.
    pub choked_since: Now,
    /// It has sent us nothing for long although we asked.
    pub snubs: bool,
    /// How well it behaves; decides among those who give the same.
    pub score: i64,
}

/// Decides who is unchoked.
#[derive(Debug)]
pub struct Choker {
    /// Places for those who give most.
    slots: usize,
    optimistic: Option<PeerKey>,
    rounds: u32,
}

impl Choker {
    /// `slots` peers are unchoked for what they give, one more optimistically.
    pub fn new(slots: usize) -> Self {
        Self {
            slots: slots.max(1),
            optimistic: None,
            rounds: 0,
        }
    }

    /// From the next round on.
    pub fn set_slots(&mut self, slots: usize) {
        self.slots = slots.max(1);
    }

    /// Peers that may be unchoked at once.
    pub fn places(&self) -> usize {
        self.slots + 1
    }

    /// The peers that shall be unchoked in the round that begins now. `random` decides who is tried.
    pub fn round(
        &mut self,
        now: Now,
        candidates: &[Candidate],
        seeding: bool,
        random: u64,
    ) -> Vec<PeerKey> {
        let mut ranked: Vec<&Candidate> =
            candidates.iter().filter(|c| seeding || !c.snubs).collect();
        if seeding {
            // Those in their turn stay, fastest first; then who has waited longest.
            let in_turn = |c: &Candidate| {
                c.unchoked_since
                    .is_some_and(|since| now < since + SEED_TURN)
            };
            ranked.sort_by_key(|c| match in_turn(c) {
                true => (0, u128::from(u64::MAX - c.takes), c.peer),
                false if c.unchoked_since.is_some() => (2, 0, c.peer),
                false => (1, c.choked_since.as_nanos(), c.peer),
            });
        } else {
            ranked.sort_by_key(|c| (Reverse((c.gives, c.score)), c.choked_since, c.peer));
        }
        if seeding {
            self.optimistic = None;
            return ranked.iter().take(self.places()).map(|c| c.peer).collect();
        }
        let mut chosen: Vec<PeerKey> = ranked.iter().take(self.slots).map(|c| c.peer).collect();
        let rest: Vec<PeerKey> = candidates
            .iter()
            .map(|c| c.peer)
            .filter(|peer| !chosen.contains(peer))
            .collect();
        let due = self.rounds.is_multiple_of(OPTIMISTIC_ROUNDS);
        self.rounds = self.rounds.wrapping_add(1);
        let stays = self.optimistic.filter(|peer| !due && rest.contains(peer));
        self.optimistic = stays.or_else(|| {
            let n = random.checked_rem(rest.len() as u64)?;
            rest.get(n as usize).copied()
        });
        chosen.extend(self.optimistic);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(n: u64, gives: u64) -> Candidate {
        Candidate {
            peer: PeerKey(n),
            gives,
            takes: 0,
            unchoked_since: None,
            choked_since: Duration::ZERO,
            snubs: false,
            score: 0,
        }
    }

    #[test]
    fn who_gives_most_is_served_and_everybody_is_tried_once() {
        let mut choker = Choker::new(3);
        let candidates: Vec<Candidate> = (0..10).map(|n| candidate(n, n * 100)).collect();
        let mut tried = std::collections::BTreeSet::new();
        for round in 0..90 {
            let chosen = choker.round(ROUND * round, &candidates, false, u64::from(round / 3));
            assert_eq!(chosen.len(), choker.places());
            assert_eq!(chosen[..3], [PeerKey(9), PeerKey(8), PeerKey(7)]);
            tried.insert(chosen[3]);
        }
        assert_eq!(tried, (0..7).map(PeerKey).collect());
    }

    #[test]
    fn among_equals_the_one_that_behaves_better_is_served() {
        let mut choker = Choker::new(1);
        let mut candidates: Vec<Candidate> = (0..3).map(|n| candidate(n, 5)).collect();
        candidates[1].score = 1;
        assert_eq!(choker.round(ROUND, &candidates, false, 0)[0], PeerKey(1));
        candidates[2].gives = 6;
        assert_eq!(choker.round(ROUND, &candidates, false, 0)[0], PeerKey(2));
    }

    #[test]
    fn an_optimistic_unchoke_lasts_three_rounds() {
        let mut choker = Choker::new(1);
        let candidates: Vec<Candidate> = (0..50).map(|n| candidate(n, n)).collect();
        let tried: Vec<PeerKey> = (0..9)
            .map(|n| choker.round(ROUND * n, &candidates, false, u64::from(n) * 11)[1])
            .collect();
        for turn in tried.chunks(3) {
            assert!(turn.iter().all(|peer| *peer == turn[0]), "{tried:?}");
        }
        assert_ne!(tried[0], tried[3]);
    }

    #[test]
    fn a_seed_serves_everybody_in_turn() {
        let mut choker = Choker::new(2);
        let mut candidates: Vec<Candidate> = (0..9).map(|n| candidate(n, 0)).collect();
        let mut served = std::collections::BTreeMap::<PeerKey, u32>::new();
        for round in 0..120 {
            let now = ROUND * round;
            let chosen = choker.round(now, &candidates, true, u64::from(round));
            for c in &mut candidates {
                match chosen.contains(&c.peer) {
                    true => {
                        c.unchoked_since.get_or_insert(now);
                        *served.entry(c.peer).or_default() += 1;
                    }
                    false if c.unchoked_since.take().is_some() => c.choked_since = now,
                    false => {}
                }
            }
        }
        assert!(
            served.len() == 9 && served.values().all(|n| *n > 15),
            "{served:?}"
        );
    }

    #[test]
    fn a_peer_that_snubs_us_is_only_tried() {
        let mut choker = Choker::new(2);
        let mut candidates: Vec<Candidate> = (0..3).map(|n| candidate(n, n)).collect();
        candidates[2].snubs = true;
        let chosen = choker.round(ROUND, &candidates, false, 0);
        assert_eq!(chosen, [PeerKey(1), PeerKey(0), PeerKey(2)]);
    }
}
