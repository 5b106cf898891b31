//! A conversation becomes the text that a model was trained on, through the Jinja template that lies beside it.
//!
//! Renders as Hugging Face transformers does (`transformers/utils/chat_template_utils.py`): its whitespace rules, its
//! extra functions, Python's methods on texts and maps. It does not know where conversations come from, nor tokens
//! beyond the spellings of a few.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use time::OffsetDateTime;
use time::format_description::parse_strftime_owned;

use super::Error;

/// The only template of an environment.
const NAME: &str = "chat_template";

/// A model's chat template. It is compiled when it is first used, so that a broken one harms only those who need it.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    path: PathBuf,
    named_tokens: BTreeMap<String, String>,
}

/// What a template finds: the names that transformers gives it.
#[derive(Serialize)]
struct Context<'a> {
    messages: &'a [Value],
    tools: Option<()>,
    documents: Option<()>,
    add_generation_prompt: bool,
    #[serde(flatten)]
    named_tokens: &'a BTreeMap<String, String>,
}

/// A template's own words about a conversation that it does not take.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// The template `source` out of the file at `path`. `named_tokens` are spellings by name, such as `bos_token`; `now` is
    /// what the template takes for the present, in every conversation of a job the same.
    pub fn new(path: &Path, source: &str, named_tokens: BTreeMap<String, String>, now: OffsetDateTime) -> Self {
        let mut environment = Environment::new();
        // Building fails for delimiters that clash, and these are Jinja's own.
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        let compiled = with_generation_as_condition(source);
        environment.set_loader(move |name| Ok((name == NAME).then(|| compiled.clone())));
        Self { environment, source: source.to_owned(), path: path.to_owned(), named_tokens }
    }

    /// The template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt that asks for the next message after `messages`, BOS included where the template has one.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`].
    pub fn render(&self, messages: &[Value]) -> Result<String, Error> {
        let context = Context {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            named_tokens: &self.named_tokens,
        };
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(Serde(&context))).map_err(|error| self.refusal(&error))
    }

    fn refusal(&self, error: &minijinja::Error) -> Error {
        let raised = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Raised>());
        let reason = match (raised, error.line()) {
            (Some(raised), _) => format!("does not take this conversation: {raised}"),
            (None, Some(line)) => {
                let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
                format!("cannot be applied: {what} (in its line {line})")
            }
            (None, None) => format!("cannot be applied: {error}"),
        };
        Error::ChatTemplate { path: self.path.clone(), reason }
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({}, {} bytes)", self.path.display(), self.source.len())
    }
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

/// Python's `json.dumps(…, ensure_ascii=False)`, which escapes nothing for HTML and puts spaces behind separators.
fn to_json(value: &minijinja::Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // What Python is told besides by some templates, with the value that holds here.
    for option in ["ensure_ascii", "sort_keys"] {
        if options.get::<Option<bool>>(option)?.unwrap_or(false) {
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson({option}=true)")));
        }
    }
    options.assert_all_used()?;
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            value.serialize(&mut Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(indent.as_bytes())))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut text, SpacedFormatter)),
    };
    let failed = |reason: String| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"));
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(text).map_err(|error| failed(error.to_string()))
}

/// One line, with Python's spaces.
struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// transformers knows `{% generation %} … {% endgeneration %}`, which mark what a model says for training and render as
/// what they hold. A condition that is true does the same.
fn with_generation_as_condition(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        rest = tag;
        let unsigned = tag.trim_start_matches(['-', '+']);
        let sign = &tag[..tag.len() - unsigned.len()];
        for (name, condition) in [("generation", " if true"), ("endgeneration", " endif")] {
            if let Some(behind) = unsigned.trim_start().strip_prefix(name)
                && behind.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                text.push_str(sign);
                text.push_str(condition);
                // A name that touches the sign behind it would change its meaning.
                text.push(' ');
                rest = behind;
            }
        }
    }
    text.push_str(rest);
    text
}
