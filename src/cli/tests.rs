//! The command line as text: what parses, and to what.

use super::*;

fn parse(words: &str) -> Result<(Option<Verb>, Flags), ErrorKind> {
    let words = words.split_whitespace();
    let matches = command().try_get_matches_from(words).map_err(|error| error.kind())?;
    let line = CommandLine::from_arg_matches(&matches).map_err(|error| error.kind())?;
    let mut innermost = &matches;
    while let Some((_, deeper)) = innermost.subcommand() {
        innermost = deeper;
    }
    Ok((line.verb, Flags::of(innermost)))
}

#[test]
fn the_command_line_is_sound() {
    command().debug_assert();
}

#[test]
fn the_reference_gateways_forms_start_a_gateway() {
    let check = |words: &str, is_verb: fn(&Option<Verb>) -> bool| {
        let (verb, flags) = parse(words).unwrap_or_else(|kind| panic!("{words}: {kind:?}"));
        assert!(is_verb(&verb), "{words}: {verb:?}");
        format!("{flags:?}")
    };
    let launch = |verb: &Option<Verb>| matches!(verb, Some(Verb::Launch));
    assert_eq!(check("smg", Option::is_none), "{}");
    let flags = "{\"policy\", \"worker_urls\"}";
    assert_eq!(check("smg --worker-urls http://a http://b --policy random", Option::is_none), flags);
    assert_eq!(check("smg launch --worker-urls http://a http://b --policy random", launch), flags);
    assert_eq!(check("smg start --policy random --worker-urls http://a", launch), flags);
    assert_eq!(check("smg launch --max-concurrent-requests -1", launch), "{\"max_concurrent_requests\"}");
    let validate = |verb: &Option<Verb>| matches!(verb, Some(Verb::Config(config::Verb::Validate)));
    assert_eq!(check("smg config validate --port 1", validate), "{\"port\"}");
}

#[test]
fn what_does_not_parse_is_a_usage_error() {
    let check = |words: &str, expected| assert_eq!(parse(words).map(|_| ()), Err(expected), "{words}");
    check("smg --prot 1", ErrorKind::UnknownArgument);
    check("smg lunch", ErrorKind::InvalidSubcommand);
    check("smg --port 1 launch", ErrorKind::ArgumentConflict);
    check("smg --port", ErrorKind::InvalidValue);
    check("smg workers", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    check("smg explain", ErrorKind::MissingRequiredArgument);
    check("smg --help", ErrorKind::DisplayHelp);
    check("smg --version", ErrorKind::DisplayVersion);
}

#[test]
fn a_broken_value_waits_for_the_other_problems() {
    assert!(parse("smg --port http --log-format jsn").is_ok());
}

#[test]
fn completions_know_flags_and_values() {
    let mut script = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut command(), "smg", &mut script);
    let script = String::from_utf8_lossy(&script);
    assert!(script.contains("--worker-urls") && script.contains("consistent_hashing"));
}
