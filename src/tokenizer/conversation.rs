//! From the body of a request to what a chat template is given, as vLLM does it: contents in the form that the template
//! wants, the arguments of tool calls as values and not as strings, tools with all their members.

use minijinja::{Value, value::ValueKind};

use crate::{Form, SpecialTokens, content::ContentFormat, member};

/// Put after the last message where that is to be continued; all from here on is then cut off.
pub(crate) const FINAL_MESSAGE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A chat as templates take it.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Option<Value>,
    pub(crate) documents: Option<Value>,
    pub(crate) add_generation_prompt: bool,
    /// The text of the last message, if the model is to go on with it.
    pub(crate) continued: Option<String>,
    /// `chat_template_kwargs`.
    pub(crate) variables: Vec<(String, Value)>,
    /// Whether the text is encoded with the tokens that begin and end one; a template writes them itself.
    pub(crate) special_tokens: SpecialTokens,
}

/// A prompt that is encoded as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    pub(crate) special_tokens: SpecialTokens,
}

/// The body holds something of which it is not known here what an engine makes of it: media, a template of its own, or what
/// the engine will refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an engine may make something else of this than is known here")]
pub struct NotCovered;

/// Members of a body that change its tokens in ways that are not followed here.
const NOT_FOLLOWED: [&str; 5] =
    ["chat_template", "truncate_prompt_tokens", "prompt_embeds", "mm_processor_kwargs", "input_embeds"];

/// Variables that a caller cannot set.
const RESERVED: [&str; 5] = ["messages", "conversation", "tools", "chat_template", "tokenize"];

impl Chat {
    /// The chat in a body. `content_format` says in which form contents are wanted, with tools or without; it gives nothing where
    /// there is no template.
    pub(crate) fn of_body(
        body: &[u8],
        content_format: impl FnOnce(Option<&Value>) -> Option<ContentFormat>,
    ) -> Result<Self, NotCovered> {
        let body = object(body)?;
        let add_generation_prompt = flag(&body, "add_generation_prompt")?.unwrap_or(true);
        let continues = flag(&body, "continue_final_message")?.unwrap_or(false);
        if continues && add_generation_prompt {
            return Err(NotCovered);
        }
        let tools = tools(&body)?;
        let format = content_format(tools.as_ref()).ok_or(NotCovered)?;
        let mut chat = Self {
            messages: items(&member(&body, "messages").ok_or(NotCovered)?)?
                .iter()
                .map(|given| message(given, format))
                .collect::<Result<_, _>>()?,
            tools,
            documents: member(&body, "documents"),
            add_generation_prompt,
            continued: None,
            variables: variables(&body)?,
            special_tokens: special_tokens(&body, SpecialTokens::Left)?,
        };
        if chat.messages.is_empty() {
            return Err(NotCovered);
        }
        if continues {
            chat.mark_final_message()?;
        }
        Ok(chat)
    }

    fn mark_final_message(&mut self) -> Result<(), NotCovered> {
        let last = self.messages.last_mut().ok_or(NotCovered)?;
        let content = member(last, "content").ok_or(NotCovered)?;
        let marked = |text: &str| Value::from(format!("{text}{FINAL_MESSAGE_TAG}"));
        let (content, text) = match content.as_str() {
            Some(text) => (marked(text), text.to_owned()),
            None => {
                let mut parts = items(&content)?;
                let is_text = |part: &Value| member(part, "text").is_some();
                let part = parts.iter_mut().rev().find(|part| is_text(part)).ok_or(NotCovered)?;
                let text = member(part, "text").and_then(|text| text.as_str().map(str::to_owned)).ok_or(NotCovered)?;
                *part = with(part, "text", marked(&text));
                (Value::from(parts), text)
            }
        };
        *last = with(last, "content", content);
        self.continued = Some(text);
        Ok(())
    }
}

