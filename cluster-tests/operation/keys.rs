//! `smg keys`: keys from the command line, at a running gateway and for its file.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::{CHAT, complained, said, smg_in};
use crate::harness::{Ask, Cluster, Stream, on, settled};

const EMBEDDINGS: &str = "/v1/embeddings";

/// What a caller with this key is told at an endpoint: the status, and the code of a refusal.
async fn told(cluster: &Cluster, path: &str, key: &str) -> (u16, Option<String>) {
    let ask = on(path, "demo", Stream::No).field("authorization", &format!("Bearer {key}"));
    let answer = cluster.gateway.ask(&ask).await;
    (answer.status, answer.field("x-smg-error-code").map(str::to_owned))
}

fn refused(status: u16, code: &str) -> (u16, Option<String>) {
    (status, Some(code.to_owned()))
}

/// The key that a command printed, which is all that it printed.
fn key_of(output: &Output) -> String {
    assert!(output.status.success(), "{}", complained(output));
    let text = said(output);
    let key = text.strip_suffix('\n').unwrap_or_else(|| panic!("{text:?} is a line"));
    assert!(key.starts_with("smg-") && key.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    assert!(
        !complained(output).contains(key) && complained(output).contains("this one time"),
        "{}",
        complained(output)
    );
    key.to_owned()
}

/// Runs `smg` with something to read.
fn smg_reading(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smg"));
    command.args(arguments).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn keys_of_a_running_gateway_are_made_changed_replaced_and_revoked() {
    let cluster = Cluster::start(1, &["--data-dir", "data", "--admin-api-key", "sk-operators"]).await;
    let (folder, url) = (cluster.gateway.folder(), cluster.gateway.url());
    let environment = [("SMG_URL", url.as_str()), ("SMG_ADMIN_API_KEY", "sk-operators")];
    let run = async |words: &str| smg_in(&folder, &words.split(' ').collect::<Vec<_>>(), &environment).await;
    let json = async |words: &str| -> Value {
        serde_json::from_slice(&run(&format!("{words} --output json")).await.stdout).unwrap()
    };

    assert_eq!(said(&run("keys list").await), "no keys\n");
    let first = key_of(&run("keys create research --tenant acme --scope chat,models --expires 90d").await);
    assert_eq!(told(&cluster, CHAT, &first).await, (200, None));
    assert_eq!(told(&cluster, EMBEDDINGS, &first).await, refused(403, "missing_scope"));
    assert_eq!(cluster.shares(), [1], "what is refused reaches no engine");
    let listed = said(&run("keys list").await);
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    let &[id, "research", "acme", "caller", "active", _, "scopes"] = &row[..] else { panic!("{listed}") };
    let shown = said(&run("keys show research").await);
    assert!(shown.contains("scopes:      chat, models\n") && shown.contains(&format!("begins with: {}", &first[..12])));
    assert!(!shown.contains(&first));

    assert!(run("keys update research --scope chat,embeddings").await.status.success());
    assert_eq!(told(&cluster, EMBEDDINGS, &first).await, (200, None));
    let models = Ask::get("/v1/models").field("x-api-key", &first);
    assert_eq!(cluster.gateway.ask(&models).await.status, 403);

    let second = key_of(&run("keys rotate research --overlap 1h").await);
    for key in [&first, &second] {
        assert_eq!(told(&cluster, EMBEDDINGS, key).await, (200, None), "both hold for a while");
    }
    let ambiguous = run("keys revoke research").await;
    assert_eq!(ambiguous.status.code(), Some(2));
    assert!(complained(&ambiguous).contains(id), "{}", complained(&ambiguous));
    assert!(run(&format!("keys revoke {id}")).await.status.success());
    assert_eq!(told(&cluster, CHAT, &first).await, refused(401, "invalid_api_key"));
    assert_eq!(told(&cluster, EMBEDDINGS, &first).await, refused(401, "invalid_api_key"), "whatever it was for");
    assert_eq!(told(&cluster, CHAT, &second).await, (200, None));
    let active = json("keys list --active").await;
    assert_eq!((&active["total"], &active["keys"][0]["replaces"]), (&1.into(), &id.into()));

    let by_caller = smg_in(&folder, &["keys", "list", "--url", &url, "--api-key", &second], &[]).await;
    assert_eq!(by_caller.status.code(), Some(1));
    assert!(complained(&by_caller).contains("--api-key") && !complained(&by_caller).contains(&second));
    assert_eq!(run("keys show nobody").await.status.code(), Some(2));
    let log = cluster.gateway.log();
    assert!(log.contains("a caller lacks a scope") && !log.contains(&first) && !log.contains(&second));
    let kept = fs::read_to_string(folder.join("data/keys.json")).unwrap();
    assert!(!kept.contains(&first) && !kept.contains(&second));
    cluster.gateway.metric_is("smg_http_auth_failures_total", &[("reason", "scope")], 2.0).await;
}

#[tokio::test]
async fn keys_for_a_file_are_made_without_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = folder.join("keys.toml");
    let generate = async |words: &str| {
        let words = format!("keys generate {words} --keys-file keys.toml");
        smg_in(folder, &words.split(' ').collect::<Vec<_>>(), &[]).await
    };
    let operators = key_of(&generate("ops --role admin").await);
    let cluster = Cluster::start(1, &["--keys-file", file.to_str().unwrap(), "--admin-api-key", &operators]).await;
    let callers = key_of(&generate("research --tenant acme --scope embeddings").await);
    settled("the file to be read again", async || told(&cluster, EMBEDDINGS, &callers).await.0 == 200).await;
    assert_eq!(told(&cluster, CHAT, &callers).await, refused(403, "missing_scope"));

    let before = fs::read_to_string(&file).unwrap();
    assert!(!before.contains(&operators) && !before.contains(&callers));
    let twice = generate("research").await;
    assert_eq!((twice.status.code(), said(&twice).as_str()), (Some(1), ""));
    assert!(complained(&twice).contains("'research' already"), "{}", complained(&twice));
    assert_eq!(generate("other --scope chit").await.status.code(), Some(2));
    assert_eq!(fs::read_to_string(&file).unwrap(), before);

    let hashed = smg_reading(folder, &["keys", "hash"], &format!("{callers}\n"));
    assert!(hashed.status.success() && before.contains(&said(&hashed)), "{}", said(&hashed));
    assert_eq!(smg_reading(folder, &["keys", "hash"], "two words").status.code(), Some(2));
    // Nothing of the entry is lost where there is no file.
    let printed = smg_in(folder, &["keys", "generate", "other"], &[]).await;
    let key = key_of(&printed);
    let hash = said(&smg_reading(folder, &["keys", "hash"], &key));
    assert!(complained(&printed).contains(&hash), "{}", complained(&printed));
}
