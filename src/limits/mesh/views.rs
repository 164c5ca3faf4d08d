//! Who divides the rights, agreed upon by those who did before.
//!
//! Rights are only safe if no two groups of nodes believe that all of them are theirs. So nodes agree on a sequence of views. The next view
//! needs the word of a majority of the seats of the last, found by single-decree Paxos (Lamport, The Part-Time Parliament, 1998) over
//! the nodes' own lanes: a register per node, that only it writes and all read.
//!
//! What keeps the sum of what is spent below the amount, whatever is lost, late, dead or back:
//!
//! - A node that adopts a view spends at most the lesser of its parts in the old and the new one, until every seat of the new view has
//!   adopted it; if anybody may have spent more than its new part, or a seat was dropped, until a window has passed after that.
//! - A node spends only while enough seats of *its* view have acknowledged a sign of life that it sent within [`LEASE`]: so many that every
//!   majority has one of them. Who agrees to another view vouches for nobody in the old one, so nodes that missed a change of views stop
//!   by themselves a lease after it at the latest.
//! - Nobody agrees to drop a seat that it heard of within two leases, unless the same node runs anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use smg_base::Timestamp;

use super::rows::{Ballot, Beat, NEVER, Proposal, Register, SEATS_MAX, Seat, View};
use crate::{
    rule::Window,
    stance::{Share, Stance},
};

/// Time between two signs of life.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// How long a sign of life that was acknowledged lets its sender spend.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// How long a seat is not heard of before it may be dropped. More than a lease, so that clocks may run differently.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the nodes that are there stay the same before the first of them begins a first view.
const QUIET: Duration = Duration::from_millis(1_500);
/// How long an attempt to agree may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Signs of life whose time is remembered.
const SENT_MAX: usize = 32;
/// Steps of agreement in one call; few are common.
const STEPS_MAX: usize = 16;
/// Every class of windows.
const ALL_CLASSES: u8 = (1 << Stance::CLASSES) - 1;
/// Classes whose use a run forgets with its end.
const FORGOTTEN: u8 = 1 << Window::Second as u8 | 1 << Window::Minute as u8;
/// Requests that run are taken to have ended after this long.
const RUNNING_MAX: Duration = Duration::from_secs(60 * 60);

/// Another node, as heard.
#[derive(Debug, Default)]
struct Peer {
    register: Option<Register>,
    /// That of a run of which no sign of life was heard yet.
    next: Option<Register>,
    beat: Option<Beat>,
    heard: Timestamp,
    /// When the first sign of life of this run was heard.
    begun: Timestamp,
}

/// Since when the own view is in force.
#[derive(Clone, Copy, Debug)]
struct Adopted {
    at: Timestamp,
    /// Since when all of its seats are known to have adopted it.
    by_all: Option<Timestamp>,
}

/// The agreement of one node.
#[derive(Debug)]
pub(super) struct Views {
    me: Seat,
    /// How many nodes have to be there for a first view.
    founders: usize,
    started: Timestamp,
    register: Register,
    is_dirty: bool,
    /// Parts that an earlier run of this node held.
    before: [Option<Share>; Stance::CLASSES],
    peers: BTreeMap<u64, Peer>,
    alive: BTreeSet<u64>,
    /// Since when this node has joined and the others that are there have been the same.
    quiet_since: Option<Timestamp>,
    adopted: Option<Adopted>,
    attempt: Option<(Ballot, Timestamp)>,
    moving_since: Option<Timestamp>,
    beat: u64,
    beat_due: Timestamp,
    sent: VecDeque<(u64, Timestamp)>,
    /// The highest ballot seen.
    round: u64,
}

impl Views {
    pub(super) fn new(node: u64, run: u64, founders: usize, now: Timestamp) -> Self {
        Self {
            me: Seat { node, run },
            founders,
            started: now,
            register: Register { run, ..Register::default() },
            is_dirty: false,
            before: [None; Stance::CLASSES],
            peers: BTreeMap::new(),
            alive: BTreeSet::from([node]),
            quiet_since: None,
            adopted: None,
            attempt: None,
            moving_since: None,
            beat: 0,
            beat_due: now,
            sent: VecDeque::new(),
            round: 0,
        }
    }

