//! The lines of `outputs.jsonl`: answers in the order in which they were asked for, each in the form of its question.
//!
//! A batch in OpenAI's format is answered in it (<https://platform.openai.com/docs/guides/batch>), an error for each line
//! that could not be run included. What was asked plainly, and skipped, has no line: `line` or `entry` show the gap. An answer
//! that broke off has an error beside the text that there is; OpenAI's format has room for the error only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use flashjob_event::RequestId;

use crate::backend::Completion;
use crate::prepare::{AnswerForm, Endpoint, Entry, Labels, Matcher, Place};

/// Fields that all answers of a run share.
#[derive(Clone, Copy, Debug)]
pub struct Answerer<'a> {
    /// The model that ran, whatever a line asked for.
    pub model: &'a str,
    /// When it ended, in seconds since 1970.
    pub created: u64,
}

/// The lines about `entries`, as far as they have `completions`.
pub fn outputs<'a>(
    entries: &'a [Entry],
    completions: &'a [Completion],
    answerer: Answerer<'a>,
) -> impl Iterator<Item = Value> + 'a {
    // Completions come in the order in which requests end, and some are missing after a run that was stopped.
    let by_id: BTreeMap<RequestId, &Completion> =
        completions.iter().map(|completion| (completion.id, completion)).collect();
    entries.iter().filter_map(move |entry| match entry {
        Entry::Asked { place, request, prompt_tokens, form, answer } => {
            let completion = by_id.get(request)?;
            Some(match form {
                AnswerForm::Plain(labels) => plain(*place, labels, completion, answer.as_ref()),
                AnswerForm::Batch { custom_id, .. } if completion.error.is_some() => {
                    batch(*place, custom_id, &Value::Null, &error_of(*place, completion))
                }
                AnswerForm::Batch { custom_id, endpoint } => {
                    let body = body(*endpoint, completion, *prompt_tokens, answerer);
                    let id = format!("req_{}", completion.id.0);
                    let response = json!({"status_code": 200, "request_id": id, "body": body});
                    batch(*place, custom_id, &response, &Value::Null)
                }
            })
        }
        Entry::Skipped { place, custom_id, reason } => {
            let message = format!("{place}: {reason}");
            let error = json!({"code": "invalid_request", "message": message});
            Some(batch(*place, custom_id.as_ref()?, &Value::Null, &error))
        }
    })
}

fn plain(place: Place, labels: &Labels, completion: &Completion, answer: Option<&Matcher>) -> Value {
    let mut line = json!({"request": completion.id.0});
    match place {
        Place::Line(number) => line["line"] = json!(number),
        Place::Entry(number) => line["entry"] = json!(number),
    }
    for (name, value) in &labels.0 {
        line[name.as_str()] = value.clone();
    }
    line["output"] = json!(completion.text);
    line["output_tokens"] = json!(completion.tokens.len());
    line["finish_reason"] = json!(completion.reason);
    if let Some(answer) = answer {
        line["correct"] = json!(completion.error.is_none() && answer.is_met(&completion.text));
    }
    if completion.error.is_some() {
        line["error"] = error_of(place, completion);
    }
    line
}

/// The fault of an answer, under OpenAI's code for what is not the request's fault; null where nothing did.
fn error_of(place: Place, completion: &Completion) -> Value {
    completion.error.as_ref().map_or(Value::Null, |error| {
        let message = format!("{place}: {error}");
        json!({"code": "server_error", "message": message})
    })
}

fn batch(place: Place, custom_id: &str, response: &Value, error: &Value) -> Value {
    let (Place::Line(number) | Place::Entry(number)) = place;
    json!({"id": format!("batch_req_{number}"), "custom_id": custom_id, "response": response, "error": error})
}

fn body(endpoint: Endpoint, completion: &Completion, prompt_tokens: usize, answerer: Answerer<'_>) -> Value {
    let Answerer { model, created } = answerer;
    let (text, request, output_tokens) = (&completion.text, completion.id.0, completion.tokens.len());
    let reason = completion.reason.name();
    let usage = json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    });
    match endpoint {
        Endpoint::ChatCompletions => json!({
            "id": format!("chatcmpl-{request}"),
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": null,
                "finish_reason": reason,
            }],
            "usage": usage,
        }),
        Endpoint::Completions => json!({
            "id": format!("cmpl-{request}"),
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}],
            "usage": usage,
        }),
    }
}
