//! Fields of a request that concern its text: where it ends, and what it must be.
//!
//! What is read is held against limits, so that no line makes an engine slow or large. How an engine honours it is not known here.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use flashjob_guidance::{Compiler, Error as GuidanceError, Grammar};
use flashjob_model::TextService;

use super::bounded_json::abbreviated;
use super::guided;
use super::option_fields::field;
use super::question::Reason;
use crate::backend::{Guided, Stop, TextOptions};

/// Stop texts of a request at most, and bytes of each.
const MOST_STOPS: usize = 16;
const LONGEST_STOP_BYTES: usize = 1024;

/// Different options that are kept to be shared.
const MOST_SHARED: usize = 1024;

/// Threads that compute masks of one grammar without waiting for each other.
const MOST_MASK_THREADS: usize = 8;

/// What a request says of its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TextFields {
    stop: Vec<String>,
    include_stop: bool,
    grammar: Option<Grammar>,
}

/// Reads them; `None` where the request has none.
///
/// # Errors
/// A sentence that names the field and its fault.
pub(super) fn read(fields: &Map<String, Value>, of_tools: Option<Grammar>) -> Result<Option<TextFields>, Reason> {
    let include_stop = field(fields, "include_stop_str_in_output", "true or false", Value::as_bool)?.unwrap_or(false);
    let grammar = match (guided::read(fields)?, of_tools) {
        (Some(_), Some(_)) => {
            return Err("`tool_choice` says what the text must be, and so does another field; leave one of them out"
                .to_owned()
                .into());
        }
        (grammar, of_tools) => grammar.or(of_tools),
    };
    let options = TextFields { stop: stop(fields)?, include_stop, grammar };
    Ok(if options.stop.is_empty() && options.grammar.is_none() { None } else { Some(options) })
}

fn stop(fields: &Map<String, Value>) -> Result<Vec<String>, String> {
    let texts = match fields.get("stop") {
        // Empty ones are what SDKs write for none.
        None => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => {
            let all = texts.iter().map(|text| text.as_str().map(str::to_owned));
            all.collect::<Option<Vec<_>>>().ok_or_else(|| refused(&fields["stop"]))?
        }
        Some(other) => return Err(refused(other)),
    };
    if texts.len() > MOST_STOPS {
        return Err(format!("`stop` has {} texts; up to {MOST_STOPS} are looked for", texts.len()));
    }
    for text in &texts {
        match text.len() {
            0 => return Err("`stop` has an empty text, with which every answer would end before it begins".to_owned()),
            1..=LONGEST_STOP_BYTES => {}
            bytes => {
                return Err(format!("`stop` has a text of {bytes} bytes; up to {LONGEST_STOP_BYTES} are looked for"));
            }
        }
    }
    Ok(texts)
}

fn refused(value: &Value) -> String {
    format!("`stop` must be a text or a list of texts, not {}", abbreviated(value))
}

/// Options of requests, equal ones held once.
#[derive(Default)]
pub(super) struct SharedOptions {
    known: HashMap<TextFields, Arc<TextOptions>>,
    /// Made for the first grammar.
    compiler: Option<Result<Arc<Compiler>, GuidanceError>>,
}

impl SharedOptions {
    /// Options as `fields` say, shared with requests that say the same.
    ///
    /// # Errors
    /// Those that take bytes of tokens, where the tokenizer of `texts` has none, and a grammar that is none.
    pub fn shared(&mut self, fields: TextFields, texts: &TextService) -> Result<Arc<TextOptions>, Reason> {
        if let Some(known) = self.known.get(&fields) {
            return Ok(known.clone());
        }
        let TextFields { stop, include_stop, .. } = &fields;
        let stop = match &stop[..] {
            [] => None,
            stop => {
                let made = texts.token_bytes().and_then(|tokens| Stop::new(stop.to_vec(), *include_stop, tokens));
                Some(made.map_err(|reason| Reason::unsupported(format!("`stop` is not supported: {reason}")))?)
            }
        };
        let guided = match &fields.grammar {
            None => None,
            Some(grammar) => {
                let compiler = self.compiler(texts).map_err(|error| Reason::unsupported(error.to_string()))?;
                // Compiled now, so that its fault is the line's.
                compiler.compile(grammar).map_err(|error| error.to_string())?;
                Some(Guided { grammar: grammar.clone(), compiler })
            }
        };
        if self.known.len() >= MOST_SHARED {
            self.known.clear();
        }
        let options = Arc::new(TextOptions { stop, guided });
        self.known.insert(fields, options.clone());
        Ok(options)
    }

    fn compiler(&mut self, texts: &TextService) -> Result<Arc<Compiler>, GuidanceError> {
        let make = || {
            let tokens = texts.token_bytes().map_err(GuidanceError::Tokenizer)?;
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_MASK_THREADS);
            Compiler::new(&tokens, &texts.facts().eos_tokens, threads).map(Arc::new)
        };
        self.compiler.get_or_insert_with(make).clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stops(value: Value) -> Result<Option<TextFields>, String> {
        let Value::Object(fields) = json!({"stop": value}) else { panic!() };
        read(&fields, None).map_err(|reason| reason.sentence)
    }

    #[test]
    fn a_stop_text_may_stand_alone_or_in_a_list() {
        for (value, texts) in [
            (json!("\n"), &["\n"][..]),
            (json!(["a", "b"]), &["a", "b"]),
            (json!("é".repeat(512)), &[&*"é".repeat(512)]),
        ] {
            assert_eq!(stops(value).unwrap().unwrap().stop, texts);
        }
        assert_eq!(stops(json!([])), Ok(None));
        assert_eq!(stops(json!("")), Ok(None));
    }

    #[test]
    fn what_is_no_stop_text_or_too_long_is_refused() {
        for (value, sentence) in [
            (json!(7), "`stop` must be a text or a list of texts, not 7"),
            (json!(["a", 7]), "`stop` must be a text or a list of texts, not [\"a\",7]"),
            (json!(["a", ""]), "`stop` has an empty text, with which every answer would end before it begins"),
            (json!("x".repeat(10_000)), "`stop` has a text of 10000 bytes; up to 1024 are looked for"),
            (json!(vec!["x"; 17]), "`stop` has 17 texts; up to 16 are looked for"),
        ] {
            assert_eq!(stops(value).unwrap_err(), sentence);
        }
    }
}
