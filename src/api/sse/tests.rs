use super::*;
use crate::testing::{self, Dice};

/// vLLM's chat with `include_usage`.
const CHAT: &str = concat!(
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hel\\nlo é\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":3,\"total_tokens\":15,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n",
    "data: [DONE]\n\n",
);

const COMPLETION: &str = concat!(
    "data:{\"id\":\"cmpl-1\",\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}]}\r\n\r\n",
    ": keep-alive\r\n",
    "data:{\"id\":\"cmpl-1\",\"choices\":[{\"index\":1,\"text\":\"b\",\"finish_reason\":\"length\"}]}\r\n\r\n",
    "data:{\"id\":\"cmpl-1\",\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\r\n\r\n",
    "data:[DONE]\r\n\r\n",
);

const MESSAGES: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":100,\"cache_creation_input_tokens\":0,\"output_tokens\":1}}}\n\n",
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
    "event: ping\ndata: {\"type\": \"ping\"}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n",
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"input_tokens\":0,\"output_tokens\":15}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
);

const RESPONSES: &str = concat!(
    "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"status\":\"in_progress\",\"error\":null,\"usage\":null}}\n\n",
    "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"delta\":\"Hi\",\"sequence_number\":4}\n\n",
    "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":5,\"response\":{\"id\":\"resp_1\",\"status\":\"completed\",\"error\":null,\"output\":[{\"id\":\"msg_1\",\"type\":\"message\"}],\"usage\":{\"input_tokens\":37,\"input_tokens_details\":{\"cached_tokens\":32},\"output_tokens\":11,\"total_tokens\":48}}}\n\n",
);

const GENERATE: &str = concat!(
    "data: {\"text\": \" a\", \"output_ids\": [5], \"meta_info\": {\"id\": \"g1\", \"finish_reason\": null, \"prompt_tokens\": 5, \"completion_tokens\": 1, \"cached_tokens\": 2}}\n\n",
    "data: {\"text\": \" a b\", \"meta_info\": {\"id\": \"g1\", \"finish_reason\": {\"type\": \"length\", \"length\": 2}, \"prompt_tokens\": 5, \"completion_tokens\": 2, \"cached_tokens\": 2, \"x\": [-Infinity]}}\n\n",
    "data: [DONE]\n\n",
);

/// Events that differ in what a template leaves open, and some that nearly do.
const ALIKE: &str = concat!(
    "data: {\"id\":\"c\",\"created\":1,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"c\",\"created\":12,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\\"é\"},\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"c\",\"created\":2,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"id\":\"c\",\"created\":2,\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"},\"finish_reason\":null}]}\n\n",
    "event: x.delta\ndata: {\"sequence_number\":7,\"delta\":\"\",\"obfuscation\":\"zz\"}\n\n",
    "event: x.delta\ndata: {\"sequence_number\":18,\"delta\":\"y\\u00e9\",\"obfuscation\":\"\"}\n\n",
    "event: x.delta\ndata: {\"sequence_number\":19,\"delta\":\"y\",\"obfuscation\":\"q\"}\n\n",
);

/// What is known once a stream is over.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    events: u64,
    complete: usize,
    content: bool,
    terminal: Option<Terminal>,
    finished: bool,
    usage: Option<Usage>,
    id: Option<String>,
    reason: Option<String>,
    garbage: Option<Garbage>,
    usage_only: Vec<Range<usize>>,
}

/// Scans `stream` in pieces of the lengths that `next_len` gives.
fn scan(endpoint: Endpoint, stream: &[u8], next_len: impl FnMut() -> usize) -> Seen {
    scan_with(endpoint, stream, next_len, |_| {})
}

/// The same; `meddle` gets at the scanner before each piece.
fn scan_with(
    endpoint: Endpoint,
    stream: &[u8],
    mut next_len: impl FnMut() -> usize,
    meddle: impl Fn(&mut Scanner),
) -> Seen {
    let mut scanner = Scanner::new(endpoint);
    let (mut complete, mut content, mut events, mut garbage) = (0, false, 0, None);
    let mut usage_only = Vec::new();
    let mut rest = stream;
    let mut note = |scanned: Scanned| {
        usage_only.extend(scanned.usage_only.map(|span| complete + span.start..complete + span.end));
        complete += scanned.complete;
        content |= scanned.content;
        events += u64::from(scanned.events);
        scanned.garbage
    };
    while !rest.is_empty() && garbage.is_none() {
        let (chunk, tail) = rest.split_at(next_len().clamp(1, rest.len()));
        meddle(&mut scanner);
        garbage = scanner.push(chunk).map_or_else(Some, &mut note);
        rest = tail;
    }
    let finished = scanner.is_finished();
    if garbage.is_none() {
        garbage = scanner.finish().map_or_else(Some, &mut note);
    }
    assert_eq!(scanner.events_total(), events);
    Seen {
        events,
        complete,
        content,
        terminal: scanner.terminal(),
        finished,
        usage: scanner.usage(),
        id: scanner.response_id().map(str::to_owned),
        reason: scanner.finish_reason().map(str::to_owned),
        garbage,
        usage_only,
    }
}

