//! A line or entry of a dataset as a request, before it is tokens.

use std::num::NonZeroUsize;

use serde_json::{Map, Value};

use flashjob_config::Sampling;

use super::matcher::Matcher;

/// The text or conversation that the model continues.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Question {
    /// A text to be continued.
    Prompt(String),
    /// A message of a user, recorded without the format of any model.
    Turn(String),
    /// A conversation; each message has a role and a text.
    Messages(Vec<Value>),
}

/// Settings of a request, as far as its line has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestSettings {
    /// Tokens to generate at most.
    pub max_tokens: Option<NonZeroUsize>,
    /// Sampling parameters; those of the job where the line has none.
    pub sampling: Sampling,
    /// Instead of the job's.
    pub seed: Option<u64>,
    /// Instead of the job's.
    pub ignore_eos: Option<bool>,
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
    /// Whose answer will be missing, where that could be read.
    pub custom_id: Option<String>,
    /// Reason for the refusal, as the rest of a sentence that begins with a place.
    pub reason: String,
}

/// Longest text by which an answer is found again.
pub(super) const LONGEST_LABEL_BYTES: usize = 1024;

/// Fields of a line by which its answer is found again, as they were: `custom_id` and `id`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels(pub Map<String, Value>);

impl Labels {
    /// Keeps texts and numbers.
    ///
    /// # Errors
    /// One that is too long to be kept until its answer is written.
    pub(super) fn of(fields: &Map<String, Value>) -> Result<Self, String> {
        let labels = ["custom_id", "id"].into_iter().filter_map(|name| Some((name, fields.get(name)?)));
        // Objects and lists are no names, and could be as large as the line.
        let labels = labels.filter(|(_, value)| value.is_string() || value.is_number());
        let kept = labels.map(|(name, value)| match value.as_str().map(str::len) {
            Some(bytes) if bytes > LONGEST_LABEL_BYTES => {
                Err(format!("`{name}` has {bytes} bytes; up to {LONGEST_LABEL_BYTES} are kept"))
            }
            _ => Ok((name.to_owned(), value.clone())),
        });
        kept.collect::<Result<_, _>>().map(Self)
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
    },
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
