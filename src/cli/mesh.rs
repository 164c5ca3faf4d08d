//! `smg mesh`: the mesh that a running gateway is part of.

use clap::Subcommand;
use http::Method;
use serde_json::Value;

use super::{
    Failure,
    client::{Client, Target},
    output,
};

/// The commands of `smg mesh`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Show the nodes, and whether they know the same.
    Status(Target),
    /// List the nodes.
    Members(Target),
    /// List the workers as the nodes together see them: who reaches them, and how this node does.
    Workers(Target),
    /// List what workers' caches are known to hold, and from whom; also without a mesh.
    Prefixes(Target),
    /// Make a secret for a new mesh, to be given to every node as SMG_MESH_TOKEN.
    Token,
    /// Let other nodes and load balancers send a node nothing more; it goes on serving.
    Drain(Drain),
    /// Let a node leave its mesh and go on alone.
    Leave(Target),
}

#[derive(clap::Args, Debug)]
pub(super) struct Drain {
    #[command(flatten)]
    target: Target,
    /// Take an earlier drain back
    #[arg(long)]
    undo: bool,
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::Status(target) => status(target),
        Verb::Members(target) => list(target, "members", &MEMBERS),
        Verb::Workers(target) => list(target, "workers", &WORKERS),
        Verb::Prefixes(target) => list(target, "prefixes", &PREFIXES),
        Verb::Token => output::print(&format!("{}\n", smg_node::new_mesh_token().expose())),
        Verb::Drain(Drain { target, undo: false }) => ask(target, Method::POST, "drain"),
        Verb::Drain(Drain { target, undo: true }) => ask(target, Method::DELETE, "drain"),
        Verb::Leave(target) => ask(target, Method::POST, "leave"),
    }
}

/// A column: its title, the field it shows, and how.
type Column = (&'static str, &'static str, fn(&Value) -> String);

const MEMBERS: [Column; 9] = [
    ("NODE", "name", output::cell),
    ("STATE", "state", output::cell),
    ("ADDRESS", "address", output::cell),
    ("RTT", "rtt_ms", milliseconds),
    ("CLIENTS", "traffic_url", output::cell),
    ("ZONE", "zone", output::cell),
    ("BOOT", "boot", output::cell),
    ("VERSION", "software", output::cell),
    ("NOTES", "notes", output::cell),
];

const WORKERS: [Column; 7] = [
    ("ID", "id", output::cell),
    ("URL", "url", output::cell),
    ("VERDICT", "verdict", output::cell),
    ("FROM HERE", "path", output::cell),
    ("VOTES", "votes", output::cell),
    ("HOME", "home", output::cell),
    ("DECLARED", "declared", output::cell),
];

const PREFIXES: [Column; 10] = [
    ("WORKER", "url", output::cell),
    ("MODEL", "model", output::cell),
    ("OF", "space", output::cell),
    ("KNOWN BY", "source", output::cell),
    ("HOME", "home", output::cell),
    ("STANDBY", "standby", output::cell),
    ("TOLD BY", "by", output::cell),
    ("CHUNKS", "chunks", output::cell),
    ("DIGEST", "digest", short),
    ("EVENTS", "events", output::cell),
];

const PLANES: [Column; 6] = [
    ("PLANE", "kind", output::cell),
    ("DIGEST", "digest", short),
    ("LANES", "lanes", output::cell),
    ("ENTRIES", "entries", output::cell),
    ("BYTES", "bytes", output::cell),
    ("LAG", "lag", output::cell),
];

fn status(target: &Target) -> Result<(), Failure> {
    let client = Client::new(target)?;
    let status = client.call(Method::GET, &["mesh", "status"], None)?;
    if target.output == output::Form::Json {
        return output::print_json(&status);
    }
    let members = client.call(Method::GET, &["mesh", "members"], None)?;
    output::print(&describe(&status, &members))
}

