//! Those of one class who wait, tenant by tenant.
//!
//! Tenants take turns by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), in the form in which credit may be
//! overdrawn: a tenant is served while it has credit; what its last request costs beyond that is debt, paid off by the
//! quanta of the turns it then misses. So costs need not be known exactly beforehand, and what turns out differently is
//! put right later. A tenant keeps its place among the turns while it has nobody waiting, and gains by them: going away
//! for a moment forgives no debt, and who asks for less than its share may have some of it at once later. Full credit
//! is what nobody remembers: those who have it and nobody waiting are forgotten, and newcomers begin with it. When nobody
//! waits at all there is nothing to be fair about, and everybody is forgotten.

use std::collections::{BTreeMap, VecDeque};

use smg_base::map::StableMap;

/// What a tenant gains by a turn. Small, so that a request of a tenant that seldom comes waits for few others; many
/// rounds at once cost no more than one.
const QUANTUM: i64 = 256;

/// The most credit: what a tenant that has asked for little may have at once before others have their turn.
const CREDIT_MAX: i64 = 16_384;

/// No request counts for more: costs come from outside, and sums of them must not overflow.
const COST_MAX: u64 = 1 << 32;

/// Most tenants that are remembered; beyond it those who have nobody waiting are forgotten.
const TENANTS_MAX: usize = 4_096;

/// A tenant, as the hash of its name: two with the same hash would share their turns.
pub(crate) type TenantKey = u64;

/// Somebody who waits.
#[derive(Debug)]
pub(crate) struct Waiting<B> {
    pub(crate) cost: u64,
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
    tenants: StableMap<TenantKey, Tenant<B>>,
    /// Everybody in `tenants`, the next one first.
    turns: VecDeque<TenantKey>,
    depth: usize,
    era: u64,
}

#[derive(Debug)]
struct Tenant<B> {
    /// By the order of arrival.
    waiting: BTreeMap<u64, Waiting<B>>,
    credit: i64,
}

impl<B> Default for Queue<B> {
    fn default() -> Self {
        Self { tenants: StableMap::default(), turns: VecDeque::new(), depth: 0, era: 0 }
    }
}

