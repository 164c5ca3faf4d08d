//! What tenants used: of all nodes together, for operators everybody's, for a caller its own tenant's.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Query, State},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use smg_base::{TenantId, calendar::Day};
use smg_infer::{Failure, FailureCode};

use super::Answer;
use crate::{
    access::Guest,
    app::Gateway,
    questions,
    usage::{By, Line, Question, Sums},
};

/// Days that are summed if nothing else is asked for.
const DAYS: u32 = 30;

/// What `GET /usage` can be asked for. Peers are asked the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Range {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
}

/// What one node knows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Known {
    rows: Vec<Line>,
}

/// What all tenants used.
pub(crate) async fn of_all(State(gateway): State<Arc<Gateway>>, Query(range): Query<Range>) -> Answer {
    answer(&gateway, &range).await.into()
}

/// What the caller's own tenant used.
pub(crate) async fn of_caller(
    State(gateway): State<Arc<Gateway>>,
    Extension(guest): Extension<Guest>,
    Query(range): Query<Range>,
) -> Answer {
    let range = Range { tenant: Some(guest.principal.tenant.to_string()), ..range };
    answer(&gateway, &range).await.into()
}

/// What this node alone knows, for a peer.
pub(crate) fn of_node(gateway: &Gateway, about: &str) -> Option<Known> {
    let range: Range = serde_json::from_str(about).ok()?;
    let question = range.question(gateway).ok()?;
    Some(Known { rows: gateway.usage.sums(&question).lines() })
}

async fn answer(gateway: &Gateway, range: &Range) -> Result<Answer, Failure> {
    let question = range.question(gateway)?;
    let mut sums = gateway.usage.sums(&question);
    let (heard, peers) = hear(gateway, &question, &mut sums).await;
    let by: Vec<&str> = question.by.iter().map(|by| by.as_str()).collect();
    Ok(Answer::ok(&json!({
        "since": question.since,
        "until": question.until,
        "by": by,
        "nodes": { "counted": heard + 1, "known": peers + 1 },
        "total": sums.total(),
        "rows": sums.lines(),
    })))
}

/// Adds what the peers counted; how many of them answered, of how many.
async fn hear(gateway: &Gateway, question: &Question, sums: &mut Sums) -> (usize, usize) {
    let by: Vec<&str> = question.by.iter().map(|by| by.as_str()).collect();
    let range = Range {
        since: Some(question.since.to_string()),
        until: Some(question.until.to_string()),
        by: Some(by.join(",")),
        tenant: question.tenant.as_ref().map(ToString::to_string),
    };
    let Ok(about) = serde_json::to_string(&range) else { return (0, 0) };
    let answers = questions::usage(gateway, &about).await;
    let mut heard = 0;
    for answer in answers {
        if let Ok(known) = serde_json::from_value::<Known>(answer) {
            sums.take(known.rows);
            heard += 1;
        }
    }
    (heard, gateway.cluster.as_ref().map_or(0, |cluster| cluster.peers().len()))
}

impl Range {
    fn question(&self, gateway: &Gateway) -> Result<Question, Failure> {
        let today = Day::of_unix_ms(gateway.clock.unix_ms());
        let day = |text: &Option<String>, name: &'static str, usual: Day| match text {
            None => Ok(usual),
            Some(text) => text
                .parse::<Day>()
                .map_err(|error| Failure::new(FailureCode::InvalidRequest, error.to_string()).param(name)),
        };
        let by = By::list(self.by.as_deref().unwrap_or("tenant")).ok_or_else(|| {
            Failure::new(FailureCode::InvalidRequest, "usage is summed by day, tenant, key, model").param("by")
        })?;
        Ok(Question {
            since: day(&self.since, "since", today.before(DAYS - 1))?,
            until: day(&self.until, "until", today)?,
            by,
            tenant: self.tenant.as_deref().map(TenantId::from),
        })
    }
}