fn whole(endpoint: Endpoint, stream: &str) -> Seen {
    let seen = scan(endpoint, stream.as_bytes(), || usize::MAX);
    for len in [1, 2, 3, 5, 17, 100, 1000] {
        assert_eq!(scan(endpoint, stream.as_bytes(), || len), seen, "by {len}");
    }
    seen
}

fn usage(input_tokens: u64, output_tokens: u64, cached_tokens: Option<u64>) -> Option<Usage> {
    Some(Usage { input_tokens, output_tokens, cached_tokens })
}

#[test]
fn streams_of_every_dialect_are_read() {
    let check = |endpoint: Endpoint, stream: &str, events: u64, usage: Option<Usage>, id: &str, reason: &str| {
        let seen = whole(endpoint, stream);
        assert_eq!(seen.complete, stream.len());
        assert_eq!(
            (seen.terminal, seen.finished, seen.content, seen.garbage),
            (Some(Terminal::Done), true, true, None)
        );
        assert_eq!((seen.events, seen.usage), (events, usage));
        assert_eq!((seen.id.as_deref(), seen.reason.as_deref()), (Some(id), Some(reason)));
    };
    check(Endpoint::ChatCompletions, CHAT, 5, usage(12, 3, Some(8)), "chatcmpl-1", "stop");
    check(Endpoint::Completions, COMPLETION, 4, None, "cmpl-1", "stop");
    check(Endpoint::Messages, MESSAGES, 7, usage(125, 15, Some(100)), "msg_1", "end_turn");
    check(Endpoint::Responses, RESPONSES, 3, usage(37, 11, Some(32)), "resp_1", "completed");
    check(Endpoint::Generate, GENERATE, 3, usage(5, 2, Some(2)), "g1", "length");
}

#[test]
fn whether_something_was_generated() {
    let check = |data: &str, expected: bool| {
        let seen = whole(Endpoint::ChatCompletions, &format!("data: {data}\n\n"));
        assert_eq!((seen.content, seen.garbage), (expected, None), "{data}");
    };
    let delta = |delta: &str| format!("{{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}");
    check(&delta("{\"role\":\"assistant\",\"content\":\"\"}"), false);
    check(&delta("{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[],\"refusal\":null}"), false);
    check(&delta("{\"content\":\"x\"}"), true);
    check(&delta("{\"content\":\"\",\"reasoning_content\":\"hm\"}"), true);
    check(&delta("{\"reasoning\":\"hm\"}"), true);
    check(&delta("{\"tool_calls\":[{\"index\":0}]}"), true);
    check(&delta("null"), false);
    check("{\"choices\":[{\"text\":\"\"}]}", false);
    check("{\"choices\":[{\"text\":\"x\"}]}", true);
    check("{\"type\":\"content_block_delta\",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\"}}", true);
    check("{\"type\":\"content_block_start\",\"content_block\":{\"type\":\"text\",\"text\":\"\"}}", false);
    check("{\"type\":\"response.function_call_arguments.delta\",\"delta\":\"{\"}", true);
    check("{\"type\":\"response.output_item.added\",\"item\":{}}", false);
    check("{\"text\":\"\",\"meta_info\":{}}", false);
    check("{\"output_ids\":[1],\"meta_info\":{}}", true);
    check("[1,2]", false);
}

