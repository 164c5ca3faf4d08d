//! `smg keys`: the keys of callers and operators, at a running gateway or for its file.
//!
//! A key is all that a command which makes one says on standard output, so that it can go where keys are kept; what is known
//! of it goes to standard error.

use std::{
    io::{BufRead, IsTerminal, Read},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Subcommand, builder::PossibleValuesParser};
use http::Method;
use serde_json::{Map, Value, json};
use smg_node::keys::{self, CLASSES, Expiry, ROLES, SCOPES, Wish};

use super::{
    Failure,
    client::{Client, Target},
    output,
};

/// The commands of `smg keys`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the keys, without the keys themselves.
    #[command(visible_alias = "ls")]
    List(List),
    /// Show what is known of a key.
    Show(One),
    /// Make a key, and print it this one time.
    ///
    /// Where nothing else is said, its holder may use all models and all endpoints, do nothing at the admin API, and go on for ever.
    /// The key is all that goes to standard output.
    Create(Box<Create>),
    /// Change what a key may do.
    Update(Box<Update>),
    /// Make another key for the same purpose; the old one goes on for a while.
    Rotate(Rotate),
    /// Revoke a key on all nodes, for good.
    Revoke(One),
    /// Make a key for the file that --keys-file names, without asking a gateway.
    ///
    /// The file holds the hash of the key alone. The key is all that goes to standard output.
    Generate(Box<Generate>),
    /// Read a key from standard input and print the line that stands for it in that file.
    ///
    /// A key is no argument of a command: other users of the machine can see those.
    Hash,
}

#[derive(clap::Args, Debug)]
pub(super) struct List {
    /// Only those of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only those that open anything
    #[arg(long)]
    active: bool,
    #[command(flatten)]
    target: Target,
}

/// A command about one key.
#[derive(clap::Args, Debug)]
pub(super) struct One {
    /// The key's id or name
    #[arg(value_name = "ID")]
    named: String,
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args, Debug)]
pub(super) struct Create {
    /// What people call it
    name: String,
    /// Whose it is; by default it is of the tenant `default`
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    rights: Rights,
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args, Debug)]
pub(super) struct Update {
    /// The key's id or name
    #[arg(value_name = "ID")]
    named: String,
    /// What people are to call it
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    rights: Rights,
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args, Debug)]
pub(super) struct Rotate {
    /// The key's id or name
    #[arg(value_name = "ID")]
    named: String,
    /// How long the old key goes on, such as 30m or 7d; 24h by default
    #[arg(long, value_name = "DURATION", value_parser = keys::span)]
    overlap: Option<Duration>,
    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args, Debug)]
pub(super) struct Generate {
    /// What people call it
    name: String,
    /// Whose it is; by default it is of the tenant `default`
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    rights: Rights,
    /// The file to whose end the entry goes; by default it is printed to standard error
    #[arg(long, value_name = "FILE")]
    keys_file: Option<PathBuf>,
}

/// What a key may do. What is not said is as it is by default, or stays as it is.
#[derive(clap::Args, Debug)]
struct Rights {
    /// What its holder may do at the admin API: nothing, look, or everything
    #[arg(long, value_parser = PossibleValuesParser::new(ROLES))]
    role: Option<String>,
    /// A model that its holder may use; `llama-*` is all that begin like it, `*` is all
    #[arg(long = "model", value_name = "MODEL", value_delimiter = ',')]
    models: Vec<String>,
    /// A family of endpoints that its holder may use; `*` is all
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',',
        value_parser = PossibleValuesParser::new(SCOPES.iter().copied().chain(["*"])))]
    scopes: Vec<String>,
    /// The greatest priority class that its holder may claim
    #[arg(long, value_parser = PossibleValuesParser::new(CLASSES))]
    class: Option<String>,
    /// When it ends: 90d from now, or at 2027-01-31 or 2027-01-31T18:00:00Z, or never
    #[arg(long, value_name = "WHEN", value_parser = str::parse::<Expiry>)]
    expires: Option<Expiry>,
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::List(list) => list.run(),
        Verb::Show(one) => one.show(),
        Verb::Create(create) => create.run(),
        Verb::Update(update) => update.run(),
        Verb::Rotate(rotate) => rotate.run(),
        Verb::Revoke(one) => one.revoke(),
        Verb::Generate(generate) => generate.run(),
        Verb::Hash => hash(),
    }
}

