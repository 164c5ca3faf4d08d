//! The configuration through its public surface: sources in, sections, problems and pages out.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use smg_fleet::Origin;
use smg_routing::PolicyKind;

use super::*;

/// A folder for one test's file.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(file: &str) -> Self {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        if !file.is_empty() {
            std::fs::write(folder.path().join("smg.toml"), file).expect("the folder takes a file");
        }
        Self(folder)
    }
}

fn inputs(folder: &Folder, args: &[&str], env: &[(&str, &str)]) -> Inputs {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let flags = Flags::parse(args.iter().copied()).expect("the flags exist");
    Inputs { flags, env, directory: folder.0.path().to_owned() }
}

fn load(file: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(&inputs(&Folder::with(file), args, env))
}

fn good(file: &str, args: &[&str], env: &[(&str, &str)]) -> Config {
    load(file, args, env).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The problems, one a line, without the folder of the file.
fn problems(file: &str, args: &[&str], env: &[(&str, &str)]) -> Vec<String> {
    let errors = load(file, args, env).expect_err("something is wrong");
    let text = |problem: &Problem| {
        let text = problem.to_string();
        text.rsplit_once("/smg.toml").map_or(text.clone(), |(_, rest)| format!("smg.toml{rest}"))
    };
    errors.0.iter().map(text).collect()
}

#[test]
fn the_strongest_source_wins() {
    let check = |file: &str, args: &[&str], env: &[(&str, &str)], port: u16, source: Source| {
        let config = good(file, args, env);
        let entry = config.entries().iter().find(|entry| entry.key == "listener.port").expect("there is a port");
        assert_eq!((config.sections.listener.port, &entry.source), (port, &source), "{file:?} {args:?} {env:?}");
    };
    let file = "[listener]\nport = 3";
    check(file, &["--port", "1"], &[("SMG_PORT", "2")], 1, Source::Flag);
    check(file, &[], &[("SMG_PORT", "2")], 2, Source::Variable);
    check(file, &[], &[], 3, Source::File { line: 2 });
    check("", &[], &[], 30_000, Source::Default);
    check(file, &[], &[("SMG_PORT", "")], 3, Source::File { line: 2 });
}

#[test]
fn a_flag_can_undo_a_switch_of_the_file() {
    let file = "[retries]\ndisable_retries = true";
    assert!(good(file, &[], &[]).sections.retries.disable_retries);
    assert!(!good(file, &["--disable-retries=false"], &[]).sections.retries.disable_retries);
    assert!(good("", &["--disable-retries"], &[]).sections.retries.disable_retries);
    assert!(!good("", &[], &[("SMG_DEBUG_HEADERS", "off")]).sections.listener.debug_headers);
}

#[test]
fn lists_read_alike_from_every_source() {
    let check = |file: &str, args: &[&str], env: &[(&str, &str)]| {
        let config = good(file, args, env);
        let urls: Vec<&str> = config.workers.iter().map(|(spec, _)| spec.url.as_str()).collect();
        assert_eq!(urls, ["http://a:1", "http://b:2"], "{file:?} {args:?} {env:?}");
    };
    check("", &["--worker-urls", "http://a:1", "b:2"], &[]);
    check("", &["--worker-urls", "http://a:1,b:2"], &[]);
    check("", &["--worker-urls", "http://a:1", "--worker-urls", "b:2"], &[]);
    check("", &[], &[("SMG_WORKER_URLS", "http://a:1, b:2")]);
    check("[fleet]\nworker_urls = ['http://a:1', 'b:2']", &[], &[]);
    check("[[workers]]\nurl = 'a:1'\n[[workers]]\nurl = 'b:2'", &[], &[]);
}

#[test]
fn the_flags_of_the_reference_gateway_keep_their_meaning() {
    let args = "--host 127.0.0.1 --port 8000 --policy power_of_two --max-concurrent-requests -1 --queue-size 7 \
                --request-timeout-secs 30 --retry-initial-backoff-ms 20 --cb-timeout-duration-secs 5 --log-json \
                --health-check-endpoint /ping --model-alias a=m b=m --cors-allowed-origins https://x.org \
                --max-payload-size 1048576 --backend sglang --enable-igw --worker-urls http://w:1";
    let config = good("", &args.split_whitespace().collect::<Vec<_>>(), &[]);
    let sections = &config.sections;
    assert_eq!(sections.routing.policy, PolicyKind::PowerOfTwo);
    assert_eq!(sections.limits.max_concurrent_requests.0, None);
    assert_eq!(sections.timeouts.request_timeout_secs, Duration::from_secs(30));
    assert_eq!(sections.retries.retry_initial_backoff_ms, Duration::from_millis(20));
    assert_eq!(sections.limits.max_payload_size.0, 1 << 20);
    assert_eq!(config.workers[0].0.runtime_type, Some(smg_fleet::Engine::Sglang));
    assert_eq!(config.aliases.len(), 2);
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.iter().any(|warning| warning.starts_with("--enable-igw: has no effect: several")), "{warnings:?}");
    assert!(good("", &[], &[]).sections.limits.max_concurrent_requests.0.is_none());
}

