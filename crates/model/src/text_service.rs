//! Texts of a model as a job uses them: facts, questions that become tokens, tokens that become texts.
//!
//! A job's are in a process of their own ([`super::texts_process`]), because a model's files may make libraries end the process that
//! reads them; tests have them in theirs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::message_format::MessageFormat;
use super::texts_process::Apart;
use super::{Error, Texts, TokenBytes};

/// Facts about texts that are open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TextFacts {
    /// As `config.json` names it; any name, also of families that are not known here.
    pub architecture: String,
    /// Harmless faults of the tokenizer's file.
    pub warnings: Vec<String>,
    /// File of the chat template, where the model has one.
    pub chat_template: Option<PathBuf>,
    /// What the template says of the messages that its model writes.
    pub message_format: MessageFormat,
    /// Tokens that end a text, ascending.
    pub eos_tokens: Vec<u32>,
    /// Ids that stand for no text: BOS, EOS, padding, chat markers.
    pub special_tokens: Vec<u32>,
    /// One more than the highest id that a prompt may hold.
    pub vocab_size: usize,
    /// Length of the longest token's spelling, which is no shorter than the text that it stands for.
    pub longest_token_bytes: usize,
    /// Longest sequence that the model was made for, where its family is known here.
    pub max_position: Option<usize>,
}

impl TextFacts {
    /// Facts of `texts`.
    pub(super) fn of(texts: &Texts) -> Self {
        Self {
            architecture: texts.architecture.clone(),
            warnings: texts.tokenizer.warnings().to_vec(),
            chat_template: texts.chat_template.as_ref().map(|template| template.path().to_owned()),
            message_format: texts
                .chat_template
                .as_ref()
                .map_or_else(MessageFormat::default, |template| MessageFormat::of(template.source())),
            eos_tokens: texts.eos_tokens.clone(),
            special_tokens: texts.tokenizer.special_tokens(),
            vocab_size: texts.tokenizer.vocab_size(),
            longest_token_bytes: texts.tokenizer.longest_token_bytes(),
            max_position: texts.max_position,
        }
    }
}

/// A question: something that is to become tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// A text as it is; with `add_special` those tokens are added that the model expects around it, such as BOS.
    Text {
        /// The text to encode.
        text: String,
        /// With tokens around it.
        add_special: bool,
    },
    /// A conversation, through the chat template, which puts all special tokens in that the model expects.
    Messages(Conversation),
}

/// Messages, and the tools that may be called in the next one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Messages in OpenAI's format.
    pub messages: Vec<Value>,
    /// Tools in OpenAI's format.
    pub tools: Vec<Value>,
}

impl From<Vec<Value>> for Conversation {
    fn from(messages: Vec<Value>) -> Self {
        Self { messages, tools: Vec::new() }
    }
}

impl Ask {
    /// About as many bytes as it takes on its way.
    pub fn bytes(&self) -> usize {
        match self {
            Ask::Text { text, .. } => text.len(),
            Ask::Messages(Conversation { messages, tools }) => messages.iter().chain(tools).map(value_bytes).sum(),
        }
    }

    /// The ids, or a sentence about their absence.
    pub(super) fn answer(&self, texts: &Texts) -> Result<Vec<u32>, String> {
        let ids = match self {
            Ask::Text { text, add_special } => texts.tokenizer.encode(text, *add_special),
            Ask::Messages(Conversation { messages, tools }) => match &texts.chat_template {
                Some(template) => {
                    template.render_with_tools(messages, tools).and_then(|text| texts.tokenizer.encode(&text, false))
                }
                None => return Err("the model has no chat template".to_owned()),
            },
        };
        ids.map_err(|error| error.to_string())
    }
}

/// About as many bytes as `value` has as JSON.
fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(value_bytes).sum::<usize>() + 2,
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + value_bytes(value) + 4).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

/// Texts that are open.
pub struct TextService {
    facts: TextFacts,
    place: Place,
    token_bytes: OnceLock<Result<Arc<TokenBytes>, String>>,
}

enum Place {
    Here(Box<Texts>),
    Apart(Mutex<Apart>),
}

