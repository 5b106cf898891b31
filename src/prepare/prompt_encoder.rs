//! Questions of a dataset as questions to a model's texts, through its chat template where one is called for.

use serde_json::Value;

use flashjob_config::ApplyChatTemplate;
use flashjob_model::{Ask, Conversation, TextFacts};

use super::question::{Question, Reason};
use super::{Error, messages};

/// Asks for one model.
pub(super) struct PromptEncoder {
    has_template: bool,
    apply: ApplyChatTemplate,
    max_model_len: usize,
    longest_token_bytes: usize,
}

/// A prompt on its way to tokens.
#[derive(Debug)]
pub(super) enum Asked {
    /// Texts that are to be encoded.
    Texts(Ask),
    /// Tokens, as they are.
    Tokens(Vec<u32>),
}

/// Texts that are tokenised in any case, however few tokens are served.
const SHORT_TEXT_BYTES: usize = 64 << 10;

/// Longest text that is tokenised: of a million tokens. Tokenising takes up to 150 bytes of memory for each of them.
const LONGEST_TEXT_BYTES: usize = 4 << 20;

/// Normalisation makes a text shorter by less than this factor: syllables of Hangul, written in their parts, by three.
const NORMALISATION: usize = 4;

impl PromptEncoder {
    /// For the model whose texts these are.
    ///
    /// # Errors
    /// A template that is always to be applied, and a model that has none.
    pub fn new(texts: &TextFacts, apply: ApplyChatTemplate, max_model_len: usize) -> Result<Self, Error> {
        let has_template = texts.chat_template.is_some();
        if apply == ApplyChatTemplate::Always && !has_template {
            return Err(Error::Workload(
                "apply-chat-template is `always`, but the model has no chat template (tokenizer_config.json, \
                 chat_template.jinja or the GGUF file's metadata would hold it); add one, or leave it out"
                    .to_owned(),
            ));
        }
        Ok(Self { has_template, apply, max_model_len, longest_token_bytes: texts.longest_token_bytes })
    }

    /// The text or conversation of a prompt.
    ///
    /// # Errors
    /// A question that has none, in words.
    pub fn ask(&self, question: Question) -> Result<Asked, Reason> {
        self.check_length(question_bytes(&question))?;
        let ask = match (question, self.apply) {
            (Question::Tokens(_), ApplyChatTemplate::Always) => Err(
                "its `prompt` is token ids, and apply-chat-template is `always`; give a text, or leave apply-chat-template out"
                    .to_owned()
                    .into(),
            ),
            (Question::Tokens(tokens), _) => return Ok(Asked::Tokens(tokens)),
            (Question::Prompt(text) | Question::Turn(text), _) if text.is_empty() => {
                Err("its prompt is empty".to_owned().into())
            }
            // A bare prompt may already have the format of a chat, so that the template is applied on request only. A
            // recorded turn has none, and gets the template wherever the model has one.
            (Question::Prompt(text), ApplyChatTemplate::Always) => Ok(Ask::Messages(messages::of_user(&text).into())),
            (Question::Turn(text), ApplyChatTemplate::Auto | ApplyChatTemplate::Always) if self.has_template => {
                Ok(Ask::Messages(messages::of_user(&text).into()))
            }
            (Question::Prompt(text) | Question::Turn(text), _) => Ok(Ask::Text { text, add_special: true }),
            (Question::Messages(_), ApplyChatTemplate::Never) => {
                Err("`messages` need the chat template, and apply-chat-template is `never`; give a `prompt`, or leave \
                     apply-chat-template out"
                    .to_owned()
                    .into())
            }
            (Question::Messages(_), _) if !self.has_template => {
                Err("`messages` need a chat template, and the model has none; give a `prompt`, or a model with a \
                     template"
                    .to_owned()
                    .into())
            }
            (Question::Messages(conversation), _) => Ok(Ask::Messages(conversation)),
        };
        ask.map(Asked::Texts)
    }

    /// The text of a reply, whose tokens are only counted.
    ///
    /// # Errors
    /// A text that is too long, in words.
    pub fn ask_of_reply(&self, reply: String) -> Result<Ask, Reason> {
        self.check_length(reply.len())?;
        // Special tokens are the prompt's: with them a reply would count one or two tokens too many.
        Ok(Ask::Text { text: reply, add_special: false })
    }

    /// Refuses a text of so many bytes where no tokenizer can make few enough tokens of it, or it would take too much memory to
    /// try.
    fn check_length(&self, bytes: usize) -> Result<(), Reason> {
        if bytes <= SHORT_TEXT_BYTES {
            return Ok(());
        }
        let longest = self.longest_token_bytes;
        let limit = self.max_model_len.saturating_mul(longest).saturating_mul(NORMALISATION);
        if bytes > limit.max(SHORT_TEXT_BYTES) {
            return Err(Reason::too_long(format!(
                "its text has {bytes} bytes, more than max-model-len={} tokens of at most {longest} bytes can hold; shorten it",
                self.max_model_len
            )));
        }
        if bytes > LONGEST_TEXT_BYTES {
            let sentence = format!("its text has {bytes} bytes; up to {LONGEST_TEXT_BYTES} are tokenised: shorten it");
            return Err(Reason::too_long(sentence));
        }
        Ok(())
    }
}

/// Bytes of all texts in a question.
fn question_bytes(question: &Question) -> usize {
    match question {
        Question::Prompt(text) | Question::Turn(text) => text.len(),
        Question::Tokens(_) => 0,
        Question::Messages(Conversation { messages, tools }) => messages.iter().chain(tools).map(texts_bytes).sum(),
    }
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
