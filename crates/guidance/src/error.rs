//! Failures between what a text must be and the tokens that may come next.

use super::grammar::Grammar;

/// Longest reason of llguidance's that is told, in bytes: some name all of a grammar.
const LONGEST_REASON_BYTES: usize = 300;

/// Failure of a constraint, which is that of one request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is above a limit.
    #[error("{what} {reason}")]
    Limit {
        /// Name of the constraint's kind.
        what: &'static str,
        /// The limit, and what goes beyond it.
        reason: String,
    },
    /// No text is as it says, or it is not written as it must be.
    #[error("{what} cannot be used: {reason}")]
    Invalid {
        /// Name of the constraint's kind.
        what: &'static str,
        /// llguidance's reason.
        reason: String,
    },
    /// It cannot be gone on with in the middle of a text.
    #[error("the text cannot go on: {0}")]
    Stuck(String),
    /// The tokenizer is none that it can be used with.
    #[error("texts cannot be constrained with this tokenizer: {0}")]
    Tokenizer(String),
}

impl Error {
    pub(super) fn invalid(grammar: &Grammar, reason: &str) -> Self {
        Error::Invalid { what: grammar.kind(), reason: shortened(reason) }
    }

    pub(super) fn stuck(reason: &str) -> Self {
        Error::Stuck(shortened(reason))
    }
}

/// The first line of a reason, and of an expression's the one that names the fault: the state of the parser and backtraces come behind it.
fn shortened(reason: &str) -> String {
    let first = reason.lines().next().unwrap_or_default().trim();
    let line = match reason.lines().find_map(|line| line.strip_prefix("error: ")) {
        Some(fault) if first.ends_with("parse error:") => format!("{first} {fault}"),
        // llguidance's word for a place of which no token goes on.
        _ if first == "NoExtensionBias" => "no token of the vocabulary may come next".to_owned(),
        _ => first.to_owned(),
    };
    let end = line.floor_char_boundary(LONGEST_REASON_BYTES);
    if end < line.len() { format!("{}…", &line[..end]) } else { line }
}