    /// Who is there, as membership says, this node included; none before it has joined.
    pub(super) fn set_alive(&mut self, alive: Option<&BTreeSet<u64>>, now: Timestamp) {
        let Some(alive) = alive else {
            self.quiet_since = None;
            return;
        };
        if self.alive != *alive || self.quiet_since.is_none() {
            self.alive.clone_from(alive);
            self.quiet_since = Some(now);
        }
        let seats = self.register.view.as_ref();
        self.peers.retain(|node, peer| {
            alive.contains(node) || peer.register.is_some() || seats.is_some_and(|view| view.seat(*node).is_some())
        });
    }

    pub(super) fn take_beat(&mut self, node: u64, beat: Beat, now: Timestamp) {
        let Some(peer) = self.peer(node) else { return };
        let next = peer.next.take_if(|next| next.run == beat.run);
        if peer.beat.as_ref().is_none_or(|known| known.run != beat.run) {
            peer.begun = now;
        }
        (peer.beat, peer.heard) = (Some(beat), now);
        if let Some(register) = next {
            self.take_register(node, register);
        }
    }

    pub(super) fn take_register(&mut self, node: u64, register: Register) {
        if node == self.me.node {
            return self.remember(register);
        }
        let Some(peer) = self.peer(node) else { return };
        let runs = peer.beat.as_ref().map(|beat| beat.run);
        let is_newer = peer.register.as_ref().is_none_or(|known| {
            // Who has lost its memory counts from the beginning again.
            register.serial > known.serial || (runs == Some(register.run) && known.run != register.run)
        });
        if !is_newer && peer.register.as_ref().is_some_and(|known| known.run != register.run) {
            // A run that remembers less than others do of the one before; which of the two runs is later, its signs of life tell.
            peer.next = Some(register);
        } else if is_newer {
            let round = register.promised.round;
            peer.register = Some(register);
            self.round = self.round.max(round);
        }
    }

    /// Another node. Those that are gone make room for it; if all are there, it has none.
    fn peer(&mut self, node: u64) -> Option<&mut Peer> {
        if node == self.me.node {
            return None;
        }
        if self.peers.len() >= SEATS_MAX && !self.peers.contains_key(&node) {
            let view = self.register.view.as_ref();
            let is_needed =
                |node: &u64| self.alive.contains(node) || view.is_some_and(|view| view.seat(*node).is_some());
            let gone = self.peers.keys().copied().find(|known| !is_needed(known))?;
            self.peers.remove(&gone);
        }
        Some(self.peers.entry(node).or_default())
    }

    /// What an earlier run of this node wrote.
    fn remember(&mut self, old: Register) {
        if old.run == self.me.run || old.serial < self.register.serial && self.register.remembers {
            return;
        }
        self.round = self.round.max(old.promised.round);
        if self.register.view.is_none() {
            self.before = old.shares;
            let shares = [None; Stance::CLASSES];
            self.register = Register { run: self.me.run, remembers: true, shares, proposal: None, ..old };
        } else if self.register.view == old.view {
            self.register.promised = self.register.promised.max(old.promised);
            if old.accepted.as_ref().map(|(ballot, _)| *ballot) > self.register.accepted.as_ref().map(|one| one.0) {
                self.register.accepted = old.accepted;
            }
            self.register.serial = self.register.serial.max(old.serial);
            self.register.remembers = true;
        } else {
            self.register.serial = self.register.serial.max(old.serial);
        }
        self.is_dirty = true;
    }

    /// Does what follows from what was heard. Says whether another view was adopted: then [`Self::set_over`] is to be called.
    pub(super) fn advance(&mut self, now: Timestamp) -> bool {
        let mut has_adopted = false;
        // Who has not joined may have more to remember.
        if self.quiet_since.is_none() {
            return false;
        }
        for _ in 0..STEPS_MAX {
            if let Some(view) = self.next_view() {
                self.adopt(view, now);
                has_adopted = true;
                continue;
            }
            if !self.answer(now) && !self.propose(now) {
                break;
            }
        }
        if self.register.view.is_none() && self.may_begin(now) {
            self.adopt(View { number: 1, seats: vec![self.me], waits: 0 }, now);
            has_adopted = true;
        }
        // Not before it is known what was spent of the parts of the view before.
        if !has_adopted {
            self.grow(now);
        }
        has_adopted
    }

