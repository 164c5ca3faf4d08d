//! `smg workers`: the workers of a running gateway.

use std::time::Duration;

use clap::Subcommand;
use http::Method;
use serde_json::{Map, Value, json};
use smg_node::config::value::seconds;

use super::{
    Failure,
    client::{Client, Target},
    output,
};

/// The commands of `smg workers`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the workers.
    #[command(visible_alias = "ls")]
    List {
        /// Only those that serve this model.
        #[arg(long)]
        model: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Add a worker.
    Add(Box<Add>),
    /// Let a worker finish its requests and give it no new ones.
    Drain(One),
    /// Drain a worker and remove it.
    #[command(visible_alias = "rm")]
    Remove(One),
}

/// Arguments of `smg workers add`.
#[derive(clap::Args, Debug)]
pub(super) struct Add {
    /// The worker's URL.
    worker: String,
    /// Models it serves; by default it is asked.
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// The key it wants; `${NAME}` and `file:/path` refer to a variable and a file.
    #[arg(long, value_name = "SECRET")]
    worker_api_key: Option<String>,
    /// The engine it runs; by default it is detected.
    #[arg(long, value_name = "ENGINE")]
    runtime: Option<String>,
    /// A worker of lower priority is used only when none of higher priority can be.
    #[arg(long)]
    priority: Option<u32>,
    /// What it costs; its share of requests is weight / cost.
    #[arg(long)]
    cost: Option<f64>,
    /// How much it can take; its share of requests is weight / cost.
    #[arg(long)]
    weight: Option<f64>,
    /// Labels, as name=value.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    target: Target,
}

/// A command about one worker.
#[derive(clap::Args, Debug)]
pub(super) struct One {
    /// The worker's id or URL.
    worker: String,
    /// Wait until it has finished its requests, at most this long.
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    wait: Option<Duration>,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { model, target } => list(model.as_deref(), &target),
        Verb::Add(add) => {
            let client = Client::new(&add.target)?;
            let body = add.body()?;
            finish(client.call(Method::POST, &["workers"], Some(&body))?, &add.target)
        }
        Verb::Drain(one) => one.take_out(|client, id| client.call(Method::POST, &["workers", id, "drain"], None)),
        Verb::Remove(one) => one.take_out(|client, id| client.call(Method::DELETE, &["workers", id], None)),
    }
}

impl Add {
    fn body(&self) -> Result<Value, Failure> {
        let mut body = Map::new();
        body.insert("url".to_owned(), json!(self.worker));
        if !self.models.is_empty() {
            body.insert("models".to_owned(), json!(self.models));
        }
        if let Some(key) = &self.worker_api_key {
            let key = super::client::resolve_secret(key)?;
            body.insert("api_key".to_owned(), json!(key.expose()));
        }
        let optional = [
            ("runtime_type", self.runtime.as_ref().map(|value| json!(value))),
            ("priority", self.priority.map(|value| json!(value))),
            ("cost", self.cost.map(|value| json!(value))),
            ("weight", self.weight.map(|value| json!(value))),
        ];
        body.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if !self.labels.is_empty() {
            let labels: Map<String, Value> =
                self.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
            body.insert("labels".to_owned(), Value::Object(labels));
        }
        Ok(Value::Object(body))
    }
}

impl One {
    fn take_out(&self, ask: impl FnOnce(&Client, &str) -> Result<Value, Failure>) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        let id = find(&client, &self.worker)?;
        let answer = ask(&client, &id)?;
        if let Some(limit) = self.wait {
            wait(&client, &id, limit)?;
        }
        finish(answer, &self.target)
    }
}

/// Waits until the worker has no requests or is gone, and says how many it still has when that changes.
fn wait(client: &Client, id: &str, limit: Duration) -> Result<(), Failure> {
    let mut told = 0;
    let mut waited = Duration::ZERO;
    loop {
        let load = match client.call(Method::GET, &["workers", id], None) {
            Err(failure) if failure.is_not_found() => return Ok(()),
            answer => answer?.get("load").and_then(Value::as_u64).unwrap_or(0),
        };
        if load == 0 {
            return Ok(());
        }
        if waited >= limit {
            return Err(Failure::Unfinished { requests: load });
        }
        if load != told {
            output::note(&format!("waiting for {load} requests"));
            told = load;
        }
        client.pause(PAUSE);
        waited += PAUSE;
    }
}

/// Time between two looks at a worker that drains.
const PAUSE: Duration = Duration::from_millis(500);

fn list(model: Option<&str>, target: &Target) -> Result<(), Failure> {
    let client = Client::new(target)?;
    let answer = client.call_with_query(Method::GET, &["workers"], model.map(|model| ("model", model)))?;
    if target.output == output::Form::Json {
        return output::print_json(&answer);
    }
    let workers = answer.get("workers").and_then(Value::as_array).cloned().unwrap_or_default();
    if workers.is_empty() {
        return output::print("no workers\n");
    }
    output::print(&output::table(&COLUMNS.map(|(title, _)| title), &workers.iter().map(row).collect::<Vec<_>>()))
}

/// What the table of workers shows, and the fields it takes it from.
const COLUMNS: [(&str, &str); 8] = [
    ("ID", "id"),
    ("URL", "url"),
    ("STATUS", "status"),
    ("ENGINE", "runtime_type"),
    ("MODELS", "models"),
    ("LOAD", "load"),
    ("PRIORITY", "priority"),
    ("COST", "cost"),
];

fn row(worker: &Value) -> Vec<String> {
    let name = |model: &Value| output::cell(model.get("id").unwrap_or(model));
    // Who does not probe a worker itself has nothing better to say of it than who does.
    let is_relayed = worker.get("via").is_some_and(Value::is_string)
        && worker.get("status").and_then(Value::as_str).is_some_and(|status| !matches!(status, "ready" | "draining"));
    let shown = |field: &str| match worker.get(field) {
        Some(_) if field == "status" && is_relayed => "relayed".to_owned(),
        Some(Value::Array(models)) if models.is_empty() => "any".to_owned(),
        Some(Value::Array(models)) => models.iter().map(name).collect::<Vec<_>>().join(","),
        Some(value) => output::cell(value),
        None => "-".to_owned(),
    };
    COLUMNS.map(|(_, field)| shown(field)).to_vec()
}

/// The id of the worker that was named by id or URL.
fn find(client: &Client, named: &str) -> Result<String, Failure> {
    if !named.contains(['/', ':', '.']) {
        return Ok(named.to_owned());
    }
    let answer = client.call(Method::GET, &["workers"], None)?;
    let workers = answer.get("workers").and_then(Value::as_array).cloned().unwrap_or_default();
    let plain = |url: &str| url.trim_end_matches('/').trim_start_matches("http://").to_ascii_lowercase();
    let is_it =
        |worker: &&Value| worker.get("url").and_then(Value::as_str).is_some_and(|url| plain(url) == plain(named));
    let id = workers.iter().find(is_it).and_then(|worker| worker.get("id")).and_then(Value::as_str);
    id.map(str::to_owned).ok_or_else(|| Failure::Usage(format!("there is no worker {named}; see smg workers list")))
}

fn finish(answer: Value, target: &Target) -> Result<(), Failure> {
    match (target.output, answer) {
        (output::Form::Json, answer) => output::print_json(&answer),
        (output::Form::Table, Value::Null) => output::print("done\n"),
        (output::Form::Table, answer) => output::print(&output::readable(&answer)),
    }
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("a label is name=value")?;
    if name.is_empty() { Err("a label needs a name") } else { Ok((name.to_owned(), value.to_owned())) }
}