#[test]
fn how_a_stream_ends() {
    let check = |stream: &str, terminal: Option<Terminal>, finished: bool| {
        let seen = whole(Endpoint::ChatCompletions, stream);
        assert_eq!((seen.terminal, seen.finished, seen.garbage), (terminal, finished, None), "{stream:?}");
    };
    let (done, failed) = (Some(Terminal::Done), Some(Terminal::Failed));
    check("data: [DONE]\n\n", done, true);
    check("data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n", failed, true);
    check("data: {\"error\":null,\"choices\":[]}\n\n", None, false);
    check("data: {\"object\":\"error\",\"message\":\"x\",\"code\":500}\n\n", failed, true);
    check("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n", failed, true);
    check("event: error\ndata: {\"message\":\"x\"}\n\n", failed, true);
    check("data: {\"type\":\"error\",\"code\":\"x\",\"message\":\"x\",\"sequence_number\":3}\n\n", failed, true);
    check("data: {\"type\":\"response.failed\",\"response\":{\"id\":\"r\",\"status\":\"failed\"}}\n\n", failed, true);
    check("data: {\"type\":\"response.incomplete\",\"response\":{\"status\":\"incomplete\"}}\n\n", done, true);
    check("event: message_stop\ndata: {}\n\n", done, true);
    check("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n", None, false);
    check("data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n", None, true);
    check("data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"},{\"index\":1,\"delta\":{}}]}\n\n", None, false);
    check("data: {\"text\":\"x\",\"index\":1,\"meta_info\":{\"finish_reason\":null}}\n\n", None, false);
    check("data: {\"text\":\"x\",\"meta_info\":{\"finish_reason\":{\"type\":\"stop\"}}}\n\n", None, true);
    check(": nothing\n\n", None, false);
    check("", None, false);
}

#[test]
fn the_last_blank_line_may_be_missing() {
    let check = |stream: &str, complete: usize, terminal: Option<Terminal>, garbage: Option<Garbage>| {
        let seen = whole(Endpoint::ChatCompletions, stream);
        assert_eq!((seen.complete, seen.terminal, seen.garbage), (complete, terminal, garbage), "{stream:?}");
    };
    let done = Some(Terminal::Done);
    check("data: [DONE]", 12, done, None);
    check("data: [DONE]\n", 13, done, None);
    check("data: [DONE]\r\n", 14, done, None);
    check("data: {}\n\ndata: [DONE]", 22, done, None);
    check("data: {}\n\ndata: {\"a\":", 10, None, Some(Garbage::Cut));
    check("data: {}\n\ndat", 10, None, Some(Garbage::Cut));
}

#[test]
fn garbage_is_named_and_what_came_before_it_counts() {
    let check = |stream: &str, events: u64, garbage: Garbage| {
        let seen = scan(Endpoint::ChatCompletions, stream.as_bytes(), || usize::MAX);
        assert_eq!((seen.events, seen.garbage, seen.finished), (events, Some(garbage), false), "{stream:?}");
        let byte_by_byte = scan(Endpoint::ChatCompletions, stream.as_bytes(), || 1);
        assert_eq!((byte_by_byte.events, byte_by_byte.complete), (events, seen.complete), "{stream:?}");
        assert!(byte_by_byte.garbage.is_some());
    };
    let good = "data: {}\n\ndata: {}\n\n";
    check("<html><body>Bad gateway", 0, Garbage::UnknownField);
    check("{\"id\":\"x\",\"choices\":[]}", 0, Garbage::UnknownField);
    check(&format!("{good}\0\0\0"), 2, Garbage::UnknownField);
    check(&format!("{good}data: hello"), 2, Garbage::NotJson);
    check(&format!("{good}data: {{\"a\":}}\n\n"), 2, Garbage::NotJson);
    check(&format!("{good}data: {{\"a\":\"\u{1}\"}}\n\n"), 2, Garbage::NotJson);
    check(&format!("{good}data: {{\"a\":1}}}}\n\n"), 2, Garbage::NotJson);
    check(&format!("{good}data: {{\"a\":1}}\rdata: [DONE]\n\n"), 2, Garbage::LoneCarriageReturn);
    check(&format!("{good}data: {}\n\n", "[".repeat(200)), 2, Garbage::NotJson);
    check(&format!("{good}{}", "id: 1\n".repeat(300)), 2, Garbage::TooLong);
    check("datum: {}\n\n", 0, Garbage::UnknownField);
}

#[test]
fn bytes_that_are_not_utf8_are_garbage() {
    let seen = scan(Endpoint::ChatCompletions, b"data: {\"a\":\"\xff\"}\n\n", || usize::MAX);
    assert_eq!(seen.garbage, Some(Garbage::NotUtf8));
}

