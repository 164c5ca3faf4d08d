//! The limits in force, and how they stand for somebody.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Query, State},
};
use serde::Deserialize;
use serde_json::{Value, json};
use smg_limits::{Dimension, Rule, Standing, Subject};

use super::Answer;
use crate::{access::Guest, app::Gateway, limits::is_own};

/// Whose limits are asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct Whose {
    tenant: Option<String>,
    key: Option<String>,
    #[serde(default)]
    model: String,
}

/// All rules; and how those stand that a tenant, key or model meets, if one is named.
pub(crate) async fn of_all(State(gateway): State<Arc<Gateway>>, Query(whose): Query<Whose>) -> Answer {
    let rules = gateway.limiter.rules();
    let rules: Vec<Value> = rules.all().iter().map(shown).collect();
    let mut answer = json!({ "rules": rules });
    if whose.tenant.is_some() || whose.key.is_some() || !whose.model.is_empty() {
        let tenant = whose.tenant.as_deref().unwrap_or_default();
        let subject = Subject { tenant, key: whose.key.as_deref(), model: &whose.model };
        answer["standing"] = standing(&gateway, &subject);
    }
    Answer::ok(&answer)
}

/// How the limits stand that the caller meets.
pub(crate) async fn of_caller(
    State(gateway): State<Arc<Gateway>>,
    Extension(guest): Extension<Guest>,
    Query(whose): Query<Whose>,
) -> Answer {
    let principal = &guest.principal;
    let key = principal.key.as_ref().map(smg_base::KeyId::as_str);
    // What others do with a model is none of the caller's business, so limits of models alone are left out.
    let subject = Subject { tenant: principal.tenant.as_str(), key, model: &whose.model };
    Answer::ok(&json!({ "standing": own_standing(&gateway, &subject) }))
}

fn standing(gateway: &Gateway, subject: &Subject<'_>) -> Value {
    collected(gateway, subject, |_| true)
}

fn own_standing(gateway: &Gateway, subject: &Subject<'_>) -> Value {
    collected(gateway, subject, |rule| is_own(rule.scope))
}

fn collected(gateway: &Gateway, subject: &Subject<'_>, wanted: impl Fn(&Rule) -> bool) -> Value {
    let mut standings = Vec::new();
    gateway.limiter.standing(subject, gateway.now(), &mut |rule, standing| {
        if wanted(rule) {
            let Standing { limit, remaining, reset } = standing;
            standings.push(json!({
                "name": &*rule.name,
                "scope": rule.scope.as_str(),
                "dimension": rule.dimension.as_str(),
                "per": rule.window.map(smg_limits::Window::as_str),
                "limit": in_units(rule.dimension, limit),
                "remaining": in_units(rule.dimension, remaining),
                "reset_seconds": reset.as_secs_f64(),
            }));
        }
    });
    Value::Array(standings)
}

fn shown(rule: &Rule) -> Value {
    json!({
        "name": &*rule.name,
        "scope": rule.scope.as_str(),
        "only": rule.only,
        "model": rule.model_only,
        "dimension": rule.dimension.as_str(),
        "amount": in_units(rule.dimension, rule.amount),
        "per": rule.window.map(smg_limits::Window::as_str),
        "mode": rule.mode.as_str(),
        "on_split": rule.on_split.as_str(),
    })
}

/// Money as the operator wrote it, everything else as it is counted.
fn in_units(dimension: Dimension, amount: u64) -> Value {
    match dimension {
        #[expect(
            clippy::cast_precision_loss,
            reason = "shown to people; amounts that matter are far below 2^53 millionths"
        )]
        Dimension::Money => json!(amount as f64 / 1e6),
        _ => json!(amount),
    }
}
