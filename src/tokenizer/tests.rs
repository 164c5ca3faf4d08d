use std::sync::LazyLock;

use serde_json::{Value as Json, json};

use super::*;

const TOKENIZER: &[u8] = include_bytes!("cases/tokenizer.json");
const CONFIG: &[u8] = include_bytes!("cases/tokenizer_config.json");
const TEMPLATE: &str = include_str!("cases/chat_template.jinja");

/// What `transformers` makes of the same files; see `cases/make.py`.
static EXPECTED: LazyLock<Json> =
    LazyLock::new(|| serde_json::from_str(include_str!("cases/expected.json")).expect("the cases are JSON"));

fn with_template(template: &str) -> Tokenizer {
    Tokenizer::from_files(TOKENIZER, Some(CONFIG), Some(template)).unwrap()
}

fn ids(case: &Json) -> Vec<u32> {
    serde_json::from_value(case["ids"].clone()).unwrap()
}

fn chat(tokenizer: &Tokenizer, body: &Json) -> Option<Vec<u32>> {
    tokenizer.prompt_tokens(Form::Chat, body.to_string().as_bytes(), 0)
}

#[test]
fn texts_are_encoded_as_the_library_encodes_them() {
    let tokenizer = with_template(TEMPLATE);
    for case in EXPECTED["encoded"].as_array().unwrap() {
        let (text, special) = (case["text"].as_str().unwrap(), case["special"].as_bool().unwrap());
        assert_eq!(
            tokenizer.encode(text, if special { SpecialTokens::Added } else { SpecialTokens::Left }),
            Some(ids(case)),
            "{text:?} {special}"
        );
        let body = json!({ "prompt": text, "add_special_tokens": special, "max_tokens": 3 }).to_string();
        assert_eq!(tokenizer.prompt_tokens(Form::Completion, body.as_bytes(), 0), Some(ids(case)));
        let body = json!({ "text": [text], "add_special_tokens": special }).to_string();
        assert_eq!(tokenizer.prompt_tokens(Form::Generate, body.as_bytes(), 0), Some(ids(case)));
    }
    let usual = tokenizer.prompt_tokens(Form::Completion, br#"{"prompt":"hello"}"#, 0);
    assert_eq!(
        usual,
        tokenizer.encode("hello", SpecialTokens::Added),
        "special tokens are added unless the caller says no"
    );
}

#[test]
fn chats_are_rendered_and_encoded_as_the_library_does_it() {
    let usual = with_template(TEMPLATE);
    let parts = with_template(EXPECTED["parts"].as_str().unwrap());
    for case in EXPECTED["rendered"].as_array().unwrap() {
        let tokenizer = if case["template"] == "chat" { &usual } else { &parts };
        let body = case["body"].as_str().unwrap().as_bytes();
        let format = |tools: Option<&Value>| tokenizer.templates.of(tools).map(ChatTemplate::content_format);
        let chat = Chat::of_body(body, format).unwrap();
        assert_eq!(tokenizer.render_chat(&chat, 0).unwrap(), case["text"].as_str().unwrap(), "{}", case["name"]);
        assert_eq!(tokenizer.prompt_tokens(Form::Chat, body, 0), Some(ids(case)), "{}", case["name"]);
    }
}

#[test]
fn what_an_engine_may_see_differently_has_no_tokens() {
    let tokenizer = with_template(TEMPLATE);
    let user = json!({ "role": "user", "content": "x" });
    assert!(chat(&tokenizer, &json!({ "messages": [user] })).is_some());
    for body in [
        json!({}),
        json!([]),
        json!({ "messages": [] }),
        json!({ "messages": "x" }),
        json!({ "messages": [{ "role": "odd", "content": "the template raises" }] }),
        json!({ "messages": [{ "content": "x" }] }),
        json!({ "messages": [{ "role": "user", "content": 7 }] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "u" } }] }] }),
        json!({ "messages": [{ "role": "developer", "content": "x", "tools": [] }] }),
        json!({ "messages": [user], "tools": [{ "type": "hosted" }] }),
        json!({ "messages": [user], "chat_template": "{{ 1 }}" }),
        json!({ "messages": [user], "truncate_prompt_tokens": 5 }),
        json!({ "messages": [user], "add_generation_prompt": "yes" }),
        json!({ "messages": [user], "continue_final_message": true }),
        json!({ "messages": [user], "chat_template_kwargs": { "messages": [] } }),
        json!({ "messages": [user], "chat_template_kwargs": 1 }),
    ] {
        assert_eq!(chat(&tokenizer, &body), None, "{body}");
    }
    for body in
        [r#"{"prompt":["a","b"]}"#, r#"{"prompt":[1,2]}"#, r#"{"prompt":"a","truncate_prompt_tokens":3}"#, "{", "7"]
    {
        assert_eq!(tokenizer.prompt_tokens(Form::Completion, body.as_bytes(), 0), None, "{body}");
    }
    assert_eq!(tokenizer.prompt_tokens(Form::Generate, br#"{"text":"a","image_data":"x"}"#, 0), None);
}

#[test]
fn a_template_of_a_caller_or_without_end_costs_little() {
    let endless =
        with_template("{% for i in range(10000) %}{% for j in range(10000) %}{% set x = i %}{% endfor %}{% endfor %}");
    let large = with_template("{% set x = 'x' * 1000000000 %}{{ x }}{{ messages }}");
    let body = json!({ "messages": [{ "role": "user", "content": "x" }] });
    assert_eq!((chat(&endless, &body), chat(&large, &body)), (None, None));
}

#[test]
fn long_prompts_have_fuel_enough() {
    let tokenizer = with_template(TEMPLATE);
    let message = |index: usize| json!({ "role": if index.is_multiple_of(2) { "user" } else { "assistant" }, "content": "hello world ".repeat(100) });
    let body = json!({ "messages": (0..1_000).map(message).collect::<Vec<_>>() });
    assert!(chat(&tokenizer, &body).is_some_and(|ids| ids.len() > 100_000));
}

#[test]
fn the_time_is_told() {
    let format = "%d %b %Y|%-d.%-m.%y|%A, %B %e|%I:%M %p|%H:%M:%S|%j|%F %T|100%%";
    let tokenizer = with_template(&format!("{{{{ strftime_now('{format}') }}}}{{{{ messages[0].role }}}}"));
    let body = json!({ "messages": [{ "role": "user", "content": "x" }] }).to_string();
    let told = |unix_s| {
        let chat = Chat::of_body(body.as_bytes(), |_| Some(content::ContentFormat::String)).unwrap();
        tokenizer.render_chat(&chat, unix_s).unwrap()
    };
    assert_eq!(told(0), "01 Jan 1970|1.1.70|Thursday, January  1|12:00 AM|00:00:00|001|1970-01-01 00:00:00|100%user");
    assert_eq!(
        told(1_709_210_096),
        "29 Feb 2024|29.2.24|Thursday, February 29|12:34 PM|12:34:56|060|2024-02-29 12:34:56|100%user"
    );
    assert_eq!(
        told(1_735_689_599),
        "31 Dec 2024|31.12.24|Tuesday, December 31|11:59 PM|23:59:59|366|2024-12-31 23:59:59|100%user"
    );
    let unknown = with_template("{{ strftime_now('%Q') }}");
    assert_eq!(unknown.prompt_tokens(Form::Chat, body.as_bytes(), 0), None);
}

#[test]
fn templates_come_from_the_file_before_the_configuration_and_tools_may_have_one_of_their_own() {
    let config =
        |template: Json| json!({ "chat_template": template, "bos_token": { "content": "<|bos|>" } }).to_string();
    let render = |config: &str, file: Option<&str>, tools: bool| {
        let tokenizer = Tokenizer::from_files(TOKENIZER, Some(config.as_bytes()), file).unwrap();
        let tools = if tools { json!([{ "function": { "name": "f" } }]) } else { Json::Null };
        let body = json!({ "messages": [{ "role": "user", "content": "x" }], "tools": tools }).to_string();
        let format = |tools: Option<&Value>| tokenizer.templates.of(tools).map(ChatTemplate::content_format);
        Chat::of_body(body.as_bytes(), format).ok().map(|chat| tokenizer.render_chat(&chat, 0).unwrap())
    };
    let one = config(json!("{{ bos_token }}one"));
    assert_eq!(render(&one, None, false).as_deref(), Some("<|bos|>one"));
    assert_eq!(render(&one, Some("file"), true).as_deref(), Some("file"));
    let two = config(json!([{ "name": "default", "template": "usual" }, { "name": "tool_use", "template": "tools" }]));
    assert_eq!(
        (render(&two, None, false).as_deref(), render(&two, None, true).as_deref()),
        (Some("usual"), Some("tools"))
    );
    assert_eq!(render("{}", None, false), None);
    assert!(!Tokenizer::from_files(TOKENIZER, None, None).unwrap().has_chat_template());
}

#[test]
fn tokens_of_the_configuration_are_tokens() {
    let config = json!({ "added_tokens_decoder": {
        "1000": { "content": "<|new|>", "special": true }, "0": { "content": "<|endoftext|>", "special": true }, "x": {}, "7": 7 } });
    let tokenizer = Tokenizer::from_files(TOKENIZER, Some(config.to_string().as_bytes()), None).unwrap();
    assert_eq!(tokenizer.encode("<|new|>", SpecialTokens::Left).map(|ids| ids.len()), Some(1));
    assert_eq!(tokenizer.encode("<|endoftext|>", SpecialTokens::Left), Some(vec![0]));
}

#[test]
fn files_that_are_none_are_refused_with_a_reason() {
    let check = |tokenizer: &[u8], config: Option<&[u8]>, template: Option<&str>, expected: &str| {
        let error = Tokenizer::from_files(tokenizer, config, template).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    check(b"{}", None, None, "tokenizer.json: ");
    check(b"", None, None, "tokenizer.json: ");
    check(TOKENIZER, Some(b"[]"), None, "tokenizer_config.json: ");
    check(TOKENIZER, Some(b"{"), None, "tokenizer_config.json: ");
    check(TOKENIZER, None, Some("{% if %}"), "chat template: ");
}

/// Whatever a body holds, reading it ends without a panic.
#[test]
fn mutated_bodies_do_no_harm() {
    let tokenizer = with_template(TEMPLATE);
    let parts = with_template(EXPECTED["parts"].as_str().unwrap());
    let bodies: Vec<&str> =
        EXPECTED["rendered"].as_array().unwrap().iter().map(|case| case["body"].as_str().unwrap()).collect();
    let random = smg_base::SplitMix::new(smg_base::fuzz::seed(11));
    let draw = |below: usize| usize::try_from(smg_base::Random::below(&random, below as u64)).unwrap();
    let tokens = [
        b"{".as_slice(),
        b"}",
        b"[",
        b"]",
        b"null",
        b"\"",
        b",",
        b":",
        b"7",
        b"1e999",
        b"true",
        b"\\ud800",
        b"\"content\"",
    ];
    for _ in 0..smg_base::fuzz::inputs(2_000) {
        let mut body = bodies[draw(bodies.len())].as_bytes().to_vec();
        for _ in 0..=draw(3) {
            let at = draw(body.len() + 1);
            let end = (at + draw(12)).min(body.len());
            body.splice(at..end, tokens[draw(tokens.len())].iter().copied());
        }
        for form in [Form::Chat, Form::Completion, Form::Generate] {
            tokenizer.prompt_tokens(form, &body, 0);
        }
        parts.prompt_tokens(Form::Chat, &body, 0);
    }
}