#[test]
fn all_problems_are_told_at_once_each_with_its_place() {
    let file = "\
port = 1
[listener]
prt = 2
header_timeout = true
queue_size = 5
[limit]
[logging]
log_format = 'jsn'
[health]
health_check_timeout_secs = '1y'
";
    let found = problems(file, &["--retry-jitter-factor", "2"], &[("SMG_CB_FAILURE_THRESHOLD", "none")]);
    let expected = [
        "smg.toml:1: port: there is no such setting; did you mean listener.port?",
        "smg.toml:3: listener.prt: there is no such setting; did you mean listener.port?",
        "smg.toml:4: listener.header_timeout: expected a duration, found boolean",
        "smg.toml:5: listener.queue_size: there is no such setting; did you mean limits.queue_size?",
        "smg.toml:6: limit: there is no such setting; did you mean [limits]?",
        "smg.toml:8: logging.log_format: \"jsn\" is not one of auto, human, json; did you mean json?",
        "--retry-jitter-factor: \"2\" is refused: must be a number from 0 to 1",
        "SMG_CB_FAILURE_THRESHOLD: \"none\" is refused: invalid digit found in string",
    ];
    for line in expected {
        assert!(found.iter().any(|problem| problem == line), "{line}\nis not in\n{found:#?}");
    }
    assert!(found.iter().any(|problem| problem.starts_with("smg.toml:10: health.health_check_timeout_secs")));
    assert_eq!(found.len(), 9, "{found:#?}");
}

#[test]
fn broken_toml_names_its_lines() {
    let found = problems("[listener]\nport = \n[limits]\nqueue_size = = 3\n", &[], &[]);
    assert!(found.iter().any(|problem| problem.starts_with("smg.toml:2: ")), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("smg.toml:4: ")), "{found:?}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let check = |args: &str, file: &str, expected: &str| {
        let found = problems(file, &args.split_whitespace().collect::<Vec<_>>(), &[]);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{expected}\nis not in\n{found:#?}");
    };
    check("--tls-key-path /nowhere", "", "tls.tls_cert_path and tls.tls_key_path: a certificate and its key");
    check("--tls-key-path /nowhere", "", "tls.tls_key_path: /nowhere: ");
    check("--port 29000", "", "listener.port and metrics.prometheus_port: two listeners");
    check("--health-check-port 30000", "", "listener.port and listener.health_check_port: two listeners");
    check("--retry-initial-backoff-ms 40s", "", "the first wait is longer");
    check("--max-payload-size 3GiB", "", "the largest body allowed does not fit");
    check("--log-json --log-format human", "", "a log line has one format");
    check("--prometheus-duration-buckets 1 3 2", "", "the bounds must ascend");
    check("--worker-urls http://a http://a", "", "the worker http://a is given twice");
    check("--model-alias a=b a=c", "", "the alias a is given twice");
    check("--model-alias m=b", "[[models]]\nid = 'm'", "m is the id of a model");
    check("", "[[models]]\nid = 'm'\n[[models]]\nid = 'm'", "the model m is given twice");
    check("--drain-delay 1h", "", "the delay is part of the grace period");
}

