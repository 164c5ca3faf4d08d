//! foca, driven: packets and timers in, packets and timers out.

use std::{collections::BTreeMap, num::NonZeroU8, num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use foca::{AccumulatingRuntime, Foca, Member, NoCustomBroadcast, OwnedNotification, PeriodicParams, Timer};
use rand::{SeedableRng as _, rngs::SmallRng};
use smg_base::Timestamp;

use super::{identity::Identity, packet::PacketCodec};
use crate::{NodeId, Timers};

/// Longest packet: room for the news of a whole cluster that starts at once.
const PACKET_BYTES_MAX: usize = 32 << 10;
/// Members that are asked to probe for us, and that each round of gossip goes to.
const FAN_OUT: usize = 3;

/// The SWIM state machine of one node.
pub(crate) struct Swim {
    foca: Foca<Identity, PacketCodec, SmallRng, NoCustomBroadcast>,
    config: foca::Config,
    runtime: AccumulatingRuntime<Identity>,
    timers: TimerQueue,
    pace: Pace,
    incarnation: u16,
}

/// How fast faults are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Normal,
    /// Probes and suspicion take twice as long, because this node's own links lose packets.
    Stretched,
}

/// A packet that is to be sent.
pub(crate) struct Packet {
    pub(crate) to: NodeId,
    pub(crate) bytes: Bytes,
}

/// A packet that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadPacket;

impl Swim {
    pub(crate) fn new(identity: Identity, timers: &Timers, seed: u64) -> Self {
        let config = configuration(timers);
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            foca: Foca::new(identity, config.clone(), rng, PacketCodec::default()),
            config,
            runtime: AccumulatingRuntime::new(),
            timers: TimerQueue::new(timers.gossip),
            pace: Pace::Normal,
            incarnation: 0,
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        *self.foca.identity()
    }

    /// This node's own incarnation, as far as anybody can know it: that of the last packet sent.
    pub(crate) fn incarnation(&self) -> u16 {
        self.incarnation
    }

    /// Everybody foca knows, itself excluded, the dead included.
    pub(crate) fn members(&self) -> impl ExactSizeIterator<Item = &Member<Identity>> {
        self.foca.iter_membership_state()
    }

    pub(crate) fn pace(&self) -> Pace {
        self.pace
    }

    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Takes a packet.
    pub(crate) fn packet(&mut self, now: Timestamp, bytes: &[u8]) -> Result<(), BadPacket> {
        let outcome = self.foca.handle_data(bytes, &mut self.runtime);
        self.collect(now);
        match outcome {
            Err(foca::Error::MalformedPacket | foca::Error::Decode(_) | foca::Error::DataTooBig) => Err(BadPacket),
            Err(foca::Error::CustomBroadcast(_)) => Err(BadPacket),
            // The rest is old news of ourselves, or about foca's own state: nothing the sender could help.
            _ => Ok(()),
        }
    }

    /// Takes news from elsewhere than packets.
    pub(crate) fn apply(&mut self, now: Timestamp, members: Vec<Member<Identity>>, spread: Spread) {
        let broadcast = spread == Spread::Gossip;
        let outcome = self.foca.apply_many(members.into_iter(), broadcast, &mut self.runtime);
        debug_assert!(outcome.is_ok(), "applying needs no room: {outcome:?}");
        self.collect(now);
    }

    /// Lets the timers fire that are due.
    pub(crate) fn tick(&mut self, now: Timestamp) {
        self.fit_size();
        for timer in self.timers.take_due(now) {
            // An incomplete probe mends itself; the other errors are timers of a state that is over.
            let _mended = self.foca.handle_timer(timer, &mut self.runtime);
            self.collect(now);
        }
    }

