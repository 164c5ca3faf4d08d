//! A mesh that only takes notes.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use smg_mesh_proto::{Digest, NodeId, Op, Skipped, Status, WriteError};

use super::link::Link;

/// Notes what the node says, in words.
#[derive(Default)]
pub(crate) struct FakeLink {
    posted: Mutex<Vec<String>>,
    written: Mutex<Vec<String>>,
    candidates: Mutex<Vec<NodeId>>,
    failures: Mutex<Vec<WriteError>>,
    has_no_secret: Mutex<bool>,
}

impl FakeLink {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What was posted since the last look.
    pub(crate) fn posted(&self) -> Vec<String> {
        std::mem::take(&mut self.posted.lock())
    }

    /// What was written since the last look.
    pub(crate) fn written(&self) -> Vec<String> {
        std::mem::take(&mut self.written.lock())
    }

    /// The relay candidates.
    pub(crate) fn candidates(&self) -> Vec<NodeId> {
        self.candidates.lock().clone()
    }

    /// Lets the next write fail.
    pub(crate) fn fail(&self, error: WriteError) {
        self.failures.lock().push(error);
    }

    /// From now on nothing can be sealed or unsealed.
    pub(crate) fn forget_secret(&self) {
        *self.has_no_secret.lock() = true;
    }
}

impl Link for FakeLink {
    fn node(&self) -> NodeId {
        NodeId::of("me")
    }

    fn write(&self, op: Op) -> BoxFuture<'static, Result<(), WriteError>> {
        let outcome = self.failures.lock().pop().map_or(Ok(()), Err);
        self.written.lock().push(words(&op));
        Box::pin(async move { outcome })
    }

    fn post(&self, op: Op) {
        self.posted.lock().push(words(&op));
    }

    fn status(&self) -> BoxFuture<'static, Status> {
        let status = Status {
            node: self.node(),
            cluster: "smg".to_owned(),
            joined: true,
            alone: false,
            members: Vec::new(),
            planes: Vec::new(),
            digest: Digest(0),
            stretched: false,
            skipped: Skipped::default(),
        };
        Box::pin(async move { status })
    }

    fn relay_candidates(&self, peers: Vec<NodeId>) {
        *self.candidates.lock() = peers;
    }

    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        if *self.has_no_secret.lock() { Vec::new() } else { plain.iter().map(|byte| byte ^ 0x5a).collect() }
    }

    fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        (!*self.has_no_secret.lock()).then(|| sealed.iter().map(|byte| byte ^ 0x5a).collect())
    }

    fn leave(&self) -> BoxFuture<'static, ()> {
        self.written.lock().push("leave".to_owned());
        Box::pin(async {})
    }
}

fn words(op: &Op) -> String {
    let text = |value: &Option<bytes::Bytes>| {
        value.as_ref().map_or("none".to_owned(), |value| String::from_utf8_lossy(value).into_owned())
    };
    match op {
        Op::AddWorker { worker, declared: true, .. } => format!("declare {worker}"),
        Op::AddWorker { worker, .. } => format!("add {worker}"),
        Op::WithdrawWorker { worker } => format!("withdraw {worker}"),
        Op::RemoveWorker { worker } => format!("remove {worker}"),
        Op::Vote { vote, .. } => format!("vote {}", vote.map_or("none", |vote| vote.as_str())),
        Op::Ledger { ledger, .. } => {
            format!("ledger {} {} {}", ledger.requests, ledger.decoding, ledger.pending_tokens)
        }
        Op::Engine { figures, .. } => format!("engine {figures:?}"),
        Op::Config { key, value } => format!("config {key}={}", text(value)),
        Op::Draining(is_draining) => format!("draining {is_draining}"),
        Op::Entry { kind, .. } => format!("entry {kind:?}"),
    }
}