#[test]
fn what_is_held_is_bounded() {
    let check = |endpoint: Endpoint, bytes: usize, expected: Option<Garbage>| {
        let mut scanner = Scanner::new(endpoint);
        let mut chunk = b"data: {\"a\":\"".to_vec();
        chunk.resize(1 << 16, b'x');
        let mut pushed = 0;
        let mut got = None;
        while pushed < bytes && got.is_none() {
            got = scanner.push(&chunk).err();
            chunk.fill(b'x');
            pushed += chunk.len();
        }
        assert_eq!(got, expected, "{endpoint:?}");
        assert!(scanner.push(b"\n\n").is_err());
    };
    check(Endpoint::ChatCompletions, 2 << 20, Some(Garbage::TooLong));
    check(Endpoint::ChatCompletions, 1 << 19, None);
    check(Endpoint::Responses, 4 << 20, None);
    check(Endpoint::Responses, 32 << 20, Some(Garbage::TooLong));
}

#[test]
fn garbage_is_final() {
    let mut scanner = Scanner::new(Endpoint::ChatCompletions);
    let scanned = scanner.push(b"data: {}\n\ngarbage\n").expect("one good event");
    assert_eq!((scanned.complete, scanned.garbage), (10, Some(Garbage::UnknownField)));
    assert_eq!(scanner.push(b"data: [DONE]\n\n"), Err(Garbage::UnknownField));
    assert_eq!(scanner.finish(), Err(Garbage::UnknownField));
    assert!(!scanner.is_at_boundary() && !scanner.is_finished());
}

#[test]
fn the_usage_chunk_is_pointed_out() {
    let seen = whole(Endpoint::ChatCompletions, CHAT);
    let [span] = &seen.usage_only[..] else { panic!("{:?}", seen.usage_only) };
    let event = &CHAT[span.clone()];
    assert!(event.starts_with("data: {") && event.contains("\"choices\":[],\"usage\":{") && event.ends_with("}\n\n"));
    for stream in [COMPLETION, MESSAGES, RESPONSES, GENERATE] {
        assert_eq!(whole(Endpoint::ChatCompletions, stream).usage_only, []);
    }
}

#[test]
fn comments_pass_at_once_and_partial_events_wait() {
    let mut scanner = Scanner::new(Endpoint::ChatCompletions);
    let mut push = |chunk: &str| {
        let scanned = scanner.push(chunk.as_bytes()).expect("no garbage");
        (scanned.complete, scanned.events, scanner.is_at_boundary())
    };
    assert_eq!(push(": ping\n"), (7, 0, true));
    assert_eq!(push("\n"), (1, 0, true));
    assert_eq!(push("data: {}\n"), (0, 0, false));
    assert_eq!(push(": inside\n"), (0, 0, false));
    assert_eq!(push("\ndata: "), (19, 1, false));
    assert_eq!(push("{}\n\n"), (10, 1, true));
    assert_eq!(push("data:\n\n"), (7, 0, true));
    assert_eq!(push("id: 1\nretry: 10\nevent\ndata: {\"a\":\ndata: 1}\n\n"), (44, 1, true));
}

#[test]
fn an_event_of_many_lines_is_one_document() {
    let pretty = "data: {\ndata:  \"id\": \"x\",\ndata:  \"choices\": [\ndata:  ]\ndata: }\n\n";
    let seen = whole(Endpoint::ChatCompletions, pretty);
    assert_eq!((seen.events, seen.id.as_deref(), seen.garbage), (1, Some("x"), None));
}

#[test]
fn buffers_of_long_events_are_given_back() {
    let mut scanner = Scanner::new(Endpoint::ChatCompletions);
    let long = format!("data: {{\"a\":\"{}\"}}\n\n", "x".repeat(200_000));
    scanner.push(&long.as_bytes()[..100_000]).expect("a part");
    scanner.push(&long.as_bytes()[100_000..]).expect("the rest");
    assert_eq!(scanner.held.capacity(), 0);
}

/// The property that lets a relay read whatever the network gives it.
#[test]
fn any_chunking_gives_the_same_result() {
    let mut dice = Dice(7);
    let all = [CHAT, COMPLETION, MESSAGES, RESPONSES, GENERATE];
    for round in 0..2_000 {
        let stream = all[dice.below(all.len())];
        let expected = scan(Endpoint::ChatCompletions, stream.as_bytes(), || usize::MAX);
        let longest = 1 + dice.below(400);
        let seen = scan(Endpoint::ChatCompletions, stream.as_bytes(), || 1 + dice.below(longest));
        assert_eq!(seen, expected, "round {round}");
    }
}

