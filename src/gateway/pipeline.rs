//! The way of a request, in phases that consume each other:
//!
//! ```text
//! Received ─identify→ Identified ─admit→ Admitted ─prepare→ Prepared ─reserve, dispatch (choose, send, retry)→ Streaming
//!          ─relay→ the caller ─end of the body→ settled: load, permit, limits, breaker, metrics, log, explanation
//! ```
//!
//! A request that a peer hands on enters as `Admitted`, by [`Admitted::from_peer`].
//!
//! Dropping the future at any point undoes what was taken: the permit, the load and the breaker's slot are guards, and
//! dropping a worker's answer ends the connection to it, which the engine sees as an abort.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use smg_admission::{Ask, Permit};
use smg_api::Endpoint;
use smg_auth::Principal;
use smg_infer::{Failure, FailureCode};
use smg_runtime::Phase;
use tracing::Instrument;

use crate::{
    access::{self, Guest, Visit},
    admission,
    app::Gateway,
    dispatch,
    edge::{self, Credentials},
    limits,
    plan::Versioned,
    prepare::{self, Prepared},
    relay,
    relayed::{self, Hop},
    reply::Refusal,
    trail::{Caller, Trail},
    transcription,
};

/// A request as it came in.
pub(crate) struct Received {
    pub(crate) endpoint: Endpoint,
    pub(crate) head: Parts,
    pub(crate) body: axum::body::Body,
}

/// A request whose caller may call.
pub(crate) struct Identified {
    pub(crate) received: Received,
    pub(crate) credentials: Credentials,
    pub(crate) principal: Arc<Principal>,
}

/// A request that may run now, until the permit is dropped.
pub(crate) struct Admitted {
    pub(crate) identified: Identified,
    /// None where a peer has admitted it.
    pub(crate) permit: Option<Permit>,
    pub(crate) hop: Option<Hop>,
}

impl Admitted {
    /// A request that a peer has identified and admitted. Credentials that are still there are meant for the worker.
    fn from_peer(gateway: &Gateway, received: Received, hop: Hop) -> Self {
        let principal = gateway.access.of_peer(&received.head.headers);
        let identified = Identified { received, credentials: Credentials::Workers, principal };
        Self { identified, permit: None, hop: Some(hop) }
    }
}

/// Takes a request all the way. What it returns is the answer's head; the body goes on by itself.
pub(crate) async fn serve(gateway: Arc<Gateway>, received: Received) -> Response {
    let current = gateway.settings().clone();
    let mut trail = Trail::begin(&gateway, &current, &received.head.headers, received.endpoint, Caller::Client);
    let span = trail.span(&received.head.headers);
    let outcome = run(&gateway, &current, received, &mut trail).instrument(span).await;
    match outcome {
        Ok(streaming) => {
            let told = trail.limits_told(&current.settings);
            let mut response = relay::answer(streaming, trail);
            response.headers_mut().extend(told);
            response
        }
        Err(failure) => {
            let family = trail.endpoint().family();
            let mut response =
                Refusal { family, request_id: Some(trail.request_id()), failure: &failure }.into_response();
            response.headers_mut().extend(trail.limits_told(&current.settings));
            trail.fail(&failure);
            response
        }
    }
}

/// The same for a request that a peer hands on: what it knows of the caller is not asked again.
pub(crate) async fn serve_relayed(gateway: Arc<Gateway>, received: Received, hop: Hop) -> Response {
    let current = gateway.settings().clone();
    let caller = Caller::Peer(hop.peer);
    let mut trail = Trail::begin(&gateway, &current, &received.head.headers, received.endpoint, caller);
    let span = trail.span(&received.head.headers);
    let admitted = Admitted::from_peer(&gateway, received, hop);
    let outcome = async {
        refuse_when_closing(&gateway)?;
        dispatch_admitted(&gateway, &current, admitted, &mut trail).await
    };
    let outcome = outcome.instrument(span).await;
    match outcome {
        Ok(streaming) => relay::answer(streaming, trail),
        Err(failure) => {
            trail.fail(&failure);
            relayed::refused(&failure)
        }
    }
}

async fn run(
    gateway: &Arc<Gateway>,
    current: &Versioned,
    received: Received,
    trail: &mut Trail,
) -> Result<relay::Streaming, Failure> {
    let identified = identify(gateway, current, received).await?;
    let admitted = admit(gateway, identified, trail).await?;
    // Until the answer begins, somebody more urgent may take the place.
    let admission = admitted.permit.as_ref().map(|permit| permit.admission().clone());
    let dispatched = dispatch_admitted(gateway, current, admitted, trail);
    let Some(admission) = admission else { return dispatched.await };
    tokio::select! {
        biased;
        streaming = dispatched => streaming.inspect(|_| admission.begun()),
        () = admission.preempted() => Err(admission::preempted()),
    }
}

async fn dispatch_admitted(
    gateway: &Arc<Gateway>,
    current: &Versioned,
    admitted: Admitted,
    trail: &mut Trail,
) -> Result<relay::Streaming, Failure> {
    let prepared: Prepared = match admitted.identified.received.endpoint {
        Endpoint::Transcriptions => transcription::prepare(gateway, current, admitted, trail).await?,
        _ => prepare::prepare(gateway, current, admitted, trail).await?,
    };
    limits::reserve(gateway, &current.settings, &prepared, trail).await?;
    dispatch::dispatch(gateway, prepared, trail).await
}

async fn identify(gateway: &Gateway, current: &Versioned, mut received: Received) -> Result<Identified, Failure> {
    let wanted = Some(access::scope_of(received.endpoint));
    let Guest { principal, credentials } = gateway.let_in(Visit::of(&received.head), wanted, &current.settings).await?;
    if let Some(header) = &current.settings.tenant_header {
        received.head.headers.remove(&header.name);
    }
    Ok(Identified { received, credentials, principal })
}

async fn admit(gateway: &Gateway, identified: Identified, trail: &mut Trail) -> Result<Admitted, Failure> {
    refuse_when_closing(gateway)?;
    let headers = &identified.received.head.headers;
    let tenant = identified.principal.tenant.as_str();
    let class =
        gateway.gate.classify(edge::internal(headers, admission::PRIORITY), identified.principal.class.as_deref());
    let ask = Ask { tenant, class, cost: admission::cost_at_the_door(headers) };
    let permit = gateway.gate.admit(ask).await.map_err(|refusal| admission::refused(&gateway.gate, refusal))?;
    trail.admitted(permit.admission());
    Ok(Admitted { identified, permit: Some(permit), hop: None })
}

fn refuse_when_closing(gateway: &Gateway) -> Result<(), Failure> {
    if gateway.shutdown.phase() < Phase::Closing {
        return Ok(());
    }
    Err(Failure::new(FailureCode::Draining, "the gateway is shutting down")
        .retry_after(std::time::Duration::from_secs(1)))
}
