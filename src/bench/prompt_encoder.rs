//! Questions become token ids, through the model's chat template where one is called for.

use serde_json::Value;

use super::question::Question;
use super::{Error, messages};
use crate::config::ApplyChatTemplate;
use crate::model::Texts;

/// Encodes for one model.
pub(super) struct PromptEncoder<'a> {
    texts: &'a Texts,
    apply: ApplyChatTemplate,
}

impl<'a> PromptEncoder<'a> {
    /// For the model whose texts these are.
    ///
    /// # Errors
    /// A template that is always to be applied, and a model that has none.
    pub fn new(texts: &'a Texts, apply: ApplyChatTemplate) -> Result<Self, Error> {
        if apply == ApplyChatTemplate::Always && texts.chat_template.is_none() {
            return Err(Error::Workload(
                "apply-chat-template is `always`, but the model has no chat template (tokenizer_config.json, \
                 chat_template.jinja or the GGUF file's metadata would hold it); add one, or leave it out"
                    .to_owned(),
            ));
        }
        Ok(Self { texts, apply })
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
        let text = template.render(messages).map_err(|error| error.to_string())?;
        self.ids(&text, false)
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        self.texts.tokenizer.encode(text, add_special).map_err(|error| error.to_string())
    }
}
