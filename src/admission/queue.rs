//! Those of one class who wait, tenant by tenant.
//!
//! Tenants share by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995): in every round each gains the same credit, and
//! what is served is taken off it. Three things are different. Credit may be overdrawn: what a request costs beyond it is
//! debt, paid off by the rounds that pass meanwhile, so that costs need not be known beforehand and what turns out
//! differently is put right later. Within a round whoever has most credit goes first, so that nobody who is let in with much of
//! it can keep the others waiting until it is used up. And a tenant gains by rounds also while it has nobody waiting: going away for
//! a moment forgives no debt, and who asks for less than its share may have some of it at once later. Full credit is what
//! nobody remembers: those who have it and nobody waiting are forgotten, and newcomers begin with it. When nobody waits at
//! all there is nothing to be fair about, and everybody is forgotten.

use std::{cmp::Reverse, collections::BTreeMap};

use smg_base::map::StableMap;

/// What a tenant gains by a round.
const QUANTUM: i64 = 256;

/// The most credit: what a tenant that has asked for little may have at once before others.
const CREDIT_MAX: i64 = 16_384;

/// What a request counts for at least that is served at all: it takes a place for a while, however short it is.
const COST_MIN: u64 = 256;

/// No request counts for more: costs come from outside, and sums of them must not overflow.
const COST_MAX: u64 = 1 << 32;

/// Most tenants that are remembered; beyond it those who have nobody waiting are forgotten.
const TENANTS_MAX: usize = 4_096;

/// A tenant, as the hash of its name: two with the same hash would share their turns.
pub(crate) type TenantKey = u64;

/// Somebody who waits.
#[derive(Debug)]
pub(crate) struct Waiting<B> {
    cost: u64,
    pub(crate) bell: B,
}

/// Somebody whose turn it is.
#[derive(Debug)]
pub(crate) struct Next<B> {
    pub(crate) tenant: TenantKey,
    pub(crate) number: u64,
    pub(crate) bell: B,
    pub(crate) charge: Charge,
}

/// What a tenant was charged for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) cost: u64,
    /// Debts end with an era, and charges with them.
    era: u64,
}

#[derive(Debug)]
pub(crate) struct Queue<B> {
    tenants: Vec<Tenant<B>>,
    /// Where each is in `tenants`.
    places: StableMap<TenantKey, usize>,
    depth: usize,
    era: u64,
}

#[derive(Debug)]
struct Tenant<B> {
    key: TenantKey,
    credit: i64,
    /// By the order of arrival.
    waiting: BTreeMap<u64, Waiting<B>>,
}

impl<B> Default for Queue<B> {
    fn default() -> Self {
        Self { tenants: Vec::new(), places: StableMap::default(), depth: 0, era: 0 }
    }
}

impl<B> Queue<B> {
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// How many of one tenant wait.
    pub(crate) fn depth_of(&self, tenant: TenantKey) -> usize {
        self.tenant(tenant).map_or(0, |tenant| tenant.waiting.len())
    }

    pub(crate) fn contains(&self, tenant: TenantKey, number: u64) -> bool {
        self.tenant(tenant).is_some_and(|tenant| tenant.waiting.contains_key(&number))
    }

    pub(crate) fn push(&mut self, tenant: TenantKey, number: u64, cost: u64, bell: B) {
        let cost = counted(cost.max(1));
        self.tenant_mut(tenant).waiting.insert(number, Waiting { cost, bell });
        self.depth += 1;
    }

    /// Somebody goes away; none if it does not wait here.
    pub(crate) fn remove(&mut self, tenant: TenantKey, number: u64) -> Option<Waiting<B>> {
        let place = *self.places.get(&tenant)?;
        let waiting = self.tenants[place].waiting.remove(&number)?;
        self.shrunk();
        Some(waiting)
    }

    /// The newest of the tenant that has most waiting, if that are more than `tenant` will have with one more.
    pub(crate) fn displace_for(&mut self, tenant: TenantKey) -> Option<(TenantKey, u64, Waiting<B>)> {
        let own = self.depth_of(tenant);
        let longest = self.tenants.iter().max_by_key(|tenant| tenant.waiting.len())?;
        if longest.waiting.len() <= own + 1 {
            return None;
        }
        let (key, number) = (longest.key, *longest.waiting.last_key_value()?.0);
        let waiting = self.remove(key, number)?;
        Some((key, number, waiting))
    }

    /// Takes out whose turn it is and charges its tenant.
    pub(crate) fn take(&mut self) -> Option<Next<B>> {
        let key = self.turn()?;
        let tenant = self.tenant_mut(key);
        let (number, Waiting { cost, bell }) = tenant.waiting.pop_first()?;
        tenant.credit -= signed(cost);
        let charge = Charge { cost, era: self.era };
        self.shrunk();
        Some(Next { tenant: key, number, bell, charge })
    }

