//! The fields of a request in OpenAI's format: what is asked, and how its tokens are chosen.
//!
//! A field that would change the answer and is not honoured is refused by name, unless its value is the one that holds
//! anyway. It does not know whether the fields came in the body of a batch line or on a line of their own.

use std::num::{NonZeroU32, NonZeroUsize};

use serde_json::{Map, Value};

use flashjob_config::Sampling;
use flashjob_model::Conversation;

use super::bounded_json::abbreviated;
use super::option_fields::{self, field, token_ids, whole};
use super::question::{Question, Reason, RequestSettings};
use super::tools;

/// Fields that change no token.
const WITHOUT_EFFECT: [&str; 8] =
    ["model", "user", "metadata", "store", "service_tier", "stream_options", "prompt_cache_key", "safety_identifier"];

/// Fields that are read.
const HONOURED: [&str; 22] = [
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "ignore_eos",
    "stop",
    "include_stop_str_in_output",
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "n",
    "echo",
];

/// Answers that a line may ask for, as with OpenAI.
const MOST_CHOICES: u32 = 128;

/// Tells that a value asks for the default behaviour.
type AsksForNothing = fn(&Value) -> bool;

/// Fields of OpenAI's and vLLM's requests that are not honoured.
const REFUSED: [(&str, AsksForNothing); 9] = [
    ("best_of", is_one),
    ("stream", is_false),
    ("suffix", is_empty),
    ("functions", is_empty),
    ("function_call", is_no_choice),
    ("modalities", is_text_modality),
    ("audio", is_empty),
    ("prediction", is_empty),
    ("reasoning_effort", is_empty),
];

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_no_choice(value: &Value) -> bool {
    matches!(value.as_str(), Some("none" | "auto"))
}

fn is_text_modality(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|kind| kind == "text"))
}

/// Treatment of a field that is neither honoured nor known to be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownFields {
    /// A request's own: it was meant to do something.
    Refused,
    /// Beside a bare prompt, users keep notes of their own.
    Ignored,
}

/// Reads a request; what it leaves open about sampling is as in `sampling`.
///
/// # Errors
/// A sentence that names the field and its fault.
pub(super) fn read(
    mut fields: Map<String, Value>,
    sampling: Sampling,
    unknown: UnknownFields,
) -> Result<(Question, RequestSettings), Reason> {
    // SDKs write `null` and empty values for what was never set. An honoured field that is empty stays, to be refused with a
    // reason.
    fields.retain(|name, value| !value.is_null() && (is_honoured(name) || !is_empty(value)));
    refuse_what_is_not_honoured(&fields, unknown)?;
    let (tools, tool_use) = tools::read(&fields)?;
    let settings = RequestSettings {
        // The newer of OpenAI's two names goes first, as there.
        max_tokens: match max_tokens(&fields, "max_completion_tokens")? {
            None => max_tokens(&fields, "max_tokens")?,
            found => found,
        },
        sampling: Sampling {
            temperature: temperature(&fields)?.unwrap_or(sampling.temperature),
            top_p: top_p(&fields)?.unwrap_or(sampling.top_p),
            top_k: top_k(&fields)?.unwrap_or(sampling.top_k),
        },
        seed: seed(&fields)?,
        ignore_eos: ignore_eos(&fields)?,
        options: option_fields::read(&fields)?,
        text: super::text_options::read(&fields, tools::grammar(&tools, tool_use.as_ref(), &fields))?,
        tools: tool_use,
        choices: choices(&fields)?,
        echo: echo(&fields)?,
    };
    if settings.echo && settings.options.as_ref().is_some_and(|options| options.logprobs.is_some()) {
        let sentence = "`echo` with `logprobs` is not supported, as prompts have none here; leave one of them out";
        return Err(Reason::unsupported(sentence.to_owned()));
    }
    let question = match (fields.remove("prompt"), fields.remove("messages")) {
        (Some(_), Some(_)) => {
            return Err("it has both `prompt` and `messages`; leave one of them out".to_owned().into());
        }
        (None, None) => return Err("it has neither `prompt` nor `messages`".to_owned().into()),
        (Some(_), None) if !tools.is_empty() => {
            return Err("`tools` need `messages`, and it has a `prompt`".to_owned().into());
        }
        (Some(Value::String(prompt)), None) => Question::Prompt(prompt),
        (Some(Value::Array(list)), None) => one_prompt(list)?,
        (Some(other), None) => return Err(not_one_prompt(&other).into()),
        (None, Some(_)) if settings.echo => {
            return Err("`echo` repeats a `prompt`, and it has `messages`; leave it out".to_owned().into());
        }
        (None, Some(messages)) => {
            Question::Messages(Conversation { messages: super::messages::read(messages)?, tools })
        }
    };
    Ok((question, settings))
}