impl List {
    fn run(&self) -> Result<(), Failure> {
        let mut answer = Client::new(&self.target)?.call(Method::GET, &["keys"], None)?;
        let mut keys = listed(&mut answer);
        keys.retain(|key| {
            self.tenant.as_deref().is_none_or(|tenant| key["tenant"] == tenant)
                && (!self.active || key["state"] == "active")
        });
        if self.target.output == output::Form::Json {
            return output::print_json(&json!({ "total": keys.len(), "keys": keys }));
        }
        if keys.is_empty() {
            return output::print("no keys\n");
        }
        output::print(&table(&mut keys))
    }
}

impl One {
    fn show(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        let key = find(&client, &self.named, Wanted::Any)?;
        match self.target.output {
            output::Form::Json => output::print_json(&key),
            output::Form::Table => output::print(&describe(&key)),
        }
    }

    fn revoke(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        let id = id_of(&find(&client, &self.named, Wanted::Unrevoked)?)?;
        let revoked = client.call(Method::DELETE, &["keys", &id], None)?;
        match self.target.output {
            output::Form::Json => output::print_json(&revoked),
            output::Form::Table => output::print(&format!("revoked {}\n", called(&revoked))),
        }
    }
}

impl Create {
    fn run(&self) -> Result<(), Failure> {
        let mut body = self.rights.body(Absence::LeftOut)?;
        body.insert("name".to_owned(), json!(self.name));
        if let Some(tenant) = &self.tenant {
            body.insert("tenant".to_owned(), json!(tenant));
        }
        let made = Client::new(&self.target)?.call(Method::POST, &["keys"], Some(&Value::Object(body)))?;
        hand_over(&made, &self.target, &format!("made {}", called(&made)))
    }
}

impl Update {
    fn run(&self) -> Result<(), Failure> {
        let mut body = self.rights.body(Absence::Null)?;
        if let Some(name) = &self.name {
            body.insert("name".to_owned(), json!(name));
        }
        if body.is_empty() {
            return Err(Failure::Usage("say what to change, such as --scope or --expires".to_owned()));
        }
        let client = Client::new(&self.target)?;
        let id = id_of(&find(&client, &self.named, Wanted::Unrevoked)?)?;
        let changed = client.call(Method::PATCH, &["keys", &id], Some(&Value::Object(body)))?;
        match self.target.output {
            output::Form::Json => output::print_json(&changed),
            output::Form::Table => output::print(&describe(&changed)),
        }
    }
}

impl Rotate {
    fn run(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        let old = find(&client, &self.named, Wanted::Unrevoked)?;
        let id = id_of(&old)?;
        let body = self.overlap.map(|overlap| json!({ "overlap": overlap.as_secs() }));
        let made = client.call(Method::POST, &["keys", &id, "rotate"], body.as_ref())?;
        // Other than the new one's, its end is not in the answer. Where it cannot be had, the rest is still true.
        let ends = client.call(Method::GET, &["keys", &id], None).map_or(Value::Null, |old| old["expires"].clone());
        let ends = if ends.is_null() { String::new() } else { format!(", which ends at {}", moment_of(&ends)) };
        hand_over(&made, &self.target, &format!("made {} in the place of {id}{ends}", called(&made)))
    }
}

impl Generate {
    fn run(&self) -> Result<(), Failure> {
        let rights = &self.rights;
        let wish = Wish {
            name: self.name.clone(),
            tenant: self.tenant.clone(),
            role: rights.role.clone(),
            models: some(&rights.models),
            scopes: some(&rights.scopes),
            class: rights.class.clone(),
            expires: rights.expires.and_then(|expires| expires.unix_seconds(now())),
        };
        rights.is_to_come(now())?;
        let made = keys::generate(&wish)?;
        match &self.keys_file {
            Some(path) => {
                made.append_to(path)?;
                output::note(&format!("the hash of the key is in {}; {}", path.display(), ONCE));
            }
            None => output::note(&format!(
                "for the file that --keys-file names; the key is not in it, and {ONCE}:\n\n{}",
                made.entry
            )),
        }
        output::print(&format!("{}\n", made.key.expose()))
    }
}

/// Why a key has to be taken down now.
const ONCE: &str = "the key itself is printed this one time";

