//! The numeric options of a request in OpenAI's and vLLM's names: min-p, penalties, biases, and what bounds the end of an answer.
//!
//! Tokens are numbers here: whether the model has them is looked at where the model is known.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde_json::{Map, Value};

use flashjob_config::SamplingOptions;

use super::bounded_json::abbreviated;

/// Fields that are read here.
pub(super) const NAMES: [&str; 9] = [
    "min_p",
    "min_tokens",
    "stop_token_ids",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
];

/// Tokens that a request may name to end it.
const MOST_STOP_TOKENS: usize = 64;

/// Tokens whose logits a request may change.
const MOST_BIASES: usize = 1024;

/// Likeliest tokens whose log-probabilities a request may want for each of its own.
const MOST_LOGPROBS: i64 = 20;

/// Reads the options among `fields`; `None` where they change nothing.
///
/// # Errors
/// A sentence that names the field and what is allowed.
pub(super) fn read(fields: &Map<String, Value>) -> Result<Option<Arc<SamplingOptions>>, String> {
    if !fields.keys().any(|name| NAMES.contains(&name.as_str())) {
        return Ok(None);
    }
    let default = SamplingOptions::default();
    let between = |name, least: f32, most: f32, otherwise: f32| {
        let allowed = format!("a number from {least} to {most}");
        let read = |value: &Value| value.as_f64().map(|number| number as f32).filter(|x| (least..=most).contains(x));
        Ok::<f32, String>(field(fields, name, &allowed, read)?.unwrap_or(otherwise))
    };
    let options = SamplingOptions {
        min_p: between("min_p", 0.0, 1.0, default.min_p)?,
        min_tokens: min_tokens(fields)?.map_or(0, NonZeroUsize::get),
        stop_token_ids: stop_token_ids(fields)?,
        presence_penalty: between("presence_penalty", -2.0, 2.0, default.presence_penalty)?,
        frequency_penalty: between("frequency_penalty", -2.0, 2.0, default.frequency_penalty)?,
        // Far beyond what is of use, and finite whatever the logit.
        repetition_penalty: between("repetition_penalty", 0.01, 100.0, default.repetition_penalty)?,
        logit_bias: logit_bias(fields)?,
        logprobs: logprobs(fields)?,
    };
    Ok((options != default).then(|| Arc::new(options)))
}

fn min_tokens(fields: &Map<String, Value>) -> Result<Option<NonZeroUsize>, String> {
    let read = |value: &Value| usize::try_from(i32::try_from(whole(value)?).ok()?).ok();
    Ok(field(fields, "min_tokens", "a whole number of at least 0", read)?.and_then(NonZeroUsize::new))
}

/// Likeliest tokens that are wanted: chat completions say `logprobs` = true and their number in `top_logprobs`, completions the number.
fn logprobs(fields: &Map<String, Value>) -> Result<Option<usize>, String> {
    let count = |value: &Value| {
        whole(value).filter(|count| (0..=MOST_LOGPROBS).contains(count)).and_then(|count| usize::try_from(count).ok())
    };
    let top = field(fields, "top_logprobs", &format!("a whole number from 0 to {MOST_LOGPROBS}"), count)?;
    let allowed = format!("true, false or a whole number from 0 to {MOST_LOGPROBS}");
    let read = |value: &Value| match value {
        Value::Bool(wanted) => Some(wanted.then(|| top.unwrap_or(0))),
        other => count(other).map(Some),
    };
    let wanted = field(fields, "logprobs", &allowed, read)?.flatten();
    match top {
        Some(1..) if wanted.is_none() => Err("`top_logprobs` needs `logprobs` = true".to_owned()),
        _ => Ok(wanted),
    }
}

fn stop_token_ids(fields: &Map<String, Value>) -> Result<Vec<u32>, String> {
    let read = |value: &Value| token_ids(value.as_array().filter(|list| list.len() <= MOST_STOP_TOKENS)?);
    let allowed = format!("a list of up to {MOST_STOP_TOKENS} token ids");
    let mut ids = field(fields, "stop_token_ids", &allowed, read)?.unwrap_or_default();
    // Ascending and each once, so that equal options are equal values.
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn logit_bias(fields: &Map<String, Value>) -> Result<Vec<(u32, f32)>, String> {
    let bias = |(token, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| bias.abs() <= 100.0)?;
        // Digits alone: `+7` and `07` would be the token 7 a second time.
        let digits = token.bytes().all(|byte| byte.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
        Some((digits.then_some(token)?.parse().ok()?, bias as f32))
    };
    let read = |value: &Value| {
        let biases = value.as_object().filter(|biases| biases.len() <= MOST_BIASES)?;
        biases.iter().map(bias).collect::<Option<Vec<(u32, f32)>>>()
    };
    let allowed = format!("an object of up to {MOST_BIASES} token ids, each with a number from -100 to 100");
    let mut biases = field(fields, "logit_bias", &allowed, read)?.unwrap_or_default();
    biases.sort_unstable_by_key(|&(token, _)| token);
    Ok(biases)
}

/// Token ids of a list that holds nothing else.
pub(super) fn token_ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter().map(|id| u32::try_from(whole(id)?).ok()).collect()
}

