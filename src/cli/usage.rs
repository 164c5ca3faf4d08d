//! `smg usage`: what tenants used, over all nodes.

use serde_json::Value;

use super::{
    Failure,
    client::{Client, Target},
    output,
};

/// Arguments of `smg usage`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// What to sum by: day, tenant, key, model, or several of these
    #[arg(long, value_name = "LIST", default_value = "tenant")]
    by: String,
    /// The first day, such as 2026-11-01; by default 30 days are summed, today included
    #[arg(long, value_name = "DAY")]
    since: Option<String>,
    /// The last day; by default today
    #[arg(long, value_name = "DAY")]
    until: Option<String>,
    /// Only this tenant's usage
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let query = [
        ("by", Some(args.by.as_str())),
        ("since", args.since.as_deref()),
        ("until", args.until.as_deref()),
        ("tenant", args.tenant.as_deref()),
    ];
    let query: Vec<(&str, &str)> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let answer = Client::new(&args.target)?.get(&["usage"], &query)?;
    match args.target.output {
        output::Form::Json => output::print_json(&answer),
        output::Form::Table => output::print(&describe(&answer)),
    }
}

/// The sums as a table.
fn describe(answer: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let by: Vec<String> = answer["by"].as_array().map(|by| by.iter().map(text).collect()).unwrap_or_default();
    let (counted, known) = (&answer["nodes"]["counted"], &answer["nodes"]["known"]);
    let mut out = format!("{} to {}", text(&answer["since"]), text(&answer["until"]));
    if counted != known {
        out.push_str(&format!(", of {counted} nodes of {known}: the others did not answer"));
    }
    out.push_str("\n\n");
    let titles = by.iter().map(|by| by.to_uppercase());
    let titles: Vec<String> =
        titles.chain(["REQUESTS", "INPUT", "CACHED", "OUTPUT", "MONEY"].map(str::to_owned)).collect();
    let counts = |row: &Value| {
        let names = ["requests", "input_tokens", "cached_tokens", "output_tokens"];
        let mut cells: Vec<String> = names.iter().map(|name| output::cell(&row[*name])).collect();
        cells.push(money(&row["money_millionths"]));
        cells
    };
    let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut lines: Vec<Vec<String>> =
        rows.iter().map(|row| by.iter().map(|by| output::cell(&row[by])).chain(counts(row)).collect()).collect();
    let mut total = vec![String::new(); by.len()];
    if let Some(first) = total.first_mut() {
        "total".clone_into(first);
    }
    total.extend(counts(&answer["total"]));
    lines.push(total);
    out.push_str(&output::table(&titles.iter().map(String::as_str).collect::<Vec<_>>(), &lines));
    out
}

/// Millionths as people write money.
fn money(value: &Value) -> String {
    let millionths = value.as_u64().unwrap_or(0);
    format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sums_are_shown_with_their_total() {
        let answer = json!({
            "since": "2026-11-01", "until": "2026-11-25", "by": ["tenant", "key"], "nodes": {"counted": 2, "known": 3},
            "total": {"requests": 3, "input_tokens": 300, "cached_tokens": 20, "output_tokens": 7, "money_millionths": 1_500_000},
            "rows": [
                {"tenant": "acme", "key": "k1", "requests": 1, "input_tokens": 100, "cached_tokens": 20, "output_tokens": 5, "money_millionths": 1_400_000},
                {"tenant": "zeta", "requests": 2, "input_tokens": 200, "cached_tokens": 0, "output_tokens": 2, "money_millionths": 100_000},
            ],
        });
        let expected = "\
2026-11-01 to 2026-11-25, of 2 nodes of 3: the others did not answer

TENANT  KEY  REQUESTS  INPUT  CACHED  OUTPUT  MONEY
acme    k1   1         100    20      5       1.400000
zeta    -    2         200    0       2       0.100000
total        3         300    20      7       1.500000
";
        assert_eq!(describe(&answer), expected);
    }
}
