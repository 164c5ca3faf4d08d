//! Single-writer lanes: what each node says of each kind, and the store of everybody's.
//!
//! A lane is an ordered map that only its writer changes; versions count its changes. Two copies never conflict: the one with the
//! greater (epoch, version) is the newer state of the same thing. That makes everything else simple: a peer is sent what is newer
//! than what it acknowledged, and a digest is a sum that changes with each entry.

mod journal;
mod key;
mod lane;
mod store;

pub(crate) use journal::Pending;
pub(crate) use key::{Claim, Claimed, WorkersKey, adopted, claim, owned, retired, retired_keys};
pub(crate) use lane::{Change, Lane, Part, Patch, Position};
pub(crate) use store::{Lanes, Retired};

#[cfg(test)]
mod tests {
    //! The laws of lanes: copies of one history, however they travelled, become the same.

    use bytes::Bytes;
    use crdts::CvRDT;
    use proptest::prelude::*;

    use super::{Claim, Lane, Lanes, Part, Patch, Position, adopted, claim, owned, retired};
    use crate::{Kind, NodeId};

    const EPOCH: u64 = 3;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, u8),
        Delete(u8),
        Collect(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (0..12_u8, any::<u8>()).prop_map(|(key, value)| Step::Set(key, value)),
            2 => (0..12_u8).prop_map(Step::Delete),
            1 => (0..40_u64).prop_map(Step::Collect),
        ];
        prop::collection::vec(step, 1..60)
    }

    fn take(lane: &mut Lane, step: &Step) {
        match step {
            Step::Set(key, value) => {
                lane.set(Bytes::copy_from_slice(&[*key]), Some(Bytes::copy_from_slice(&[*value])));
            }
            Step::Delete(key) => {
                lane.set(Bytes::copy_from_slice(&[*key]), None);
            }
            Step::Collect(version) => lane.collect(*version),
        }
    }

    /// The lane after each step.
    fn history(steps: &[Step]) -> Vec<Lane> {
        let mut lane = Lane::new(EPOCH);
        let mut states = vec![lane.clone()];
        for step in steps {
            take(&mut lane, step);
            states.push(lane.clone());
        }
        states
    }

    /// What leads a copy at `since` to this state, as a sender makes it.
    fn patch(state: &Lane, since: u64) -> Patch {
        let since = if since < state.collected() { 0 } else { since };
        let parts = state.newer_than(since).map(|(version, key, value)| Part {
            version,
            key: key.clone(),
            value: value.cloned(),
        });
        Patch { to: state.position(), since, collected: state.collected(), base: state.base(), parts: parts.collect() }
    }

    fn live(lane: &Lane) -> Vec<(Bytes, Bytes)> {
        lane.live_from(&[]).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn merged(a: &Lane, b: &Lane) -> Lane {
        let mut merged = a.clone();
        merged.merge(b.clone());
        merged
    }

    fn assert_same(a: &Lane, b: &Lane) {
        assert_eq!((a.position(), a.hash(), live(a)), (b.position(), b.hash(), live(b)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn merging_keeps_the_laws(steps in steps(), picks in prop::collection::vec(any::<prop::sample::Index>(), 3)) {
            let states = history(&steps);
            let [a, b, c] = [0, 1, 2].map(|at| picks[at].get(&states));
            prop_assert!(a.validate_merge(b).is_ok(), "copies of one history never conflict");
            assert_same(&merged(a, b), &merged(b, a));
            assert_same(&merged(&merged(a, b), c), &merged(a, &merged(b, c)));
            assert_same(&merged(a, a), a);
        }

        /// Whatever of the patches is lost, doubled or late, a copy is always a state that the lane once had, with its digest; and the
        /// last patch from where the copy is makes it the newest.
        #[test]
        fn a_copy_is_always_a_state_that_was(
            steps in steps(),
            sent in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40),
        ) {
            let states = history(&steps);
            let mut copy = Lane::default();
            for (state, since) in sent {
                let state = state.get(&states);
                let patch = patch(state, since.get(&states).position().version.min(state.position().version));
                // What a receiver refuses: old news, and what leads from where it is not.
                let leads = patch.since == 0 || (copy.position().epoch == EPOCH && patch.since <= copy.position().version);
                if patch.to > copy.position() && patch.to.version > 0 && leads {
                    copy.apply(patch);
                    let was = states.iter().find(|state| state.position() == copy.position()).expect("a version that was");
                    prop_assert_eq!(copy.hash(), was.hash());
                    prop_assert_eq!(live(&copy), live(was));
                }
            }
            let newest = states.last().expect("the first state at least");
            let since = if copy.position().epoch == EPOCH { copy.position().version } else { 0 };
            copy.apply(patch(newest, since));
            assert_same(&copy, newest);
            let bytes: usize = copy.newer_than(0).map(|(_, key, value)| key.len() + value.map_or(0, Bytes::len)).sum();
            prop_assert_eq!(copy.bytes(), bytes);
        }

        /// The digests that are kept up to date are those of the same lanes put together at once, and the journal makes them again.
        #[test]
        fn digests_are_sums_and_the_journal_is_true(writes in prop::collection::vec((0..3_u128, 0..8_usize, 0..6_u8, any::<Option<u8>>()), 1..80)) {
            let mut lanes = Lanes::default();
            let mut disk = Vec::new();
            for (index, (writer, kind, key, value)) in writes.iter().enumerate() {
                let (writer, kind) = (NodeId::from_u128(*writer), Kind::ALL[*kind]);
                let value = value.map(|value| Bytes::copy_from_slice(&[value]));
                match index % 11 {
                    7 => drop(lanes.drop_lane(writer, kind)),
                    9 => lanes.collect(writer, kind, index as u64),
                    _ => drop(lanes.set(writer, kind, 1, Bytes::copy_from_slice(&[*key]), value)),
                }
                if index % 5 == 0 {
                    disk.extend(lanes.pending.take());
                }
            }
            disk.extend(lanes.pending.take());
            let (restored, _) = Lanes::restore(disk);
            for kind in Kind::ALL {
                let mut again = Lanes::default();
                for (writer, lane) in lanes.of_kind(kind) {
                    again.apply(writer, kind, patch(lane, 0));
                }
                prop_assert_eq!(again.digest(kind), lanes.digest(kind));
                if kind.is_durable() {
                    prop_assert_eq!(restored.digest(kind), lanes.digest(kind), "{:?}", kind);
                    prop_assert_eq!(restored.version_vector(kind), lanes.version_vector(kind));
                }
            }
        }
    }

    #[test]
    fn the_same_versions_in_another_epoch_are_another_state() {
        let [mut a, mut b] = [1, 2].map(Lane::new);
        for lane in [&mut a, &mut b] {
            lane.set(Bytes::from_static(b"k"), Some(Bytes::from_static(b"v")));
        }
        assert!(b.position() > a.position());
        a.merge(b.clone());
        assert_same(&a, &b);
    }

    #[test]
    fn a_lane_that_begins_anew_with_nothing_says_so() {
        let lane = Lane::renewed(4, Position { epoch: 3, version: 9 }, []);
        assert_eq!(lane.position(), Position { epoch: 4, version: 1 });
    }

    #[test]
    fn keys_say_whose_word_an_entry_is() {
        let (writer, author) = (NodeId::of("a"), NodeId::of("b"));
        let check = |key: Bytes, expected: Option<(NodeId, &[u8])>| {
            let found = claim(writer, &key);
            let found = found.as_ref().map(|claim| match claim {
                Claim::Entry(claimed) => (claimed.author, &*claimed.key),
                Claim::Retired(node) => (*node, &b"retired"[..]),
            });
            assert_eq!(found, expected);
        };
        check(owned(b"k"), Some((writer, b"k")));
        check(adopted(author, b"k"), Some((author, b"k")));
        check(retired(author), Some((author, b"retired")));
        check(adopted(writer, b"k"), None);
        check(Bytes::from_static(b""), None);
        check(Bytes::from_static(b"\x01short"), None);
        check(Bytes::from_static(b"\x09k"), None);
    }
}
