use serde_json::{Value, json};

use super::*;
use crate::testing::{self, Dice};

fn render(endpoint: Endpoint, body: &str) -> String {
    let mut text = String::new();
    let mut sink = |piece: &str| text.push_str(piece);
    peek(endpoint, body.as_bytes(), Some(&mut sink)).unwrap_or_else(|error| panic!("{error}: {body}"));
    // Readable separators.
    text.replace('\u{1e}', "§").replace('\u{1f}', "|")
}

fn read(endpoint: Endpoint, body: &str) -> Peek<'_> {
    peek(endpoint, body.as_bytes(), None).unwrap_or_else(|error| panic!("{error}: {body}"))
}

#[test]
fn fields_are_read() {
    let body = r#" {"model": "m\u00e9", "stream":true,"stream_options":{"include_usage":true}, "max_completion_tokens":7,"max_tokens":9,
        "n":2,"user":"u","prompt_cache_key":"k","messages":[{"role":"user","content":"hi"},{}],"other":[{"stream":1}]} "#;
    let peek = read(Endpoint::ChatCompletions, body);
    let model = peek.model.clone().expect("a model");
    assert_eq!((&*model.value, &body[model.span]), ("mé", r#""m\u00e9""#));
    assert_eq!(peek.stream_options.clone().map(|span| &body[span]), Some(r#"{"include_usage":true}"#));
    assert_eq!((peek.stream, peek.include_usage, peek.max_tokens, peek.n), (true, Some(true), Some(7), Some(2)));
    assert_eq!((peek.user.as_deref(), peek.prompt_cache_key.as_deref()), (Some("u"), Some("k")));
    assert_eq!((peek.messages_or_input_items, peek.text_bytes, peek.token_ids, peek.members), (2, 2, 0, 10));
    assert_eq!(peek.object_end, body.rfind('}').expect("a brace"));
}

#[test]
fn fields_of_the_other_dialects_are_read() {
    let peek = read(
        Endpoint::Messages,
        r#"{"model":"c","max_tokens":5,"metadata":{"user_id":"u1","x":1},"stream":false,"n":"not ours","system":"s","messages":[]}"#,
    );
    assert_eq!(
        (peek.metadata_user_id.as_deref(), peek.max_tokens, peek.n, peek.stream),
        (Some("u1"), Some(5), None, false)
    );
    let peek = read(
        Endpoint::Responses,
        r#"{"model":"c","max_output_tokens":5,"previous_response_id":"resp_1","conversation":{"id":"conv_1"},"input":"hello"}"#,
    );
    assert_eq!((peek.previous_response_id.as_deref(), peek.conversation.as_deref()), (Some("resp_1"), Some("conv_1")));
    assert_eq!((peek.max_tokens, peek.messages_or_input_items, peek.text_bytes), (Some(5), 1, 5));
    assert_eq!(read(Endpoint::Responses, r#"{"conversation":"conv_2"}"#).conversation.as_deref(), Some("conv_2"));
    let peek = read(
        Endpoint::Generate,
        r#"{"input_ids":[[1,2,3],[4]],"sampling_params":{"max_new_tokens":16,"n":2},"stream":true}"#,
    );
    assert_eq!((peek.token_ids, peek.messages_or_input_items, peek.max_tokens, peek.n), (4, 2, Some(16), Some(2)));
    assert!(peek.stream && peek.model.is_none());
    let peek = read(Endpoint::Embeddings, r#"{"model":"e","input":["ab","c"],"stream":"not ours"}"#);
    assert_eq!((peek.messages_or_input_items, peek.text_bytes), (2, 3));
    let peek = read(Endpoint::Rerank, r#"{"query":"q","documents":["a",{"text":"bc"}]}"#);
    assert_eq!((peek.messages_or_input_items, peek.text_bytes), (3, 4));
}

#[test]
fn null_is_as_good_as_nothing_and_odd_counts_are_the_engines_business() {
    let peek = read(
        Endpoint::ChatCompletions,
        r#"{"model":null,"stream":null,"stream_options":null,"max_tokens":-1,"n":1.5,"user":null,"messages":null}"#,
    );
    assert_eq!(peek.stream_options, Some(45..49));
    assert_eq!((peek.model, peek.stream, peek.include_usage, peek.max_tokens, peek.n), (None, false, None, None, None));
    let peek = read(Endpoint::ChatCompletions, r#"{"stream_options":{"include_usage":null},"max_tokens":1e3}"#);
    assert_eq!((peek.include_usage, peek.max_tokens), (None, Some(1000)));
    assert_eq!(read(Endpoint::ChatCompletions, "{}"), Peek { object_end: 1, ..Peek::default() });
}

#[test]
fn bad_bodies_are_refused_with_a_reason() {
    let check = |body: &str, message: &str, param: Option<&'static str>| {
        let mut called = false;
        let error = peek(Endpoint::ChatCompletions, body.as_bytes(), Some(&mut |_| called = true)).expect_err(body);
        assert_eq!((&*error.message, error.param), (message, param), "{body:.200}");
        assert!(!called, "the sink saw a bad body");
    };
    check("", "the body is not a JSON object", None);
    check("[]", "the body is not a JSON object", None);
    check("hello", "the body is not a JSON object", None);
    check(r#"{"model":"m""#, "the body is not valid JSON at byte 12", None);
    check(r#"{"model":"m"}x"#, "the body is not valid JSON at byte 13", None);
    check(r#"{"model":"m",}"#, "the body is not valid JSON at byte 13", None);
    check(r#"{"a":NaN}"#, "the body is not valid JSON at byte 5", None);
    check(r#"{"model":7}"#, "'model' must be a string", Some("model"));
    check(r#"{"stream":"yes"}"#, "'stream' must be true or false", Some("stream"));
    check(r#"{"stream":1}"#, "'stream' must be true or false", Some("stream"));
    check(r#"{"max_tokens":"5"}"#, "'max_tokens' must be an integer", Some("max_tokens"));
    check(r#"{"n":[]}"#, "'n' must be an integer", Some("n"));
    check(r#"{"stream_options":true}"#, "'stream_options' must be an object", Some("stream_options"));
    let include_usage = "stream_options.include_usage";
    check(
        r#"{"stream_options":{"include_usage":1}}"#,
        "'stream_options.include_usage' must be true or false",
        Some(include_usage),
    );
    check(r#"{"messages":"hi"}"#, "'messages' must be an array", Some("messages"));
    check(r#"{"messages":["hi"]}"#, "each element of 'messages' must be an object", Some("messages"));
    check(r#"{"model":"a","model":"b"}"#, "'model' is given twice", Some("model"));
    check(r#"{"model":"a","mod\u0065l":"b"}"#, "'model' is given twice", Some("model"));
    check(r#"{"model":null,"model":"b"}"#, "'model' is given twice", Some("model"));
    let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
    check(&deep, "the body is nested deeper than 128 levels at byte 132", None);
    let deep = format!("{{\"messages\":[{{\"content\":{}", "[".repeat(1_000_000));
    check(&deep, "the body is nested deeper than 128 levels at byte 149", None);
}

#[test]
fn two_names_of_one_thing_are_not_one_name_twice() {
    assert_eq!(read(Endpoint::Embeddings, r#"{"input":"a","prompt":"b","text":"c"}"#).text_bytes, 3);
    let peek = read(Endpoint::ChatCompletions, r#"{"max_tokens":9,"max_completion_tokens":7}"#);
    assert_eq!(peek.max_tokens, Some(7));
}

/// Each name once fits into the list of names seen.
#[test]
fn every_field_may_be_there_at_once() {
    let names = "model user cache_salt lora_path stream stream_options max_tokens max_completion_tokens n prompt_cache_key messages \
        tools functions prompt input text content input_ids tokens max_output_tokens previous_response_id conversation \
        instructions metadata system sampling_params image_data query queries text_1 documents items text_2";
    let members: Vec<_> = names.split_whitespace().map(|name| format!("\"{name}\":null")).collect();
    for endpoint in Endpoint::ALL {
        assert_eq!(read(*endpoint, &format!("{{{}}}", members.join(","))).members, members.len());
    }
}

#[test]
fn bad_bodies_of_other_dialects_are_refused() {
    let check = |endpoint: Endpoint, body: &str, param: &str| {
        assert_eq!(peek(endpoint, body.as_bytes(), None).expect_err(body).param, Some(param), "{body}");
    };
    check(Endpoint::Messages, r#"{"metadata":"x"}"#, "metadata");
    check(Endpoint::Messages, r#"{"metadata":{"user_id":1}}"#, "metadata.user_id");
    check(Endpoint::Responses, r#"{"previous_response_id":1}"#, "previous_response_id");
    check(Endpoint::Responses, r#"{"conversation":{"id":1}}"#, "conversation.id");
    check(Endpoint::Responses, r#"{"conversation":1}"#, "conversation");
    check(Endpoint::Responses, r#"{"input":1}"#, "input");
    check(Endpoint::Responses, r#"{"input":[1]}"#, "input");
    assert_eq!(
        peek(Endpoint::Generate, b"{\"a\":\"\xff\"}", None).expect_err("no UTF-8").message,
        "the body is not UTF-8 at byte 6"
    );
}

#[test]
fn strings_are_rendered_alike_however_they_are_escaped() {
    let rendered = |text: &str| render(Endpoint::Generate, &format!(r#"{{"text":"{text}"}}"#));
    let check = |ways: [&str; 2]| assert_eq!(rendered(ways[0]), rendered(ways[1]), "{ways:?}");
    check([r#"a\nb\"c\\d"#, r"a\u000ab\u0022c\u005cd"]);
    check(["/é😀", r"\/\u00e9\ud83d\ude00"]);
    check([r"\\u0041\n", r"\u005cu0041\u000A"]);
    check([r"\u0001\t", r"\u0001\u0009"]);
    assert_ne!(rendered(r"\\n"), rendered(r"\n"));
}

#[test]
fn chat_is_rendered() {
    let check = |body: &str, expected: &str| assert_eq!(render(Endpoint::ChatCompletions, body), expected, "{body}");
    check(
        r#"{"messages":[{"role":"system","content":"be\tkind"},{"content":"hi","role":"user"}]}"#,
        r"§system|be\tkind§user|hi",
    );
    check(
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"text":"b","type":"text"}]}]}"#,
        "§user|a|b",
    );
    check(
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"arguments":"{\"x\":1}","name":"f"}}]},{"role":"tool","tool_call_id":"c1","content":"r1"},{"role":"tool","tool_call_id":"c2","content":"r2"},{"role":"assistant","content":"done"}]}"#,
        "§user|q§assistant|call|f|{\"x\":1}§tool|r1§tool|r2§assistant|done",
    );
    check(
        r#"{"messages":[{"role":"user","content":"q"}],"tools":[{"type":"function","function":{"parameters":{"type":"object"},"description":"d","name":"f"}},{"type":"function","function":{"name":"g"}}]}"#,
        "§tools|tool|f|d|{\"type\":\"object\"}|tool|g§user|q",
    );
    check(
        r#"{"messages":[{"role":"developer","content":"d"},{"role":"user","name":"bob","content":""}]}"#,
        "§system|d",
    );
    check(
        r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}],"cache_salt":"s"}"#,
        "§user|a|b",
    );
    check(
        r#"{"messages":[{"content":"x"},{"role":"assistant","reasoning_content":"hm","content":"y"}]}"#,
        "§user|x§assistant|hm|y",
    );
    check(r#"{"messages":[]}"#, "");
}

#[test]
fn media_are_rendered_by_digest_in_every_dialect_alike() {
    let digest = |data: &str| format!("§user|#{:016x}", xxhash_rust::xxh3::xxh3_64(data.as_bytes()));
    let check = |endpoint: Endpoint, part: &str, data: &str| {
        let list = if endpoint == Endpoint::Responses { "input" } else { "messages" };
        let body = format!(r#"{{"{list}":[{{"role":"user","content":[{part}]}}]}}"#);
        assert_eq!(render(endpoint, &body), digest(data), "{part}");
    };
    check(
        Endpoint::ChatCompletions,
        r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA","detail":"low"}}"#,
        "AAAA",
    );
    check(
        Endpoint::ChatCompletions,
        r#"{"type":"image_url","image_url":{"url":"https:\/\/x/y.png"}}"#,
        "https://x/y.png",
    );
    check(Endpoint::ChatCompletions, r#"{"type":"input_audio","input_audio":{"data":"BBBB","format":"wav"}}"#, "BBBB");
    check(
        Endpoint::Messages,
        r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}"#,
        "AAAA",
    );
    check(
        Endpoint::Messages,
        r#"{"type":"image","source":{"type":"url","url":"https://x/y.png"},"cache_control":{}}"#,
        "https://x/y.png",
    );
    check(Endpoint::Responses, r#"{"type":"input_image","image_url":"data:image/png;base64,AAAA"}"#, "AAAA");
    check(Endpoint::Responses, r#"{"type":"input_file","file_id":"file-1"}"#, "file-1");
    let document =
        r#"{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"text","data":"words"}}]}]}"#;
    assert_eq!(render(Endpoint::Messages, document), "§user|words");
}

#[test]
fn prompts_are_rendered() {
    let check = |endpoint: Endpoint, body: &str, expected: &str| assert_eq!(render(endpoint, body), expected, "{body}");
    check(Endpoint::Completions, r#"{"prompt":"once upon"}"#, "§prompt|once upon");
    check(Endpoint::Completions, r#"{"prompt":["a","b"]}"#, "§prompt|a§prompt|b");
    check(Endpoint::Completions, r#"{"prompt":[1, 22 ,333]}"#, "§prompt|1,22,333,");
    check(Endpoint::Completions, r#"{"prompt":[[1],[2,3],[]]}"#, "§prompt|1,§prompt|2,3,§prompt|");
    check(Endpoint::Completions, r#"{"prompt":[1,[2],"a",-3,{"text":"b"}]}"#, "§prompt|2,§prompt|a§prompt|b");
    check(Endpoint::Completions, "{\"prompt\":[\r\n1,\n 2\t]}", "§prompt|1,2,");
    check(Endpoint::Generate, r#"{"text":"x","sampling_params":{},"lora_path":"l"}"#, "§salt|l§prompt|x");
    check(Endpoint::Generate, r#"{"input_ids":[5,6]}"#, "§prompt|5,6,");
    check(Endpoint::Embeddings, r#"{"input":"e"}"#, "§prompt|e");
    check(Endpoint::Rerank, r#"{"documents":["d",{"text":"e"}],"query":"q"}"#, "§prompt|q§prompt|d§prompt|e");
    check(Endpoint::Score, r#"{"text_1":"q","text_2":["a","b"]}"#, "§prompt|q§prompt|a§prompt|b");
    check(Endpoint::Detokenize, r#"{"tokens":[1,2]}"#, "§prompt|1,2,");
    check(Endpoint::Tokenize, r#"{"messages":[{"role":"user","content":"t"}]}"#, "§user|t");
    check(Endpoint::Transcriptions, r#"{"prompt":"ignored"}"#, "");
}

#[test]
fn one_conversation_is_rendered_alike_in_three_dialects() {
    let chat = r#"{"model":"m","messages":[{"role":"system","content":"sys"},{"role":"user","content":"q"},
        {"role":"assistant","content":"let me see","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
        {"role":"tool","tool_call_id":"c1","content":"42"},{"role":"user","content":"thanks"}],
        "tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}}]}"#;
    let messages = r#"{"model":"m","max_tokens":9,"tools":[{"name":"f","description":"d","input_schema":{"type":"object"},"cache_control":{"type":"ephemeral"}}],
        "system":[{"type":"text","text":"sys","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":[{"type":"text","text":"q"}]},
        {"role":"assistant","content":[{"type":"text","text":"let me see"},{"type":"tool_use","id":"c1","name":"f","input":{"x":1}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":[{"type":"text","text":"42"}]},{"type":"text","text":"thanks"}]}]}"#;
    let responses = r#"{"model":"m","instructions":"sys","input":[{"role":"user","content":"q"},
        {"type":"message","role":"assistant","content":[{"type":"output_text","text":"let me see","annotations":[]}]},
        {"type":"function_call","call_id":"c1","name":"f","arguments":"{\"x\":1}"},{"type":"function_call_output","call_id":"c1","output":"42"},
        {"role":"user","content":[{"type":"input_text","text":"thanks"}]}],
        "tools":[{"type":"function","name":"f","description":"d","parameters":{"type":"object"},"strict":true}]}"#;
    let expected = "§tools|tool|f|d|{\"type\":\"object\"}§system|sys§user|q§assistant|let me see|call|f|{\"x\":1}§tool|42§user|thanks";
    assert_eq!(render(Endpoint::ChatCompletions, chat), expected);
    assert_eq!(render(Endpoint::Messages, messages), expected);
    assert_eq!(render(Endpoint::CountTokens, messages), expected);
    assert_eq!(render(Endpoint::Responses, responses), expected);
    let simple = render(Endpoint::Responses, r#"{"input":"q","instructions":"sys"}"#);
    assert!(expected.ends_with(&expected[expected.find("§system").expect("there")..]) && expected.contains(&simple));
}

#[test]
fn items_of_responses_are_rendered() {
    let check = |item: &str, expected: &str| {
        assert_eq!(render(Endpoint::Responses, &format!(r#"{{"input":[{item}]}}"#)), expected, "{item}");
    };
    check(
        r#"{"type":"reasoning","id":"rs","summary":[{"type":"summary_text","text":"hm"}],"encrypted_content":"zzz"}"#,
        "§assistant|hm",
    );
    check(r#"{"type":"item_reference","id":"msg_1"}"#, "§user|msg_1");
    check(r#"{"type":"custom_tool_call","call_id":"c","name":"sh","input":"ls"}"#, "§assistant|call|sh|ls");
    check(
        r#"{"type":"custom_tool_call_output","call_id":"c","output":[{"type":"input_text","text":"a.rs"}]}"#,
        "§tool|a.rs",
    );
    check(r#"{"type":"unheard_of","x":1}"#, "");
}

/// One turn's messages, in a dialect, with what changes between turns and must not matter.
fn turns(endpoint: Endpoint, dice: &mut Dice) -> Vec<Value> {
    let words = ["short", "a longer\ntext with \"quotes\" and é", "", "\u{1f600}", "x".repeat(3000).leak()];
    let word = |dice: &mut Dice| words[dice.below(words.len())];
    let user = json!({"role": "user", "content": word(dice)});
    let parts = json!({"role": "user", "content": [{"type": "text", "text": word(dice), "cache_control": {"ttl": 1}}, {"type": "text", "text": word(dice)}]});
    let assistant = json!({"role": "assistant", "content": word(dice)});
    match (endpoint, dice.below(3)) {
        (_, 0) => vec![user, assistant],
        (Endpoint::Messages, 1) => vec![
            parts,
            json!({"role": "assistant", "content": [{"type": "thinking", "thinking": word(dice), "signature": "s"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"x": word(dice)}}]}),
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": word(dice)}, {"type": "text", "text": word(dice)}]}),
        ],
        (Endpoint::Responses, 1) => vec![
            json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": word(dice)}),
            json!({"type": "function_call_output", "call_id": "c", "output": word(dice)}),
        ],
        (_, 1) => vec![
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": word(dice)}}]}),
            json!({"role": "tool", "tool_call_id": "c", "content": word(dice)}),
        ],
        _ => vec![parts, assistant, user],
    }
}

/// Without it no later turn would find the cache that an earlier one filled.
#[test]
fn a_later_turn_extends_the_rendering_of_an_earlier_one() {
    let mut dice = Dice(3);
    for round in 0..240 {
        let endpoint = [Endpoint::ChatCompletions, Endpoint::Messages, Endpoint::Responses][round % 3];
        let list = if endpoint == Endpoint::Responses { "input" } else { "messages" };
        let (mut messages, mut before, mut bytes_before) = (Vec::new(), String::new(), 0);
        for turn in 0..6 {
            messages.extend(turns(endpoint, &mut dice));
            // Members are written in the order of their names: "tools" comes after "messages" and after "input".
            let body = json!({list: messages, "model": "m", "stream": turn % 2 == 0, "temperature": turn,
                "tools": [{"name": "f", "description": "d"}], "system": "s", "instructions": "s"});
            let body = body.to_string();
            let text = render(endpoint, &body);
            assert!(text.starts_with(&before), "round {round}, turn {turn}:\n{before}\n{text}");
            let peek = read(endpoint, &body);
            assert!(peek.text_bytes >= bytes_before && peek.text_bytes <= text.len());
            (before, bytes_before) = (text, peek.text_bytes);
        }
    }
}

#[test]
fn a_prompt_that_goes_on_extends_the_rendering() {
    let extends = |endpoint: Endpoint, shorter: &str, longer: &str| {
        assert!(render(endpoint, longer).starts_with(&render(endpoint, shorter)), "{shorter} {longer}");
    };
    extends(Endpoint::Completions, r#"{"prompt":"once"}"#, r#"{"prompt":"once upon"}"#);
    extends(Endpoint::Completions, r#"{"prompt":[1,2]}"#, r#"{"prompt":[1, 2, 33]}"#);
    extends(Endpoint::Generate, r#"{"text":"a\u00e9"}"#, r#"{"text":"aéb"}"#);
    assert!(
        !render(Endpoint::Generate, r#"{"input_ids":[1,23]}"#)
            .starts_with(&render(Endpoint::Generate, r#"{"input_ids":[1,2]}"#))
    );
}

#[test]
fn a_body_of_very_many_parts_costs_bounded_memory() {
    let many = format!("{{\"input\":[{}\"z\"]}}", "\"a\",".repeat(300_000));
    let mut gathered = Gathered::default();
    let mut cursor = Cursor::new(&many[9..many.len() - 1], Numbers::Strict);
    gathered.prompts(Section::Conversation, &mut cursor).expect("sound");
    assert_eq!(gathered.sections().map(<[_]>::len).max(), Some(1 << 16));
    let peek = read(Endpoint::Embeddings, &many);
    assert_eq!((peek.text_bytes, peek.messages_or_input_items), (300_001, 300_001));
}

/// Whatever is accepted is JSON, means to serde what it means to us, and survives an edit.
#[test]
fn mutated_bodies_never_panic_and_are_understood_as_serde_understands_them() {
    let corpus = [
        r#"{"model":"m\n","stream":true,"stream_options":{"include_usage":false},"max_tokens":9,"messages":[{"role":"user","content":[{"type":"text","text":"a\u00e9\ud83d\ude00"},{"type":"image_url","image_url":{"url":"data:x;base64,AA"}}]}],"tools":[{"function":{"name":"f","parameters":{}}}]}"#,
        r#"{"model":"m","system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"text":"x"}]}]},{"role":"assistant","content":[{"type":"tool_use","name":"f","input":{"a":[1,2]}}]}],"metadata":{"user_id":"u"}}"#,
        r#"{"input":[{"type":"function_call","name":"f","arguments":"{}"},{"type":"reasoning","summary":[]}],"instructions":"i","previous_response_id":"r","conversation":{"id":"c"}}"#,
        r#"{"text":["a","b"],"input_ids":[[1,2],[3]],"sampling_params":{"max_new_tokens":5},"prompt":[1,2],"query":"q","documents":[{"text":"d"}]}"#,
    ];
    let mut dice = Dice(5);
    testing::mutations(&corpus, 20_000, |input| {
        for _ in 0..4 {
            let endpoint = Endpoint::ALL[dice.below(Endpoint::ALL.len())];
            let mut text_len = 0;
            let Ok(peek) = peek(endpoint, input, Some(&mut |piece| text_len += piece.len())) else { continue };
            assert!(peek.text_bytes <= text_len && text_len <= 8 * input.len(), "{}", input.escape_ascii());
            let body = str::from_utf8(input).expect("accepted bodies are UTF-8");
            assert_eq!(&input[peek.object_end..=peek.object_end], b"}");
            serde_json::from_slice::<serde::de::IgnoredAny>(input).expect("accepted bodies are JSON");
            let Ok(value) = serde_json::from_slice::<Value>(input) else { continue };
            let model = peek.model.as_ref().map(|model| &*model.value);
            assert_eq!(model, value["model"].as_str(), "{body}");
            assert_eq!(peek.members == 0, value.as_object().is_some_and(serde_json::Map::is_empty), "{body}");
            if let Some(model) = &peek.model {
                let edited = edited(input, &peek, model.span.clone());
                assert_eq!((&edited["model"], &edited["added"]), (&json!("new"), &json!(1)), "{body}");
            }
        }
    });
}

fn edited(body: &[u8], peek: &Peek<'_>, model: Range<usize>) -> Value {
    use crate::edit::{Edit, apply};
    let mut edits = vec![Edit::insert_member(peek, "added", "1"), Edit::replace_string(model, "new")];
    serde_json::from_slice(&apply(body, &mut edits)).expect("an edited body is JSON")
}

#[test]
fn the_ids_of_a_prompt_are_read_if_they_are_all_there_is() {
    let ids = |endpoint: Endpoint, body: &str| {
        let peek = read(endpoint, body);
        let ids = peek.tokens.and_then(|tokens| tokens.read());
        assert!(ids.as_ref().is_none_or(|ids| ids.len() == peek.token_ids), "{body}");
        ids
    };
    use Endpoint::{Completions, Generate};
    assert_eq!(ids(Completions, r#"{"prompt":[1, 2 ,3]}"#), Some(vec![1, 2, 3]));
    assert_eq!(ids(Completions, r#"{"prompt":[ [4294967295,0] ]}"#), Some(vec![u32::MAX, 0]));
    assert_eq!(ids(Generate, r#"{"input_ids":[7]}"#), Some(vec![7]));
    assert_eq!(ids(Generate, r#"{"input_ids":[[7,8]],"lora_path":"a"}"#), Some(vec![7, 8]));
    for body in [
        r#"{"prompt":[4294967296]}"#,
        r#"{"prompt":[1.0]}"#,
        r#"{"prompt":[-1]}"#,
        r#"{"prompt":[]}"#,
        r#"{"prompt":[[]]}"#,
        r#"{"prompt":[[1],[2]]}"#,
        r#"{"prompt":[[1],["a"]]}"#,
        r#"{"prompt":["a",[1]]}"#,
        r#"{"prompt":"1,2"}"#,
        r#"{"prompt":[1],"text":"a"}"#,
    ] {
        assert_eq!(ids(Completions, body), None, "{body}");
    }
    for body in [
        r#"{"input_ids":[1],"text":"a"}"#,
        r#"{"text":"a","input_ids":[1]}"#,
        r#"{"input_ids":[1],"image_data":["x"]}"#,
    ] {
        assert_eq!(ids(Generate, body), None, "{body}");
    }
}

#[test]
fn what_keeps_caches_apart_is_told() {
    let peek = read(Endpoint::ChatCompletions, r#"{"messages":[],"cache_salt":"a\u0062","lora_path":"l"}"#);
    assert_eq!((peek.cache_salt.as_deref(), peek.adapter.as_deref()), (Some("ab"), Some("l")));
    let peek = read(Endpoint::ChatCompletions, r#"{"messages":[],"cache_salt":7,"lora_path":null}"#);
    assert_eq!((peek.cache_salt, peek.adapter), (None, None));
}
