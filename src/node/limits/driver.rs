//! The limits at work: what the lanes of all nodes say goes into the plane, what it writes goes out.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, OptionFuture, try_join_all},
};
use smg_base::{Clock, Random};
use smg_gateway::Standing;
use smg_limits::{
    Limiter,
    mesh::{Batch, Lane, Member, Outcome, Plane, Write},
};
use smg_mesh_proto::{Kind, MemberState, NodeId, Op};
use smg_runtime::{Phase, Shutdown, entropy};
use tokio::time::{Instant, sleep_until};

use super::{inbox::Inbox, metrics::LimitMetrics};
use crate::prefixes::Others;

/// How often counters in which nothing counts any more are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// What comes within this time is taken in one go.
const GATHER: Duration = Duration::from_millis(2);

/// Sweeps the counters of a node without others until the process stops.
pub(super) async fn sweep(limiter: Arc<Limiter>, clock: Arc<dyn Clock>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.reached(Phase::Stopped) => return,
            () = tokio::time::sleep(SWEEP_EVERY) => limiter.sweep(clock.now()),
        }
    }
}

/// The driver of a node among others.
pub(super) struct Driver {
    plane: Plane,
    inbox: Arc<Inbox>,
    others: Others,
    clock: Arc<dyn Clock>,
    metrics: LimitMetrics,
    /// What was last said of who is there.
    members: Option<Vec<Member>>,
    /// The batch that is being kept, and what became of it.
    keeping: OptionFuture<BoxFuture<'static, (u64, Outcome)>>,
}

impl Driver {
    pub(super) fn new(
        limiter: Arc<Limiter>,
        inbox: Arc<Inbox>,
        others: Others,
        clock: Arc<dyn Clock>,
        founders: usize,
        metrics: LimitMetrics,
    ) -> Self {
        let run = entropy().next_u64();
        let plane = Plane::new(short(others.link.node()), run, founders, limiter, clock.now());
        Self { plane, inbox, others, clock, metrics, members: None, keeping: None.into() }
    }

    /// Works until the process stops.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        loop {
            self.look();
            let wait = self.plane.due().since(self.clock.now());
            let due = Instant::now() + wait.max(GATHER);
            let soon = Instant::now() + GATHER;
            tokio::select! {
                () = shutdown.reached(Phase::Stopped) => return,
                () = async { sleep_until(soon).await; self.inbox.filled().await } => {}
                () = sleep_until(due) => {}
                Some((number, outcome)) = &mut self.keeping => {
                    self.keeping = None.into();
                    self.plane.kept(number, outcome);
                }
            }
        }
    }

    fn look(&mut self) {
        let now = self.clock.now();
        let unix_us = self.clock.unix_ms().saturating_mul(1_000);
        self.look_at_members(now);
        for (writer, kind, key, value) in self.inbox.take() {
            let lane = if kind == Kind::Budgets { Lane::Durable } else { Lane::Passing };
            self.plane.take(short(writer), lane, &key, value.as_deref(), now);
        }
        self.plane.tick(now, unix_us);
        for stamp in self.plane.take_stamps() {
            self.metrics.heard_after(Duration::from_micros(unix_us.saturating_sub(stamp)));
        }
        for write in self.plane.take_writes() {
            let kind = if write.lane == Lane::Durable { Kind::Budgets } else { Kind::Limits };
            self.others.link.post(Op::Entry { kind, key: write.key.into(), value: write.value.map(Into::into) });
        }
        if let Some(Batch { number, writes }) = self.plane.take_batch() {
            let op = |write: Write| Op::Entry {
                kind: Kind::Budgets,
                key: write.key.into(),
                value: write.value.map(Into::into),
            };
            let kept = try_join_all(writes.into_iter().map(|write| self.others.link.write(op(write))));
            let outcome = kept.map(move |kept| (number, if kept.is_ok() { Outcome::Kept } else { Outcome::Failed }));
            self.keeping = Some(outcome.boxed()).into();
        }
        self.metrics.set(self.plane.tally());
    }

    fn look_at_members(&mut self, now: smg_base::Timestamp) {
        let members = match self.others.known.standing() {
            Standing::Joining | Standing::Left => None,
            Standing::Joined | Standing::Alone | Standing::Draining => {
                let facts = self.others.known.facts();
                let member = |member: &Arc<smg_mesh_proto::Member>| Member {
                    node: short(member.node),
                    boot: member.boot,
                    is_alive: member.state.is_alive(),
                    has_left: member.state == MemberState::Left,
                };
                Some(facts.members.values().map(member).collect::<Vec<_>>())
            }
        };
        if members != self.members {
            self.plane.set_members(members.as_deref(), now);
            self.members = members;
        }
    }
}

/// What the plane calls a node: the lower half of its id, which is a hash.
fn short(node: NodeId) -> u64 {
    u64::try_from(node.as_u128() & u128::from(u64::MAX)).unwrap_or_default()
}
