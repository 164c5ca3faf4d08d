//! Plans that once found something: they run for ever.

use crate::{plan::Plan, swarm::Shape};

const KEPT: &str = include_str!("seeds.txt");

/// Every plan that is kept. What a seed means changes with the swarm it is drawn from, so that a plan which was made small is kept as it is.
pub fn kept_plans() -> Vec<Plan> {
    KEPT.lines().filter_map(parse).collect()
}

/// A line is a plan in JSON, or `seed nodes seconds` and a comment; a line that begins with `#` says what was wrong.
fn parse(line: &str) -> Option<Plan> {
    if line.starts_with('{') {
        return serde_json::from_str(line).ok().filter(Plan::is_sound);
    }
    let line = line.split('#').next()?;
    let mut words = line.split_whitespace();
    let seed = words.next()?.parse().ok()?;
    let nodes = words.next()?.parse().ok()?;
    let seconds = words.next()?.parse().ok()?;
    Some(Shape { nodes, seconds }.plan(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_no_comment_is_a_plan() {
        let lines = KEPT.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
        assert_eq!(kept_plans().len(), lines);
    }
}