#[test]
fn mutated_streams_never_panic_and_chunking_does_not_matter() {
    let mut dice = Dice(11);
    testing::mutations(&[CHAT, COMPLETION, MESSAGES, RESPONSES, GENERATE, ALIKE, ALIKE], 20_000, |input| {
        let expected = scan(Endpoint::Messages, input, || usize::MAX);
        let longest = 1 + dice.below(300);
        let pieces = scan(Endpoint::Messages, input, || 1 + dice.below(longest));
        let no_template = scan_with(
            Endpoint::Messages,
            input,
            || 1 + dice.below(longest),
            |scanner| scanner.template = Template::default(),
        );
        for mut seen in [pieces, no_template] {
            assert_eq!(seen.garbage.is_some(), expected.garbage.is_some(), "{}", input.escape_ascii());
            if seen.garbage.is_some() {
                // Which of two wrongs is noticed first depends on where the pieces end; that there is one does not.
                (seen.garbage, seen.finished) = (expected.garbage, expected.finished);
            }
            assert_eq!(seen, expected, "{}", input.escape_ascii());
        }
        // What is let through is what a client's parser takes.
        assert!(expected.complete <= input.len());
        assert!(reads_like_a_client(&input[..expected.complete]), "{}", input.escape_ascii());
    });
}

#[test]
fn events_like_the_one_before_are_compared_with_it() {
    let mut scanner = Scanner::new(Endpoint::ChatCompletions);
    let event = |created: &str, content: &str| {
        format!(
            "data: {{\"id\":\"c\",\"created\":{created},\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{content}}}}}]}}\n\n"
        )
    };
    scanner.push(event("1", "\"\"").as_bytes()).expect("an event");
    let check = |created: &str, content: &str, expected: Option<bool>| {
        let event = event(created, content);
        let fit = scanner.template.fit(event.as_bytes());
        assert_eq!(fit.map(|fit| (fit.len, fit.content)), expected.map(|content| (event.len(), content)), "{event}");
    };
    check("17", "\"a\\n\\u00e9é\"", Some(true));
    check("0", "\"\"", Some(false));
    check("017", "\"a\"", None);
    check("1.7", "\"a\"", None);
    check("", "\"a\"", None);
    check("-1", "\"a\"", None);
    check("1", "null", None);
    check("1", "\"a\\x\"", None);
    check("1", "\"a\tb\"", None);
    check("1", "\"a\"}},{{\"x\":{{\"y\":\"b\"", None);
    assert_eq!(scanner.template.fit(&event("1", "\"a\"").as_bytes()[..60]), None);
    assert_eq!(
        scanner.template.fit(&event("1", "\"a\"").replace("\"a", "\"\u{7f}").into_bytes()).map(|fit| fit.content),
        Some(true)
    );
    let mut broken = event("1", "\"ab\"").into_bytes();
    let at = broken.iter().position(|byte| *byte == b'b').expect("there");
    broken[at] = 0xff;
    assert_eq!(scanner.template.fit(&broken), None);
}

/// The relay's promise of a cheap event.
#[test]
fn whole_events_cost_no_allocation() {
    let mut scanner = Scanner::new(Endpoint::ChatCompletions);
    let mut push = |stream: &str| {
        let allocations = allocation_counter::measure(|| drop(scanner.push(stream.as_bytes())));
        allocations.count_total
    };
    push(CHAT);
    push(ALIKE);
    assert_eq!([push(ALIKE), push(COMPLETION), push(GENERATE)].map(|count| count <= 8), [true; 3]);
    let plain = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":1}}\n\n"
        .repeat(100);
    assert_eq!(push(&plain), 0);
}

/// Every event of `stream` has data that Python's `json.loads` takes, or the mark of the end, or none.
fn reads_like_a_client(stream: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(stream) else { return false };
    let text = text.replace("\r\n", "\n");
    text.split("\n\n").all(|event| {
        let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
        let data = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n");
        let data = data.trim();
        let strict = data.replace("-Infinity", "0").replace("Infinity", "0").replace("NaN", "0");
        data.is_empty() || data.starts_with("[DONE]") || serde_json::from_str::<serde::de::IgnoredAny>(&strict).is_ok()
    })
}
