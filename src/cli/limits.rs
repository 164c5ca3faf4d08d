//! `smg limits`: the limits in force, and how they stand for somebody.

use serde_json::Value;

use super::{
    Failure,
    client::{Client, Target},
    output,
};

/// Arguments of `smg limits`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Show how the limits stand that this tenant meets
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Show how the limits stand that this key meets, by its id
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The model asked for
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let query = [("tenant", args.tenant.as_deref()), ("key", args.key.as_deref()), ("model", args.model.as_deref())];
    let query: Vec<(&str, &str)> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let answer = Client::new(&args.target)?.get(&["limits"], &query)?;
    match args.target.output {
        output::Form::Json => output::print_json(&answer),
        output::Form::Table => output::print(&describe(&answer)),
    }
}

/// The rules, or how those stand that somebody meets.
fn describe(answer: &Value) -> String {
    let table = |rows: &Value, columns: &[(&str, &str)]| {
        let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
        let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
        let cells = |row: &Value| columns.iter().map(|(_, field)| output::cell(&row[*field])).collect();
        output::table(&titles, &rows.iter().map(cells).collect::<Vec<_>>())
    };
    match answer.get("standing") {
        Some(standing) => table(
            standing,
            &[
                ("LIMIT", "name"),
                ("SCOPE", "scope"),
                ("OF", "dimension"),
                ("PER", "per"),
                ("AMOUNT", "limit"),
                ("LEFT", "remaining"),
                ("WHOLE AGAIN IN S", "reset_seconds"),
            ],
        ),
        None => table(
            &answer["rules"],
            &[
                ("LIMIT", "name"),
                ("SCOPE", "scope"),
                ("ONLY", "only"),
                ("MODEL", "model"),
                ("OF", "dimension"),
                ("AMOUNT", "amount"),
                ("PER", "per"),
                ("MODE", "mode"),
                ("IN A SPLIT", "on_split"),
            ],
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_and_standings_are_tables() {
        let rules = json!({"rules": [
            {"name": "all", "scope": "tenant", "only": null, "model": "llama-*", "dimension": "requests", "amount": 100,
             "per": "minute", "mode": "hybrid", "on_split": "keep_share"},
        ]});
        let expected = "\
LIMIT  SCOPE   ONLY  MODEL    OF        AMOUNT  PER     MODE    IN A SPLIT
all    tenant  -     llama-*  requests  100     minute  hybrid  keep_share
";
        assert_eq!(describe(&rules), expected);
        let standing = json!({"rules": [], "standing": [
            {"name": "all", "scope": "tenant", "dimension": "money", "per": "day", "limit": 12.5, "remaining": 3.25, "reset_seconds": 7.5},
        ]});
        let expected = "\
LIMIT  SCOPE   OF     PER  AMOUNT  LEFT  WHOLE AGAIN IN S
all    tenant  money  day  12.5    3.25  7.5
";
        assert_eq!(describe(&standing), expected);
    }
}
