//! Wakes whoever sleeps until something happens here, so that nobody has to look ten times a second whether it has.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

/// What is done when a bell rings.
type Listener = Box<dyn Fn() + Send + Sync>;

/// A bell with one listener, who arms it, looks at what there is to do, and sleeps; it then rings once. Who is awake is not
/// disturbed, and ringing costs no more than a look at a word that hardly ever changes: requests ring too.
///
/// Sleep no longer than a second or so all the same: a request that begins at the very moment of the look may be missed, for its
/// count is not ordered with the bell.
#[derive(Default)]
pub struct Bell {
    is_armed: AtomicBool,
    listener: Mutex<Option<Listener>>,
}

impl Bell {
    /// Calls `listener` whenever the bell rings; it takes the place of the one before, and must not wait.
    pub fn listen(&self, listener: impl Fn() + Send + Sync + 'static) {
        *self.listener.lock() = Some(Box::new(listener));
    }

    /// Rings at the next news.
    pub fn arm(&self) {
        self.is_armed.store(true, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn ring(&self) {
        if self.is_armed.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.is_armed.swap(false, Ordering::SeqCst)
            && let Some(listener) = &*self.listener.lock()
        {
            listener();
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("is_armed", &self.is_armed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicUsize};

    use smg_base::Timestamp;

    use super::*;
    use crate::{
        DirectPath, EngineLoad, Fleet, FleetConfig, Origin, ProbeFailure, Reach,
        testing::{at, spec},
    };

    #[test]
    fn it_rings_once_for_each_time_it_is_armed() {
        let bell = Bell::default();
        let (bell, rung) = counted(&bell);
        bell.ring();
        assert_eq!(rung(), 0);
        bell.arm();
        bell.ring();
        bell.ring();
        assert_eq!(rung(), 1);
        bell.arm();
        bell.ring();
        assert_eq!(rung(), 2);
    }

    /// The bell, and how often it has rung so far.
    fn counted(bell: &Bell) -> (&Bell, impl Fn() -> usize) {
        let count = Arc::new(AtomicUsize::new(0));
        let counts = Arc::clone(&count);
        bell.listen(move || {
            counts.fetch_add(1, Ordering::Relaxed);
        });
        (bell, move || count.load(Ordering::Relaxed))
    }

    #[test]
    fn what_a_node_has_to_tell_or_to_probe_rings() {
        let fleet = Fleet::new(FleetConfig::default());
        let (changed, changes) = counted(fleet.changed());
        let (to_tell, tidings) = counted(fleet.to_tell());
        let check = |what: &str, expected: (usize, usize), act: &mut dyn FnMut()| {
            let before = (changes(), tidings());
            changed.arm();
            to_tell.arm();
            act();
            assert_eq!((changes() - before.0, tidings() - before.1), expected, "{what}");
        };
        let mut added = None;
        check("a worker", (1, 1), &mut || added = fleet.add(spec("a", &["m"]), Origin::Api, at(0)).ok());
        let worker = added.expect("there is room").worker;
        let mut guards = Vec::new();
        check("the first request", (0, 1), &mut || guards.push(worker.state.begin(1, at(0))));
        check("the second", (0, 0), &mut || guards.push(worker.state.begin(1, at(0))));
        check("their end", (0, 0), &mut || guards.clear());
        let probed = |result: Result<(), ProbeFailure>| {
            for _ in 0..10 {
                fleet.record_probe(worker.id, worker.revision, result, at(1));
            }
        };
        check("a probe that says nothing yet", (0, 0), &mut || probed(Err(ProbeFailure::Unreachable)));
        check("one that changes the vote", (0, 1), &mut || probed(Ok(())));
        check("one that does not", (0, 0), &mut || probed(Ok(())));
        let engine = EngineLoad {
            running: 1,
            waiting: 0,
            kv_usage: 0.5,
            generation_tokens_per_second: 1.0,
            at: Timestamp::ORIGIN,
        };
        check("an engine's word", (0, 1), &mut || worker.state.load.set_engine(engine));
        check("the same from a peer", (0, 0), &mut || worker.state.load.set_engine_heard(engine, 1));
        check("what peers think", (1, 0), &mut || fleet.set_reach(worker.id, Reach::default()));
        check("the same worker again", (1, 0), &mut || {
            fleet.import(worker.id, worker.spec.clone(), DirectPath::Forbidden, at(3)).expect("it is there");
        });
        check("a drain", (0, 1), &mut || assert!(fleet.drain(worker.id)));
        check("its end", (1, 1), &mut || drop(fleet.remove(worker.id)));
    }
}
