//! What went wrong, whose fault it is, and whether the engine may have seen the request.

use std::{borrow::Cow, time::Duration};

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request itself is wrong; sending it elsewhere gives the same answer.
    Client,
    /// This gateway: misconfigured, draining, or out of a resource of its own.
    Gateway,
    /// The worker answered wrongly, broke off or stalled.
    Worker,
    /// The worker could not be reached.
    Network,
    /// A limit said no.
    Limit,
}

impl Blame {
    /// The word used as a metric label and in explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Network => "network",
            Self::Limit => "limit",
        }
    }
}

/// Whether the engine may have started to work on the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dispatched {
    /// Certainly not: no byte of it was sent, or the worker said that it did not run it.
    No,
    /// Sent, and nothing heard.
    Maybe,
    /// The worker answered.
    Yes,
}

impl Dispatched {
    /// The word used in logs and explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Maybe => "maybe",
            Self::Yes => "yes",
        }
    }
}

macro_rules! failure_codes {
    ($($(#[$meta:meta])* $variant:ident = $name:literal, $status:literal, $blame:ident;)*) => {
        /// What happened, as a closed set: each code has a name that clients see, an HTTP status and one to blame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FailureCode {
            $($(#[$meta])* $variant,)*
        }

        impl FailureCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name clients and metrics see.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Who is at fault.
            pub fn blame(self) -> Blame {
                match self { $(Self::$variant => Blame::$blame,)* }
            }
        }
    };
}

failure_codes! {
    /// The body is not JSON, is nested too deeply, or a field has the wrong type.
    InvalidRequest = "invalid_request", 400, Client;
    /// No model was named and there is more than one.
    ModelRequired = "model_required", 400, Client;
    /// No worker serves the model.
    ModelNotFound = "model_not_found", 404, Client;
    /// The path is not one of ours.
    RouteNotFound = "route_not_found", 404, Client;
    /// The path is ours, the method is not.
    MethodNotAllowed = "method_not_allowed", 405, Client;
    /// The object named by the path is unknown.
    NotFound = "not_found", 404, Client;
    /// The object exists already.
    AlreadyExists = "already_exists", 409, Client;
    /// No key, or a wrong one.
    Unauthorized = "invalid_api_key", 401, Client;
    /// The origin, or what was asked, is not allowed.
    Forbidden = "forbidden", 403, Client;
    /// The caller's key is for other endpoints.
    MissingScope = "missing_scope", 403, Client;
    /// Whoever knows callers cannot be asked now.
    IdentityUnavailable = "identity_unavailable", 503, Gateway;
    /// The body is larger than allowed.
    PayloadTooLarge = "payload_too_large", 413, Client;
    /// The body's media type is not one this endpoint takes.
    UnsupportedMediaType = "unsupported_media_type", 415, Client;
    /// The client sent its request too slowly.
    ClientTooSlow = "request_timeout", 408, Client;
    /// The client went away.
    ClientClosed = "client_closed_request", 499, Client;
    /// The caller has used up what it may use in some time.
    RateLimited = "rate_limit_exceeded", 429, Limit;
    /// The caller has spent its money.
    BudgetSpent = "insufficient_quota", 429, Limit;
    /// The queue for a free slot is full.
    QueueFull = "queue_full", 429, Limit;
    /// No slot came free in time.
    QueueTimeout = "queue_timeout", 503, Limit;
    /// The queue of the request's class is full.
    SchedulerQueueFull = "scheduler_queue_full", 429, Limit;
    /// The request's turn did not come in the time that its class allows.
    SchedulerQueueTimeout = "scheduler_queue_timeout", 408, Limit;
    /// A more urgent request took the place before the answer began.
    SchedulerPreempted = "scheduler_preempted", 503, Limit;
    /// The memory set aside for request bodies is used up.
    BodyBudgetExhausted = "body_budget_exhausted", 503, Limit;
    /// The gateway is shutting down.
    Draining = "draining", 503, Gateway;
    /// No worker is registered at all.
    NoWorkers = "no_workers", 503, Gateway;
    /// Workers serve the model, but none may be used now.
    NoAvailableWorkers = "no_available_workers", 503, Worker;
    /// The worker named by the caller is unknown or may not be used now.
    TargetUnavailable = "target_worker_unavailable", 503, Worker;
    /// No connection to the worker.
    ConnectFailed = "call_upstream_connection_failed", 502, Network;
    /// No connection to the worker in time.
    ConnectTimeout = "call_upstream_connect_timeout", 504, Network;
    /// The worker broke off before it answered.
    UpstreamClosed = "call_upstream_request_error", 502, Worker;
    /// The worker did not answer in time.
    UpstreamTimeout = "call_upstream_timeout", 504, Worker;
    /// The worker accepted the request and sent no first byte in time.
    FirstByteTimeout = "upstream_first_byte_timeout", 504, Worker;
    /// The worker fell silent in the middle of its answer.
    StallTimeout = "upstream_stall_timeout", 504, Worker;
    /// The worker broke off in the middle of its answer.
    UpstreamCut = "read_response_body_failed", 502, Worker;
    /// What the worker sent is not what its dialect allows.
    UpstreamGarbage = "upstream_protocol_error", 502, Worker;
    /// The worker answered with an error status; the status and body are the worker's own.
    UpstreamStatus = "upstream_error", 502, Worker;
    /// The worker does not offer this endpoint.
    Unsupported = "endpoint_not_supported", 404, Worker;
    /// A defect of the gateway.
    Internal = "internal_error", 500, Gateway;
}

/// One failed attempt, or a request that failed for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Failure {
    /// What happened.
    pub code: FailureCode,
    /// Whether the engine may have run the request.
    pub dispatched: Dispatched,
    /// One sentence for the client. It names no secret and no address the client may not know.
    pub message: Cow<'static, str>,
    /// When the one who said no expects to say yes.
    pub retry_after: Option<Duration>,
    /// The field at fault, for [`FailureCode::InvalidRequest`].
    pub param: Option<Cow<'static, str>>,
}

impl Failure {
    /// A failure before anything was dispatched.
    pub fn new(code: FailureCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, dispatched: Dispatched::No, message: message.into(), retry_after: None, param: None }
    }

    /// The same failure with what is known of the dispatch.
    #[must_use]
    pub fn dispatched(mut self, dispatched: Dispatched) -> Self {
        self.dispatched = dispatched;
        self
    }

    /// The same failure with a time after which a new try makes sense.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same failure with the field at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Who is at fault.
    pub fn blame(&self) -> Blame {
        self.code.blame()
    }

    /// Whether another worker may be tried: the fault lies with the worker or the way to it, and either the engine
    /// certainly did not run the request or running it twice does no harm.
    pub fn may_retry(&self, replay: Replay) -> bool {
        let elsewhere = matches!(self.blame(), Blame::Worker | Blame::Network);
        elsewhere && (self.dispatched == Dispatched::No || replay == Replay::Harmless)
    }
}

/// What running a request twice would mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Nothing is lost: the request has no effect besides its answer and is cheap, or the client allowed it.
    Harmless,
    /// A second generation would be paid for, or act, twice.
    Harmful,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_may_have_run_is_not_repeated_without_consent() {
        let cut = Failure::new(FailureCode::UpstreamClosed, "gone").dispatched(Dispatched::Maybe);
        assert!(!cut.may_retry(Replay::Harmful));
        assert!(cut.may_retry(Replay::Harmless));
        let refused = Failure::new(FailureCode::ConnectFailed, "refused");
        assert!(refused.may_retry(Replay::Harmful));
    }

    #[test]
    fn the_clients_own_errors_are_never_retried() {
        for &code in FailureCode::ALL {
            let failure = Failure::new(code, "x");
            if matches!(code.blame(), Blame::Client | Blame::Limit | Blame::Gateway) {
                assert!(!failure.may_retry(Replay::Harmless), "{}", code.as_str());
            }
            assert!((400..600).contains(&code.status()));
        }
    }
}