/// A whole number, also as programs write one whose numbers all have a fraction: `5.0`.
pub(super) fn whole(value: &Value) -> Option<i64> {
    /// Up to here every whole number is one of double precision.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let with_fraction = || value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= EXACT);
    value.as_i64().or_else(|| with_fraction().map(|number| number as i64))
}

/// One field, unless absent.
pub(super) fn field<T>(
    fields: &Map<String, Value>,
    name: &str,
    allowed: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, String> {
    let Some(value) = fields.get(name) else { return Ok(None) };
    let refuse = || format!("`{name}` must be {allowed}, not {}", abbreviated(value));
    read(value).map(Some).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: Value) -> Result<Option<SamplingOptions>, String> {
        let Value::Object(fields) = fields else { panic!("{fields}") };
        super::read(&fields).map(|options| options.map(|options| (*options).clone()))
    }

    #[test]
    fn options_are_read_and_those_that_change_nothing_are_none() {
        let options = read(json!({
            "min_p": 0.1, "min_tokens": 3.0, "stop_token_ids": [9, 2, 9], "presence_penalty": -2, "frequency_penalty": 0.5,
            "repetition_penalty": 1.2, "logit_bias": {"10": -100, "9": 1.5},
        }));
        let expected = SamplingOptions {
            min_p: 0.1,
            min_tokens: 3,
            stop_token_ids: vec![2, 9],
            presence_penalty: -2.0,
            frequency_penalty: 0.5,
            repetition_penalty: 1.2,
            logit_bias: vec![(9, 1.5), (10, -100.0)],
            logprobs: None,
        };
        assert_eq!(options.unwrap(), Some(expected));
        let nothing = json!({
            "min_p": 0, "min_tokens": 0, "stop_token_ids": [], "presence_penalty": 0.0, "frequency_penalty": 0,
            "repetition_penalty": 1, "logit_bias": {},
        });
        assert_eq!(read(nothing).unwrap(), None);
        assert_eq!(read(json!({"temperature": 1})).unwrap(), None);
    }

    #[test]
    fn log_probabilities_are_asked_for_as_in_both_of_openais_formats() {
        for (fields, expected) in [
            (json!({"logprobs": true}), Some(0)),
            (json!({"logprobs": true, "top_logprobs": 20}), Some(20)),
            (json!({"logprobs": 5}), Some(5)),
            (json!({"logprobs": 0}), Some(0)),
            (json!({"logprobs": false, "top_logprobs": 0}), None),
        ] {
            assert_eq!(read(fields).unwrap().and_then(|options| options.logprobs), expected);
        }
        assert_eq!(read(json!({"top_logprobs": 2})).unwrap_err(), "`top_logprobs` needs `logprobs` = true");
    }

    #[test]
    fn what_is_out_of_its_range_is_refused_with_what_is_allowed() {
        let many = |count: usize| (0..count).map(|id| (id.to_string(), json!(1))).collect::<Map<String, Value>>();
        for (name, allowed, values) in [
            ("min_p", "a number from 0 to 1", vec![json!(-0.1), json!(1.01), json!("0.5"), json!(true), json!([])]),
            ("min_tokens", "a whole number of at least 0", vec![json!(-1), json!(0.5), json!(1e10), json!("1")]),
            (
                "stop_token_ids",
                "a list of up to 64 token ids",
                vec![json!([-1]), json!([1.5]), json!(["a"]), json!(7), json!([4294967296u64]), json!(vec![1; 65])],
            ),
            ("logprobs", "true, false or a whole number from 0 to 20", vec![json!(1000), json!(-1), json!("all")]),
            ("top_logprobs", "a whole number from 0 to 20", vec![json!(21), json!(true), json!(1.5)]),
            ("presence_penalty", "a number from -2 to 2", vec![json!(2.1), json!(-3), json!("x")]),
            ("frequency_penalty", "a number from -2 to 2", vec![json!(1e300), json!(-2.5), json!({})]),
            ("repetition_penalty", "a number from 0.01 to 100", vec![json!(0), json!(-1), json!(1000), json!("1")]),
            (
                "logit_bias",
                "an object of up to 1024 token ids, each with a number from -100 to 100",
                vec![
                    json!({"1": 101}),
                    json!({"1": "1"}),
                    json!({"a": 1}),
                    json!({"-1": 1}),
                    json!({"+1": 1}),
                    json!({"01": 1}),
                    json!({"": 1}),
                    json!({"4294967296": 1}),
                    json!([1]),
                    Value::Object(many(1025)),
                    Value::Object(many(1_000_000)),
                ],
            ),
        ] {
            for value in values {
                let refused = read(json!({name: value.clone()})).unwrap_err();
                assert_eq!(refused, format!("`{name}` must be {allowed}, not {}", abbreviated(&value)));
            }
        }
        assert!(read(json!({"logit_bias": many(1024)})).is_ok());
    }
}
