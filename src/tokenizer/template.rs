//! Rendering chat templates as `transformers` renders them: its functions and filters, its way with white space, and values
//! printed as Python prints them.

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Rest, ValueKind},
};

use crate::{
    LoadError, RenderError,
    content::ContentFormat,
    conversation::{Chat, FINAL_MESSAGE_TAG},
    member,
    python::{self, Dumps},
};

/// What a rendering may use up: instructions, and 64 bytes of text for each unit. About a tenth of a second, and room for the
/// longest prompts.
const FUEL: u64 = 2_000_000;

/// Under which name templates find the time.
const NOW: &str = "smg_now_unix_s";

/// The templates of one model.
#[derive(Default)]
pub(crate) struct Templates {
    usual: Option<ChatTemplate>,
    /// The one for chats with tools, where there is one of its own.
    with_tools: Option<ChatTemplate>,
}

/// One template, read.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    content_format: ContentFormat,
    names_content: bool,
}

impl Templates {
    /// The template given, else those of the configuration.
    pub(crate) fn new(config: &Value, given: Option<&str>) -> Result<Self, LoadError> {
        if let Some(source) = given {
            return Ok(Self { usual: Some(ChatTemplate::new(source)?), with_tools: None });
        }
        let Some(configured) = member(config, "chat_template") else { return Ok(Self::default()) };
        if let Some(source) = configured.as_str() {
            return Ok(Self { usual: Some(ChatTemplate::new(source)?), with_tools: None });
        }
        let mut templates = Self::default();
        for entry in configured.try_iter()? {
            let text = |name: &str| member(&entry, name).and_then(|value| value.as_str().map(str::to_owned));
            match (text("name").as_deref(), text("template")) {
                (Some("default"), Some(source)) => templates.usual = Some(ChatTemplate::new(&source)?),
                (Some("tool_use"), Some(source)) => templates.with_tools = Some(ChatTemplate::new(&source)?),
                _ => {}
            }
        }
        Ok(templates)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.usual.is_none() && self.with_tools.is_none()
    }

    /// The template for chats with tools or without.
    pub(crate) fn of(&self, tools: Option<&Value>) -> Option<&ChatTemplate> {
        self.with_tools.as_ref().filter(|_| tools.is_some()).or(self.usual.as_ref())
    }

    pub(crate) fn for_chat(&self, chat: &Chat) -> Option<&ChatTemplate> {
        self.of(chat.tools.as_ref())
    }
}

impl ChatTemplate {
    fn new(source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        environment.set_syntax(syntax);
        environment.set_debug(false);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| match value.as_str() {
            Some(text) => out.write_str(text).map_err(Error::from),
            None => out.write_str(&python::str_of(value)).map_err(Error::from),
        });
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", |value: Value| python::str_of(&value));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned("chat", without_generation_blocks(source))?;
        Ok(Self { environment, content_format: ContentFormat::of(source), names_content: source.contains("content") })
    }

    pub(crate) fn content_format(&self) -> ContentFormat {
        self.content_format
    }

    pub(crate) fn render(
        &self,
        chat: &Chat,
        names: &[(String, Value)],
        now_unix_s: i64,
    ) -> Result<String, RenderError> {
        let given = [
            ("messages", Value::from(chat.messages.clone())),
            ("tools", chat.tools.clone().unwrap_or(Value::from(()))),
            ("documents", chat.documents.clone().unwrap_or(Value::from(()))),
            ("add_generation_prompt", Value::from(chat.add_generation_prompt)),
            (NOW, Value::from(now_unix_s)),
        ];
        let named = names.iter().chain(&chat.variables).cloned();
        let variables = Value::from_pairs(named.chain(given.map(|(name, value)| (name.to_owned(), value))));
        let rendered = self.environment.get_template("chat")?.render(variables)?;
        match &chat.continued {
            Some(message) if self.names_content => continued(rendered, message),
            Some(_) => Err(RenderError::NothingToContinue),
            None => Ok(rendered),
        }
    }
}

/// The rendering up to the end of the last message, which was marked.
fn continued(mut rendered: String, message: &str) -> Result<String, RenderError> {
    let mark = FINAL_MESSAGE_TAG.trim_end();
    let at = rendered.rfind(mark).filter(|_| rendered.contains(python_strip(message)));
    let at = at.ok_or(RenderError::NothingToContinue)?;
    let is_whole = rendered[at..].starts_with(FINAL_MESSAGE_TAG);
    rendered.truncate(at);
    if !is_whole {
        // The template has trimmed the mark, so it would have trimmed the message.
        let length = rendered.trim_end().len();
        rendered.truncate(length);
    }
    Ok(rendered)
}

fn python_strip(text: &str) -> &str {
    text.trim()
}

/// The template without the marks around what the model has said, which matter in training only.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[2..end];
        out.push_str(before);
        match inside.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&format!("{{%{}%}}", inside.replace("generation", "if true"))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", inside.replace("endgeneration", "endif"))),
            _ => out.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, python::str_of(&message)))
}

fn strftime_now(state: &State<'_, '_>, format: &str) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|now| now.as_i64()).unwrap_or_default();
    python::strftime(format, now)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "strftime_now: a directive that is not known"))
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let named = if named.has(name) { Some(named.get::<Value>(name)?) } else { None };
        Ok(named.or_else(|| positional.get(index).cloned()).filter(|value| !value.is_none()))
    };
    let ascii_only = argument(0, "ensure_ascii")?.is_some_and(|flag| flag.is_true());
    let indent = argument(1, "indent")?.map(|indent| match indent.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(indent.as_usize().unwrap_or(0).min(64)),
    });
    let separators = match argument(2, "separators")? {
        Some(pair) if pair.kind() == ValueKind::Seq && pair.len() == Some(2) => {
            (python::str_of(&pair.get_item_by_index(0)?), python::str_of(&pair.get_item_by_index(1)?))
        }
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are a pair")),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|flag| flag.is_true());
    named.assert_all_used()?;
    Dumps { ascii_only, indent, separators, sort_keys }.write(value)
}
