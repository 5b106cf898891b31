//! Opening a model: which files make it up, and what they say about it. No weight is read here.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use super::config_json::ConfigJson;
use super::families::{self, Description};
use super::gguf::Gguf;
use super::special_tokens::SpecialTokens;
use super::tokenizer_files::TokenizerFiles;
use super::{ChatTemplate, DecoderConfig, Dtype, Error, Files, SystemFiles, Tokenizer, Weights, hugging_face};

/// A model, its headers read and checked.
#[derive(Debug)]
pub struct Model {
    /// Shapes and constants.
    pub config: DecoderConfig,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Places of all tensors.
    pub weights: Weights,
    /// The checkpoint's own format: what most weights are stored in; float16 where they are quantised.
    pub dtype: Dtype,
    /// As `config.json` names it, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// Reason for taking texts alone, of a checkpoint that was made for more.
    pub other_modalities: Option<&'static str>,
    /// Weights in all; a tied head counts once.
    pub parameters: u64,
    /// What turns a conversation into a prompt, where the model has it.
    pub chat_template: Option<ChatTemplate>,
    special_tokens: SpecialTokens,
}

impl Model {
    /// Opens the model at `model` with the tokenizer at `tokenizer`; both may be the same path.
    ///
    /// A model is a directory in Hugging Face layout, a `.gguf` file, or a directory that holds exactly one of those.
    /// A tokenizer is a `tokenizer.json`, a directory that holds one, or what a GGUF model may be.
    ///
    /// # Errors
    /// Every kind of [`Error`] but [`Error::NotFinite`] and [`Error::Shard`].
    pub fn open(model: &Path, tokenizer: &Path) -> Result<Self, Error> {
        Self::open_through(&SystemFiles, model, tokenizer)
    }

    /// The same; the files that hold weights are opened through `files`, all others by their paths.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_through(files: &dyn Files, model: &Path, tokenizer: &Path) -> Result<Self, Error> {
        match find_model(model)? {
            Source::HuggingFace(directory) => Self::open_hugging_face(files, &directory, tokenizer),
            Source::Gguf(file) => Self::open_gguf(files, &file, tokenizer),
        }
    }

    fn open_hugging_face(files: &dyn Files, directory: &Path, tokenizer: &Path) -> Result<Self, Error> {
        // All at once: from a bucket each is a journey there and back, and a tokenizer takes a while to be made.
        std::thread::scope(|scope| {
            let headers = scope.spawn(|| hugging_face::read_headers(directory, files));
            let tokenizer = scope.spawn(|| open_tokenizer(tokenizer, None));
            let generation = scope.spawn(|| ConfigJson::read(&directory.join("generation_config.json")));
            let json = ConfigJson::read(&directory.join("config.json"))?.ok_or_else(|| {
                Error::incomplete(
                    directory,
                    "there is no config.json in it; name a directory in Hugging Face layout or a .gguf file",
                )
            })?;
            let mut description = families::from_config_json(&json)?;
            let tokenizer = join(tokenizer)?;
            let mut found = join(headers)?;
            if description.other_modalities.is_some() {
                found = hugging_face::language_model(found, &mut description.config);
            }
            let weights = hugging_face::weights(directory, &description.config, description.layout, &found)?;
            let special_tokens = SpecialTokens::of_hugging_face(&json, join(generation)?.as_ref())?;
            Self::new(description, tokenizer, weights, special_tokens)
        })
    }

    fn open_gguf(files: &dyn Files, file: &Path, tokenizer: &Path) -> Result<Self, Error> {
        let gguf = Gguf::open(file, files)?;
        let description = gguf.description()?;
        let tokenizer = open_tokenizer(tokenizer, Some((file, &gguf)))?;
        let weights = gguf.weights(&description.config, description.layout)?;
        let special_tokens = SpecialTokens::of_gguf(&gguf)?;
        Self::new(description, tokenizer, weights, special_tokens)
    }

    fn new(
        Description { config, architecture, other_modalities, .. }: Description,
        (mut tokenizer, files): (Tokenizer, TokenizerFiles),
        weights: Weights,
        mut special_tokens: SpecialTokens,
    ) -> Result<Self, Error> {
        // Some tokenizers have ids beyond the embedding, such as that of Gemma 3's place of an image.
        tokenizer.limit_to(config.vocab_size);
        let rows = config.vocab_size;
        special_tokens.refine(&tokenizer, files, rows);
        if let Some(id) = special_tokens.eos.iter().chain(&special_tokens.bos).find(|&&id| id as usize >= rows) {
            let reason = format!("token {id} is to begin or end texts, but the model's embedding has {rows} rows");
            return Err(Error::tokenizer(tokenizer.path(), reason));
        }
        Ok(Self {
            dtype: weights.prevailing_dtype(),
            architecture,
            other_modalities,
            parameters: config.parameters(),
            config,
            tokenizer,
            weights,
            chat_template: special_tokens.chat_template(),
            special_tokens,
        })
    }

    /// Tokens that end a text, ascending.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.special_tokens.eos
    }

    /// The token that begins a text, where the model has one.
    pub fn bos_token(&self) -> Option<u32> {
        self.special_tokens.bos
    }
}

/// The two layouts.
enum Source {
    HuggingFace(PathBuf),
    Gguf(PathBuf),
}

fn find_model(path: &Path) -> Result<Source, Error> {
    if path.is_file() {
        if is_gguf(path) {
            return Ok(Source::Gguf(path.into()));
        }
        return Err(Error::incomplete(path, "a model is a directory in Hugging Face layout or a .gguf file"));
    }
    if !path.is_dir() {
        return Err(Error::incomplete(path, "there is nothing at this path"));
    }
    let in_hugging_face_layout = path.join("config.json").exists() && hugging_face::has_weights(path);
    match find_gguf(path)? {
        Some(gguf) if !in_hugging_face_layout => Ok(Source::Gguf(gguf)),
        _ => Ok(Source::HuggingFace(path.into())),
    }
}

/// The one GGUF file of a directory that has no `config.json` with weights.
fn find_gguf(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let entries = std::fs::read_dir(directory).map_err(|source| Error::read(directory, "the list", source))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    found.sort();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ if hugging_face::has_weights(directory) => Ok(None),
        _ => {
            let names: Vec<_> =
                found.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy()).collect();
            Err(Error::incomplete(
                directory,
                format!("it holds several GGUF files, name one of them: {}", names.join(", ")),
            ))
        }
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
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

/// With what lies beside it. `model` is the GGUF file that is open already, if one is.
pub(super) fn open_tokenizer(path: &Path, model: Option<(&Path, &Gguf)>) -> Result<(Tokenizer, TokenizerFiles), Error> {
    let open_gguf = |file: &Path| {
        let tokenizer = match model {
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

/// What a thread of a scope came to.
pub(super) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