/// The prompt of a list of token ids, or of a list with one prompt.
fn one_prompt(mut list: Vec<Value>) -> Result<Question, String> {
    let ids = |list: &[Value]| token_ids(list).filter(|ids| !ids.is_empty()).map(Question::Tokens);
    // Some programs put the one prompt of a request into a list, as the API allows.
    match (list.pop(), list.is_empty()) {
        (Some(Value::String(prompt)), true) => Ok(Question::Prompt(prompt)),
        (Some(Value::Array(only)), true) => ids(&only).ok_or_else(|| not_one_prompt(&Value::Array(vec![only.into()]))),
        (last, _) => {
            list.extend(last);
            // Several texts or lists would be several requests in one line.
            ids(&list).ok_or_else(|| not_one_prompt(&Value::Array(list)))
        }
    }
}

fn not_one_prompt(found: &Value) -> String {
    format!("`prompt` must be one text or one list of token ids, not {}", abbreviated(found))
}

fn is_honoured(name: &str) -> bool {
    HONOURED.contains(&name) || option_fields::NAMES.contains(&name)
}

/// Returns whether a field is part of a request, honoured or not: what is none is a note of the user's.
pub(super) fn is_option(name: &str) -> bool {
    // OpenAI's own places for notes, which change nothing here.
    let is_note = ["metadata", "user"].contains(&name);
    is_honoured(name) || REFUSED.iter().any(|(known, _)| *known == name) || (WITHOUT_EFFECT.contains(&name) && !is_note)
}

fn refuse_what_is_not_honoured(fields: &Map<String, Value>, unknown: UnknownFields) -> Result<(), Reason> {
    for (name, value) in fields {
        if is_honoured(name) || WITHOUT_EFFECT.contains(&name.as_str()) {
            continue;
        }
        let asks_for_nothing = match REFUSED.iter().find(|(known, _)| known == name) {
            Some((_, asks_for_nothing)) => asks_for_nothing(value),
            None => unknown == UnknownFields::Ignored,
        };
        if !asks_for_nothing {
            let sentence = format!("`{name}` = {} is not supported; leave it out", abbreviated(value));
            return Err(Reason::unsupported(sentence));
        }
    }
    Ok(())
}

fn max_tokens(fields: &Map<String, Value>, name: &str) -> Result<Option<NonZeroUsize>, String> {
    // Lengths of 32 bits are far above any model's, and their sums with prompts cannot overflow.
    let read = |value: &Value| usize::try_from(i32::try_from(whole(value)?).ok()?).ok().and_then(NonZeroUsize::new);
    field(fields, name, "a whole number of at least 1", read)
}

fn temperature(fields: &Map<String, Value>) -> Result<Option<f32>, String> {
    // An `f32` of its own: a value that rounds to infinity or to zero there is not the value that was meant.
    let read = |value: &Value| {
        let (wide, narrow) = (value.as_f64()?, value.as_f64()? as f32);
        (narrow.is_finite() && (wide == 0.0 || narrow > 0.0)).then_some(narrow)
    };
    field(fields, "temperature", "a number of at least 0", read)
}

fn top_p(fields: &Map<String, Value>) -> Result<Option<f32>, String> {
    let read = |value: &Value| value.as_f64().map(|share| share as f32).filter(|share| *share > 0.0 && *share <= 1.0);
    field(fields, "top_p", "a number above 0 and at most 1", read)
}

fn top_k(fields: &Map<String, Value>) -> Result<Option<Option<NonZeroUsize>>, String> {
    let read = |value: &Value| match whole(value)? {
        // Both mean `no limit` in vLLM, depending on its version.
        -1 | 0 => Some(None),
        count => usize::try_from(count).ok().map(NonZeroUsize::new),
    };
    field(fields, "top_k", "a whole number of at least 1, or 0 or -1 for all", read)
}

fn seed(fields: &Map<String, Value>) -> Result<Option<u64>, String> {
    // OpenAI's seeds have a sign.
    let read = |value: &Value| value.as_u64().or_else(|| whole(value).map(i64::cast_unsigned));
    field(fields, "seed", "a whole number of 64 bits", read)
}

fn choices(fields: &Map<String, Value>) -> Result<NonZeroU32, String> {
    let read =
        |value: &Value| u32::try_from(whole(value)?).ok().filter(|&n| n <= MOST_CHOICES).and_then(NonZeroU32::new);
    let allowed = format!("a whole number from 1 to {MOST_CHOICES}");
    Ok(field(fields, "n", &allowed, read)?.unwrap_or(NonZeroU32::MIN))
}

fn echo(fields: &Map<String, Value>) -> Result<bool, String> {
    Ok(field(fields, "echo", "true or false", Value::as_bool)?.unwrap_or(false))
}

