use std::fs;

use serde_json::Value;
use tracing::{debug, dispatcher, info, info_span, warn};

use super::*;
use crate::{config::LogFormat, logs::tests::Kept};

fn config() -> Config {
    Config { level: "info".to_owned(), ..Config::default() }
}

/// What stands on standard output, and in the day's file if there is one, after `speak`.
fn said(config: &Config, environment: &Environment, speak: impl FnOnce(&Telemetry)) -> (String, String) {
    let kept = Kept::default();
    let (dispatch, telemetry) = build(config, environment, kept.clone()).expect("telemetry");
    dispatcher::with_default(&dispatch, || speak(&telemetry));
    telemetry.shutdown();
    let file = config.log_dir.as_ref().map_or(String::new(), |dir| {
        let entry = fs::read_dir(dir).expect("a folder").next().expect("a file").expect("an entry");
        assert!(entry.file_name().to_string_lossy().starts_with("smg.2"));
        fs::read_to_string(entry.path()).expect("text")
    });
    (kept.text(), file)
}

fn on_terminal() -> Environment {
    Environment { is_terminal: true, ..Environment::default() }
}

fn speak(_: &Telemetry) {
    let _entered = info_span!("request", id = "r-1").entered();
    info!(worker = "w-1", tokens = 3, "request finished");
}

#[test]
fn json_lines_hold_fields_as_keys() {
    let (text, _) = said(&config(), &Environment::default(), speak);
    let line: Value = serde_json::from_str(text.trim()).expect("one JSON object");
    let expected = [
        ("/level", "INFO"),
        ("/message", "request finished"),
        ("/worker", "w-1"),
        ("/span/name", "request"),
        ("/span/id", "r-1"),
        ("/target", "smg_telemetry::telemetry::tests"),
    ];
    for (pointer, value) in expected {
        assert_eq!(line.pointer(pointer).and_then(Value::as_str), Some(value), "{pointer} of {line}");
    }
    assert_eq!(line.pointer("/tokens"), Some(&Value::from(3)));
    assert!(line.pointer("/timestamp").and_then(Value::as_str).is_some_and(|time| time.ends_with('Z')));
}

#[test]
fn people_get_colour_on_a_terminal_and_nowhere_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config { format: LogFormat::Human, log_dir: Some(folder.path().join("logs")), ..config() };
    let (terminal, file) = said(&config, &on_terminal(), speak);
    assert!(terminal.contains('\u{1b}'), "{terminal:?}");
    assert!(!file.contains('\u{1b}'), "{file:?}");
    assert!(file.contains("INFO") && file.contains("request finished") && file.contains("r-1"), "{file:?}");

    let no_color = Environment { no_color: true, ..on_terminal() };
    let (terminal, _) = said(&config, &no_color, speak);
    assert!(!terminal.contains('\u{1b}') && terminal.contains("w-1"), "{terminal:?}");
}

#[test]
fn dependencies_speak_from_warnings_on() {
    let (text, _) = said(&config(), &Environment::default(), |_| {
        info!(target: "hyper::client", "quiet");
        warn!(target: "hyper::client", "loud");
        info!(target: "smg_gateway::relay", "ours");
        info!(target: "smg::request", "also ours");
        debug!(target: "smg_gateway::relay", "too fine");
    });
    let told: Vec<_> = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect();
    let messages: Vec<_> = told.iter().map(|line| line["message"].as_str().unwrap_or_default()).collect();
    assert_eq!(messages, ["loud", "ours", "also ours"]);
}

#[test]
fn the_level_changes_while_running() {
    let (text, _) = said(&config(), &Environment::default(), |telemetry| {
        debug!("before");
        telemetry.handle().set_level("debug").expect("a level");
        debug!("during");
        assert!(matches!(telemetry.set_level("loud"), Err(Error::Level { .. })));
        debug!("still");
        telemetry.set_level("warn,smg_telemetry=error").expect("directives");
        warn!("after");
    });
    let count = |message: &str| text.matches(&format!("\"{message}\"")).count();
    assert_eq!([count("before"), count("during"), count("still"), count("after")], [0, 1, 1, 0], "{text}");
}

#[test]
fn what_cannot_be_set_up_says_why() {
    let refused = |config: Config| build(&config, &Environment::default(), io::sink()).err().map(|e| e.to_string());
    let file = tempfile::NamedTempFile::new().expect("a file");
    let is_about = |error: Option<String>, what: &str| {
        let error = error.expect("refused");
        assert!(error.contains(what), "{error}");
    };
    is_about(refused(Config { level: "loud".to_owned(), ..config() }), "loud");
    is_about(refused(Config { log_dir: Some(file.path().to_owned()), ..config() }), "cannot write logs");
    is_about(refused(Config { otlp_endpoint: Some("http://[".to_owned()), ..config() }), "cannot export spans");
}

#[test]
fn formats_have_names() {
    for format in [LogFormat::Auto, LogFormat::Human, LogFormat::Json] {
        assert_eq!(format.to_string().parse::<LogFormat>().expect("its own name"), format);
    }
    assert!("xml".parse::<LogFormat>().is_err());
}

#[test]
fn dropped_lines_are_a_metric() {
    let registrar = Registrar::new();
    let (_, telemetry) = build(&config(), &Environment::default(), io::sink()).expect("telemetry");
    telemetry.observe(&registrar);
    assert!(registrar.encode().contains("smg_log_lines_dropped_total{sink=\"stdout\"} 0"));
}