#[test]
fn a_provider_of_tokens_is_checked_as_a_whole() {
    let check = |args: &str, expected: &[&str]| {
        let found = problems("", &args.split_whitespace().collect::<Vec<_>>(), &[]);
        assert_eq!(found.len(), expected.len(), "{args}: {found:#?}");
        for expected in expected {
            assert!(found.iter().any(|problem| problem.contains(expected)), "{expected}\nis not in\n{found:#?}");
        }
    };
    let nobody = "and none is";
    check(
        "--jwt-audience smg",
        &["auth.jwt_audience and auth.jwt_issuer: tokens are believed of a provider that is named"],
    );
    check("--jwt-jwks-uri https://id.test/keys --jwt-role-mapping a=admin --jwt-tenant-claim org", &[nobody; 3]);
    check("--jwt-issuer https://id.test", &["auth.jwt_audience and auth.jwt_issuer: a provider makes tokens for many"]);
    let with = |more: &str| format!("--jwt-issuer https://id.test --jwt-audience smg {more}");
    check("--jwt-issuer http://id.test --jwt-audience smg", &["plain http is not allowed"]);
    check("--jwt-issuer id.test --jwt-audience smg", &["auth.jwt_issuer: id.test: it is no url"]);
    check("--jwt-issuer https://id.test?x=1 --jwt-audience smg", &["no query and no fragment"]);
    check(&with("--jwt-jwks-uri http://id.test/keys"), &["auth.jwt_jwks_uri: http://id.test/keys: it is not https"]);
    check(&with("--jwt-jwks-uri file:///etc/passwd"), &["it is no url"]);
    check(&with("--jwt-role-mapping a=root"), &["must be theirs=ours"]);
    check(&with("--jwt-role-mapping a=viewer,a=admin"), &["one of the provider's roles is two roles here"]);
    check(&with("--jwt-leeway 1h"), &["more than 10m apart"]);
    check(&with("--jwt-keys-kept-for 1m"), &["would be forgotten"]);
    check(&with("--jwt-ca-cert-paths /nowhere"), &["auth.jwt_ca_cert_paths: /nowhere: "]);
    check(&with("--jwt-allow-networks ten"), &["a network is an address"]);
}