fn ignore_eos(fields: &Map<String, Value>) -> Result<Option<bool>, String> {
    field(fields, "ignore_eos", "true or false", Value::as_bool)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SAMPLING: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };

    fn read(fields: Value) -> Result<(Question, RequestSettings), String> {
        let Value::Object(fields) = fields else { panic!("{fields}") };
        super::read(fields, SAMPLING, UnknownFields::Refused).map_err(|reason| reason.sentence)
    }

    #[test]
    fn what_is_honoured_is_read_and_what_asks_for_nothing_is_let_through() {
        let (question, settings) = read(json!({
            "model": "any", "prompt": "x", "max_tokens": 9, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9,
            "top_k": -1, "seed": -1, "ignore_eos": true, "n": 1, "stream": false, "stop": null, "tools": [],
            "logit_bias": {}, "presence_penalty": 0, "response_format": {"type": "text"}, "tool_choice": "none",
        }))
        .unwrap();
        assert_eq!(question, Question::Prompt("x".to_owned()));
        assert_eq!(settings.max_tokens.map(usize::from), Some(7));
        assert_eq!(settings.sampling, Sampling { temperature: 0.5, top_p: 0.9, top_k: None });
        assert_eq!((settings.seed, settings.ignore_eos), (Some(u64::MAX), Some(true)));
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_fraction_of_nothing() {
        let (_, settings) = read(json!({"prompt": "x", "max_tokens": 9.0, "top_k": 4e1, "seed": -7.0})).unwrap();
        assert_eq!(settings.max_tokens, NonZeroUsize::new(9));
        assert_eq!(settings.sampling.top_k, NonZeroUsize::new(40));
        assert_eq!(settings.seed, Some((-7i64).cast_unsigned()));
        assert!(read(json!({"prompt": "x", "seed": 1e17})).is_err(), "which number that is, is not certain");
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for (field, value, sentence) in [
            ("best_of", json!(2), "`best_of` = 2 is not supported; leave it out"),
            ("n", json!(0), "`n` must be a whole number from 1 to 128, not 0"),
            ("n", json!(1_000_000_000), "`n` must be a whole number from 1 to 128, not 1000000000"),
            ("echo", json!(1), "`echo` must be true or false, not 1"),
            ("stream", json!(true), "`stream` = true is not supported; leave it out"),
            ("frobnicate", json!(1), "`frobnicate` = 1 is not supported; leave it out"),
            ("max_tokens", json!(0), "`max_tokens` must be a whole number of at least 1, not 0"),
            ("max_tokens", json!(1.5), "`max_tokens` must be a whole number of at least 1, not 1.5"),
            ("temperature", json!(-1), "`temperature` must be a number of at least 0, not -1"),
            ("temperature", json!(1e300), "`temperature` must be a number of at least 0, not 1e+300"),
            ("top_p", json!(0), "`top_p` must be a number above 0 and at most 1, not 0"),
            ("top_k", json!(-2), "`top_k` must be a whole number of at least 1, or 0 or -1 for all, not -2"),
            ("seed", json!("1"), "`seed` must be a whole number of 64 bits, not \"1\""),
            ("ignore_eos", json!(1), "`ignore_eos` must be true or false, not 1"),
            ("prompt", json!(["a", "b"]), "`prompt` must be one text or one list of token ids, not [\"a\",\"b\"]"),
            ("prompt", json!([[1], [2]]), "`prompt` must be one text or one list of token ids, not [[1],[2]]"),
            ("prompt", json!([]), "`prompt` must be one text or one list of token ids, not []"),
            ("prompt", json!([[]]), "`prompt` must be one text or one list of token ids, not [[]]"),
            ("prompt", json!([1, -1]), "`prompt` must be one text or one list of token ids, not [1,-1]"),
            ("prompt", json!([1, "a"]), "`prompt` must be one text or one list of token ids, not [1,\"a\"]"),
            ("prompt", json!(7), "`prompt` must be one text or one list of token ids, not 7"),
            ("min_p", json!(2), "`min_p` must be a number from 0 to 1, not 2"),
            ("messages", json!([]), "it has both `prompt` and `messages`; leave one of them out"),
        ] {
            let mut fields = json!({"prompt": "x"});
            fields[field] = value;
            assert_eq!(read(fields).unwrap_err(), sentence);
        }
        assert_eq!(read(json!({"prompt": null})).unwrap_err(), "it has neither `prompt` nor `messages`");
    }

    #[test]
    fn a_prompt_may_be_token_ids_or_the_only_one_of_a_list() {
        for (prompt, question) in [
            (json!([1, 2]), Question::Tokens(vec![1, 2])),
            (json!([3]), Question::Tokens(vec![3])),
            (json!([[1, 2.0]]), Question::Tokens(vec![1, 2])),
            (json!(["x"]), Question::Prompt("x".to_owned())),
        ] {
            assert_eq!(read(json!({"prompt": prompt})).unwrap().0, question);
        }
    }

    #[test]
    fn notes_beside_a_bare_prompt_are_let_through() {
        let Value::Object(fields) = json!({"prompt": "x", "topic": "weather"}) else { panic!() };
        assert!(super::read(fields, SAMPLING, UnknownFields::Ignored).is_ok());
    }
}