    /// Somebody who may be asked to look at the clock for all.
    pub(crate) fn any(&self) -> Option<&B> {
        self.tenants.iter().find_map(|tenant| tenant.waiting.values().next()).map(|waiting| &waiting.bell)
    }

    /// A request that was charged costs `cost`; nothing if it was never served.
    pub(crate) fn correct(&mut self, tenant: TenantKey, charge: Charge, cost: u64) {
        if charge.era != self.era || self.depth == 0 {
            return;
        }
        let surplus = signed(counted(charge.cost)) - signed(counted(cost));
        if surplus < 0 || self.places.contains_key(&tenant) {
            let tenant = self.tenant_mut(tenant);
            tenant.credit = (tenant.credit + surplus).min(CREDIT_MAX);
        }
    }

    /// How many will be served before a newcomer of this tenant, if all cost the same and have the same credit.
    pub(crate) fn ahead_of(&self, tenant: TenantKey) -> usize {
        let own = self.depth_of(tenant);
        let others = self.tenants.iter().filter(|other| other.key != tenant);
        own + others.map(|other| other.waiting.len().min(own + 1)).sum::<usize>()
    }

    fn tenant(&self, key: TenantKey) -> Option<&Tenant<B>> {
        self.places.get(&key).map(|place| &self.tenants[*place])
    }

    /// The tenant; one that is not remembered has full credit.
    fn tenant_mut(&mut self, key: TenantKey) -> &mut Tenant<B> {
        if self.tenants.len() >= TENANTS_MAX && !self.places.contains_key(&key) {
            self.keep(|tenant| !tenant.waiting.is_empty());
        }
        let place = *self.places.entry(key).or_insert(self.tenants.len());
        if place == self.tenants.len() {
            self.tenants.push(Tenant { key, credit: CREDIT_MAX, waiting: BTreeMap::new() });
        }
        &mut self.tenants[place]
    }

    /// Forgets the others.
    fn keep(&mut self, is_kept: impl Fn(&Tenant<B>) -> bool) {
        let before = self.tenants.len();
        self.tenants.retain(is_kept);
        if self.tenants.len() != before {
            self.places.clear();
            self.places.extend(self.tenants.iter().enumerate().map(|(place, tenant)| (tenant.key, place)));
        }
    }

    fn shrunk(&mut self) {
        self.depth -= 1;
        if self.depth == 0 {
            self.tenants.clear();
            self.places.clear();
            self.era += 1;
        }
    }

    /// Whose turn it is: of those who wait, who has most credit; of equals, who came first. None if nobody waits.
    fn turn(&mut self) -> Option<TenantKey> {
        let rank =
            |tenant: &Tenant<B>| Some((tenant.credit, Reverse(*tenant.waiting.first_key_value()?.0), tenant.key));
        let (credit, _, key) = self.tenants.iter().filter_map(rank).max()?;
        if credit <= 0 {
            self.pass_rounds(1 - credit / QUANTUM);
        }
        Some(key)
    }

    /// Lets rounds pass: as many as it takes until somebody who waits has credit.
    fn pass_rounds(&mut self, rounds: i64) {
        let gained = rounds * QUANTUM;
        for tenant in &mut self.tenants {
            tenant.credit = (tenant.credit + gained).min(CREDIT_MAX);
        }
        self.keep(|tenant| tenant.credit < CREDIT_MAX || !tenant.waiting.is_empty());
    }
}

/// What a cost counts for.
fn counted(cost: u64) -> u64 {
    if cost == 0 { 0 } else { cost.clamp(COST_MIN, COST_MAX) }
}

