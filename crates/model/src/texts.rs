//! A model's texts: tokenizer, special tokens and chat template, without its weights.
//!
//! They are opened apart from the weights, so that prompts are made while weights are read, and for engines that read weights
//! themselves.

use std::path::Path;

use super::config_json::ConfigJson;
use super::gguf::Gguf;
use super::open::{Source, find_gguf, find_model, is_gguf, join, read_config};
use super::special_tokens::SpecialTokens;
use super::tokenizer_files::TokenizerFiles;
use super::{ChatTemplate, Error, SystemFiles, Tokenizer, families};

/// Tokenizer, chat template and special tokens of a model.
#[derive(Debug)]
pub struct Texts {
    /// Architecture in `config.json`; any name, also of families that are unknown here.
    pub architecture: String,
    /// The tokenizer of the model.
    pub tokenizer: Tokenizer,
    /// Template that turns a conversation into a prompt, if the model has one.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that end a text, ascending.
    pub eos_tokens: Vec<u32>,
    /// The token that begins a text, if the model has one.
    pub bos_token: Option<u32>,
    /// Longest sequence that the model was trained for, if its family is known here.
    pub max_position: Option<usize>,
}

impl Texts {
    /// Opens the texts of the model at `model` with the tokenizer at `tokenizer`; both may be the same path.
    pub fn open(model: &Path, tokenizer: &Path) -> Result<Self, Error> {
        match find_model(model)? {
            Source::HuggingFace(directory) => Self::open_hugging_face(&directory, tokenizer),
            Source::Gguf(file) => Self::open_gguf(&file, tokenizer),
        }
    }

    fn open_hugging_face(directory: &Path, tokenizer: &Path) -> Result<Self, Error> {
        // In parallel: from a bucket each file is a round trip, and building a tokenizer takes a while.
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| open_tokenizer(tokenizer, None));
            let generation = scope.spawn(|| ConfigJson::read(&directory.join("generation_config.json")));
            let json = read_config(directory)?;
            // Other engines, such as vLLM, may know families that this one does not.
            let (architecture, rows, max_position) = match families::from_config_json(&json) {
                Ok(known) => (known.architecture, Some(known.config.vocab_size), Some(known.config.max_position)),
                Err(_) => (first_architecture(&json)?, embedding_rows(&json)?, None),
            };
            let special_tokens = SpecialTokens::of_hugging_face(&json, join(generation)?.as_ref())?;
            Self::new(architecture, max_position, join(tokenizer)?, special_tokens, rows)
        })
    }

    fn open_gguf(file: &Path, tokenizer: &Path) -> Result<Self, Error> {
        let gguf = Gguf::open(file, &SystemFiles)?;
        let description = gguf.description()?;
        std::thread::scope(|scope| {
            let special_tokens = scope.spawn(|| SpecialTokens::of_gguf(&gguf));
            let tokenizer = open_tokenizer(tokenizer, Some((file, &gguf)))?;
            let (config, architecture) = (description.config, description.architecture);
            let (longest, rows) = (config.max_position, config.vocab_size);
            Self::new(architecture, Some(longest), tokenizer, join(special_tokens)?, Some(rows))
        })
    }

    /// Combines what was read. No ID may exceed the `rows` of the model's embedding, if their number is known.
    pub(super) fn new(
        architecture: String,
        max_position: Option<usize>,
        (mut tokenizer, files): (Tokenizer, TokenizerFiles),
        mut special_tokens: SpecialTokens,
        rows: Option<usize>,
    ) -> Result<Self, Error> {
        // Some tokenizers have IDs beyond the embedding, such as Gemma 3's image placeholder.
        rows.inspect(|&rows| tokenizer.limit_to(rows));
        let rows = rows.unwrap_or(usize::MAX);
        special_tokens.refine(&tokenizer, files, rows);
        if let Some(id) = special_tokens.eos.iter().chain(&special_tokens.bos).find(|&&id| id as usize >= rows) {
            let reason = format!("token {id} is to begin or end texts, but the model's embedding has {rows} rows");
            return Err(Error::tokenizer(tokenizer.path(), reason));
        }
        // A broken tokenizer fails here, before the weights are read, rather than with the first prompt.
        tokenizer.try_out()?;
        let (chat_template, bos_token) = (special_tokens.chat_template(), special_tokens.bos);
        Ok(Self { architecture, tokenizer, chat_template, eos_tokens: special_tokens.eos, bos_token, max_position })
    }
}

fn first_architecture(json: &ConfigJson) -> Result<String, Error> {
    let architectures = json.texts("architectures")?.unwrap_or_default();
    architectures.into_iter().next().ok_or_else(|| json.error("architectures", "it is not there"))
}

fn embedding_rows(json: &ConfigJson) -> Result<Option<usize>, Error> {
    let text_config = json.object("text_config")?;
    text_config.iter().chain([json]).find_map(|json| json.size("vocab_size").transpose()).transpose()
}

impl Tokenizer {
    /// Opens a `tokenizer.json`, a directory that holds one, a `.gguf` file, or a directory that holds exactly one.
    ///
    /// # Errors
    /// [`Error::Incomplete`], [`Error::Read`], [`Error::Tokenizer`], and what a GGUF header may give rise to.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(open_tokenizer(path, None)?.0)
    }
}

/// Opens a tokenizer with the files beside it. `model` is the GGUF file that is open already, if one is.
fn open_tokenizer(path: &Path, model: Option<(&Path, &Gguf)>) -> Result<(Tokenizer, TokenizerFiles), Error> {
    let open_gguf = |file: &Path| {
        let tokenizer = match model {
            // The header is already in memory: it is mostly vocabulary, and slow to read twice.
            Some((open, gguf)) if open == file => gguf.tokenizer(),
            _ => Gguf::open(file, &SystemFiles)?.tokenizer(),
        };
        Ok((tokenizer?, TokenizerFiles::default()))
    };
    let open_json = |file: &Path| {
        std::thread::scope(|scope| {
            let files = scope.spawn(|| TokenizerFiles::read(file));
            let mut tokenizer = Tokenizer::from_tokenizer_json(file)?;
            let files = join(files)?;
            files.complete(&mut tokenizer)?;
            Ok((tokenizer, files))
        })
    };
    if !path.is_dir() {
        return if is_gguf(path) { open_gguf(path) } else { open_json(path) };
    }
    let file = path.join("tokenizer.json");
    if file.exists() {
        return open_json(&file);
    }
    match find_gguf(path)? {
        Some(gguf) => open_gguf(&gguf),
        None => {
            let missing =
                "there is no tokenizer.json in it; transformers writes one with AutoTokenizer.save_pretrained";
            Err(Error::incomplete(path, missing))
        }
    }
}
