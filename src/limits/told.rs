//! The seam to the other nodes: what is told to them and heard from them.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use smg_base::Timestamp;

use crate::{
    counter::{Counter, GONE, Heard, Moment},
    limiter::{InForce, Limiter},
    rule::Rule,
    rules::CounterId,
    stance::{Allowance, Own, Slot, Stance},
};

/// Nodes that are told apart. What others say is not kept.
const NODES_MAX: usize = 4_096;

impl Limiter {
    /// How this node stands among others, from now on.
    pub fn set_stance(&self, stance: Stance) {
        self.stance.store(Arc::new(stance));
    }

    /// How this node stands among others.
    pub fn stance(&self) -> Stance {
        **self.stance.load()
    }

    /// Sets what is added to this node's base right in a counter; false if there is no room for the counter, or if it counts by the hour
    /// or longer: of such no rights are lent. Stays until it is set again; zero forgets it.
    pub fn lend(&self, counter: CounterId, lent: i64, now: Timestamp) -> bool {
        if counter.outlives_runs() {
            return lent == 0;
        }
        let moment = self.moment(now);
        let mut shard = self.shard(counter).lock();
        let place = match shard.find(counter) {
            None if lent == 0 => return true,
            None => self.insert(&mut shard, counter, moment, usize::MAX),
            found => found,
        };
        let Some(counter) = place.and_then(|place| shard.at_mut(place)) else { return false };
        counter.set_lent(lent);
        true
    }

    /// How this node stands with a counter, if it has it.
    pub fn own(&self, counter: CounterId, now: Timestamp) -> Option<Own> {
        let in_force = self.in_force.load();
        let moment = self.moment(now);
        let mut shard = self.shard(counter).lock();
        let place = shard.find(counter)?;
        let counter = shard.at_mut(place)?;
        counter.advance(moment.short_tick(counter.id.window()));
        let allowance = self.allowance(&in_force, counter, moment).unwrap_or_default();
        let rule = in_force.rules.get(counter.rule);
        let (mode, rights) = (rule.map(|rule| rule.mode), rule.map_or(0, Rule::rights));
        Some(Own { used: counter.used(), allowance, lent: counter.lent(), mode, rights })
    }

    /// Tells at most `max` of this node's counters whose [`Slot`] is not the one told last, all parts of the table in turn and in each the
    /// one that waited longest first. Called often: it also looks through some thousands of counters for what has passed.
    pub fn changed(&self, max: usize, now: Timestamp, visit: &mut dyn FnMut(CounterId, Slot)) {
        self.sweep(now);
        let in_force = self.in_force.load();
        let moment = self.moment(now);
        let first = self.turn.fetch_add(1, Relaxed);
        let mut told = Vec::new();
        // As many of each part as if all had so many, until nothing is left or `max` is reached.
        let share = (max / self.shards.len()).max(1);
        loop {
            let before = told.len();
            for at in 0..self.shards.len() {
                let mut shard = self.shards[first.wrapping_add(at) % self.shards.len()].lock();
                for _ in 0..share.min(max - told.len()) {
                    let Some(place) = shard.next_changed() else { break };
                    let Some(counter) = shard.at_mut(place) else { continue };
                    counter.advance(moment.short_tick(counter.id.window()));
                    let right = self.allowance(&in_force, counter, moment).map_or(0, |allowance| allowance.own);
                    told.push((counter.id, counter.tell(right)));
                }
            }
            if told.len() == before {
                break;
            }
        }
        told.into_iter().for_each(|(counter, slot)| visit(counter, slot));
    }

    fn allowance(&self, in_force: &InForce, counter: &Counter, moment: Moment) -> Option<Allowance> {
        let rule = in_force.rules.get(counter.rule)?;
        Some(self.stance.load().allowance(rule, counter.lent(), moment.now))
    }

    /// Takes another node's word. It counts for a window from now, its fading part for half of one.
    pub fn hear(&self, node: u64, counter: CounterId, slot: Slot, now: Timestamp) {
        let Some(node) = self.node(node) else { return };
        let moment = self.moment(now);
        let tick = moment.short_tick(counter.window());
        let word = Heard::new(node, slot, tick);
        let mut shard = self.shard(counter).lock();
        let place = match shard.find(counter) {
            None if slot.used == 0 && slot.shared == 0 => return,
            None => self.insert(&mut shard, counter, moment, self.counters_for_others()),
            found => found,
        };
        let Some(more) = place.and_then(|place| shard.at_mut(place)).map(|counter| counter.hear(word)) else { return };
        shard.heard = shard.heard.saturating_add_signed(more);
    }

    /// A node is gone, or begins anew and knows nothing of what it used: nothing of it runs any more, and what it used in windows passes
    /// with these. Its durable counters stay as it told them, for it takes these up again. So tell a node's end with this and not with
    /// zeros.
    pub fn forget_node(&self, node: u64) {
        let Some(node) = self.nodes.read().get(&node).copied() else { return };
        for shard in &self.shards {
            let mut shard = shard.lock();
            let more = shard.all_mut().map(|counter| counter.forget(node)).sum();
            shard.heard = shard.heard.saturating_add_signed(more);
        }
    }

    /// The number that counters keep for a node.
    fn node(&self, node: u64) -> Option<u16> {
        if let Some(&number) = self.nodes.read().get(&node) {
            return Some(number);
        }
        let mut nodes = self.nodes.write();
        let next = u16::try_from(nodes.len()).ok().filter(|&next| usize::from(next) < NODES_MAX && next != GONE);
        if let Some(&number) = nodes.get(&node) {
            return Some(number);
        }
        nodes.insert(node, next?);
        next
    }
}
