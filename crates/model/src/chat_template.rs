//! A conversation becomes the text that a model was trained on, through the Jinja template that lies beside it.
//!
//! Renders as Hugging Face transformers does (`transformers/utils/chat_template_utils.py`): its whitespace rules, its
//! extra functions, Python's methods on texts and maps (`chat_template/python.rs`). It does not know where conversations come from, nor tokens
//! beyond the spellings of a few.

mod filters;
mod globals;
mod json;
mod limits;
mod operators;
mod parts;
mod printf;
mod python;
mod tags;
mod text_methods;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::parse_strftime_owned;

use super::Error;

/// Name of the only template of an environment.
const NAME: &str = "chat_template";

/// A model's chat template. Compiled at its first use, so that a broken one affects only jobs that need it.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    path: PathBuf,
    named_tokens: BTreeMap<String, String>,
}

/// Variables of a template, with the names that transformers gives them.
#[derive(Serialize)]
struct Context<'a> {
    messages: &'a [Value],
    tools: Option<&'a [Value]>,
    documents: Option<()>,
    add_generation_prompt: bool,
    #[serde(flatten)]
    named_tokens: &'a BTreeMap<String, String>,
}

/// The message of a template that refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// The template `source` from the file at `path`. `named_tokens` are spellings by name, such as `bos_token`; `now`
    /// is the present time for the template, the same in every conversation of a job.
    pub fn new(path: &Path, source: &str, named_tokens: BTreeMap<String, String>, now: OffsetDateTime) -> Self {
        let mut environment = Environment::new();
        // Building fails for delimiters that clash, and these are Jinja's own.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            // Settings of transformers' environment, on which the white space of every prompt depends.
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        // Bounds the work of a rendering: a template is a program that came with the model.
        environment.set_fuel(Some(limits::FUEL));
        python::teach(&mut environment);
        environment.add_filter("tojson", json::to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        // A source that is too long is refused by `render`, with a message; here it is only kept from the parser.
        if source.len() <= limits::MAX_SOURCE_BYTES {
            let compiled = tags::rewritten(source, python::ITERATED, python::KEPT);
            let compiled = operators::rewritten(&compiled, python::MODULO);
            environment.set_loader(move |name| Ok((name == NAME).then(|| compiled.clone())));
        }
        Self { environment, source: source.to_owned(), path: path.to_owned(), named_tokens }
    }

    /// Source of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The file that it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The prompt that asks for the next message after `messages`, BOS included where the template has one.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`].
    pub fn render(&self, messages: &[Value]) -> Result<String, Error> {
        self.render_with_tools(messages, &[])
    }

    /// As [`ChatTemplate::render`], where the next message may call `tools`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`].
    pub fn render_with_tools(&self, messages: &[Value], tools: &[Value]) -> Result<String, Error> {
        if self.source.len() > limits::MAX_SOURCE_BYTES {
            let (length, most) = (self.source.len(), limits::MAX_SOURCE_BYTES);
            return Err(self.error(format!("cannot be applied: it has {length} bytes, and {most} are the most")));
        }
        let messages: Vec<Value> = messages.iter().map(|message| with_reasoning(without_nulls(message))).collect();
        let context = Context {
            messages: &messages,
            // Templates test for tools, of which an empty list would be some.
            tools: Some(tools).filter(|tools| !tools.is_empty()),
            documents: None,
            add_generation_prompt: true,
            named_tokens: &self.named_tokens,
        };
        let mut text = BoundedBytes::default();
        // A sort with an inconsistent comparison panics, and so do some faults of libraries.
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let template = self.environment.get_template(NAME)?;
            template.render_captured_to(Serde(&context), &mut text).map(drop)
        }));
        match rendered {
            Ok(Ok(())) => {}
            // The writer's error comes back as minijinja's own; only the flag tells that the text was too long.
            Ok(Err(_)) if text.is_full => {
                let most = limits::MAX_TEXT_BYTES;
                return Err(self.error(format!("cannot be applied: it makes a text of more than {most} bytes")));
            }
            Ok(Err(error)) => return Err(self.refusal(&error)),
            Err(_) => return Err(self.error("cannot be applied: the minijinja library gave up on it".to_owned())),
        }
        String::from_utf8(text.bytes).map_err(|error| self.error(format!("makes what is no text: {error}")))
    }

    fn error(&self, reason: String) -> Error {
        Error::ChatTemplate { path: self.path.clone(), reason }
    }

    fn refusal(&self, error: &minijinja::Error) -> Error {
        // `raise_exception` is how templates refuse a conversation: its text goes to the user without minijinja's
        // wrapping.
        let raised = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Raised>());
        let reason = match (raised, error.line()) {
            (Some(raised), _) => format!("does not take this conversation: {raised}"),
            (None, Some(line)) => {
                let what = match error.kind() {
                    ErrorKind::OutOfFuel => {
                        format!("it works without an end, or makes too much: {} steps", limits::FUEL)
                    }
                    kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
                };
                format!("cannot be applied: {what} (in its line {line})")
            }
            (None, None) => format!("cannot be applied: {error}"),
        };
        self.error(reason)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({}, {} bytes)", self.path.display(), self.source.len())
    }
}

/// A rendered text, refused once it is too long.
#[derive(Default)]
struct BoundedBytes {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for BoundedBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > limits::MAX_TEXT_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A message without fields that are null, as `apply_chat_template` of transformers 5.23 passes it: templates would
/// print `None`, and handle a field that is absent.
fn without_nulls(message: &Value) -> Value {
    let mut message = message.clone();
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    message
}

/// A message whose reasoning has all names that templates use for it, as transformers 5 passes it.
fn with_reasoning(message: Value) -> Value {
    let reasoning = ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(|name| message.get(name));
    let (Some(reasoning), Some(fields)) = (reasoning, message.as_object()) else { return message };
    // Order matters: templates that print all fields must see `thinking` first and `reasoning_content` last.
    let mut named = serde_json::Map::new();
    named.insert("thinking".to_owned(), reasoning.clone());
    named.extend(fields.clone());
    named.insert("reasoning_content".to_owned(), reasoning.clone());
    Value::Object(named)
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn strftime(now: OffsetDateTime, format: &str) -> Result<String, minijinja::Error> {
    let refuse = |reason: &dyn fmt::Display| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {reason}"))
    };
    let description = parse_strftime_owned(format).map_err(|error| refuse(&error))?;
    now.format(&description).map_err(|error| refuse(&error))
}