impl TextService {
    /// Facts about them.
    pub fn facts(&self) -> &TextFacts {
        &self.facts
    }

    /// For each of `asks` its ids, or a sentence about their absence: texts and templates are at fault there. `stop_at_first` says
    /// that anything behind the first such sentence is of no interest.
    ///
    /// # Errors
    /// [`Error::TextsEnded`]: the model is at fault.
    pub fn encode(&self, asks: Vec<Ask>, stop_at_first: bool) -> Result<Vec<Result<Vec<u32>, String>>, Error> {
        match &self.place {
            Place::Here(texts) => Ok(asks.iter().map(|ask| ask.answer(texts)).collect()),
            Place::Apart(apart) => apart.lock().encode(&self.facts, asks, stop_at_first),
        }
    }

    /// For each of `all` the text of its tokens, special ones left out, or [`Error::Tokenizer`], [`Error::Texts`] or
    /// [`Error::TextsEnded`].
    pub fn decode(&self, all: &[&[u32]]) -> Vec<Result<String, Error>> {
        match &self.place {
            Place::Here(texts) => all.iter().map(|tokens| texts.tokenizer.decode(tokens)).collect(),
            Place::Apart(apart) => apart.lock().decode(all),
        }
    }

    /// Bytes of all tokens, which are asked for once, by the first who needs them.
    ///
    /// # Errors
    /// A sentence about a tokenizer whose tokens have none.
    pub fn token_bytes(&self) -> Result<Arc<TokenBytes>, String> {
        let ask = || match &self.place {
            Place::Here(texts) => texts.tokenizer.token_bytes().map_err(|error| error.to_string()),
            Place::Apart(apart) => apart.lock().token_bytes().map_err(|error| error.to_string()),
        };
        self.token_bytes.get_or_init(|| ask().map(Arc::new)).clone()
    }
}

impl TextService {
    /// The text of each of `tokens` by itself, special ones included.
    ///
    /// # Errors
    /// As of [`TextService::decode`].
    pub fn spell(&self, tokens: &[u32]) -> Result<Vec<String>, Error> {
        match &self.place {
            Place::Here(texts) => tokens.iter().map(|&token| texts.tokenizer.spell(token)).collect(),
            Place::Apart(apart) => apart.lock().spell(tokens),
        }
    }
}

impl From<Texts> for TextService {
    fn from(texts: Texts) -> Self {
        Self { facts: TextFacts::of(&texts), place: Place::Here(Box::new(texts)), token_bytes: OnceLock::new() }
    }
}

/// A [`TextService`] that is opened once, by its first user; others wait for that.
#[derive(Clone)]
pub struct SharedTexts(Arc<LazyLock<Opened, Opening>>);

type Opened = Result<Arc<TextService>, Arc<Error>>;
type Opening = Box<dyn FnOnce() -> Opened + Send>;

impl SharedTexts {
    /// Will open those of the model at `model` with the tokenizer at `tokenizer`, in this process.
    pub fn new(model: PathBuf, tokenizer: PathBuf) -> Self {
        Self::opened_by(move || Ok(Texts::open(&model, &tokenizer)?.into()))
    }

    /// The same in a process of their own, which runs `program`: this very one, see [`super::serve_texts`].
    pub fn apart(program: &Path, model: PathBuf, tokenizer: PathBuf) -> Self {
        let program = program.to_owned();
        Self::opened_by(move || {
            let (apart, facts) = Apart::open(program, model, tokenizer)?;
            Ok(TextService { facts, place: Place::Apart(Mutex::new(apart)), token_bytes: OnceLock::new() })
        })
    }

    fn opened_by(open: impl FnOnce() -> Result<TextService, Error> + Send + 'static) -> Self {
        let open: Opening = Box::new(move || open().map(Arc::new).map_err(Arc::new));
        Self(Arc::new(LazyLock::new(open)))
    }

    /// Opens them, or waits while another thread does.
    ///
    /// # Errors
    /// As [`Texts::open`], and [`Error::TextsEnded`].
    pub fn get(&self) -> Result<Arc<TextService>, Arc<Error>> {
        LazyLock::force(&self.0).clone()
    }
}