    /// Classes in which this node has spent more than its part of the view that it has just adopted.
    pub(super) fn set_over(&mut self, over: u8) {
        if self.register.over | over != self.register.over {
            self.register.over |= over;
            self.is_dirty = true;
        }
    }

    /// The register, if it is to be written.
    pub(super) fn take_register_to_write(&mut self) -> Option<Register> {
        if !std::mem::take(&mut self.is_dirty) {
            return None;
        }
        self.register.serial += 1;
        Some(self.register.clone())
    }

    /// The next sign of life, if one is due.
    pub(super) fn take_beat_to_write(&mut self, now: Timestamp) -> Option<Beat> {
        if now < self.beat_due {
            return None;
        }
        self.beat_due = now + BEAT;
        self.beat += 1;
        self.sent.push_back((self.beat, now));
        if self.sent.len() > SENT_MAX {
            self.sent.pop_front();
        }
        let heard = |seat: &Seat| match self.peers.get(&seat.node).and_then(|peer| peer.beat.as_ref()) {
            _ if *seat == self.me => self.beat,
            Some(beat) if beat.run == seat.run => beat.number,
            _ => 0,
        };
        let view = self.register.view.as_ref();
        Some(Beat {
            run: self.me.run,
            number: self.beat,
            view: view.map_or(0, |view| view.number),
            is_moving: self.register.accepted.is_some(),
            heard: view.map(|view| view.seats.iter().map(heard).collect()).unwrap_or_default(),
        })
    }

    pub(super) fn beat_due(&self) -> Timestamp {
        self.beat_due
    }

    pub(super) fn view(&self) -> Option<&View> {
        self.register.view.as_ref()
    }

    /// The number of the view in which this run has a seat, if it has one.
    pub(super) fn seated(&self) -> Option<u64> {
        self.register.view.as_ref().filter(|view| view.holds(self.me)).map(|view| view.number)
    }

    /// Whether this very run of a node has a seat in the view of this node.
    pub(super) fn is_seat(&self, node: u64, run: u64) -> bool {
        self.register.view.as_ref().is_some_and(|view| view.holds(Seat { node, run }))
    }

    pub(super) fn shares(&self) -> [Option<Share>; Stance::CLASSES] {
        self.register.shares
    }

    /// Until when this node may spend its rights.
    pub(super) fn rights_until(&self) -> Timestamp {
        let Some(view) = self.register.view.as_ref() else { return Timestamp::ORIGIN };
        let Some((mine, _)) = view.seat(self.me.node).filter(|_| view.holds(self.me)) else { return Timestamp::ORIGIN };
        if self.register.accepted.as_ref().is_some_and(|(_, next)| !next.holds(self.me)) {
            return Timestamp::ORIGIN;
        }
        let sent = |number: u64| self.sent.iter().find(|(sent, _)| *sent == number).map(|(_, at)| *at + LEASE);
        let lease = |seat: &Seat| {
            if *seat == self.me {
                return Some(self.moving_since.map_or(NEVER, |since| since + LEASE));
            }
            let beat = self.peers.get(&seat.node)?.beat.as_ref()?;
            let vouches = beat.run == seat.run && beat.view == view.number && !beat.is_moving;
            let acknowledged = beat.heard.get(mine).copied().filter(|_| vouches)?;
            sent(acknowledged)
        };
        let mut leases: Vec<Timestamp> = view.seats.iter().filter_map(lease).collect();
        leases.sort_unstable();
        // Enough that every majority has one of them.
        let needed = view.seats.len() - view.majority() + 1;
        leases.len().checked_sub(needed).map_or(Timestamp::ORIGIN, |at| leases[at])
    }

    /// A view that is agreed upon and follows ours.
    fn next_view(&self) -> Option<View> {
        let ours = self.register.view.as_ref();
        let registers = self.peers.values().filter_map(|peer| peer.register.as_ref());
        let adopted = registers.filter_map(|register| register.view.as_ref());
        let newest = adopted.max_by(|a, b| a.number.cmp(&b.number).then_with(|| b.seats.cmp(&a.seats)))?;
        // Of two first views, which nodes that did not hear each other began, one wins.
        let follows = |ours: &View| (newest.number, &ours.seats) > (ours.number, &newest.seats);
        if ours.is_none_or(follows) {
            return Some(newest.clone());
        }
        self.agreed()
    }

