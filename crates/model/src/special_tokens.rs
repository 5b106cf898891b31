//! Tokens that begin and end texts, and the template of conversations: what lies beside a model's weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::config_json::ConfigJson;
use super::gguf::Gguf;
use super::tokenizer_files::TokenizerFiles;
use super::{ChatTemplate, Error, Tokenizer, small_file};

/// Special tokens of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    /// Ascending once refined; before that, the one that files call the end of a sequence comes first.
    pub eos: Vec<u32>,
    pub bos: Option<u32>,
    /// Spellings by the names that templates have for them, such as `bos_token`.
    named: BTreeMap<String, String>,
    /// Jinja, and the file that holds it.
    template: Option<(PathBuf, String)>,
}

impl SpecialTokens {
    /// Reads a model in Hugging Face layout. Its `generation_config.json` goes before its `config.json`, and that before the
    /// `text_config` within.
    pub fn of_hugging_face(json: &ConfigJson, generation: Option<&ConfigJson>) -> Result<Self, Error> {
        let text_config = json.object("text_config")?;
        let ids = |key: &str| {
            for json in generation.into_iter().chain([json]).chain(&text_config) {
                let ids = json.token_ids(key)?;
                if !ids.is_empty() {
                    return Ok(ids);
                }
            }
            Ok(Vec::new())
        };
        let bos = ids("bos_token_id")?.first().copied();
        Ok(Self { eos: ids("eos_token_id")?, bos, ..Self::default() })
    }

    /// From the metadata of a GGUF file.
    pub fn of_gguf(gguf: &Gguf) -> Result<Self, Error> {
        let template = gguf.chat_template()?.map(|template| (gguf.metadata.path().to_owned(), template));
        Ok(Self { eos: gguf.eos_tokens()?, bos: gguf.bos_token()?, template, ..Self::default() })
    }

    /// Adds what lies beside a `tokenizer.json`: the tokenizer's own end of text, the names of its tokens, and its
    /// template, which goes before a model's. Of a tokenizer made for a larger embedding than one of `rows`, no token beyond
    /// them can end a text.
    pub fn refine(&mut self, tokenizer: &Tokenizer, files: TokenizerFiles, rows: usize) {
        let spelled = |id: Option<&u32>| id.and_then(|&id| tokenizer.token(id));
        let by_id = [("bos_token", spelled(self.bos.as_ref())), ("eos_token", spelled(self.eos.first()))];
        self.named = by_id.into_iter().filter_map(|(name, token)| Some((name.to_owned(), token?))).collect();
        if files.is_configured() {
            self.named = files.named_tokens();
            let eos = self.named.get("eos_token").and_then(|eos| tokenizer.token_id(eos));
            self.eos.extend(eos.filter(|&id| (id as usize) < rows));
        }
        self.template = files.into_template().or(self.template.take());
        self.eos.sort_unstable();
        self.eos.dedup();
    }

    /// The template with the tokens that it may name.
    pub fn chat_template(&self) -> Option<ChatTemplate> {
        let (path, source) = self.template.as_ref()?;
        Some(ChatTemplate::new(path, source, self.named.clone(), OffsetDateTime::now_utc()))
    }
}

/// The file at `path`, unless there is none.
pub(super) fn read_template(path: &Path) -> Result<Option<(PathBuf, String)>, Error> {
    let what = "the chat template";
    let Some(bytes) = small_file::read_if_there(path, what, small_file::LARGEST_TEMPLATE_BYTES)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::read(path, what, std::io::Error::new(std::io::ErrorKind::InvalidData, error.utf8_error()))
    })?;
    match super::substitute::reason(text.as_bytes()) {
        Some(reason) if !text.is_empty() => Err(Error::malformed(path, reason)),
        _ => Ok(Some((path.to_owned(), text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned()))),
    }
}