    /// When the next timer is due.
    pub(crate) fn next_tick(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// Says hello to a member that is down.
    pub(crate) fn announce(&mut self, now: Timestamp, to: Identity) {
        let _no_room_is_impossible = self.foca.announce(to, &mut self.runtime);
        self.collect(now);
    }

    /// Forgets a member that is down.
    pub(crate) fn forget(&mut self, now: Timestamp, identity: Identity) {
        let _never_fails = self.foca.handle_timer(Timer::RemoveDown(identity), &mut self.runtime);
        self.collect(now);
    }

    /// Goes on under a later identity; the one before is dead.
    pub(crate) fn become_identity(&mut self, now: Timestamp, identity: Identity) {
        let _same_is_fine = self.foca.change_identity(identity, &mut self.runtime);
        self.incarnation = 0;
        self.collect(now);
        // A changed identity begins without connection state: members that are known bring it back.
        self.apply(now, Vec::new(), Spread::Quiet);
    }

    /// Tells a few members that this node leaves, and stops.
    pub(crate) fn leave(&mut self, now: Timestamp) {
        let _no_room_is_impossible = self.foca.leave_cluster(&mut self.runtime);
        self.collect(now);
    }

    /// What is to be sent, in order.
    pub(crate) fn take_packet(&mut self) -> Option<Packet> {
        let (to, bytes) = self.runtime.to_send()?;
        self.note_incarnation(&bytes);
        Some(Packet { to: to.node, bytes })
    }

    /// Whether foca took a new identity since the last call, because the cluster took the one before for dead.
    pub(crate) fn take_rejoined(&mut self) -> bool {
        let mut rejoined = false;
        while let Some(news) = self.runtime.to_notify() {
            rejoined |= matches!(news, OwnedNotification::Rejoin(_));
        }
        rejoined
    }

    fn note_incarnation(&mut self, packet: &[u8]) {
        if let Ok(header) = super::packet::read_header(packet)
            && header.src == *self.foca.identity()
        {
            self.incarnation = header.src_incarnation;
        }
    }

    /// Moves the timers that foca set into the queue.
    fn collect(&mut self, now: Timestamp) {
        while let Some((delay, timer)) = self.runtime.to_schedule() {
            let slow = matches!(
                timer,
                Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } | Timer::ChangeSuspectToDown { .. }
            );
            let factor = if slow && self.pace == Pace::Stretched { 2 } else { 1 };
            if delay.is_zero() {
                panic!("zero {timer:?}");
            }
            self.timers.push(now + delay * factor, timer);
        }
        self.timers.set_backlog(now, self.foca.updates_backlog());
    }

    /// News is repeated more often in a greater cluster.
    fn fit_size(&mut self) {
        let wanted = transmissions(self.foca.num_members() + 1);
        if wanted != self.config.max_transmissions {
            self.config.max_transmissions = wanted;
            let changed = self.foca.set_config(self.config.clone());
            debug_assert!(changed.is_ok(), "only what may change has changed");
        }
    }
}

/// Whether news is gossiped on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    Gossip,
    Quiet,
}

fn configuration(timers: &Timers) -> foca::Config {
    let fan_out = NonZeroUsize::new(FAN_OUT).expect("not zero");
    foca::Config {
        probe_period: timers.probe,
        probe_rtt: timers.probe_rtt,
        num_indirect_probes: fan_out,
        max_transmissions: transmissions(1),
        suspect_to_down_after: timers.suspicion,
        // The roster forgets.
        remove_down_after: None,
        max_packet_size: NonZeroUsize::new(PACKET_BYTES_MAX).expect("not zero"),
        notify_down_members: true,
        // The exchange of member lists does both, also while foca has no live member.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams { frequency: timers.gossip, num_members: fan_out }),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
#[expect(clippy::cast_precision_loss, reason = "members are few")]
fn transmissions(members: usize) -> NonZeroU8 {
    let wanted = (4.0 * (members as f64 + 1.0).log10()).ceil();
    NonZeroU8::new((wanted as u8).max(6)).expect("at least six")
}

/// Timers by when they are due. Those of the rounds of gossip rest while there is no news: nothing would be sent.
struct TimerQueue {
    due: BTreeMap<(Timestamp, u64), Timer<Identity>>,
    count: u64,
    rounds: Vec<(Timestamp, Timer<Identity>)>,
    gossip: Duration,
    has_news: bool,
}

impl TimerQueue {
    fn new(gossip: Duration) -> Self {
        Self { due: BTreeMap::new(), count: 0, rounds: Vec::new(), gossip, has_news: false }
    }

    fn push(&mut self, at: Timestamp, timer: Timer<Identity>) {
        if matches!(timer, Timer::PeriodicGossip(_)) {
            return self.rounds.push((at, timer));
        }
        self.count += 1;
        self.due.insert((at, self.count), timer);
    }

    /// Rounds that came due while there was no news take place when they would have taken place next.
    fn set_backlog(&mut self, now: Timestamp, news: usize) {
        if news > 0 && !self.has_news {
            for (at, _) in self.rounds.iter_mut().filter(|(at, _)| *at <= now) {
                let missed = now.since(*at).as_nanos() / self.gossip.as_nanos() + 1;
                *at = *at + self.gossip * u32::try_from(missed).unwrap_or(u32::MAX);
            }
        }
        self.has_news = news > 0;
    }

    fn next(&self) -> Option<Timestamp> {
        let rounds = self.rounds.iter().filter(|_| self.has_news).map(|(at, _)| *at);
        rounds.chain(self.due.first_key_value().map(|((at, _), _)| *at)).min()
    }

    /// Those due, in the order that foca wants for timers that are late together.
    fn take_due(&mut self, now: Timestamp) -> Vec<Timer<Identity>> {
        let later = self.due.split_off(&(now + Duration::from_nanos(1), 0));
        let mut due: Vec<_> = std::mem::replace(&mut self.due, later).into_values().collect();
        if self.has_news {
            due.extend(self.rounds.extract_if(.., |(at, _)| *at <= now).map(|(_, timer)| timer));
        }
        due.sort();
        due
    }
}
