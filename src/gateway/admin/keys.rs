//! Keys of callers and operators: list, make, change, replace, revoke. The key itself is shown once, when it is made.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use smg_auth::{KeyRecord, KeyState, Models, Role, Scopes};
use smg_base::KeyId;
use smg_infer::{Failure, FailureCode};

use super::{Answer, audit::Change, mesh};
use crate::{
    app::Gateway,
    keys::{Keeper, Kept, KeyShelf},
};

/// Keys that there may be: each is looked at by every node.
const KEYS_MAX: usize = 10_000;

/// How long a replaced key goes on if nothing else is said.
const OVERLAP: Duration = Duration::from_secs(24 * 3_600);

/// What a new key is for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    models: Option<Models>,
    #[serde(default)]
    scopes: Option<Vec<Box<str>>>,
    #[serde(default)]
    class: Option<String>,
    #[serde(default)]
    expires: Option<u64>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// What is to be changed of a key; what is absent stays. Times in seconds; null takes the value away.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    models: Option<Models>,
    #[serde(default)]
    scopes: Option<Vec<Box<str>>>,
    #[serde(default, deserialize_with = "present")]
    class: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    expires: Option<Option<u64>>,
}

/// How a key is replaced.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// Seconds for which the old key goes on.
    #[serde(default)]
    overlap: Option<u64>,
}

/// All keys.
pub(crate) async fn list(State(gateway): State<Arc<Gateway>>) -> Answer {
    let listed = shelf(&gateway).map(|shelf| {
        let now = now(&gateway);
        let keys: Vec<Value> = shelf.all().iter().map(|kept| shown(kept, now)).collect();
        Answer::ok(&json!({ "total": keys.len(), "keys": keys }))
    });
    listed.into()
}

/// One key.
pub(crate) async fn one(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    find(&gateway, &id).map(|kept| Answer::ok(&shown(&kept, now(&gateway)))).into()
}

