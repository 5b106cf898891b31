//! A model's texts without its weights: for an engine that reads the weights itself.

use std::path::Path;

use super::config_json::ConfigJson;
use super::open::open_tokenizer;
use super::special_tokens::SpecialTokens;
use super::{ChatTemplate, Error, Tokenizer};

/// What turns texts into tokens and back, and what the checkpoint calls itself.
#[derive(Debug)]
pub struct Texts {
    /// As `config.json` names it; any name, also of families that are not known here.
    pub architecture: String,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// What turns a conversation into a prompt, where the model has it.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that end a text, ascending.
    pub eos_tokens: Vec<u32>,
}

impl Texts {
    /// Of the model in Hugging Face layout in `directory`, with the tokenizer at `tokenizer`.
    ///
    /// # Errors
    /// Files that are missing, damaged, or say what makes no sense.
    pub fn open(directory: &Path, tokenizer: &Path) -> Result<Self, Error> {
        let missing = "this engine takes a directory in Hugging Face layout, with a config.json in it";
        let file = directory.join("config.json");
        let json = if directory.is_dir() { ConfigJson::read(&file)? } else { None };
        let json = json.ok_or_else(|| Error::incomplete(directory, missing))?;
        let architectures = json.texts("architectures")?.unwrap_or_default();
        let architecture = architectures.into_iter().next();
        let architecture = architecture.ok_or_else(|| json.error("architectures", "it is not there"))?;
        let (mut tokenizer, files) = open_tokenizer(tokenizer, None)?;
        let text_config = json.object("text_config")?;
        let rows =
            text_config.iter().chain([&json]).find_map(|json| json.size("vocab_size").transpose()).transpose()?;
        rows.inspect(|&rows| tokenizer.limit_to(rows));
        let generation = ConfigJson::read(&directory.join("generation_config.json"))?;
        let mut special_tokens = SpecialTokens::of_hugging_face(&json, generation.as_ref())?;
        special_tokens.refine(&tokenizer, files, rows.unwrap_or(usize::MAX));
        let (chat_template, eos_tokens) = (special_tokens.chat_template(), special_tokens.eos);
        Ok(Self { architecture, tokenizer, chat_template, eos_tokens })
    }
}
