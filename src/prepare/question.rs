//! A line or entry of a dataset as a request, before it is tokens.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;

use serde_json::{Map, Value};

use flashjob_config::{Sampling, SamplingOptions};
use flashjob_model::Conversation;

use super::matcher::Matcher;
use super::reply_format::ToolUse;
use super::text_options::TextFields;

/// The text or conversation that the model continues.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Question {
    /// A text to be continued.
    Prompt(String),
    /// A text to be continued that is tokens already, special ones included.
    Tokens(Vec<u32>),
    /// A message of a user, recorded without the format of any model.
    Turn(String),
    /// A conversation; each message has a role and a text. With the tools that may be called.
    Messages(Conversation),
}

/// Settings of a request, as far as its line has them.
#[derive(Clone, Debug)]
pub(super) struct RequestSettings {
    /// Tokens to generate at most.
    pub max_tokens: Option<NonZeroUsize>,
    /// Sampling parameters; those of the job where the line has none.
    pub sampling: Sampling,
    /// Instead of the job's.
    pub seed: Option<u64>,
    /// Instead of the job's.
    pub ignore_eos: Option<bool>,
    /// Options beyond those, where there are any.
    pub options: Option<Arc<SamplingOptions>>,
    /// Options of its text, where it has any.
    pub text: Option<TextFields>,
    /// The tools that its answer may call.
    pub tools: Option<ToolUse>,
    /// Answers that it asks for.
    pub choices: NonZeroU32,
    /// Its prompt goes before the text of each answer.
    pub echo: bool,
}

impl RequestSettings {
    /// Settings of an entry that has none of its own.
    pub fn of_job(sampling: Sampling) -> Self {
        Self {
            max_tokens: None,
            sampling,
            seed: None,
            ignore_eos: None,
            options: None,
            choices: NonZeroU32::MIN,
            echo: false,
            text: None,
            tools: None,
        }
    }
}

/// A request as its dataset has it, before it is tokens.
#[derive(Clone, Debug)]
pub(super) struct DatasetRequest {
    pub question: Question,
    pub settings: RequestSettings,
    /// A recorded reply: as many tokens are generated as it has.
    pub reply: Option<String>,
    pub form: AnswerForm,
    /// The correct answer, where the line has one.
    pub answer: Option<Matcher>,
}

/// A line or entry that cannot be run.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// Form of its answer, as far as that could be read.
    pub form: AnswerForm,
    pub reason: Reason,
}

/// Reason for a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    pub kind: RefusalKind,
    /// The rest of a sentence that begins with a place.
    pub sentence: String,
}

impl Reason {
    pub fn too_long(sentence: String) -> Self {
        Self { kind: RefusalKind::TooLong, sentence }
    }

    pub fn unsupported(sentence: String) -> Self {
        Self { kind: RefusalKind::Unsupported, sentence }
    }
}

impl From<String> for Reason {
    fn from(sentence: String) -> Self {
        Self { kind: RefusalKind::Invalid, sentence }
    }
}

/// Kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// It is no request: not JSON, no prompt, a value out of its range.
    Invalid,
    /// It is longer than the model or the job takes.
    TooLong,
    /// It asks for something that this program does not have.
    Unsupported,
}

/// Longest text by which an answer is found again.
pub(super) const LONGEST_LABEL_BYTES: usize = 1024;

/// Bytes as JSON of all fields that are copied to an answer: each is kept until that is written.
const MOST_LABELS_BYTES: usize = 64 << 10;

/// Fields of a line that are copied to its answer as they were: `custom_id`, `id` and notes of the user's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels(Box<[(String, Value)]>);

impl Labels {
    /// Keeps the fields that `is_copied`.
    ///
    /// # Errors
    /// More than is kept until an answer is written.
    pub(super) fn of(fields: &Map<String, Value>, is_copied: impl Fn(&str) -> bool) -> Result<Self, String> {
        let labels: Box<[(String, Value)]> = fields
            .iter()
            .filter(|(name, value)| is_copied(name) && !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        for name in ["custom_id", "id"] {
            let bytes = fields.get(name).and_then(Value::as_str).map_or(0, str::len);
            if bytes > LONGEST_LABEL_BYTES {
                return Err(format!("`{name}` has {bytes} bytes; up to {LONGEST_LABEL_BYTES} are kept"));
            }
        }
        // Kept for each line until its answer is written: wide rows of a table would fill the memory.
        let bytes: usize = labels.iter().map(|(name, value)| name.len() + json_bytes(value)).sum();
        if bytes > MOST_LABELS_BYTES {
            let longest = labels.iter().max_by_key(|(_, value)| json_bytes(value));
            return Err(format!(
                "its fields that are copied to the answer have {bytes} bytes, most of them in `{}`; up to {MOST_LABELS_BYTES} \
                 are kept",
                longest.map_or("", |(name, _)| name)
            ));
        }
        Ok(Self(labels))
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

/// Bytes of `value` as JSON, but for what is escaped.
fn json_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(values) => 2 + values.iter().map(|value| 1 + json_bytes(value)).sum::<usize>(),
        Value::Object(fields) => {
            2 + fields.iter().map(|(name, value)| 4 + name.len() + json_bytes(value)).sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

/// Format of an answer in `outputs.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerForm {
    /// A line of ours.
    Plain(Labels),
    /// A line of an OpenAI batch.
    Batch {
        /// The line's name.
        custom_id: String,
        /// Endpoint that the line names.
        endpoint: Endpoint,
        /// Further fields of the line.
        labels: Labels,
    },
}

impl Default for AnswerForm {
    /// That of an entry of which nothing is known.
    fn default() -> Self {
        AnswerForm::Plain(Labels::default())
    }
}

impl AnswerForm {
    /// The line's name, where it is a line of a batch.
    pub(super) fn custom_id(&self) -> Option<&str> {
        match self {
            AnswerForm::Plain(_) => None,
            AnswerForm::Batch { custom_id, .. } => Some(custom_id),
        }
    }
}

/// The endpoints of OpenAI's interface that a batch may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
}
