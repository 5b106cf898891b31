//! Questions of a dataset as questions to a model's texts, through its chat template where one is called for.

use super::question::Question;
use super::{Error, messages};
use crate::config::ApplyChatTemplate;
use crate::model::{Ask, TextFacts};

/// Asks for one model.
pub(super) struct PromptEncoder {
    has_template: bool,
    apply: ApplyChatTemplate,
}

impl PromptEncoder {
    /// For the model whose texts these are.
    ///
    /// # Errors
    /// A template that is always to be applied, and a model that has none.
    pub fn new(texts: &TextFacts, apply: ApplyChatTemplate) -> Result<Self, Error> {
        let has_template = texts.chat_template.is_some();
        if apply == ApplyChatTemplate::Always && !has_template {
            return Err(Error::Workload(
                "apply-chat-template is `always`, but the model has no chat template (tokenizer_config.json, \
                 chat_template.jinja or the GGUF file's metadata would hold it); add one, or leave it out"
                    .to_owned(),
            ));
        }
        Ok(Self { has_template, apply })
    }

    /// The text or conversation of a prompt.
    ///
    /// # Errors
    /// A question that has none, in words.
    pub fn ask(&self, question: Question) -> Result<Ask, String> {
        match (question, self.apply) {
            (Question::Prompt(text) | Question::Turn(text), _) if text.is_empty() => {
                Err("its prompt is empty".to_owned())
            }
            (Question::Prompt(text), ApplyChatTemplate::Always) => Ok(Ask::Messages(messages::of_user(&text))),
            (Question::Turn(text), ApplyChatTemplate::Auto | ApplyChatTemplate::Always) if self.has_template => {
                Ok(Ask::Messages(messages::of_user(&text)))
            }
            (Question::Prompt(text) | Question::Turn(text), _) => Ok(Ask::Text { text, add_special: true }),
            (Question::Messages(_), ApplyChatTemplate::Never) => {
                Err("`messages` need the chat template, and apply-chat-template is `never`; give a `prompt`, or leave \
                     apply-chat-template out"
                    .to_owned())
            }
            (Question::Messages(_), _) if !self.has_template => {
                Err("`messages` need a chat template, and the model has none; give a `prompt`, or a model with a \
                     template"
                    .to_owned())
            }
            (Question::Messages(messages), _) => Ok(Ask::Messages(messages)),
        }
    }

    /// The text of a reply, whose tokens are only counted.
    pub fn ask_of_reply(&self, reply: String) -> Ask {
        Ask::Text { text: reply, add_special: false }
    }
}