fn signed(cost: u64) -> i64 {
    i64::try_from(cost).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    /// Whom `count` turns go to.
    fn served(queue: &mut Queue<()>, count: usize) -> Vec<TenantKey> {
        (0..count).map_while(|_| queue.take()).map(|next| next.tenant).collect()
    }

    fn queue(waiting: &[(TenantKey, u64, usize)]) -> Queue<()> {
        let mut queue = Queue::default();
        let mut number = 0;
        for &(tenant, cost, count) in waiting {
            for _ in 0..count {
                queue.push(tenant, number, cost, ());
                number += 1;
            }
        }
        queue
    }

    #[test]
    fn one_tenant_is_served_in_the_order_of_arrival() {
        let mut queue = queue(&[(1, 10_000, 5)]);
        let numbers: Vec<u64> = std::iter::from_fn(|| queue.take()).map(|next| next.number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn tenants_get_the_same_in_tokens_whatever_a_request_costs() {
        let mut queue = queue(&[(1, 8_000, 100), (2, 1_000, 1_000)]);
        let first = served(&mut queue, 90);
        let large = first.iter().filter(|tenant| **tenant == 1).count();
        assert!((9..=11).contains(&large), "{large} of 90");
    }

    #[test]
    fn a_newcomer_goes_before_those_who_have_had_more() {
        let mut queue = queue(&[(1, 300, 200), (2, 300, 200)]);
        served(&mut queue, 150);
        queue.push(3, 1_000, 300, ());
        assert_eq!(served(&mut queue, 1), [3]);
    }

    #[test]
    fn full_credit_keeps_nobody_waiting_who_has_it_too() {
        for cost in [1, 300, 3_000] {
            let mut queue = queue(&[(1, cost, 500)]);
            queue.push(2, 1_000, cost, ());
            queue.push(2, 1_001, cost, ());
            assert_eq!(served(&mut queue, 4), [1, 2, 1, 2], "{cost}");
        }
    }

    #[test]
    fn who_asked_for_little_may_have_more_at_once() {
        let mut queue = queue(&[(1, 1_000, 200)]);
        served(&mut queue, 20);
        for number in 1_000..1_030 {
            queue.push(2, number, 1_000, ());
        }
        let turns = served(&mut queue, 40);
        let burst = turns.iter().take_while(|tenant| **tenant == 2).count();
        assert!((16..=20).contains(&burst), "{turns:?}");
        let after = turns[burst..].iter().filter(|tenant| **tenant == 2).count();
        assert!((8..=12).contains(&after), "then in turn: {turns:?}");
    }

    #[test]
    fn going_away_for_a_moment_pays_no_debt() {
        let mut queue = queue(&[(1, 100_000, 1), (2, 1_000, 500)]);
        assert_eq!(served(&mut queue, 1), [1]);
        queue.push(1, 9_999, 100_000, ());
        let before = served(&mut queue, 300).iter().position(|tenant| *tenant == 1).expect("its turn comes");
        assert!((97..=103).contains(&before), "{before}");
    }

    #[test]
    fn what_turns_out_differently_is_put_right() {
        let mut queue = queue(&[(1, 1_000, 100), (2, 1_000, 100)]);
        served(&mut queue, 40);
        let next = queue.take().expect("both wait");
        queue.correct(next.tenant, next.charge, 11_000);
        let first = served(&mut queue, 11);
        assert!(first.iter().filter(|tenant| **tenant != next.tenant).count() >= 10, "{first:?}");
        let next = queue.take().expect("both wait");
        queue.correct(next.tenant, next.charge, 0);
        let second = served(&mut queue, 11);
        assert!(second.iter().filter(|tenant| **tenant == next.tenant).count() >= 5, "{second:?}");
    }

    #[test]
    fn an_era_ends_when_nobody_waits() {
        let mut queue = queue(&[(1, 1_000_000, 1)]);
        let next = queue.take().expect("it waits");
        queue.push(1, 1, 1, ());
        queue.push(2, 2, 1, ());
        queue.correct(next.tenant, next.charge, 2_000_000);
        assert_eq!(served(&mut queue, 2), [1, 2], "the old debt is forgotten");
    }

    #[test]
    fn the_longest_loses_its_newest() {
        let mut queue = queue(&[(1, 1, 3), (2, 1, 2)]);
        assert!(queue.displace_for(2).is_none(), "it would have as many itself");
        let (tenant, number, _) = queue.displace_for(3).expect("the first has three");
        assert_eq!((tenant, number), (1, 2));
        assert!(queue.displace_for(1).is_none());
    }

    #[test]
    fn the_time_to_come_back_is_by_turns() {
        let queue = queue(&[(1, 1, 100), (2, 1, 3)]);
        assert_eq!([queue.ahead_of(1), queue.ahead_of(2), queue.ahead_of(3)], [103, 7, 2]);
    }

    /// Two that always wait have been served alike, to within full credit, one request and a few quanta, whatever others do.
    #[test]
    fn nobody_who_waits_falls_behind() {
        for seed in 0..100 {
            let random = SplitMix::new(seed);
            let mut queue = Queue::default();
            let mut number = 0;
            let mut tokens = [0_i64; 6];
            for _ in 0..1_000 {
                for tenant in 0..6 {
                    let wanted =
                        if tenant < 2 { 2 } else { random.below(3) as usize * usize::from(random.below(9) == 0) };
                    while queue.depth_of(tenant) < wanted {
                        queue.push(tenant, number, 1 + random.below(2_000), ());
                        number += 1;
                    }
                }
                let next = queue.take().expect("two wait");
                tokens[next.tenant as usize] += next.charge.cost as i64;
                assert!((tokens[0] - tokens[1]).abs() <= CREDIT_MAX + 2_000 + 3 * QUANTUM, "seed {seed}: {tokens:?}");
                assert!(queue.places.len() == queue.tenants.len() && queue.tenants.len() <= 6);
            }
            for tenant in 2..6 {
                assert!(tokens[tenant] <= tokens[0] + CREDIT_MAX + 2_000 + 3 * QUANTUM, "seed {seed}: {tokens:?}");
            }
        }
    }
}