impl<B> Queue<B> {
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// How many of one tenant wait.
    pub(crate) fn depth_of(&self, tenant: TenantKey) -> usize {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.waiting.len())
    }

    pub(crate) fn contains(&self, tenant: TenantKey, number: u64) -> bool {
        self.tenants.get(&tenant).is_some_and(|tenant| tenant.waiting.contains_key(&number))
    }

    pub(crate) fn push(&mut self, tenant: TenantKey, number: u64, cost: u64, bell: B) {
        let cost = cost.clamp(1, COST_MAX);
        self.tenant(tenant).waiting.insert(number, Waiting { cost, bell });
        self.depth += 1;
    }

    /// Somebody goes away; none if it does not wait here.
    pub(crate) fn remove(&mut self, tenant: TenantKey, number: u64) -> Option<Waiting<B>> {
        let waiting = self.tenants.get_mut(&tenant)?.waiting.remove(&number)?;
        self.shrunk();
        Some(waiting)
    }

    /// The newest of the tenant that has most waiting, if that are more than `tenant` will have with one more.
    pub(crate) fn displace_for(&mut self, tenant: TenantKey) -> Option<(TenantKey, u64, Waiting<B>)> {
        let own = self.depth_of(tenant);
        let (longest, length) =
            self.turns.iter().map(|key| (*key, self.depth_of(*key))).max_by_key(|(_, length)| *length)?;
        if length <= own + 1 {
            return None;
        }
        let number = *self.tenants.get(&longest)?.waiting.last_key_value()?.0;
        let waiting = self.remove(longest, number)?;
        Some((longest, number, waiting))
    }

    /// Takes out whose turn it is and charges its tenant.
    pub(crate) fn take(&mut self) -> Option<Next<B>> {
        let key = self.turn()?;
        let tenant = self.tenants.get_mut(&key)?;
        let (number, Waiting { cost, bell }) = tenant.waiting.pop_first()?;
        tenant.credit -= signed(cost);
        let charge = Charge { cost, era: self.era };
        self.shrunk();
        Some(Next { tenant: key, number, bell, charge })
    }

    /// Somebody who may be asked to look at the clock for all.
    pub(crate) fn any(&self) -> Option<&B> {
        let mut tenants = self.turns.iter().filter_map(|key| self.tenants.get(key));
        tenants.find_map(|tenant| tenant.waiting.values().next()).map(|waiting| &waiting.bell)
    }

    /// A request that was charged needed `cost`.
    pub(crate) fn correct(&mut self, tenant: TenantKey, charge: Charge, cost: u64) {
        if charge.era != self.era || self.depth == 0 {
            return;
        }
        let surplus = signed(charge.cost.min(COST_MAX)) - signed(cost.min(COST_MAX));
        if surplus < 0 || self.tenants.contains_key(&tenant) {
            let tenant = self.tenant(tenant);
            tenant.credit = (tenant.credit + surplus).min(CREDIT_MAX);
        }
    }

    /// How many will be served before a newcomer of this tenant, if all cost the same.
    pub(crate) fn ahead_of(&self, tenant: TenantKey) -> usize {
        let own = self.depth_of(tenant);
        let others = self.turns.iter().filter(|key| **key != tenant).map(|key| self.depth_of(*key).min(own + 1));
        own + others.sum::<usize>()
    }

    /// The tenant, who comes last among the turns if it is new.
    fn tenant(&mut self, key: TenantKey) -> &mut Tenant<B> {
        if !self.tenants.contains_key(&key) {
            if self.turns.len() >= TENANTS_MAX {
                self.tenants.retain(|_, tenant| !tenant.waiting.is_empty());
                self.turns.retain(|key| self.tenants.contains_key(key));
            }
            self.turns.push_back(key);
        }
        self.tenants.entry(key).or_insert_with(|| Tenant { waiting: BTreeMap::new(), credit: CREDIT_MAX })
    }

    fn shrunk(&mut self) {
        self.depth -= 1;
        if self.depth == 0 {
            self.tenants.clear();
            self.turns.clear();
            self.era += 1;
        }
    }

    /// Whose turn it is, who is first among the turns then; none if nobody waits.
    fn turn(&mut self) -> Option<TenantKey> {
        if self.depth == 0 {
            return None;
        }
        self.round().or_else(|| {
            self.pass_rounds();
            self.round()
        })
    }

    /// Goes around once, until somebody who waits has credit; whoever is passed by gains its quantum.
    fn round(&mut self) -> Option<TenantKey> {
        for _ in 0..self.turns.len() {
            let key = *self.turns.front()?;
            let tenant = self.tenants.get_mut(&key)?;
            if tenant.credit > 0 && !tenant.waiting.is_empty() {
                return Some(key);
            }
            tenant.credit += QUANTUM;
            if tenant.waiting.is_empty() && tenant.credit >= CREDIT_MAX {
                self.tenants.remove(&key);
                self.turns.pop_front();
            } else {
                self.turns.rotate_left(1);
            }
        }
        None
    }

    /// Lets as many rounds pass as it takes until somebody who waits has credit.
    fn pass_rounds(&mut self) {
        let waiting = self.tenants.values().filter(|tenant| !tenant.waiting.is_empty());
        let best = waiting.map(|tenant| tenant.credit).max().unwrap_or(1);
        if best <= 0 {
            let gained = (1 - best / QUANTUM) * QUANTUM;
            for tenant in self.tenants.values_mut() {
                tenant.credit = (tenant.credit + gained).min(CREDIT_MAX);
            }
        }
    }
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
    fn a_newcomer_waits_for_one_turn_of_each() {
        let mut queue = queue(&[(1, 300, 200), (2, 300, 200)]);
        served(&mut queue, 150);
        queue.push(3, 1_000, 300, ());
        assert!(served(&mut queue, 3).contains(&3));
    }

    #[test]
    fn who_asked_for_little_may_have_more_at_once() {
        let mut queue = queue(&[(1, 1_000, 200)]);
        served(&mut queue, 20);
        for number in 1_000..1_030 {
            queue.push(2, number, 1_000, ());
        }
        let turns = served(&mut queue, 40);
        let burst = turns.iter().skip_while(|tenant| **tenant == 1).take_while(|tenant| **tenant == 2).count();
        assert!((17..=18).contains(&burst), "{turns:?}");
        let after = turns[19..].iter().filter(|tenant| **tenant == 2).count();
        assert!((9..=12).contains(&after), "then in turn: {turns:?}");
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
        queue.push(2, 1, 1, ());
        queue.push(1, 2, 1, ());
        queue.correct(next.tenant, next.charge, 2_000_000);
        assert_eq!(served(&mut queue, 1), [2]);
        assert_eq!(served(&mut queue, 1), [1], "the old debt is forgotten");
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
                assert!(queue.turns.len() == queue.tenants.len() && queue.turns.len() <= 6);
            }
            for tenant in 2..6 {
                assert!(tokens[tenant] <= tokens[0] + CREDIT_MAX + 2_000 + 3 * QUANTUM, "seed {seed}: {tokens:?}");
            }
        }
    }
}
