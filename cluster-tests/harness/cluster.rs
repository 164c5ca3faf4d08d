//! A gateway with fake engines.

use smg_mock_worker::{Config, Entry, MockWorker};

use super::{
    client::{Answer, Ask},
    gateway::Gateway,
    wait::PATIENCE,
};

/// A gateway and the engines behind it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) gateway: Gateway,
    pub(crate) engines: Vec<MockWorker>,
}

impl Cluster {
    /// Starts `count` plain engines of the model `demo` and a gateway before them.
    pub(crate) async fn start(count: usize, flags: &[&str]) -> Self {
        Self::of((0..count).map(|_| Config::default()).collect(), flags).await
    }

    /// Starts engines as configured and a gateway before them.
    pub(crate) async fn of(configs: Vec<Config>, flags: &[&str]) -> Self {
        let mut engines = Vec::new();
        for config in configs {
            engines.push(engine(config).await);
        }
        let urls: Vec<&str> = engines.iter().map(MockWorker::url).collect();
        let gateway = Gateway::start(flags, &urls).await;
        Self { gateway, engines }
    }

    /// How many serving requests each engine has seen.
    pub(crate) fn shares(&self) -> Vec<usize> {
        self.engines.iter().map(|engine| engine.ledger().count(serving)).collect()
    }

    /// Every serving request that any engine has seen.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.engines.iter().flat_map(|engine| engine.ledger().select(serving)).collect()
    }

    /// Waits until engine `index` has a serving request that fits, and returns it.
    pub(crate) async fn entry(&self, index: usize, fits: impl Fn(&Entry) -> bool) -> Entry {
        let ledger = self.engines[index].ledger();
        let mut found = None;
        ledger
            .wait_for(
                |entries| {
                    found = entries.iter().find(|entry| serving(entry) && fits(entry)).cloned();
                    found.is_some()
                },
                PATIENCE,
            )
            .await
            .unwrap();
        found.unwrap()
    }

    /// Waits until no request is left: none counted by the gateway, none open at an engine.
    pub(crate) async fn idle(&self) {
        for engine in &self.engines {
            let is_over = |entries: &[Entry]| entries.iter().all(|entry| entry.finished.is_some());
            engine.ledger().wait_for(is_over, PATIENCE).await.unwrap();
        }
        for gauge in ["smg_http_requests_in_flight", "smg_router_streams_open", "smg_admission_in_flight"] {
            self.gateway.metric_is(gauge, &[], 0.0).await;
        }
    }
}

/// Starts one engine.
pub(crate) async fn engine(config: Config) -> MockWorker {
    MockWorker::start(config).await.unwrap()
}

/// Whether an entry is a request of a caller, rather than a probe or a question of the gateway's own.
pub(crate) fn serving(entry: &Entry) -> bool {
    entry.method == "POST" && !entry.path.starts_with("/mock")
}

/// The id that the caller gave a request. Engines see it with a suffix, another one at each attempt.
pub(crate) fn caller_id(entry: &Entry) -> Option<&str> {
    const SUFFIX: usize = "-12345678".len();
    let id = entry.request_id.as_deref()?;
    id.get(..id.len().checked_sub(SUFFIX)?)
}

/// A small request for each endpoint that engines offer: the model where it is asked for, streamed or not.
pub(crate) fn on(path: &str, model: &str, stream: Stream) -> Ask {
    use serde_json::json;
    let mut body = match path {
        "/v1/chat/completions" => json!({"messages": [{"role": "user", "content": "Hello"}]}),
        "/v1/messages" => json!({"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}),
        "/v1/messages/count_tokens" => json!({"messages": [{"role": "user", "content": "Hello"}]}),
        "/v1/completions" => json!({"prompt": "Hello"}),
        "/generate" => json!({"text": "Hello"}),
        "/v1/responses" | "/v1/embeddings" | "/v1/classify" => json!({"input": "Hello"}),
        "/v1/rerank" | "/rerank" => json!({"query": "Hello", "documents": ["a", "b"]}),
        "/v1/score" => json!({"text_1": "Hello", "text_2": "Bye"}),
        "/v1/tokenize" => json!({"prompt": "Hello"}),
        "/v1/detokenize" => json!({"tokens": [1, 2, 3]}),
        other => panic!("no request for {other}"),
    };
    if path != "/generate" {
        body["model"] = model.into();
    }
    if stream == Stream::Yes {
        body["stream"] = true.into();
    }
    Ask::json(path, &body)
}

/// Whether the answer is to be streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Yes,
    No,
}

/// Checks what somebody is told at `path` who did not get a place: status, code, when to come back, and the shape of the API.
pub(crate) fn check_refused(answer: &Answer, path: &str, (status, code): (u16, &str)) {
    assert_eq!((answer.status, answer.field("x-smg-error-code")), (status, Some(code)), "{}", answer.text());
    let wait: u64 = answer.field("retry-after").expect("when to come back").parse().unwrap();
    assert!((1..=3_600).contains(&wait), "{wait}");
    let body = answer.value();
    assert!(body["error"]["message"].is_string(), "{body}");
    assert_eq!(body["type"] == "error", path == "/v1/messages", "{body}");
}
