//! Everything that can be wrong with a configuration, each in one sentence that says what to do.

use flashjob_config::Origin;

use super::quoting::quoted;

/// One reason why a configuration cannot be used. No variant holds a token or a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A flag that there is not.
    #[error("{flag} is not a flag of flashjob{}", did_you_mean(.nearest))]
    UnknownFlag {
        /// As it was written.
        flag: String,
        /// The flag that was probably meant.
        nearest: Option<String>,
    },
    /// A flag at the end, or before another flag.
    #[error("--{key} needs a value{}", .followed_by.as_ref().map(|flag| format!(", but is followed by {flag}")).unwrap_or_default())]
    NoValue {
        /// Name of the key.
        key: String,
        /// Text in place of the value.
        followed_by: Option<String>,
    },
    /// Bytes that are not text.
    #[error("{what} is not UTF-8 text ({shown}); write it in UTF-8")]
    NotUtf8 {
        /// The flag, variable or argument.
        what: String,
        /// The value with its wrong bytes replaced.
        shown: String,
    },
    /// One source, two opinions.
    #[error("{key} is given twice with different values: {first} and {second}; keep one of them")]
    Twice {
        /// Name of the key.
        key: String,
        /// A value and where it stands.
        first: String,
        /// The other value.
        second: String,
    },
    /// A reference that Kubernetes did not replace.
    #[error("{key} is the unresolved reference `$({variable})` ({origin}): {reason}")]
    Unresolved {
        /// Name of the key.
        key: String,
        /// The name between the parentheses.
        variable: String,
        /// Source of the value.
        origin: String,
        /// Reason why nothing was inserted, with advice.
        reason: String,
    },
    /// A value that is not allowed.
    #[error("{key} is {shown} ({origin}), but {clause}")]
    Value {
        /// Name of the key.
        key: String,
        /// The value, redacted and quoted.
        shown: String,
        /// Source of the value.
        origin: String,
        /// Fault, or allowed values, as the rest of a sentence.
        clause: String,
    },
    /// A value that is not allowed and must not be shown.
    #[error("{key} ({origin}) cannot be used: {clause}")]
    Hidden {
        /// Name of the key.
        key: String,
        /// Source of the value.
        origin: String,
        /// Fault, or allowed values, as a sentence.
        clause: String,
    },
    /// A key that must be given.
    #[error("{key} is missing: give it as --{key} or as the variable {key}")]
    Missing {
        /// Name of the key.
        key: String,
    },
    /// Values that are fine alone but not together.
    #[error("{0}")]
    Together(String),
    /// A command line that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A blueprint file that cannot be used.
    #[error("the blueprint {file} {problem}")]
    Blueprint {
        /// Path of the file.
        file: String,
        /// The rest of the sentence.
        problem: String,
    },
}

impl ConfigError {
    /// `text` of `key` from `origin` is refused because of `clause`.
    pub(super) fn value(key: &str, text: &str, origin: &Origin, clause: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), shown: quoted(text), origin: origin.of(key), clause: clause.into() }
    }

    /// The same for a text that may hold a secret.
    pub(super) fn hidden(key: &str, origin: &Origin, clause: impl Into<String>) -> Self {
        Self::Hidden { key: key.to_owned(), origin: origin.of(key), clause: clause.into() }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(|| "; see --help".to_owned(), |flag| format!("; did you mean {flag}?"))
}

/// Reason why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A text was asked for: print it to standard output and exit 0.
    Help(String),
    /// Exit 2, with all that is wrong.
    Invalid(Vec<ConfigError>),
}
