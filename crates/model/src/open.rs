//! Opening a model: which files make it up, and what they say about it. No weight is read here.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use super::config_json::ConfigJson;
use super::families::{self, Description};
use super::gguf::Gguf;
use super::{DecoderConfig, Dtype, Error, Files, SystemFiles, Weights, hugging_face};

/// A model, its headers read and checked.
#[derive(Debug)]
pub struct Model {
    /// Shapes and constants.
    pub config: DecoderConfig,
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
}

impl Model {
    /// Opens the model at `path`: a directory in Hugging Face layout, a `.gguf` file, or a directory that holds exactly one
    /// of those.
    ///
    /// # Errors
    /// Every kind of [`Error`] but [`Error::Tokenizer`], [`Error::NotFinite`] and [`Error::Shard`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_through(&SystemFiles, path)
    }

    /// The same; the files that hold weights are opened through `files`, all others by their paths.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_through(files: &dyn Files, path: &Path) -> Result<Self, Error> {
        match find_model(path)? {
            Source::HuggingFace(directory) => Self::open_hugging_face(files, &directory),
            Source::Gguf(file) => {
                let gguf = Gguf::open(&file, files)?;
                let description = gguf.description()?;
                let weights = gguf.weights(&description.config, description.layout)?;
                Ok(Self::new(description, weights))
            }
        }
    }

    fn open_hugging_face(files: &dyn Files, directory: &Path) -> Result<Self, Error> {
        // In parallel: from a bucket each is a round trip.
        std::thread::scope(|scope| {
            let headers = scope.spawn(|| hugging_face::read_headers(directory, files));
            let mut description = families::from_config_json(&read_config(directory)?)?;
            let mut found = join(headers)?;
            if description.other_modalities.is_some() {
                found = hugging_face::language_model(found);
            }
            hugging_face::settle_head(&mut found, &mut description.config);
            let weights = hugging_face::weights(directory, &description.config, description.layout, &found)?;
            Ok(Self::new(description, weights))
        })
    }

    fn new(description: Description, weights: Weights) -> Self {
        let Description { config, architecture, other_modalities, .. } = description;
        Self {
            dtype: weights.prevailing_dtype(),
            architecture,
            other_modalities,
            parameters: config.parameters(),
            config,
            weights,
        }
    }
}

/// The `config.json` of a directory in Hugging Face layout.
pub(super) fn read_config(directory: &Path) -> Result<ConfigJson, Error> {
    ConfigJson::read(&directory.join("config.json"))?.ok_or_else(|| {
        let missing = "there is no config.json in it; name a directory in Hugging Face layout or a .gguf file";
        Error::incomplete(directory, missing)
    })
}

/// The two layouts.
pub(super) enum Source {
    HuggingFace(PathBuf),
    Gguf(PathBuf),
}

/// Finds out which of them lies at `path`.
pub(super) fn find_model(path: &Path) -> Result<Source, Error> {
    if path.is_file() {
        if is_gguf(path) {
            return Ok(Source::Gguf(path.into()));
        }
        return Err(Error::incomplete(path, "a model is a directory in Hugging Face layout or a .gguf file"));
    }
    if !path.is_dir() {
        return Err(Error::incomplete(path, "there is nothing at this path"));
    }
    // Some repositories hold both; safetensors are the original, GGUF a conversion.
    let in_hugging_face_layout = path.join("config.json").exists() && hugging_face::has_weights(path);
    match find_gguf(path)? {
        Some(gguf) if !in_hugging_face_layout => Ok(Source::Gguf(gguf)),
        _ => Ok(Source::HuggingFace(path.into())),
    }
}

/// The one GGUF file of a directory that has no `config.json` with weights.
pub(super) fn find_gguf(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let entries = std::fs::read_dir(directory).map_err(|source| Error::read(directory, "the list", source))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    // `read_dir` has no order, and the message lists the names.
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

pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Result of a scoped thread; a panic is passed on.
pub(super) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    // A panic goes on in the thread that waits, where it is reported with its own text.
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
