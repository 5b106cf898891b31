//! Questions become token ids, through the model's chat template where one is called for.

use std::cell::OnceCell;

use serde_json::Value;

use super::question::Question;
use super::{Error, messages};
use crate::config::ApplyChatTemplate;
use crate::model::Texts;

/// Encodes for one model.
pub(super) struct PromptEncoder<'a> {
    texts: &'a Texts,
    apply: ApplyChatTemplate,
    max_model_len: usize,
    longest_token_bytes: OnceCell<usize>,
}

/// Texts that are tokenised in any case: what is refused by its length must pay for the look at all tokens.
const SHORT_TEXT_BYTES: usize = 64 << 10;

/// Longest text that is tokenised: of a million tokens. Tokenising takes up to 150 bytes of memory for each of them.
const LONGEST_TEXT_BYTES: usize = 4 << 20;

/// Normalisation makes a text shorter by less than this factor: syllables of Hangul, written in their parts, by three.
const NORMALISATION: usize = 4;

/// Ids that are looked through for the longest token; no tokenizer has as many.
const MOST_IDS: usize = 1 << 21;

impl<'a> PromptEncoder<'a> {
    /// For the model whose texts these are.
    ///
    /// # Errors
    /// A template that is always to be applied, and a model that has none.
    pub fn new(texts: &'a Texts, apply: ApplyChatTemplate, max_model_len: usize) -> Result<Self, Error> {
        if apply == ApplyChatTemplate::Always && texts.chat_template.is_none() {
            return Err(Error::Workload(
                "apply-chat-template is `always`, but the model has no chat template (tokenizer_config.json, \
                 chat_template.jinja or the GGUF file's metadata would hold it); add one, or leave it out"
                    .to_owned(),
            ));
        }
        Ok(Self { texts, apply, max_model_len, longest_token_bytes: OnceCell::new() })
    }

    /// The ids of a prompt, at least one.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn encode(&self, question: &Question) -> Result<Vec<u32>, String> {
        let template = &self.texts.chat_template;
        let ids = match (question, self.apply) {
            (Question::Prompt(text) | Question::Turn(text), _) if text.is_empty() => {
                return Err("its prompt is empty".to_owned());
            }
            (Question::Prompt(text), ApplyChatTemplate::Always) => self.rendered(&messages::of_user(text))?,
            (Question::Turn(text), ApplyChatTemplate::Auto | ApplyChatTemplate::Always) if template.is_some() => {
                self.rendered(&messages::of_user(text))?
            }
            (Question::Prompt(text) | Question::Turn(text), _) => self.ids(text, true)?,
            (Question::Messages(_), ApplyChatTemplate::Never) => {
                return Err(
                    "`messages` need the chat template, and apply-chat-template is `never`; give a `prompt`, or \
                            leave apply-chat-template out"
                        .to_owned(),
                );
            }
            (Question::Messages(messages), ApplyChatTemplate::Auto | ApplyChatTemplate::Always) => {
                self.rendered(messages)?
            }
        };
        if ids.is_empty() { Err("its prompt has no tokens".to_owned()) } else { Ok(ids) }
    }

    /// How many tokens a reply has, at least one.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn reply_tokens(&self, reply: &str) -> Result<usize, String> {
        Ok(self.ids(reply, false)?.len().max(1))
    }

    /// Ids of a conversation. The template has put all special tokens in that the model expects.
    fn rendered(&self, messages: &[Value]) -> Result<Vec<u32>, String> {
        let Some(template) = &self.texts.chat_template else {
            return Err("`messages` need a chat template, and the model has none; give a `prompt`, or a model with a \
                        template"
                .to_owned());
        };
        // Before it is rendered, which copies it several times.
        self.check_length(messages.iter().map(texts_bytes).sum())?;
        let text = template.render(messages).map_err(|error| error.to_string())?;
        self.ids(&text, false)
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        self.check_length(text.len())?;
        self.texts.tokenizer.encode(text, add_special).map_err(|error| error.to_string())
    }
    /// Refuses a text of so many bytes where no tokenizer can make few enough tokens of it, or it would take too much memory to try.
    fn check_length(&self, bytes: usize) -> Result<(), String> {
        if bytes <= SHORT_TEXT_BYTES {
            return Ok(());
        }
        let longest = self.longest_token_bytes.get_or_init(|| longest_token_bytes(self.texts));
        let limit = self.max_model_len.saturating_mul(*longest).saturating_mul(NORMALISATION);
        if bytes > limit.max(SHORT_TEXT_BYTES) {
            return Err(format!(
                "its text has {bytes} bytes, more than max-model-len={} tokens of at most {longest} bytes can hold; shorten it",
                self.max_model_len
            ));
        }
        if bytes > LONGEST_TEXT_BYTES {
            return Err(format!("its text has {bytes} bytes; up to {LONGEST_TEXT_BYTES} are tokenised: shorten it"));
        }
        Ok(())
    }
}

/// Bytes of the longest spelling, which is no shorter than what it stands for.
fn longest_token_bytes(texts: &Texts) -> usize {
    let ids = texts.tokenizer.vocab_size();
    if ids > MOST_IDS {
        return usize::MAX;
    }
    let spelled = (0..ids as u32).filter_map(|id| texts.tokenizer.token(id));
    spelled.map(|token| token.len()).max().unwrap_or(0).max(1)
}

/// Bytes of all texts in a value.
fn texts_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(texts_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + texts_bytes(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}
