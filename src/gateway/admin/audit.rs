//! What operators did, or tried to do: taken down as it happens, and read again.

use std::sync::Arc;

use axum::extract::{Query, State};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use smg_auth::{AuditEntry, Principal, Via, is_well_formed};
use smg_base::RequestId;
use smg_infer::{Failure, FailureCode};

use super::Answer;
use crate::{
    access::{Refused, Visit},
    app::Gateway,
};

/// What a request changed. Handlers leave it with their answer.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) target: String,
    pub(crate) before: Value,
    pub(crate) after: Value,
}

/// What an operator wants, known before it is done.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    method: Method,
    path: String,
    address: String,
    request_id: RequestId,
}

/// Who it was, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Author {
    who: String,
    via: &'static str,
}

/// Longest path that is taken down.
const PATH_CHARS_MAX: usize = 200;

/// Entries shown if nothing else is asked for, and at most.
const SHOWN: usize = 100;
const SHOWN_MAX: usize = 1_000;

/// What `GET /audit` can be asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct Range {
    limit: Option<usize>,
}

/// The newest entries, the newest first.
pub(crate) async fn list(State(gateway): State<Arc<Gateway>>, Query(range): Query<Range>) -> Answer {
    let Some(audit) = &gateway.access.audit else {
        return Failure::new(FailureCode::NotFound, "nothing is taken down; --audit-log names a file").into();
    };
    let limit = range.limit.unwrap_or(SHOWN).min(SHOWN_MAX);
    Answer::ok(&json!({ "entries": audit.newest(limit) }))
}

impl Attempt {
    /// What is wanted, if it changes something.
    pub(crate) fn of(visit: Visit<'_>, path: &str, request_id: RequestId) -> Option<Self> {
        let changes = !matches!(*visit.method, Method::GET | Method::HEAD | Method::OPTIONS);
        changes.then(|| Self {
            method: visit.method.clone(),
            path: without_keys(path),
            address: visit.peer.map_or_else(String::new, |peer| peer.0.ip().to_string()),
            request_id,
        })
    }

    /// Takes down that it was refused at the door.
    pub(crate) fn denied(self, gateway: &Gateway, refused: &Refused) {
        self.write(gateway, Author::of(refused.who.as_deref()), None, format!("denied: {}", refused.reason));
    }

    /// Takes down how it ended.
    pub(crate) fn ended(self, gateway: &Gateway, principal: &Principal, status: StatusCode, change: Option<&Change>) {
        let outcome = if status.is_success() { "done".to_owned() } else { format!("refused: {}", status.as_u16()) };
        self.write(gateway, Author::of(Some(principal)), change, outcome);
    }

    fn write(self, gateway: &Gateway, author: Author, change: Option<&Change>, outcome: String) {
        let Some(audit) = &gateway.access.audit else { return };
        audit.record(AuditEntry {
            at: gateway.clock.unix_ms(),
            who: author.who,
            via: author.via.to_owned(),
            door: "admin".to_owned(),
            action: format!("{} {}", self.method, self.path),
            target: change.map(|change| change.target.clone()).unwrap_or_default(),
            before: change.map(|change| change.before.clone()).unwrap_or_default(),
            after: change.map(|change| change.after.clone()).unwrap_or_default(),
            outcome,
            request_id: self.request_id.to_string(),
            address: self.address,
        });
    }
}

impl Author {
    fn of(principal: Option<&Principal>) -> Self {
        let Some(principal) = principal else { return Self { who: "nobody known".to_owned(), via: "" } };
        let who = match &principal.key {
            Some(key) => format!("{} ({key})", principal.name),
            None => principal.name.to_string(),
        };
        let via = match principal.via {
            Via::Key => "key",
            Via::SharedKey => "shared key",
            Via::Token => "token",
            Via::Open => "open",
        };
        Self { who, via }
    }
}

/// A path, without a key that somebody took for its id.
fn without_keys(path: &str) -> String {
    let parts = path.split('/').map(|part| if is_well_formed(part) { "(a key)" } else { part });
    parts.collect::<Vec<_>>().join("/").chars().take(PATH_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use smg_auth::KeyRecord;

    use super::*;

    #[test]
    fn a_path_is_taken_down_without_keys() {
        let made = KeyRecord::new("a".to_owned(), "acme", 0).with_new_key();
        let (key, record) = made.unwrap_or_else(|error| panic!("{error}"));
        let check = |path: &str, expected: &str| assert_eq!(without_keys(path), expected, "{path}");
        check(&format!("/keys/{}", record.id), &format!("/keys/{}", record.id));
        check(&format!("/keys/{}/rotate", key.expose()), "/keys/(a key)/rotate");
        check(&"/x".repeat(300), &"/x".repeat(100));
    }
}
