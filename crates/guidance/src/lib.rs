//! What a text must be becomes masks over a vocabulary: a JSON schema, a regular expression, a choice or a grammar.
//!
//! The work is that of llguidance (<https://github.com/guidance-ai/llguidance>): an Earley parser over lexemes that are matched by
//! derivatives of regular expressions, walked along a trie of all tokens. This room gives it the bytes of tokens, holds what it is
//! given against limits, and keeps what it has compiled. It knows nothing of models, requests or engines.

mod compiler;
mod error;
mod grammar;
mod matcher;
mod shared_masks;

pub use compiler::{Compiled, Compiler};
pub use error::Error;
pub use grammar::{Grammar, LONGEST_GRAMMAR_BYTES};
pub use matcher::{Matcher, Progress};