impl Rights {
    /// What the gateway is asked for. What is to be taken away has to be said to it where the key is there already.
    fn body(&self, absence: Absence) -> Result<Map<String, Value>, Failure> {
        self.is_to_come(now())?;
        let expires = match (self.expires, absence) {
            (Some(Expiry::Never), Absence::Null) => Some(("expires", Value::Null)),
            (None | Some(Expiry::Never), _) => None,
            // A gateway counts from its own clock, where it can.
            (Some(Expiry::In(span)), Absence::LeftOut) => Some(("expires_in", json!(span.as_secs()))),
            (Some(at), _) => at.unix_seconds(now()).map(|at| ("expires", json!(at))),
        };
        let said = [
            self.role.as_ref().map(|role| ("role", json!(role))),
            some(&self.models).map(|models| ("models", json!(models))),
            some(&self.scopes).map(|scopes| ("scopes", json!(scopes))),
            self.class.as_ref().map(|class| ("class", json!(class))),
            expires,
        ];
        Ok(said.into_iter().flatten().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// A key that has ended already is a slip.
    fn is_to_come(&self, now: u64) -> Result<(), Failure> {
        match self.expires.and_then(|expires| expires.unix_seconds(now)) {
            Some(at) if at <= now => Err(Failure::Usage("--expires: that is over already".to_owned())),
            _ => Ok(()),
        }
    }
}

/// What becomes of a value that there is to be none of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// There is none yet.
    LeftOut,
    /// It is taken away.
    Null,
}

fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Prints a key that was made, and says that this was the time to see it.
fn hand_over(made: &Value, target: &Target, what: &str) -> Result<(), Failure> {
    output::note(&format!("{what}; {ONCE}"));
    match (target.output, made["key"].as_str()) {
        (output::Form::Table, Some(key)) => output::print(&format!("{key}\n")),
        _ => output::print_json(made),
    }
}

/// Which keys a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Any,
    /// Those that can still be changed.
    Unrevoked,
}

/// The key of this id, else the one of this name.
fn find(client: &Client, named: &str, wanted: Wanted) -> Result<Value, Failure> {
    match client.call(Method::GET, &["keys", named], None) {
        Err(failure) if failure.is_not_found() => {}
        answer => return answer,
    }
    let mut answer = client.call(Method::GET, &["keys"], None)?;
    let mut keys = listed(&mut answer);
    keys.retain(|key| key["name"] == named && (wanted == Wanted::Any || key["state"] != "revoked"));
    match &keys[..] {
        [] => Err(Failure::Usage(format!("there is no key {named}; see smg keys list"))),
        [key] => Ok(key.clone()),
        several => {
            let ids: Vec<String> =
                several.iter().map(|key| format!("{} ({})", field(key, "id"), field(key, "state"))).collect();
            Err(Failure::Usage(format!("several keys are called {named}; name one by its id: {}", ids.join(", "))))
        }
    }
}

fn listed(answer: &mut Value) -> Vec<Value> {
    match answer["keys"].take() {
        Value::Array(keys) => keys,
        _ => Vec::new(),
    }
}