/// The state of the mesh on one screen.
pub(super) fn describe(status: &Value, members: &Value) -> String {
    let field = |path: &str| status.pointer(path).map_or_else(String::new, output::cell);
    let mut text = format!(
        "node {} of cluster {}: {}, {} of {} nodes alive, {} workers, digest {}\n",
        field("/name"),
        field("/cluster"),
        field("/standing"),
        field("/members/alive"),
        field("/members/total"),
        field("/workers"),
        status.get("digest").map_or_else(String::new, short),
    );
    if status.get("stretched") == Some(&Value::Bool(true)) {
        text.push_str("its links lose much, so that faults are noticed later\n");
    }
    text.push('\n');
    text.push_str(&table(&MEMBERS, members.get("members")));
    text.push('\n');
    text.push_str(&table(&PLANES, status.get("planes")));
    text
}

fn list(target: &Target, what: &str, columns: &[Column]) -> Result<(), Failure> {
    let client = Client::new(target)?;
    let answer = client.call(Method::GET, &["mesh", what], None)?;
    if target.output == output::Form::Json {
        return output::print_json(&answer);
    }
    output::print(&table(columns, answer.get(what)))
}

/// Columns in which no row has anything are left out.
fn table(columns: &[Column], rows: Option<&Value>) -> String {
    let rows = rows.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_told = |value: &Value| !matches!(value, Value::Null) && value.as_str() != Some("");
    let has_any = |field: &str| rows.iter().any(|row| row.get(field).is_some_and(is_told));
    let columns: Vec<&Column> = columns.iter().filter(|(_, field, _)| has_any(field)).collect();
    let titles: Vec<&str> = columns.iter().map(|(title, _, _)| *title).collect();
    let cells = |row: &Value| {
        let shown = |(_, field, show): &&Column| match row.get(field).filter(|value| is_told(value)) {
            Some(value) => show(value),
            None => "-".to_owned(),
        };
        columns.iter().map(shown).collect::<Vec<_>>()
    };
    output::table(&titles, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn ask(target: &Target, method: Method, what: &str) -> Result<(), Failure> {
    let answer = Client::new(target)?.call(method, &["mesh", what], None)?;
    match target.output {
        output::Form::Json => output::print_json(&answer),
        output::Form::Table => output::print(&output::readable(&answer)),
    }
}

fn milliseconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| output::cell(value), |number| format!("{number:.1} ms"))
}

/// The beginning of a digest: enough to see whether two are equal.
fn short(value: &Value) -> String {
    value.as_str().map_or_else(|| output::cell(value), |text| text.chars().take(12).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_fits_a_screen() {
        let status = json!({
            "name": "a", "cluster": "smg", "standing": "joined", "digest": "0123456789abcdef0123", "workers": 4,
            "members": {"alive": 2, "total": 3}, "stretched": true,
            "planes": [{"kind": "workers", "digest": "ffeeddccbbaa99887766", "lanes": 2, "entries": 4, "bytes": 900, "lag": 0}],
        });
        let members = json!({"members": [
            {"name": "a", "state": "alive", "address": "10.0.0.1:39527", "rtt_ms": null, "zone": "", "boot": 3,
             "traffic_url": "http://10.0.0.1:30000", "software": "0.1.0", "notes": ["this node"]},
            {"name": "b", "state": "down", "address": "10.0.0.2:39527", "rtt_ms": 0.25, "zone": "", "boot": 1,
             "traffic_url": "", "software": "0.1.0", "notes": []},
        ]});
        let expected = "\
node a of cluster smg: joined, 2 of 3 nodes alive, 4 workers, digest 0123456789ab
its links lose much, so that faults are noticed later

NODE  STATE  ADDRESS         RTT     CLIENTS                BOOT  VERSION  NOTES
a     alive  10.0.0.1:39527  -       http://10.0.0.1:30000  3     0.1.0    this node
b     down   10.0.0.2:39527  0.2 ms  -                      1     0.1.0    -

PLANE    DIGEST        LANES  ENTRIES  BYTES  LAG
workers  ffeeddccbbaa  2      4        900    0
";
        assert_eq!(describe(&status, &members), expected);
    }
}
