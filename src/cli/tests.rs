//! The command line as text: what parses, and to what.

use std::{
    io::{BufRead, BufReader, Read, Write as _},
    net::TcpListener,
    thread::JoinHandle,
};

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

/// A gateway of canned answers, and what it was asked.
fn gateway(answers: &'static [(&str, &str)]) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let url = format!("http://{}", listener.local_addr().expect("it listens"));
    let serve = move || {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let (stream, _) = listener.accept().expect("a client comes");
            asked.push(read_request(&mut BufReader::new(&stream)));
            let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            (&stream).write_all(format!("{head}{body}").as_bytes()).expect("the client reads");
        }
        asked
    };
    (url, std::thread::spawn(serve))
}

/// The request line, the authorization and the body, each after a space.
fn read_request(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).expect("the client writes text"), 0, "{head}");
    }
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    let length = header("content-length").map_or(0, |value| value.parse().expect("it is a number"));
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body).expect("the body is text");
    let line = head.lines().next().unwrap_or_default();
    format!("{line} {} {body}", header("authorization").unwrap_or("-"))
}

fn run_words(words: &str) -> Result<(), Failure> {
    dispatch(&command().try_get_matches_from(words.split_whitespace()).unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn commands_about_workers_ask_the_admin_api() {
    let list = r#"{"workers":[{"id":"w-1","url":"http://10.0.0.1:8000","models":[{"id":"m"}],"load":3}],"total":1}"#;
    let answers: &'static [_] = Box::leak(Box::new([
        ("200 OK", list),
        ("202 Accepted", r#"{"status":"accepted"}"#),
        ("200 OK", list),
        ("202 Accepted", "{}"),
        ("200 OK", ""),
        ("200 OK", r#"{"chosen":"w-1"}"#),
    ]));
    let (url, asked) = gateway(answers);
    let key = "--api-key k1";
    let commands = [
        format!("smg workers list --model a/b --url {url} {key}"),
        format!("smg workers add http://w:1 --model m --priority 60 --label a=b --url {url} {key}"),
        format!("smg workers drain 10.0.0.1:8000 --url {url} {key}"),
        format!("smg workers remove w-1 --url {url}/ {key}"),
        format!("smg explain req/1 --url {url} {key} --output json"),
    ];
    for words in &commands {
        run_words(words).unwrap_or_else(|failure| panic!("{words}: {failure}"));
    }
    let expected = [
        "GET /workers?model=a%2Fb HTTP/1.1 Bearer k1 ",
        "POST /workers HTTP/1.1 Bearer k1 {\"labels\":{\"a\":\"b\"},\"models\":[\"m\"],\"priority\":60,\"url\":\"http://w:1\"}",
        "GET /workers HTTP/1.1 Bearer k1 ",
        "POST /workers/w-1/drain HTTP/1.1 Bearer k1 ",
        "DELETE /workers/w-1 HTTP/1.1 Bearer k1 ",
        "GET /explain/req%2F1 HTTP/1.1 Bearer k1 ",
    ];
    assert_eq!(asked.join().expect("the gateway ends"), expected);
}

#[test]
fn commands_about_the_mesh_ask_the_admin_api() {
    let answers: &'static [_] = Box::leak(Box::new([
        ("200 OK", r#"{"name":"a","members":{"alive":1,"total":1},"planes":[]}"#),
        ("200 OK", r#"{"members":[{"name":"a","state":"alive","rtt_ms":null}]}"#),
        ("200 OK", r#"{"members":[]}"#),
        ("200 OK", r#"{"workers":[{"id":"w-1","votes":{"a":"up","b":"unreachable"}}]}"#),
        ("202 Accepted", r#"{"status":"draining"}"#),
        ("200 OK", r#"{"status":"joined"}"#),
        ("200 OK", r#"{"status":"left"}"#),
    ]));
    let (url, asked) = gateway(answers);
    for verb in ["status", "members --output json", "workers", "drain", "drain --undo", "leave"] {
        run_words(&format!("smg mesh {verb} --url {url} --api-key k"))
            .unwrap_or_else(|failure| panic!("{verb}: {failure}"));
    }
    let expected = [
        "GET /mesh/status HTTP/1.1 Bearer k ",
        "GET /mesh/members HTTP/1.1 Bearer k ",
        "GET /mesh/members HTTP/1.1 Bearer k ",
        "GET /mesh/workers HTTP/1.1 Bearer k ",
        "POST /mesh/drain HTTP/1.1 Bearer k ",
        "DELETE /mesh/drain HTTP/1.1 Bearer k ",
        "POST /mesh/leave HTTP/1.1 Bearer k ",
    ];
    assert_eq!(asked.join().expect("the gateway ends"), expected);
    run_words("smg mesh token").expect("it needs nothing");
}

#[test]
fn commands_about_keys_ask_the_admin_api() {
    const KEY: &str = r#"{"id":"key_1","name":"research","tenant":"acme","state":"active","expires":1795564800}"#;
    const MADE: &str = r#"{"id":"key_2","name":"research","tenant":"acme","key":"smg-secret"}"#;
    const KEYS: &str =
        r#"{"keys":[{"id":"key_1","name":"a b","state":"active"},{"id":"key_0","name":"a b","state":"revoked"}]}"#;
    let answers: &'static [_] = Box::leak(Box::new([
        ("200 OK", KEYS),
        ("200 OK", KEY),
        ("201 Created", MADE),
        ("201 Created", MADE),
        ("200 OK", KEY),
        ("200 OK", KEY),
        ("200 OK", KEY),
        ("201 Created", MADE),
        ("200 OK", KEY),
        ("404 Not Found", "{}"),
        ("200 OK", KEYS),
        ("200 OK", KEY),
    ]));
    let (url, asked) = gateway(answers);
    let commands = [
        "smg keys list --active",
        "smg keys show key_1 --output json",
        "smg keys create research",
        "smg keys create research --tenant acme --role viewer --model m --model l-* --scope chat,models --class bulk --expires 90d",
        "smg keys update key_1 --name other --scope * --expires never",
        "smg keys rotate key_1 --overlap 2h",
        "smg keys revoke a\u{a0}b",
    ];
    for words in commands {
        let words = format!("{words} --url {url} --api-key k");
        // A name with a space stays one word.
        let words = words.split(' ').map(|word| word.replace('\u{a0}', " "));
        let matches = command().try_get_matches_from(words).unwrap_or_else(|error| panic!("{error}"));
        dispatch(&matches).unwrap_or_else(|failure| panic!("{matches:?}: {failure}"));
    }
    let expected = [
        "GET /keys HTTP/1.1 Bearer k ",
        "GET /keys/key_1 HTTP/1.1 Bearer k ",
        "POST /keys HTTP/1.1 Bearer k {\"name\":\"research\"}",
        "POST /keys HTTP/1.1 Bearer k {\"class\":\"bulk\",\"expires_in\":7776000,\"models\":[\"m\",\"l-*\"],\"name\":\"research\",\"role\":\"viewer\",\"scopes\":[\"chat\",\"models\"],\"tenant\":\"acme\"}",
        "GET /keys/key_1 HTTP/1.1 Bearer k ",
        "PATCH /keys/key_1 HTTP/1.1 Bearer k {\"expires\":null,\"name\":\"other\",\"scopes\":[\"*\"]}",
        "GET /keys/key_1 HTTP/1.1 Bearer k ",
        "POST /keys/key_1/rotate HTTP/1.1 Bearer k {\"overlap\":7200}",
        "GET /keys/key_1 HTTP/1.1 Bearer k ",
        "GET /keys/a%20b HTTP/1.1 Bearer k ",
        "GET /keys HTTP/1.1 Bearer k ",
        "DELETE /keys/key_1 HTTP/1.1 Bearer k ",
    ];
    assert_eq!(asked.join().expect("the gateway ends"), expected);
}

#[test]
fn slips_about_keys_are_found_before_a_gateway_is_asked() {
    let check = |words: &str, expected: &str| {
        let told = match command().try_get_matches_from(words.split_whitespace()) {
            Ok(matches) => {
                let failure = dispatch(&matches).expect_err(words);
                assert_eq!(failure.exit_code(), ExitCode::from(2), "{words}: {failure}");
                failure.to_string()
            }
            Err(error) => error.to_string(),
        };
        assert!(told.contains(expected), "{words}: {told}");
    };
    check("smg keys create a --scope chit --url http://127.0.0.1:1", "chat, completions");
    check("smg keys create a --expires 90 --url http://127.0.0.1:1", "90d or 12h");
    check("smg keys create a --expires 2001-01-01 --url http://127.0.0.1:1", "over already");
    check("smg keys rotate a --overlap 24 --url http://127.0.0.1:1", "with a unit");
    check("smg keys update a --url http://127.0.0.1:1", "say what to change");
    check("smg keys create --url http://127.0.0.1:1", "<NAME>");
    check("smg keys generate", "<NAME>");
    check("smg keys generate a --expires 2001-01-01", "over already");
    check("smg keys hash sk-as-an-argument", "unexpected argument");
}

#[test]
fn a_drain_can_be_waited_for() {
    let check = |last: &'static str, wait: &str| {
        let answers = Box::leak(Box::new([("202 Accepted", "{}"), ("200 OK", r#"{"load":2}"#), (last, "{}")]));
        let (url, asked) = gateway(if wait == "0" { &answers[..2] } else { answers });
        let outcome = run_words(&format!("smg workers drain w-1 --wait {wait} --url {url}"));
        asked.join().expect("the gateway ends");
        outcome.map_err(|failure| failure.to_string())
    };
    assert_eq!(check("200 OK", "5s"), Ok(()));
    assert_eq!(check("404 Not Found", "5s"), Ok(()));
    assert_eq!(check("", "0"), Err("the worker still has 2 requests; they go on".to_owned()));
}

#[test]
fn what_the_gateway_refuses_is_told_in_its_words() {
    let check = |answers: &'static [(&str, &str)], words: &str, expected: &str| {
        let (url, asked) = gateway(answers);
        let failure = run_words(&format!("{words} --url {url}")).expect_err("it fails");
        let told = failure.to_string().replace(&url, "URL");
        assert!(told.starts_with(expected), "{told}");
        asked.join().expect("the gateway ends");
    };
    let refusal = r#"{"error":{"message":"who are you?","type":"authentication_error"}}"#;
    let answers = Box::leak(Box::new([("401 Unauthorized", refusal)]));
    check(answers, "smg workers list", "the gateway answered 401 Unauthorized: who are you?; give the admin key");
    check(&[("404 Not Found", "gone")], "smg explain x", "the gateway answered 404 Not Found: gone");
    check(&[("200 OK", "<html>")], "smg workers list", "the gateway's answer is not JSON; is URL/ an smg?");
    check(&[("200 OK", r#"{"workers":[]}"#)], "smg workers drain http://a:1", "there is no worker http://a:1");
    check(
        &[("404 Not Found", "{}"), ("200 OK", r#"{"keys":[]}"#)],
        "smg keys revoke x",
        "there is no key x; see smg keys list",
    );
    let twice = r#"{"keys":[{"id":"k1","name":"x","state":"active"},{"id":"k2","name":"x","state":"expired"}]}"#;
    let answers = Box::leak(Box::new([("404 Not Found", "{}"), ("200 OK", twice)]));
    check(answers, "smg keys revoke x", "several keys are called x; name one by its id: k1 (active), k2 (expired)");
    let refusal = r#"{"error":{"message":"a viewer may look at everything and change nothing"}}"#;
    let answers = Box::leak(Box::new([("403 Forbidden", refusal)]));
    check(
        answers,
        "smg keys create x",
        "the gateway answered 403 Forbidden: a viewer may look at everything and change nothing; give the admin key",
    );
    let unreachable = run_words("smg workers list --url http://127.0.0.1:1").expect_err("nobody is there").to_string();
    assert!(unreachable.contains("is it running?"), "{unreachable}");
    let no_url = run_words("smg workers list --url 127.0.0.1").expect_err("it is no url").to_string();
    assert!(no_url.contains("is not the URL of a gateway"), "{no_url}");
}