/// Makes a key, and shows it this one time.
pub(crate) async fn add(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Response {
    let added = async {
        let wanted: Wanted = parse(&body)?;
        let record = blank(&gateway, wanted)?;
        make(&gateway, record).await
    };
    answered(added.await)
}

/// Changes what a key may do.
pub(crate) async fn update(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>, body: Bytes) -> Response {
    let updated = async {
        let before = own(&gateway, &id)?;
        let patch: Patch = parse(&body)?;
        let mut record = (*before.record).clone();
        record.name = patch.name.unwrap_or(record.name);
        record.role = patch.role.unwrap_or(record.role);
        record.models = patch.models.unwrap_or(record.models);
        if let Some(names) = &patch.scopes {
            record.scopes = scopes(names)?;
        }
        record.class = patch.class.map_or(record.class, |class| class.map(Into::into));
        record.expires = patch.expires.unwrap_or(record.expires);
        replace(&gateway, &before, record).await
    };
    answered(updated.await)
}

/// Makes another key for the same purpose; the old one goes on for a while.
pub(crate) async fn rotate(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>, body: Bytes) -> Response {
    let rotated = async {
        let old = own(&gateway, &id)?;
        if old.record.state == KeyState::Revoked {
            return Err(Failure::new(FailureCode::InvalidRequest, "the key has been revoked; make a new one"));
        }
        let rotation: Rotation = if body.is_empty() { Rotation::default() } else { parse(&body)? };
        let now = now(&gateway);
        let until = now.saturating_add(rotation.overlap.unwrap_or(OVERLAP.as_secs()));
        let until = old.record.expires.map_or(until, |expires| expires.min(until));
        let new =
            KeyRecord { replaces: Some(old.record.id.clone()), expires: old.record.expires, ..(*old.record).clone() };
        let made = make(&gateway, new).await?;
        replace(&gateway, &old, KeyRecord { expires: Some(until), ..(*old.record).clone() }).await?;
        Ok(made)
    };
    answered(rotated.await)
}

/// Revokes a key for good, on all nodes. Its record stays, so that it can be told what it was.
pub(crate) async fn revoke(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Response {
    let revoked = async {
        let before = own(&gateway, &id)?;
        replace(&gateway, &before, KeyRecord { state: KeyState::Revoked, ..(*before.record).clone() }).await
    };
    answered(revoked.await)
}

/// What was done, for who asked and for the audit log.
struct Done {
    status: StatusCode,
    answer: Value,
    change: Change,
}

fn answered(done: Result<Done, Failure>) -> Response {
    match done {
        Ok(Done { status, answer, change }) => {
            let mut response = Answer::json(status, &answer).into_response();
            response.extensions_mut().insert(change);
            response
        }
        Err(failure) => Answer::from(failure).into_response(),
    }
}

/// Gives `record` a key of its own and keeps it.
async fn make(gateway: &Gateway, record: KeyRecord) -> Result<Done, Failure> {
    let shelf = shelf(gateway)?;
    if !shelf.has_room() {
        return Err(no_room(FailureCode::InvalidRequest));
    }
    let kept = shelf.all();
    if kept.len() >= KEYS_MAX {
        let message = format!("there are {KEYS_MAX} keys already, those that were revoked included");
        return Err(Failure::new(FailureCode::InvalidRequest, message));
    }
    let settings = gateway.settings().settings.clone();
    if record.role != Role::Admin && !gateway.access.has_own_key(&settings) && !is_administered(&kept, now(gateway)) {
        let message = "with this key nobody could administer the gateway any more: make one with the role admin first, \
                       or start the gateway with --admin-api-key";
        return Err(Failure::new(FailureCode::InvalidRequest, message).param("role"));
    }
    let made = record.with_new_key();
    let (secret, record) = made.map_err(|error| Failure::new(FailureCode::Internal, error.to_string()))?;
    keep(&*shelf, record.clone()).await?;
    tracing::info!(key = %record.id, tenant = %record.tenant, "key made");
    let kept = Kept { record: Arc::new(record), keeper: Keeper::Api };
    let after = shown(&kept, now(gateway));
    let mut answer = after.clone();
    answer["key"] = secret.expose().into();
    let change = Change { target: kept.record.id.to_string(), before: Value::Null, after };
    Ok(Done { status: StatusCode::CREATED, answer, change })
}

/// Keeps `record` where `before` was.
async fn replace(gateway: &Gateway, before: &Kept, record: KeyRecord) -> Result<Done, Failure> {
    let shelf = shelf(gateway)?;
    let now = now(gateway);
    let is_taken = before.record.role == Role::Admin && (record.role != Role::Admin || !record.is_active(now));
    if is_taken && !gateway.access.has_own_key(&gateway.settings().settings) {
        let others: Vec<Kept> = shelf.all().into_iter().filter(|kept| kept.record.id != record.id).collect();
        if !is_administered(&others, now) {
            let message = "this is the last key with the role admin; make another one first";
            return Err(Failure::new(FailureCode::InvalidRequest, message));
        }
    }
    keep(&*shelf, record.clone()).await?;
    tracing::info!(key = %record.id, state = ?record.state, "key changed");
    let after = shown(&Kept { record: Arc::new(record), keeper: Keeper::Api }, now);
    let change = Change { target: before.record.id.to_string(), before: shown(before, now), after: after.clone() };
    Ok(Done { status: StatusCode::OK, answer: after, change })
}

/// Whether one of the keys opens the admin API whole.
fn is_administered(kept: &[Kept], now: u64) -> bool {
    kept.iter().any(|kept| kept.record.role == Role::Admin && kept.record.is_active(now))
}

async fn keep(shelf: &dyn KeyShelf, record: KeyRecord) -> Result<(), Failure> {
    record.check().map_err(|wrong| Failure::new(FailureCode::InvalidRequest, wrong.to_string()))?;
    shelf.keep(record).await.map_err(mesh::refused)
}

/// The record of a key that is yet to be made.
fn blank(gateway: &Gateway, wanted: Wanted) -> Result<KeyRecord, Failure> {
    let Wanted { name, tenant, role, models, scopes: names, class, expires, expires_in } = wanted;
    let now = now(gateway);
    let expires = expires.or_else(|| expires_in.map(|seconds| now.saturating_add(seconds)));
    if expires.is_some_and(|expires| expires <= now) {
        return Err(Failure::new(FailureCode::InvalidRequest, "the key would have expired already").param("expires"));
    }
    let mut record = KeyRecord::new(name, tenant.as_deref().unwrap_or("default"), now);
    record.role = role.unwrap_or(Role::Caller);
    record.models = models.unwrap_or(Models::All);
    record.scopes = names.as_deref().map_or(Ok(Scopes::All), scopes)?;
    record.class = class.map(Into::into);
    record.expires = expires;
    Ok(record)
}

/// The scopes of these names, if there are such.
fn scopes(names: &[Box<str>]) -> Result<Scopes, Failure> {
    Scopes::named(names.iter().map(|name| &**name))
        .map_err(|unknown| Failure::new(FailureCode::InvalidRequest, unknown.to_string()).param("scopes"))
}

/// What is told of a key: all but what it is recognised by.
fn shown(kept: &Kept, now: u64) -> Value {
    let record = &*kept.record;
    let state = match record.state {
        KeyState::Revoked => "revoked",
        KeyState::Active if record.is_active(now) => "active",
        KeyState::Active => "expired",
    };
    json!({
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "prefix": record.prefix,
        "role": record.role,
        "models": record.models,
        "scopes": record.scopes,
        "class": record.class,
        "created": record.created,
        "expires": record.expires,
        "replaces": record.replaces,
        "state": state,
        "kept_by": kept.keeper.as_str(),
    })
}

fn find(gateway: &Gateway, id: &str) -> Result<Kept, Failure> {
    let found = shelf(gateway)?.all().into_iter().find(|kept| kept.record.id == KeyId::from(id));
    found.ok_or_else(|| Failure::new(FailureCode::NotFound, "there is no such key"))
}

/// A key that the admin API looks after.
fn own(gateway: &Gateway, id: &str) -> Result<Kept, Failure> {
    let kept = find(gateway, id)?;
    if kept.keeper == Keeper::Api {
        return Ok(kept);
    }
    let message = format!("this key comes from the node's {}; change it there", kept.keeper.as_str());
    Err(Failure::new(FailureCode::InvalidRequest, message))
}

fn shelf(gateway: &Gateway) -> Result<Arc<dyn KeyShelf>, Failure> {
    gateway.access.shelf.clone().ok_or_else(|| no_room(FailureCode::NotFound))
}

fn no_room(code: FailureCode) -> Failure {
    Failure::new(code, "there is no place for keys: --data-dir names a folder, --enable-mesh shares them")
}

fn now(gateway: &Gateway) -> u64 {
    gateway.clock.unix_ms() / 1_000
}

/// Reads a body. The message names the place, never the text.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(FailureCode::InvalidRequest, format!("the body is not as expected: {error}")))
}

/// Tells null from absence.
#[expect(clippy::option_option, reason = "the outer one is whether it is there")]
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}
