//! Audio uploads: multipart bodies. Large ones are streamed through, and read only up to the field that names the model.

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header;
use http_body::Frame;
use http_body_util::StreamBody;
use smg_api::multipart::{Finder, Search};
use smg_infer::{Failure, FailureCode, Replay};
use smg_upstream::OutboundBody;

use crate::{
    app::Gateway,
    body::{self, Limits, Pace},
    budget::BodyShare,
    edge,
    pipeline::{Admitted, Identified, Received},
    plan::Versioned,
    prepare::{AnswerSettings, Hints, Payload, Prepared, find_pool, is_alias, time_for},
    trail::{Delivery, Trail},
};

/// An upload that announces no more than this is read to its end before it is sent on: it can then go to another worker
/// if the first cannot be reached, or fails.
const KEPT_BYTES_MAX: u64 = 4 << 20;

/// Finds the model in a multipart body and prepares the rest to be sent on while it arrives.
pub(crate) async fn prepare(
    gateway: &Gateway,
    current: &Versioned,
    admitted: Admitted,
    trail: &mut Trail,
) -> Result<Prepared, Failure> {
    let Admitted { identified: Identified { received, credentials, principal }, permit, hop } = admitted;
    let Received { endpoint, head, mut body } = received;
    let settings = &current.settings;
    let limits = Limits { bytes_max: settings.body_bytes_max.0, pause_max: settings.body_timeout };
    body::expect_fit(&head.headers, limits)?;
    let announced = body::announced(&head.headers);
    if announced.is_some_and(|length| length > limits.bytes_max) {
        body::linger(&mut body).await;
        return Err(body::too_large(limits.bytes_max));
    }
    let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut finder = Finder::new(content_type, "model").ok_or_else(|| {
        Failure::new(
            FailureCode::UnsupportedMediaType,
            "this endpoint takes a body of type multipart/form-data with a boundary",
        )
    })?;
    let mut upload =
        Upload { body, pace: Pace::start(limits), limits, share: gateway.body_budget.share(), read: BytesMut::new() };
    let (model, mut ended) = upload.find_model(&mut finder).await?;
    if !ended && announced.is_some_and(|length| length <= KEPT_BYTES_MAX) {
        while upload.more().await? {}
        ended = true;
    }
    trail.body_read(upload.read.len());
    let snapshot = gateway.fleet.snapshot();
    let pool = find_pool(&snapshot, endpoint, model.as_deref(), &principal.models)?.clone();
    if model.as_deref().is_some_and(|model| is_alias(&pool, model)) {
        let message =
            format!("uploads are passed on as they are: name the model '{}' here, not by an alias", pool.model);
        return Err(Failure::new(FailureCode::InvalidRequest, message).param("model"));
    }
    let plan = gateway.plans.of(&pool.model, current);
    trail.prepared(&plan, Delivery::Whole, 0);
    let mut headers = head.headers;
    let hints = Hints {
        stream: false,
        prompt: None,
        input_tokens: 0,
        output_tokens_max: None,
        routing_key: edge::internal(&headers, "x-smg-routing-key").map(str::to_owned),
        target: edge::internal(&headers, "x-smg-target-worker").map(str::to_owned),
        session: None,
    };
    let debug_headers = settings.debug_headers && headers.contains_key("x-smg-debug");
    edge::to_worker(&mut headers, credentials);
    Ok(Prepared {
        endpoint,
        headers,
        payload: if ended { upload.whole() } else { upload.onward() },
        deadline: trail.received() + time_for(&plan, hop.as_ref()),
        pool,
        plan,
        hints,
        replay: Replay::Harmless,
        answer: AnswerSettings {
            buffer_bytes_max: settings.buffered_answer_bytes_max.as_usize(),
            debug_headers,
            hide_usage: false,
        },
        hop,
        principal,
        salt: None,
        _permit: permit,
    })
}

/// A multipart body that has been read in part.
struct Upload {
    body: axum::body::Body,
    pace: Pace,
    limits: Limits,
    share: BodyShare,
    read: BytesMut,
}

impl Upload {
    /// Reads until the model is known or the body ends; says which it was.
    async fn find_model(&mut self, finder: &mut Finder) -> Result<(Option<String>, bool), Failure> {
        while self.more().await? {
            if let Search::Found(model) = finder.search(&self.read) {
                return Ok((Some(model), false));
            }
        }
        Ok((None, true))
    }

    /// Reads a piece; whether there was one.
    async fn more(&mut self) -> Result<bool, Failure> {
        let Some(piece) = self.pace.next(&mut self.body).await? else {
            return Ok(false);
        };
        if (self.read.len() + piece.len()) as u64 > self.limits.bytes_max {
            body::linger(&mut self.body).await;
            return Err(body::too_large(self.limits.bytes_max));
        }
        self.share.grow(piece.len() as u64)?;
        self.read.extend_from_slice(&piece);
        Ok(true)
    }

    /// Everything, which is here.
    fn whole(self) -> Payload {
        Payload::Whole { body: self.read.freeze(), unsalted: None, _share: self.share }
    }

    /// What is here, and then the rest as it comes.
    fn onward(self) -> Payload {
        let Self { body, pace, limits, share, read } = self;
        let rest = Rest { body, pace, left: limits.bytes_max.saturating_sub(read.len() as u64), limits, _share: share };
        let pieces = stream::unfold((Some(read.freeze()), Some(rest)), Rest::next);
        Payload::Once(Some(OutboundBody::Stream(Box::pin(StreamBody::new(pieces)))))
    }
}

/// The part of a body that is sent on while it arrives.
struct Rest {
    body: axum::body::Body,
    pace: Pace,
    left: u64,
    limits: Limits,
    /// Covers what was read before; given back when the upload ends.
    _share: BodyShare,
}

type Piece = Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>;

impl Rest {
    async fn next(state: (Option<Bytes>, Option<Self>)) -> Option<(Piece, (Option<Bytes>, Option<Self>))> {
        match state {
            (Some(read), rest) => Some((Ok(Frame::data(read)), (None, rest))),
            (None, None) => None,
            (None, Some(mut rest)) => match rest.piece().await {
                Ok(piece) => Some((Ok(Frame::data(piece?)), (None, Some(rest)))),
                // Ends the request to the worker unfinished, so that it does not take the part for the whole.
                Err(failure) => Some((Err(Box::new(failure)), (None, None))),
            },
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(piece) = self.pace.next(&mut self.body).await? else {
            return Ok(None);
        };
        self.left = self.left.checked_sub(piece.len() as u64).ok_or_else(|| body::too_large(self.limits.bytes_max))?;
        Ok(Some(piece))
    }
}