/// The prompt of a body that gives one as text.
pub(crate) fn prompt_of(form: Form, body: &[u8]) -> Result<Prompt, NotCovered> {
    let body = object(body)?;
    let name = if form == Form::Generate { "text" } else { "prompt" };
    let given = member(&body, name).ok_or(NotCovered)?;
    let media = ["image_data", "video_data", "audio_data"];
    if media.iter().any(|name| member(&body, name).is_some()) {
        return Err(NotCovered);
    }
    // Several prompts are several requests to the engine.
    let only = match given.kind() {
        ValueKind::Seq if given.len() == Some(1) => given.get_item_by_index(0).map_err(|_| NotCovered)?,
        _ => given,
    };
    let text = only.as_str().ok_or(NotCovered)?.to_owned();
    Ok(Prompt { text, special_tokens: special_tokens(&body, SpecialTokens::Added)? })
}

/// The body, if it is an object and nothing in it is beyond this crate.
fn object(body: &[u8]) -> Result<Value, NotCovered> {
    let body: Value = serde_json::from_slice(body).map_err(|_| NotCovered)?;
    let is_followed = NOT_FOLLOWED.iter().all(|name| member(&body, name).is_none());
    if body.kind() == ValueKind::Map && is_followed { Ok(body) } else { Err(NotCovered) }
}

fn flag(body: &Value, name: &str) -> Result<Option<bool>, NotCovered> {
    match member(body, name) {
        Some(value) if value.kind() == ValueKind::Bool => Ok(Some(value.is_true())),
        Some(_) => Err(NotCovered),
        None => Ok(None),
    }
}

fn special_tokens(body: &Value, usual: SpecialTokens) -> Result<SpecialTokens, NotCovered> {
    let added = |added| if added { SpecialTokens::Added } else { SpecialTokens::Left };
    Ok(flag(body, "add_special_tokens")?.map_or(usual, added))
}

fn items(list: &Value) -> Result<Vec<Value>, NotCovered> {
    if list.kind() != ValueKind::Seq {
        return Err(NotCovered);
    }
    Ok(list.try_iter().map_err(|_| NotCovered)?.collect())
}

/// The members of an object, in order.
fn members(object: &Value) -> Result<Vec<(String, Value)>, NotCovered> {
    if object.kind() != ValueKind::Map {
        return Err(NotCovered);
    }
    let keys = object.try_iter().map_err(|_| NotCovered)?;
    keys.map(|key| {
        let value = object.get_item(&key).map_err(|_| NotCovered)?;
        Ok((key.as_str().ok_or(NotCovered)?.to_owned(), value))
    })
    .collect()
}

/// An object with one member replaced, where it stands.
fn with(object: &Value, name: &str, value: Value) -> Value {
    let mut all = members(object).unwrap_or_default();
    match all.iter_mut().find(|(found, _)| found == name) {
        Some((_, old)) => *old = value,
        None => all.push((name.to_owned(), value)),
    }
    Value::from_pairs(all)
}

fn variables(body: &Value) -> Result<Vec<(String, Value)>, NotCovered> {
    let mut variables = match member(body, "chat_template_kwargs") {
        Some(given) => members(&given)?,
        None => Vec::new(),
    };
    if variables.iter().any(|(name, _)| RESERVED.contains(&name.as_str())) {
        return Err(NotCovered);
    }
    if let Some(effort) = member(body, "reasoning_effort") {
        variables.retain(|(name, _)| name != "reasoning_effort");
        variables.push(("reasoning_effort".to_owned(), effort));
    }
    Ok(variables)
}

/// The tools as the engine's own types write them: those of its members that were not given are null, and what it does not
/// know comes last.
fn tools(body: &Value) -> Result<Option<Value>, NotCovered> {
    let Some(given) = member(body, "tools") else { return Ok(None) };
    let tool = |tool: &Value| {
        let function = member(tool, "function").ok_or(NotCovered)?;
        let described = in_order(&function, &["name", "description", "parameters"])?;
        let whole = with(tool, "function", described);
        in_order(&with(&whole, "type", Value::from("function")), &["type", "function"])
    };
    let tools = items(&given)?.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Value::from(tools)))
}