    /// The view to which a majority has agreed in one attempt.
    fn agreed(&self) -> Option<View> {
        let view = self.register.view.as_ref()?;
        let accepted: Vec<&(Ballot, View)> =
            self.voters(view).filter_map(|(_, register)| register.accepted.as_ref()).collect();
        let agreed =
            |one: &&(Ballot, View)| accepted.iter().filter(|other| other.0 == one.0).count() >= view.majority();
        accepted.iter().copied().find(agreed).map(|(_, view)| view.clone())
    }

    /// The registers that decide on what follows a view.
    fn voters<'a>(&'a self, view: &'a View) -> impl Iterator<Item = (u64, &'a Register)> {
        view.seats.iter().filter_map(move |seat| {
            let register = match seat.node == self.me.node {
                true => &self.register,
                false => self.peers.get(&seat.node)?.register.as_ref()?,
            };
            let has_memory = register.run == seat.run || register.remembers;
            (register.view.as_ref() == Some(view) && has_memory).then_some((seat.node, register))
        })
    }

    fn is_voter(&self, node: u64) -> bool {
        self.register.view.as_ref().is_some_and(|view| self.voters(view).any(|(voter, _)| voter == node))
    }

    fn adopt(&mut self, view: View, now: Timestamp) {
        let ours = self.register.view.as_ref();
        // What was waited for is still to be waited for.
        let waited = self.register.pending & (ours.map_or(0, |view| view.waits) | self.register.over);
        // Only who comes right after an earlier run of its own goes on with what that held: otherwise it has been given to others.
        let goes_on = ours.is_some_and(|ours| ours.seat(self.me.node).is_some() && view.number == ours.number + 1);
        let rank = view.seat(self.me.node).filter(|_| view.holds(self.me)).map(|(at, _)| at);
        let members = u32::try_from(view.seats.len()).unwrap_or(u32::MAX);
        let is_first = view.number == 1 && view.seats == [self.me];
        let was_seated = self.seated().is_some();
        for class in 0..Stance::CLASSES {
            let held = match self.register.shares[class] {
                // A run goes on with what the one before held, where it knows what that has spent.
                None if !was_seated && goes_on && FORGOTTEN & 1 << class == 0 => self.before[class],
                held => held,
            };
            self.register.shares[class] = match (rank, held) {
                (Some(_), _) if is_first => Some(Share { rank: 0, members }),
                // What an even division leaves belongs to nobody until all know their place.
                (Some(_), Some(held)) => Some(Share { rank: u32::MAX, members: held.members.max(members) }),
                _ => None,
            };
        }
        self.before = [None; Stance::CLASSES];
        // What is not known to have been heard counts as heard now, so that nobody is dropped for what an old view did not say.
        for seat in &view.seats {
            if let Some(peer) = self.peers.get_mut(&seat.node) {
                peer.heard = peer.heard.max(now);
            }
        }
        self.register.view = Some(view);
        self.register.over = waited;
        self.register.pending = ALL_CLASSES;
        self.register.promised = Ballot::default();
        self.register.accepted = None;
        self.register.proposal = None;
        self.adopted = Some(Adopted { at: now, by_all: None });
        self.attempt = None;
        self.moving_since = None;
        self.beat_due = now;
        self.is_dirty = true;
    }

    /// Lets this node's parts grow where nobody can have spent too much any more.
    fn grow(&mut self, now: Timestamp) {
        let (Some(view), Some(adopted)) = (self.register.view.as_ref(), self.adopted) else { return };
        if self.register.pending == 0 || !view.holds(self.me) {
            return;
        }
        let mut waits = view.waits;
        for seat in &view.seats {
            let register = match *seat == self.me {
                true => Some(&self.register),
                false => self.peers.get(&seat.node).and_then(|peer| peer.register.as_ref()),
            };
            match register {
                Some(register) if register.view.as_ref() == Some(view) && register.run == seat.run => {
                    waits |= register.over;
                }
                _ => return,
            }
        }
        let by_all = adopted.by_all.unwrap_or(now);
        let (rank, _) = view.seat(self.me.node).unwrap_or((usize::MAX, self.me));
        let share = Share {
            rank: u32::try_from(rank).unwrap_or(u32::MAX),
            members: u32::try_from(view.seats.len()).unwrap_or(u32::MAX),
        };
        let mut pending = self.register.pending;
        for class in (0..Stance::CLASSES).filter(|class| self.register.pending & 1 << class != 0) {
            if waits & 1 << class == 0 || now.since(by_all) >= passed(class) {
                pending &= !(1 << class);
                self.register.shares[class] = Some(share);
                self.is_dirty = true;
            }
        }
        self.register.pending = pending;
        self.adopted = Some(Adopted { by_all: Some(by_all), ..adopted });
    }

    /// Classes in which this node's part is still the lesser of two.
    pub(super) fn pending(&self) -> u8 {
        self.register.pending
    }

    /// Whether this node is the one to begin.
    fn may_begin(&self, now: Timestamp) -> bool {
        let is_quiet = self.quiet_since.is_some_and(|since| now.since(since) >= QUIET);
        let is_first = self.alive.first() == Some(&self.me.node) && self.alive.len() >= self.founders;
        is_quiet
            && is_first
            && self.peers.values().all(|peer| peer.register.as_ref().is_none_or(|one| one.view.is_none()))
    }

    /// Answers what others propose. Says whether something changed.
    fn answer(&mut self, now: Timestamp) -> bool {
        let Some(view) = self.register.view.as_ref().filter(|_| self.is_voter(self.me.node)) else { return false };
        let newest =
            self.voters(view).filter_map(|(_, register)| register.proposal.as_ref()).max_by_key(|one| one.ballot);
        let Some(Proposal { ballot, view }) = newest.cloned() else { return false };
        self.round = self.round.max(ballot.round);
        match view {
            None if ballot > self.register.promised => {
                self.register.promised = ballot;
                self.is_dirty = true;
                true
            }
            Some(view) if ballot >= self.register.promised && self.may_agree(&view, now) => {
                if self.register.accepted.as_ref().is_some_and(|(accepted, _)| *accepted == ballot) {
                    return false;
                }
                self.register.promised = ballot;
                self.register.accepted = Some((ballot, view));
                self.moving_since.get_or_insert(now);
                self.beat_due = now;
                self.is_dirty = true;
                true
            }
            _ => false,
        }
    }

    /// Whether all seats that a view drops may be.
    fn may_agree(&self, next: &View, now: Timestamp) -> bool {
        let Some(ours) = self.register.view.as_ref() else { return false };
        next.number == ours.number + 1
            // Who agrees that it is dropped itself spends nothing from then on.
            && ours.seats.iter().filter(|seat| !next.holds(**seat)).all(|seat| *seat == self.me || self.is_gone(*seat, now))
    }

    /// Whether a run has ended, or has not been heard of for so long that it spends nothing any more.
    fn is_gone(&self, seat: Seat, now: Timestamp) -> bool {
        if seat.node == self.me.node {
            return seat != self.me;
        }
        let peer = self.peers.get(&seat.node);
        let runs = peer.and_then(|peer| peer.beat.as_ref()).map(|beat| beat.run);
        let register = peer.and_then(|peer| peer.register.as_ref()).filter(|register| register.run == seat.run);
        let accepted =
            register.filter(|register| register.view == self.register.view).and_then(|one| one.accepted.as_ref());
        let has_yielded = accepted.is_some_and(|(_, next)| !next.holds(seat));
        if has_yielded || runs.is_some_and(|run| run != seat.run) {
            return true;
        }
        let adopted = self.adopted.map_or(self.started, |adopted| adopted.at);
        let heard = peer.map_or(self.started, |peer| peer.heard).max(self.started).max(adopted);
        now.since(heard) >= SILENCE
    }

    /// Whether a run of another node has just begun that has not said yet what it remembers.
    fn begins(&self, node: u64, now: Timestamp) -> bool {
        self.peers.get(&node).is_some_and(|peer| {
            let runs = peer.beat.as_ref().map(|beat| beat.run);
            let said = peer.register.as_ref().map(|register| register.run);
            runs.is_some() && runs != said && now.since(peer.begun) < SILENCE && self.is_heard(node, now)
        })
    }

    fn is_heard(&self, node: u64, now: Timestamp) -> bool {
        node == self.me.node
            || self.peers.get(&node).is_some_and(|peer| peer.beat.is_some() && now.since(peer.heard) < LEASE)
    }

    /// Who is to have a seat, as this node sees it.
    fn desired(&self, ours: &View, now: Timestamp) -> View {
        // A run whose successor will say in a moment what it remembers stays until then: were it dropped, a window would have to pass.
        let stays = |seat: &&Seat| !self.is_gone(**seat, now) || self.begins(seat.node, now);
        let mut seats: BTreeMap<u64, u64> = ours.seats.iter().filter(stays).map(|seat| (seat.node, seat.run)).collect();
        for (node, peer) in
            self.peers.iter().filter(|(node, _)| self.alive.contains(node) && self.is_heard(**node, now))
        {
            // Not before its register is known, which says what it remembers.
            if let (Some(beat), Some(register)) = (&peer.beat, &peer.register)
                && beat.run == register.run
            {
                seats.insert(*node, beat.run);
            }
        }
        seats.insert(self.me.node, self.me.run);
        let seats: Vec<Seat> = seats.into_iter().map(|(node, run)| Seat { node, run }).take(SEATS_MAX).collect();
        let mut waits = 0;
        for seat in &ours.seats {
            let next = seats.iter().find(|next| next.node == seat.node);
            waits |= match next {
                Some(next) if next == seat => 0,
                Some(next) if self.remembers(*next) => FORGOTTEN,
                _ => ALL_CLASSES,
            };
        }
        View { number: ours.number + 1, seats, waits }
    }

    fn remembers(&self, seat: Seat) -> bool {
        if seat == self.me {
            return self.register.remembers;
        }
        let register = self.peers.get(&seat.node).and_then(|peer| peer.register.as_ref());
        register.is_some_and(|register| register.run == seat.run && register.remembers)
    }

    /// Leads the next agreement on, if it is this node's turn. Says whether something changed.
    fn propose(&mut self, now: Timestamp) -> bool {
        let Some(ours) = self.register.view.clone() else { return false };
        let first = self.voters(&ours).map(|(node, _)| node).find(|node| self.is_heard(*node, now));
        if first != Some(self.me.node) || self.quiet_since.is_none() {
            return false;
        }
        if let Some((ballot, since)) = self.attempt
            && now.since(since) < PATIENCE
        {
            return self.lead(&ours, ballot, now);
        }
        let is_open = self.voters(&ours).any(|(_, register)| register.accepted.is_some());
        let desired = self.desired(&ours, now);
        if !is_open && desired.seats == ours.seats {
            return false;
        }
        self.round += 1;
        let ballot = Ballot { round: self.round, run: self.me.run };
        self.attempt = Some((ballot, now));
        self.register.proposal = Some(Proposal { ballot, view: None });
        self.register.promised = ballot;
        self.is_dirty = true;
        true
    }

    /// Goes from the question to the proposal, once a majority has answered.
    fn lead(&mut self, ours: &View, ballot: Ballot, now: Timestamp) -> bool {
        if !matches!(self.register.proposal, Some(Proposal { view: None, .. })) {
            return false;
        }
        let promised: Vec<&Register> =
            self.voters(ours).map(|(_, register)| register).filter(|register| register.promised == ballot).collect();
        if promised.len() < ours.majority() {
            return false;
        }
        let accepted: Vec<&(Ballot, View)> =
            promised.iter().filter_map(|register| register.accepted.as_ref()).collect();
        // Those who have not answered may have agreed to anything; those who have answered agree to nothing older any more.
        let silent = ours.seats.len() - promised.len();
        let may_stand =
            |ballot: Ballot| accepted.iter().filter(|one| one.0 >= ballot).count() + silent >= ours.majority();
        let newest = accepted.iter().max_by_key(|one| one.0).filter(|_| accepted.iter().any(|one| may_stand(one.0)));
        let view = newest.map_or_else(|| self.desired(ours, now), |(_, view)| view.clone());
        if view.seats == ours.seats {
            // It has become needless meanwhile.
            self.register.proposal = None;
            self.attempt = None;
            self.is_dirty = true;
            return false;
        }
        self.register.proposal = Some(Proposal { ballot, view: Some(view) });
        self.is_dirty = true;
        true
    }
}

/// How long it takes until nothing that was spent before counts in a class, by any clock.
fn passed(class: usize) -> Duration {
    let length = Window::ALL.get(class).map_or(RUNNING_MAX, |window| window.length());
    length + length / 16 + Duration::from_millis(100)
}
