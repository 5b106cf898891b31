//! Errors of a model's files, with advice for their owner.

use std::path::{Path, PathBuf};

/// Reasons why a model cannot be opened or read. All are faults of the files, so a retry does not help.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that a model needs is not there.
    #[error("{directory} is not a complete model: {missing}")]
    Incomplete {
        /// Directory that was searched.
        directory: PathBuf,
        /// The missing file, and how to get it.
        missing: String,
    },
    /// The system refused a read.
    #[error("cannot read {what} of {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The part that was read.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file contradicts its own format.
    #[error("{path} is damaged or not what its name says: {reason}")]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Fault of its content.
        reason: String,
    },
    /// A key of the configuration is missing, of the wrong type, or makes no sense.
    #[error("{path}: {key}: {reason}")]
    Setting {
        /// Path of the file.
        path: PathBuf,
        /// The key, with dots for nesting.
        key: String,
        /// Fault, and what is allowed.
        reason: String,
    },
    /// No family knows this architecture.
    #[error("{path}: architecture {architecture} is not supported; supported are {}", .supported.join(", "))]
    UnsupportedArchitecture {
        /// The file that names it.
        path: PathBuf,
        /// Its name there.
        architecture: String,
        /// Every name that would have been accepted.
        supported: Vec<&'static str>,
    },
    /// A known architecture uses something that the decoder does not do.
    #[error("{path}: {setting} is not implemented{}", clause(.allowed))]
    UnsupportedSetting {
        /// Path of the file.
        path: PathBuf,
        /// Key with its value.
        setting: String,
        /// Alternatives that work; may be empty.
        allowed: String,
    },
    /// The tensors in the files are not those that the configuration describes.
    #[error("{path}: the weights do not fit the configuration: {}", listed(.problems))]
    Tensors {
        /// The directory or file.
        path: PathBuf,
        /// Every missing, misshapen and unexpected tensor.
        problems: Vec<String>,
    },
    /// A weight is NaN or infinite.
    #[error("{path}: tensor {tensor} has the value {value} at {index:?}{}", clause(.hint))]
    NotFinite {
        /// Path of the file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Row and column, or position in a vector, in the whole tensor.
        index: Vec<usize>,
        /// `NaN`, `inf` or `-inf`.
        value: f32,
        /// Advice; may be empty.
        hint: String,
    },
    /// The model cannot be split over that many ranks.
    #[error("cannot give rank {rank} of {world_size} its part of the model: {reason}")]
    Shard {
        /// Index of the rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// The sizes that do not divide.
        reason: String,
    },
    /// The tokenizer cannot be built or used.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// Path of the file.
        path: PathBuf,
        /// Fault of the tokenizer.
        reason: String,
    },
    /// Sentence of the process that reads the texts.
    #[error("{0}")]
    Texts(String),
    /// The process that reads the texts ended.
    #[error(
        "the texts of {model} cannot be used: the process that reads the tokenizer {tokenizer} and the chat template {end}; its \
         files are damaged or made to do harm: get them again from where the model was published, or name another tokenizer"
    )]
    TextsEnded {
        /// Path of the model.
        model: PathBuf,
        /// Path of the tokenizer.
        tokenizer: PathBuf,
        /// Its end: the rest of a clause that begins with the process.
        end: String,
    },
    /// A chat template is not Jinja, or does not take a conversation.
    #[error("the chat template of {path} {reason}")]
    ChatTemplate {
        /// The file that holds it.
        path: PathBuf,
        /// Fault, as the rest of a sentence.
        reason: String,
    },
}

fn clause(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {text}") }
}

/// The first of many problems; more would only fill the screen.
fn listed(problems: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = problems.len().saturating_sub(SHOWN);
    let shown = problems[..problems.len() - more].join("; ");
    if more == 0 { shown } else { format!("{shown}; and {more} more") }
}

impl Error {
    pub(super) fn read(path: &Path, what: impl Into<String>, source: std::io::Error) -> Self {
        Error::Read { path: path.into(), what: what.into(), source }
    }

    pub(super) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Error::Malformed { path: path.into(), reason: reason.into() }
    }

    pub(super) fn incomplete(directory: &Path, missing: impl Into<String>) -> Self {
        Error::Incomplete { directory: directory.into(), missing: missing.into() }
    }

    pub(super) fn setting(path: &Path, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Setting { path: path.into(), key: key.into(), reason: reason.into() }
    }

    pub(super) fn unsupported(path: &Path, setting: impl Into<String>, allowed: impl Into<String>) -> Self {
        Error::UnsupportedSetting { path: path.into(), setting: setting.into(), allowed: allowed.into() }
    }

    pub(super) fn tokenizer(path: &Path, reason: impl Into<String>) -> Self {
        Error::Tokenizer { path: path.into(), reason: reason.into() }
    }
}