fn id_of(key: &Value) -> Result<String, Failure> {
    let id = key["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| Failure::Usage("the gateway's answer names no key; is it an smg of this version?".to_owned()))
}

fn field(key: &Value, name: &str) -> String {
    output::cell(&key[name])
}

/// A key in a sentence.
fn called(key: &Value) -> String {
    format!("{} ('{}', tenant {})", field(key, "id"), field(key, "name"), field(key, "tenant"))
}

/// Widest name and tenant in the table, which fits 80 columns with them. Ids are shown whole, for they are to be copied.
const NAME_WIDTH: usize = 13;
const TENANT_WIDTH: usize = 10;

/// The keys, those first that open something.
fn table(keys: &mut [Value]) -> String {
    keys.sort_by_key(|key| {
        let rank = ["active", "expired", "revoked"].iter().position(|state| key["state"] == *state);
        (rank, field(key, "tenant"), field(key, "name"), key["created"].as_u64())
    });
    let row = |key: &Value| {
        vec![
            field(key, "id"),
            cut(&field(key, "name"), NAME_WIDTH),
            cut(&field(key, "tenant"), TENANT_WIDTH),
            field(key, "role"),
            field(key, "state"),
            moment_of(&key["expires"]).chars().take(10).collect(),
            limited(key).to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = keys.iter().map(row).collect();
    output::table(&["ID", "NAME", "TENANT", "ROLE", "STATE", "EXPIRES", "ONLY"], &rows)
}

/// What the key is limited in.
fn limited(key: &Value) -> &'static str {
    match (is_all(&key["models"]), is_all(&key["scopes"])) {
        (true, true) => "-",
        (false, true) => "models",
        (true, false) => "scopes",
        (false, false) => "both",
    }
}

/// A gateway that knows of no scopes says nothing of them.
fn is_all(list: &Value) -> bool {
    list.as_array().is_none_or(|names| names.iter().any(|name| name == "*"))
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['\u{2026}']).collect()
}

/// A key on one screen.
fn describe(key: &Value) -> String {
    let list = |name: &str| if is_all(&key[name]) { "all".to_owned() } else { names(&key[name]) };
    let lines = [
        ("id", field(key, "id")),
        ("name", field(key, "name")),
        ("tenant", field(key, "tenant")),
        ("state", field(key, "state")),
        ("role", field(key, "role")),
        ("models", list("models")),
        ("scopes", list("scopes")),
        ("class", field(key, "class")),
        ("expires", moment_of(&key["expires"])),
        ("created", moment_of(&key["created"])),
        ("begins with", field(key, "prefix")),
        ("replaces", field(key, "replaces")),
        ("kept by", field(key, "kept_by")),
    ];
    lines.iter().map(|(name, value)| format!("{:<13}{value}\n", format!("{name}:"))).collect()
}

fn names(list: &Value) -> String {
    let names: Vec<String> = list.as_array().into_iter().flatten().map(output::cell).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Seconds since the Unix epoch as people write a moment.
fn moment_of(seconds: &Value) -> String {
    match seconds.as_u64() {
        // A key of a file does not say when it was made.
        None | Some(0) => output::cell(&Value::Null),
        Some(seconds) => keys::moment(seconds),
    }
}

/// More than a key can have.
const INPUT_BYTES_MAX: u64 = 16 << 10;

fn hash() -> Result<(), Failure> {
    let stdin = std::io::stdin();
    let mut bytes = Vec::new();
    let mut input = stdin.lock().take(INPUT_BYTES_MAX);
    let read = if stdin.is_terminal() {
        output::note("type the key, and Enter:");
        input.read_until(b'\n', &mut bytes)
    } else {
        input.read_to_end(&mut bytes)
    };
    read.map_err(Failure::system("read standard input"))?;
    let text = String::from_utf8_lossy(&bytes);
    let hashed = keys::hash(text.trim_end_matches(['\r', '\n']))?;
    if let Some(caution) = hashed.caution {
        output::note(&format!("warning: {caution}"));
    }
    output::print(&hashed.line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_keys_fits_eighty_columns() {
        let mut keys = [
            json!({"id": "key_AbCdEfGh1234", "name": "a name that is much too long", "tenant": "a tenant like it",
                "role": "caller", "state": "revoked", "created": 1, "expires": 1_798_761_600, "models": ["m"], "scopes": []}),
            json!({"id": "ops", "name": "ops", "tenant": "default", "role": "admin", "state": "active", "created": 0,
                "expires": null, "models": ["*"]}),
            json!({"id": "key_0000000000ab", "name": "chat", "tenant": "acme", "role": "viewer", "state": "expired",
                "created": 2, "expires": 1_795_564_800, "models": ["*"], "scopes": ["chat"]}),
        ];
        let expected = "\
ID                NAME           TENANT      ROLE    STATE    EXPIRES     ONLY
ops               ops            default     admin   active   -           -
key_0000000000ab  chat           acme        viewer  expired  2026-11-25  scopes
key_AbCdEfGh1234  a name that \u{2026}  a tenant \u{2026}  caller  revoked  2027-01-01  both
";
        let found = table(&mut keys);
        assert_eq!(found, expected);
        assert!(found.lines().all(|line| line.chars().count() <= 80), "{found}");
    }

    #[test]
    fn a_key_is_described_on_one_screen() {
        let key = json!({"id": "key_1", "name": "chat", "tenant": "acme", "role": "caller", "state": "active", "prefix": "smg-AbCd",
            "models": ["llama-*", "demo"], "scopes": ["chat"], "class": null, "created": 1_795_564_800,
            "expires": 1_798_761_600, "replaces": null, "kept_by": "api"});
        let expected = "\
id:          key_1
name:        chat
tenant:      acme
state:       active
role:        caller
models:      llama-*, demo
scopes:      chat
class:       -
expires:     2027-01-01T00:00:00Z
created:     2026-11-25T00:00:00Z
begins with: smg-AbCd
replaces:    -
kept by:     api
";
        assert_eq!(describe(&key), expected);
    }
}
