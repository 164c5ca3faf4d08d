//! An HTTP/2 client, by prior knowledge.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::{client::Ask, gateway::Gateway};

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// One connection, which its clones share.
#[derive(Clone, Debug)]
pub(crate) struct Http2 {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Http2 {
    pub(crate) fn new(gateway: &Gateway) -> Self {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { client, url: gateway.url() }
    }

    /// Sends `ask` and waits for the head of its answer. Dropping the future, or the answer, cancels the stream.
    pub(crate) async fn begin(&self, ask: &Ask) -> Result<Response<BoxBody<Bytes, Problem>>, Problem> {
        let mut request = Request::builder().method(ask.method.as_str()).uri(format!("{}{}", self.url, ask.path));
        for (name, value) in &ask.fields {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(ask.body.clone()))?;
        Ok(self.client.request(request).await?.map(|body| body.map_err(Problem::from).boxed()))
    }
}