/// An object with the members named first, null if they are missing.
fn in_order(object: &Value, first: &[&str]) -> Result<Value, NotCovered> {
    let given = members(object)?;
    let value = |name: &&str| (name.to_string(), member(object, name).unwrap_or(Value::from(())));
    let rest = given.into_iter().filter(|(name, _)| !first.contains(&name.as_str()));
    Ok(Value::from_pairs(first.iter().map(value).chain(rest)))
}

fn message(given: &Value, format: ContentFormat) -> Result<Value, NotCovered> {
    let text = |name: &str| member(given, name).and_then(|value| value.as_str().map(str::to_owned));
    let role = text("role").ok_or(NotCovered)?;
    let mut out = vec![
        ("role".to_owned(), Value::from(role.as_str())),
        ("content".to_owned(), content(member(given, "content").as_ref(), format)?),
    ];
    let mut put = |name: &str, value: Value| out.push((name.to_owned(), value));
    match role.as_str() {
        "assistant" => {
            if let Some(calls) = member(given, "tool_calls") {
                let calls = items(&calls)?.iter().map(tool_call).collect::<Result<Vec<_>, _>>()?;
                if !calls.is_empty() {
                    put("tool_calls", Value::from(calls));
                }
            }
            if let Some(reasoning) = text("reasoning").or_else(|| text("reasoning_content")) {
                put("reasoning", Value::from(reasoning.as_str()));
                put("reasoning_content", Value::from(reasoning));
            }
        }
        "tool" => {
            if let Some(id) = member(given, "tool_call_id") {
                put("tool_call_id", id);
            }
        }
        // Its tools are put in differently by different engines.
        "developer" if member(given, "tools").is_some() => return Err(NotCovered),
        _ => {}
    }
    if let Some(name) = text("name") {
        put("name", Value::from(name));
    }
    let message = Value::from_pairs(out);
    if role != "tool" {
        return Ok(message);
    }
    // Templates take what a tool returned for a string.
    let texts = content_texts(member(given, "content").as_ref())?;
    Ok(with(&message, "content", Value::from(texts.join("\n"))))
}

fn content(given: Option<&Value>, format: ContentFormat) -> Result<Value, NotCovered> {
    let texts = content_texts(given)?;
    Ok(match format {
        ContentFormat::String => Value::from(texts.join("\n")),
        ContentFormat::Parts => {
            let part = |text: String| Value::from_pairs([("type", Value::from("text")), ("text", Value::from(text))]);
            Value::from(texts.into_iter().map(part).collect::<Vec<_>>())
        }
    })
}

/// The texts of a content's parts. Anything but text is not covered.
fn content_texts(given: Option<&Value>) -> Result<Vec<String>, NotCovered> {
    let Some(given) = given else { return Ok(Vec::new()) };
    if let Some(text) = given.as_str() {
        return Ok(vec![text.to_owned()]);
    }
    items(given)?.iter().map(part_text).collect()
}

fn part_text(part: &Value) -> Result<String, NotCovered> {
    if let Some(text) = part.as_str() {
        return Ok(text.to_owned());
    }
    let kind = member(part, "type").ok_or(NotCovered)?;
    let name = match kind.as_str() {
        Some("text" | "input_text" | "output_text") => "text",
        Some("refusal") => "refusal",
        Some("thinking") => "thinking",
        _ => return Err(NotCovered),
    };
    member(part, name).and_then(|text| text.as_str().map(str::to_owned)).ok_or(NotCovered)
}

/// A tool call whose arguments are values; templates write them in their own way.
fn tool_call(call: &Value) -> Result<Value, NotCovered> {
    let function = member(call, "function").ok_or(NotCovered)?;
    let empty = || Value::from_pairs::<_, String, Value>([]);
    let arguments = match member(&function, "arguments") {
        Some(arguments) => match arguments.as_str() {
            Some(text) => serde_json::from_str(text).unwrap_or_else(|_| empty()),
            None if matches!(arguments.kind(), ValueKind::Map | ValueKind::Seq) => arguments,
            None => empty(),
        },
        None => empty(),
    };
    Ok(with(call, "function", with(&function, "arguments", arguments)))
}
