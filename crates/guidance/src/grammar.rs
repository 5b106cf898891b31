//! Constraints as users write them, and their limits.

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::TokEnv;
use serde_json::{Value, json};

use super::Error;
use super::shared_masks::SharedMasks;

/// Longest schema, expression or grammar: a schema of FHIR, one of the largest in use, has some megabytes, those of applications a few
/// kilobytes.
pub const LONGEST_GRAMMAR_BYTES: usize = 256 << 10;

/// Deepest nesting of brackets, on which parsers recurse.
const DEEPEST: usize = 128;

/// White space between two lexemes of JSON: without a bound, a model may write nothing else.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// What a text must be, all of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema, itself JSON, is valid for.
    JsonSchema(String),
    /// A match of this regular expression, in Rust's syntax.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this context-free grammar, in the variant of Lark's syntax that llguidance has.
    Lark(String),
}

impl Grammar {
    /// The kind's name in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Grammar::JsonObject => "the JSON object",
            Grammar::JsonSchema(_) => "the JSON schema",
            Grammar::Regex(_) => "the regular expression",
            Grammar::Choice(_) => "the choice",
            Grammar::Lark(_) => "the grammar",
        }
    }

    /// Bytes of its texts.
    pub fn bytes(&self) -> usize {
        match self {
            Grammar::JsonObject => 0,
            Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text) => text.len(),
            Grammar::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }

    /// Refuses what is too large to be compiled.
    ///
    /// # Errors
    /// [`Error::Limit`], and [`Error::Invalid`] of a choice of nothing.
    pub fn check(&self) -> Result<(), Error> {
        let limit = |reason: String| Err(Error::Limit { what: self.kind(), reason });
        if self.bytes() > LONGEST_GRAMMAR_BYTES {
            return limit(format!("has {} bytes; up to {LONGEST_GRAMMAR_BYTES} are compiled", self.bytes()));
        }
        match self {
            Grammar::Choice(texts) if texts.iter().all(String::is_empty) => Err(Error::invalid(self, "it has no text")),
            // JSON is limited where it is parsed.
            Grammar::Regex(text) | Grammar::Lark(text) if nesting(text) > DEEPEST => {
                limit(format!("has more than {DEEPEST} brackets in each other"))
            }
            _ => Ok(()),
        }
    }

    /// Masks over `tokens` that texts of it share.
    pub(super) fn shared_masks(&self, tokens: &TokEnv) -> Option<SharedMasks> {
        match self {
            Grammar::Regex(text) => SharedMasks::of(text, tokens.clone()),
            Grammar::Choice(texts) => SharedMasks::of(&any_of(texts), tokens.clone()),
            Grammar::JsonObject | Grammar::JsonSchema(_) | Grammar::Lark(_) => None,
        }
    }

    /// In llguidance's form.
    pub(super) fn lowered(&self) -> Result<TopLevelGrammar, Error> {
        Ok(match self {
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(with_white_space(json!({"type": "object"}))),
            Grammar::JsonSchema(text) => {
                let schema: Value =
                    serde_json::from_str(text).map_err(|error| Error::invalid(self, &error.to_string()))?;
                TopLevelGrammar::from_json_schema(with_white_space(schema))
            }
            Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
            // An expression and no grammar: its derivatives are a trie of the texts, however many they are.
            Grammar::Choice(texts) => TopLevelGrammar::from_regex(&any_of(texts)),
            Grammar::Lark(text) if text.contains("::=") => {
                return Err(Error::invalid(self, "it is in Backus-Naur form (`::=`); write it in Lark's syntax"));
            }
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        })
    }
}

/// An expression for one of `texts`.
fn any_of(texts: &[String]) -> String {
    texts.iter().map(|text| regex_syntax::escape(text)).collect::<Vec<_>>().join("|")
}

/// `schema` with bounded white space, unless it says otherwise itself.
fn with_white_space(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        // A schema that is `true` or `false` has no room for it, and takes llguidance's own default.
        fields.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}

/// Brackets in each other at most; those in quotes are counted, too, as they make no parser recurse deeper than it says.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            // An escaped bracket opens nothing.
            b'\\' => drop(bytes.next()),
            b'(' | b'[' | b'{' => depth += 1,
            // One that closes nothing is the parser's to refuse.
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
