//! Options of a request that concern its text: where it ends, and what it must be.
//!
//! Requests with the same options share them. How an engine honours them is its own business.

use std::sync::Arc;

use flashjob_engine::StopTexts;
use flashjob_guidance::{Compiler, Grammar};
use flashjob_model::TokenBytes;

/// Requirements on a text, beside those that the job has for all.
#[derive(Clone, Debug, Default)]
pub struct TextOptions {
    /// Texts that end it.
    pub stop: Option<Stop>,
    /// A grammar that it must be of.
    pub guided: Option<Guided>,
}

/// Texts that end an answer.
#[derive(Clone, Debug)]
pub struct Stop {
    /// As the request has them, for engines that search by themselves.
    pub texts: Vec<String>,
    /// The one that ended the answer is a part of it.
    pub is_included: bool,
    /// The same in the form of our own engine.
    pub(super) search: StopTexts,
}

impl Stop {
    /// Any of `texts`, of a model with these `tokens`.
    ///
    /// # Errors
    /// An empty text.
    pub fn new(texts: Vec<String>, is_included: bool, tokens: Arc<TokenBytes>) -> Result<Self, String> {
        let search = StopTexts::new(&texts, tokens, is_included)?;
        Ok(Self { texts, is_included, search })
    }
}

/// A grammar, and a compiler that has found it good.
#[derive(Clone)]
pub struct Guided {
    /// As the request has it, for engines with compilers of their own.
    pub grammar: Grammar,
    /// Compiles for the model's vocabulary, and may still have the grammar compiled.
    pub compiler: Arc<Compiler>,
}

impl std::fmt::Debug for Guided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guided({:?})", self.grammar)
    }
}
