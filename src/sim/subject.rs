//! The node under test, and defects that can be planted around it to prove that the checks see them.

use std::{collections::BTreeSet, time::Duration};

use smg_base::Timestamp;
use smg_mesh_proto::{
    Class, CloseCode, Config, Event, Gone, Input, Kind, Mesh, Op, Output, Record, Restored, Ticket, Vote,
};

/// Something that is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Changes of lanes get lost now and then, and nothing looks for gaps.
    LosesDeltas,
    /// The journal does not keep tombstones.
    ForgetsRemovals,
    /// Writes are called done before they are on disk.
    AcknowledgesEarly,
    /// A member that is down is never spoken to again.
    ShunsTheDown,
    /// Probes wait for almost nothing.
    ProbesHastily,
    /// A worker that a node cannot reach is called sick.
    CallsUnreachableSick,
    /// A lost connection is taken for a leave.
    TakesLossForLeave,
    /// A second node of the same name is let in.
    AdmitsTwins,
    /// Something drawn at random does not come from the seed.
    DrawsFreely,
    /// Votes are published once and never again, whatever changes.
    VotesOnce,
    /// A removal is made and never said.
    KeepsRemovalsToItself,
}

impl Defect {
    /// Every one.
    pub const ALL: [Self; 11] = [
        Self::LosesDeltas,
        Self::ForgetsRemovals,
        Self::AcknowledgesEarly,
        Self::ShunsTheDown,
        Self::ProbesHastily,
        Self::CallsUnreachableSick,
        Self::TakesLossForLeave,
        Self::AdmitsTwins,
        Self::DrawsFreely,
        Self::VotesOnce,
        Self::KeepsRemovalsToItself,
    ];
}

/// A node, perhaps with a defect.
pub(crate) struct Subject {
    mesh: Mesh,
    defect: Option<Defect>,
    count: u64,
    voted: BTreeSet<u128>,
    pretended: Vec<Ticket>,
}

const NEVER: Duration = Duration::from_secs(86_400);

impl Subject {
    pub(crate) fn new(mut config: Config, mut restored: Restored, now: Timestamp, defect: Option<Defect>) -> Self {
        match defect {
            Some(Defect::LosesDeltas) => (config.timers.resend, config.timers.digest) = (NEVER, NEVER),
            Some(Defect::ShunsTheDown) => {
                (config.timers.announce_down, config.timers.redial, config.timers.redial_for) =
                    (NEVER, NEVER, Duration::ZERO);
            }
            Some(Defect::ProbesHastily) => {
                config.timers.probe = Duration::from_millis(10);
                config.timers.probe_rtt = Duration::from_millis(3);
                config.timers.suspicion = Duration::from_millis(1);
            }
            Some(Defect::ForgetsRemovals) => {
                restored.retain(|record| !matches!(record, Record::Entry { value: None, .. }));
            }
            Some(Defect::DrawsFreely) => config.seed = free_draw(),
            _ => {}
        }
        Self { mesh: Mesh::new(config, restored, now), defect, count: 0, voted: BTreeSet::new(), pretended: Vec::new() }
    }

    /// The node, to be asked.
    pub(crate) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    pub(crate) fn handle(&mut self, now: Timestamp, input: Input, out: &mut Vec<Output>) {
        let Some(defect) = self.defect else {
            self.mesh.handle(now, input, out);
            return;
        };
        let Some(input) = self.input(defect, input) else {
            let done = self.pretended.drain(..);
            out.extend(done.map(|ticket| Output::Event(Event::Written { ticket, outcome: Ok(()) })));
            return;
        };
        let first = out.len();
        self.mesh.handle(now, input, out);
        let made = out.split_off(first);
        let kept = made.into_iter().filter(|output| self.lets_out(defect, output));
        out.extend(kept.collect::<Vec<_>>());
        if defect == Defect::AcknowledgesEarly {
            self.acknowledge_early(now, first, out);
        }
    }

    /// What the defect makes of an input.
    fn input(&mut self, defect: Defect, input: Input) -> Option<Input> {
        Some(match (defect, input) {
            (Defect::CallsUnreachableSick, Input::Write { ticket, op: Op::Vote { worker, vote } }) => {
                let vote = vote.map(|vote| if vote == Vote::Unreachable { Vote::Sick } else { vote });
                Input::Write { ticket, op: Op::Vote { worker, vote } }
            }
            (Defect::KeepsRemovalsToItself, Input::Write { ticket: Some(ticket), op: Op::RemoveWorker { .. } }) => {
                self.pretended.push(ticket);
                return None;
            }
            (Defect::AcknowledgesEarly, Input::Persisted { .. }) => return None,
            (Defect::VotesOnce, Input::Write { op: Op::Vote { worker, .. }, .. })
                if !self.voted.insert(worker.as_u128()) =>
            {
                return None;
            }
            (Defect::TakesLossForLeave, Input::Disconnected { connection, gone: Gone::Lost }) => {
                Input::Disconnected { connection, gone: Gone::Closed(CloseCode::Leaving) }
            }
            (_, input) => input,
        })
    }

    fn lets_out(&mut self, defect: Defect, output: &Output) -> bool {
        match (defect, output) {
            (Defect::LosesDeltas, Output::Send { class: Class::Lane, .. }) => {
                self.count += 1;
                !self.count.is_multiple_of(7)
            }
            (
                Defect::AdmitsTwins,
                Output::Close { code: CloseCode::NameInUse, .. } | Output::Event(Event::Refused(_)),
            ) => false,
            (Defect::ShunsTheDown, Output::Dial { expect: Some(_), .. }) => {
                self.count += 1;
                self.count < 20
            }
            _ => true,
        }
    }

    fn acknowledge_early(&mut self, now: Timestamp, first: usize, out: &mut Vec<Output>) {
        let mut position = first;
        while let Some(output) = out.get(position) {
            position += 1;
            if let Output::Persist(batch) = output {
                let sequence = batch.sequence;
                self.mesh.handle(now, Input::Persisted { sequence }, out);
            }
        }
    }
}

/// Not a function of any seed: what determinism means when it is missing.
fn free_draw() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    DRAWN.fetch_add(0x9e37_79b9, Ordering::Relaxed)
}

/// Whether a record tells of a removal that the defect swallows.
pub(crate) fn is_swallowed(defect: Option<Defect>, record: &Record) -> bool {
    let forgotten = matches!(record, Record::Entry { kind: Kind::Workers, value: None, .. });
    defect == Some(Defect::ForgetsRemovals) && forgotten
}