#[test]
fn a_gateway_that_believes_tokens_is_not_open() {
    let file = "[auth]\njwt_issuer = 'https://id.test/'\njwt_audience = ['smg', 'smg-too']\njwt_role_mapping = ['a=admin', 'b=user']";
    let config = good(file, &["--host", "::"], &[("SMG_JWT_TENANT_CLAIM", "org.id")]);
    let auth = &config.sections.auth;
    assert_eq!(auth.jwt_issuer.as_deref(), Some("https://id.test/"));
    assert_eq!((auth.jwt_audience.len(), auth.jwt_role_mapping.len()), (2, 2));
    assert_eq!((auth.jwt_tenant_claim.as_deref(), &*auth.jwt_role_claim), (Some("org.id"), "roles"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let config = good("", &["--host", "::", "--jwt-issuer", "https://id.test", "--jwt-audience", "smg"], &[]);
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(matches!(&warnings[..], [only] if only.contains("nobody is an admin")), "{warnings:?}");
}

#[test]
fn a_mesh_is_checked_as_a_whole() {
    let check = |args: &str, expected: &[&str]| {
        let found = problems("", &args.split_whitespace().collect::<Vec<_>>(), &[]);
        assert_eq!(found.len(), expected.len(), "{args}: {found:#?}");
        for expected in expected {
            assert!(found.iter().any(|problem| problem.contains(expected)), "{expected}\nis not in\n{found:#?}");
        }
    };
    let needs_secret = "mesh.mesh_host and mesh.mesh_token: beyond this machine";
    check("--enable-mesh", &[needs_secret]);
    check("--enable-mesh --mesh-host 10.0.0.1 --mesh-peer-urls a", &[needs_secret, "must be host:port"]);
    check("--enable-mesh --mesh-token short", &["mesh.mesh_token: the secret is too short"]);
    let accepted = "--enable-mesh --mesh-host ::1 --mesh-tokens-accepted 0123456789012345678901 b";
    check(accepted, &["mesh.mesh_tokens_accepted: the secret is too short", "has one of its own"]);
    let half = "--enable-mesh --mesh-host 127.0.0.1 --mesh-cert /nowhere";
    check(half, &["its key and the authorities come together", "mesh.mesh_cert: /nowhere: "]);
    check("--mesh-profile fst", &["did you mean fast?"]);
}

#[test]
fn a_mesh_may_be_as_small_as_one_machine() {
    let config = good("", &["--enable-mesh", "--mesh-host", "127.0.0.1", "--mesh-port", "0"], &[]);
    let mesh = &config.sections.mesh;
    assert!(mesh.enable_mesh && mesh.mesh_token.is_none() && mesh.mesh_peer_urls.is_empty());
    let token = [("SMG_MESH_TOKEN", "0123456789012345678901"), ("SMG_MESH_PEER_URLS", "a:1,b:2")];
    let config =
        good("[mesh]\nenable_mesh = true\nmesh_zone = 'z1'", &["--mesh-profile", "wan", "--host", "::1"], &token);
    assert_eq!(config.sections.mesh.mesh_peer_urls, ["a:1", "b:2"]);
    assert_eq!(config.sections.mesh.mesh_zone.as_deref(), Some("z1"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let off: Vec<String> = good("", &["--mesh-zone", "z", "--host", "::1"], &token[..1])
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(off.len(), 2, "{off:?}");
    assert!(off[0].starts_with("mesh.mesh_token: has no effect: the mesh is off"), "{off:?}");
}

#[test]
fn a_contradiction_with_a_broken_value_is_not_told() {
    let found = problems("", &["--retry-initial-backoff-ms", "40s", "--retry-max-backoff-ms", "x"], &[]);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn secrets_are_resolved_and_never_shown() {
    let file = "[security]\napi_key = '${KEY}'\n[[workers]]\nurl = 'http://w'\napi_key = '${ENGINE}'";
    let env = [("KEY", "sk-gateway"), ("ENGINE", "sk-engine")];
    let config = good(file, &["--admin-api-key", "sk-admin"], &env);
    let security = &config.sections.security;
    assert!(security.api_key.as_ref().is_some_and(|key| key.expose() == "sk-gateway"));
    assert!(config.workers[0].0.api_key.as_ref().is_some_and(|key| key.expose() == "sk-engine"));
    for shown in [config.to_toml(), config.to_json().to_string(), format!("{config:?}")] {
        assert!(!shown.contains("sk-") && shown.contains("[redacted]"), "{shown}");
    }
    let found = problems(file, &["--admin-api-key", "sk-ad min"], &[]).join("\n");
    assert!(found.contains("smg.toml:2: security.api_key: refers to the variable KEY, which is not set"), "{found}");
    assert!(found.contains("smg.toml:5: workers.api_key: refers to the variable ENGINE"), "{found}");
    assert!(found.contains("--admin-api-key: the secret holds") && !found.contains("sk-"), "{found}");
}

#[test]
fn workers_of_the_file_go_before_those_of_the_flags() {
    let file = "[[workers]]\nurl = 'http://a'\npriority = 70";
    let config = good(file, &["--worker-urls", "http://a", "http://b", "--worker-api-key", "k"], &[]);
    let seen: Vec<_> =
        config.workers.iter().map(|(spec, origin)| (spec.url.as_str(), spec.priority, *origin)).collect();
    assert_eq!(seen, [("http://b", 50, Origin::Flag), ("http://a", 70, Origin::File)]);
    assert!(config.workers[0].0.api_key.is_some());
    let found = problems("[[workers]]\nurl = 'http://a'\nprio = 1\n[[workers]]\nurl = 'ftp://a'\n", &[], &[]);
    assert!(found[0].starts_with("smg.toml:3: workers: unknown field `prio`"), "{found:?}");
    assert!(found[1].starts_with("smg.toml:5: workers: "), "{found:?}");
}

#[test]
fn a_model_takes_what_it_does_not_say_from_the_node() {
    let file = "\
[routing]
policy = 'least_load'
[timeouts]
stall_timeout = '10s'
[[models]]
id = 'm'
aliases = ['x']
policy = 'manual'
retry_max_retries = 2
";
    let config = good(file, &["--request-timeout-secs", "60"], &[]);
    let model = config.model(&ModelId::from("m")).expect("the model has an entry");
    assert_eq!(model.routing.policy, PolicyKind::Manual);
    assert_eq!(model.retries.retry_max_retries.get(), 2);
    assert_eq!(model.timeouts.request_timeout_secs, Duration::from_secs(60));
    assert_eq!(model.timeouts.stall_timeout.0, Some(Duration::from_secs(10)));
    assert_eq!(config.sections.routing.policy, PolicyKind::LeastLoad);
    assert_eq!(config.aliases.get(&ModelId::from("x")), Some(&ModelId::from("m")));
    let file = "[[models]]\nid = 'm'\npolcy = 'random'\nport = 1\nretry_jitter_factor = 3\n[[models]]\naliases = []\n";
    let found = problems(file, &[], &[]);
    assert_eq!(found[0], "smg.toml:3: models.polcy: there is no such setting; did you mean policy?");
    assert!(found[1].starts_with("smg.toml:4: models.port: there is no such setting"), "{found:?}");
    assert!(found[2].starts_with("smg.toml:6: models: a model needs an id"), "{found:?}");
    assert!(found[3].starts_with("smg.toml:5: models.retry_jitter_factor: "), "{found:?}");
}

#[test]
fn the_file_is_found_or_named() {
    let folder = Folder::with("[listener]\nport = 3");
    let path = folder.0.path().join("smg.toml");
    let other = Folder::with("");
    let check = |folder: &Folder, args: &[&str], env: &[(&str, &str)], expected: Option<&PathBuf>| {
        let config = Config::load(&inputs(folder, args, env)).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.file.as_ref(), expected, "{args:?} {env:?}");
    };
    let text = path.to_str().expect("the path is text");
    check(&folder, &[], &[], Some(&path));
    check(&other, &[], &[], None);
    check(&other, &["--config", text], &[], Some(&path));
    check(&other, &[], &[("SMG_CONFIG", text)], Some(&path));
    check(&folder, &["--config="], &[], None);
    let missing = Config::load(&inputs(&other, &["--config", "/nowhere.toml"], &[])).expect_err("it is not there");
    assert!(missing.to_string().contains("/nowhere.toml: cannot be read"), "{missing}");
}

#[test]
fn variables_that_are_not_ours_do_no_harm() {
    let env =
        [("SMG_PORT", "tcp://10.0.0.1:30000"), ("SMG_SERVICE_HOST", "x"), ("SMG_QUEUE_SIZ", "5"), ("SMG_LOG", "x")];
    let config = good("", &[], &env);
    assert_eq!(config.sections.listener.port, 30_000);
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.iter().any(|warning| warning.starts_with("SMG_PORT: has no effect: Kubernetes")), "{warnings:?}");
    let unknown = "SMG_QUEUE_SIZ: there is no such setting; did you mean SMG_QUEUE_SIZE?";
    assert!(warnings.iter().any(|warning| warning == unknown), "{warnings:?}");
    assert!(!warnings.iter().any(|warning| warning.starts_with("SMG_SERVICE") || warning.starts_with("SMG_LOG")));
}

#[test]
fn parameters_of_policies_that_are_not_in_use_are_pointed_out() {
    let warnings = |file: &str, args: &[&str]| {
        let config = good(file, args, &[]);
        config.warnings.iter().map(ToString::to_string).filter(|text| text.contains("policy")).collect::<Vec<_>>()
    };
    let expected = "--balance-abs-threshold: has no effect: no policy in use has it, only bucket";
    assert_eq!(warnings("", &["--balance-abs-threshold", "3"]), [expected]);
    assert!(warnings("", &["--balance-abs-threshold", "3", "--policy", "bucket"]).is_empty());
    assert!(warnings("[[models]]\nid = 'm'\npolicy = 'bucket'", &["--balance-abs-threshold", "3"]).is_empty());
    assert!(warnings("", &["--max-idle-secs", "3", "--routing-key-override"]).is_empty());
    assert!(warnings("", &["--cost-per-request", "3ms"]).is_empty());
}

#[test]
fn what_is_shown_can_be_read_back() {
    let file = "\
[listener]
port = 8080
request_id_headers = ['x-a', 'x-b']
[limits]
max_concurrent_requests = 64
[timeouts]
first_token_timeout = '2m'
[[workers]]
url = 'http://w'
labels = { rack = 'b2' }
[[models]]
id = 'm'
policy = 'random'
";
    let first = good(file, &["--log-level", "debug"], &[]);
    let second = good(&first.to_toml(), &[], &[]);
    assert!(
        Config::reloadable_changes(&first, &second).is_empty(),
        "{:?}",
        Config::reloadable_changes(&first, &second)
    );
    assert!(first.to_toml().contains("# file, line 2") && first.to_toml().contains("# flag --log-level"));
}

#[test]
fn changes_are_told_apart_by_what_they_need() {
    let old = good("[listener]\nport = 1\n[security]\napi_key = 'a'", &[], &[]);
    let new =
        good("[listener]\nport = 2\n[security]\napi_key = 'b'\n[[models]]\nid = 'm'\npolicy = 'random'", &[], &[]);
    let changes = Config::reloadable_changes(&old, &new);
    let keys = |changes: &[Change]| changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&changes.live), ["security.api_key", "models"]);
    assert_eq!(keys(&changes.restart), ["listener.port"]);
    assert_eq!((changes.restart[0].before.as_str(), changes.restart[0].after.as_str()), ("1", "2"));
    assert_eq!(changes.live[0].after, "[redacted]");
    assert!(Config::reloadable_changes(&old, &old).is_empty());
}

#[test]
fn the_schema_covers_every_key() {
    let schema = schema();
    let property = |path: &str| schema.pointer(path).unwrap_or_else(|| panic!("{path} is not in the schema"));
    for key in good("", &[], &[]).entries().iter().map(|entry| entry.key.replace('.', "/properties/")) {
        if key != "node/properties/config" {
            property(&format!("/properties/{key}/description"));
        }
    }
    assert_eq!(property("/properties/listener/properties/port/type"), "integer");
    assert_eq!(property("/properties/retries/properties/disable_retries/type"), "boolean");
    assert_eq!(property("/properties/fleet/properties/worker_urls/type"), "array");
    assert!(property("/properties/routing/properties/policy/enum").as_array().is_some_and(|all| all.len() == 10));
    assert_eq!(property("/properties/listener/additionalProperties"), false);
    property("/properties/models/items/properties/policy");
    assert!(schema.pointer("/properties/models/items/properties/port").is_none());
    let config = good("[[workers]]\nurl = 'http://w'", &[], &[]);
    let spec = serde_json::to_value(&config.workers[0].0).expect("a worker is JSON");
    for field in spec.as_object().expect("it is an object").keys() {
        property(&format!("/properties/workers/items/properties/{field}"));
    }
}

#[test]
fn the_reference_page_names_every_setting_once() {
    let page = reference();
    for entry in good("", &[], &[]).entries() {
        let id = entry.key.rsplit('.').next().unwrap_or_default();
        let flag = format!("`--{}`", id.replace('_', "-"));
        let in_rows = page.lines().filter(|line| line.starts_with(&format!("| {flag}"))).count();
        let is_hidden = entry.key.starts_with("compatibility.");
        assert_eq!(in_rows, usize::from(!is_hidden), "{flag}");
    }
}

#[test]
fn help_is_grouped() {
    let help = flags(clap::Command::new("smg")).render_long_help().to_string();
    let headings = ["Listener", "Fleet", "Routing", "Retries", "Timeouts", "Circuit breaker", "Health", "Upstream"];
    let further = ["Limits", "Security", "TLS", "Logging", "Metrics", "Tracing", "Node"];
    let mut rest = help.as_str();
    for heading in headings.iter().chain(&further) {
        let (_, after) = rest.split_once(&format!("\n{heading}:\n")).unwrap_or_else(|| panic!("{heading}\n{help}"));
        rest = after;
    }
    assert!(help.contains("[env: SMG_QUEUE_SIZE]") && help.contains("[default: 100]"), "{help}");
    assert!(help.contains("- human: For reading") && help.contains("[possible values: random,"), "{help}");
    assert!(!help.contains("Compatibility") && !help.contains("--enable-igw"), "{help}");
}

#[test]
fn mutated_files_never_panic() {
    let seed =
        "[listener]\nport = 8080\nhost = '::1'\n[[workers]]\nurl = 'http://w'\n[[models]]\nid = 'm'\naliases = ['a']\n";
    let random = smg_base::SplitMix::new(smg_base::fuzz::seed(11));
    let settings = setting::Setting::all();
    let env = BTreeMap::new();
    let at = |bound: usize| usize::try_from(smg_base::Random::below(&random, bound as u64)).unwrap_or(0);
    for _ in 0..smg_base::fuzz::inputs(5_000) {
        let mut bytes = seed.as_bytes().to_vec();
        for _ in 0..=at(4) {
            let position = at(bytes.len());
            match at(3) {
                0 => bytes[position] = b"[]='\"\n.x9\xc3-#{}"[at(14)],
                1 => drop(bytes.remove(position)),
                _ => bytes.insert(position, b"[]='\"\n.x9,-#{}"[at(14)]),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let mut problems = Vec::new();
        file::read("smg.toml".as_ref(), &text, &settings, &secrets::Secrets::new(&env), &mut problems);
    }
}
