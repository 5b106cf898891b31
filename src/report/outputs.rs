//! Lines of answers, each in the form of its question, an error for each entry that could not be run included.
//!
//! A batch in OpenAI's format is answered in it (<https://platform.openai.com/docs/guides/batch>). An answer that broke off has an
//! error beside the text that there is; OpenAI's format has room for the error only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use flashjob_event::RequestId;

use super::choices::{choices, echoed, finish_reason, of_chat, usage};
use super::reply::Reply;
use crate::backend::Completion;
use crate::prepare::{AnswerForm, Endpoint, Entry, Labels, Matcher, Place, RefusalKind};

/// Fields that all answers of a run share.
#[derive(Clone, Copy, Debug)]
pub struct Answerer<'a> {
    /// The model that ran, whatever a line asked for.
    pub model: &'a str,
    /// When it ended, in seconds since 1970.
    pub created: u64,
}

/// The lines about `entries`, as far as they have `completions`, in their order.
pub fn outputs<'a>(
    entries: &'a [Entry],
    completions: &'a [Completion],
    answerer: Answerer<'a>,
) -> impl Iterator<Item = Value> + 'a {
    // Completions come in the order in which requests end, and some are missing after a run that was stopped.
    let by_id: BTreeMap<RequestId, &Completion> =
        completions.iter().map(|completion| (completion.id, completion)).collect();
    entries.iter().filter_map(move |entry| match entry {
        Entry::Asked { .. } => {
            let completions: Option<Vec<&Completion>> = entry.requests().map(|id| by_id.get(&id).copied()).collect();
            answerer.answer(entry, &completions?)
        }
        Entry::Skipped { .. } => answerer.refusal(entry),
    })
}

impl Answerer<'_> {
    /// The answer to `entry` of its completions, one for each of [`Entry::requests`]; `None` where it was not asked.
    pub fn answer(self, entry: &Entry, completions: &[&Completion]) -> Option<Value> {
        let Entry::Asked { place, request, echo, prompt_tokens, form, reply, answer, .. } = entry else { return None };
        let (echo, failed) = (echo.as_deref(), completions.iter().find(|completion| completion.error.is_some()));
        let replies: Vec<Reply> = completions.iter().map(|completion| Reply::of(&completion.text, reply)).collect();
        Some(match (form, failed) {
            (AnswerForm::Plain(labels), failed) => {
                let mut line = labelled(place, *request, labels);
                match (completions, &replies[..]) {
                    ([only], [reply]) => plain(&mut line, only, reply, echo, answer.as_ref()),
                    _ => {
                        let choice = |(index, (completion, reply)): (usize, (&&Completion, &Reply))| {
                            let mut choice = json!({"index": index});
                            plain(&mut choice, completion, reply, echo, answer.as_ref());
                            choice
                        };
                        line["choices"] = completions.iter().zip(&replies).enumerate().map(choice).collect();
                    }
                }
                if let Some(failed) = failed {
                    line["error"] = error_of(place, failed);
                }
                line
            }
            (AnswerForm::Batch { custom_id, labels, .. }, Some(failed)) => {
                batch(*request, custom_id, labels, &Value::Null, &error_of(place, failed))
            }
            (AnswerForm::Batch { custom_id, endpoint, labels }, None) => {
                let (kind, object) = match endpoint {
                    Endpoint::ChatCompletions => ("chatcmpl", "chat.completion"),
                    Endpoint::Completions => ("cmpl", "text_completion"),
                };
                let body = json!({
                    "id": format!("{kind}-{}", request.0),
                    "object": object,
                    "created": self.created,
                    "model": self.model,
                    "choices": choices(*endpoint, completions, &replies, echo),
                    "usage": usage(completions, *prompt_tokens),
                });
                let id = format!("req_{}", request.0);
                let response = json!({"status_code": 200, "request_id": id, "body": body});
                batch(*request, custom_id, labels, &response, &Value::Null)
            }
        })
    }

    /// The error for `entry`; `None` where it was asked.
    pub fn refusal(self, entry: &Entry) -> Option<Value> {
        let Entry::Skipped { place, request, form, kind, reason } = entry else { return None };
        let code = match kind {
            RefusalKind::Invalid => "invalid_request",
            RefusalKind::TooLong => "context_length_exceeded",
            RefusalKind::Unsupported => "unsupported_parameter",
        };
        let error = json!({"code": code, "message": format!("{place}: {reason}")});
        Some(match form {
            AnswerForm::Batch { custom_id, labels, .. } => batch(*request, custom_id, labels, &Value::Null, &error),
            AnswerForm::Plain(labels) => {
                let mut line = labelled(place, *request, labels);
                line["error"] = error;
                line
            }
        })
    }
}

/// The beginning of a plain answer: everything by which its question is found.
fn labelled(place: &Place, request: RequestId, labels: &Labels) -> Value {
    let mut line = json!({"request": request.0});
    if let Some(file) = &place.file {
        line["file"] = json!(&**file);
    }
    line[place.position.unit()] = json!(place.position.number());
    copy_labels(&mut line, labels);
    line
}

/// Fields that answers have of their own, besides those of a line's place.
const OWN_FIELDS: [&str; 13] = [
    "request",
    "file",
    "line",
    "row",
    "entry",
    "output",
    "output_tokens",
    "finish_reason",
    "correct",
    "choices",
    "logprobs",
    "response",
    "error",
];

/// Copies the fields of a question to its answer; `input_` goes before the name of one that answers have of their own.
fn copy_labels(line: &mut Value, labels: &Labels) {
    for (name, value) in labels.iter() {
        match OWN_FIELDS.contains(&name) {
            true => line[format!("input_{name}")] = value.clone(),
            false => line[name] = value.clone(),
        }
    }
}

/// One answer in our own format.
fn plain(line: &mut Value, completion: &Completion, reply: &Reply, echo: Option<&str>, answer: Option<&Matcher>) {
    line["output"] = json!(echoed(echo, &reply.content));
    if let Some(reasoning) = &reply.reasoning {
        line["reasoning_content"] = json!(reasoning);
    }
    if !reply.tool_calls.is_empty() {
        line["tool_calls"] = reply.calls(completion.id.0);
    }
    line["output_tokens"] = json!(completion.tokens.len());
    line["finish_reason"] = json!(finish_reason(completion, reply));
    if let Some(logprobs) = &completion.logprobs {
        line["logprobs"] = of_chat(logprobs);
    }
    if let Some(answer) = answer {
        line["correct"] = json!(completion.error.is_none() && answer.is_met(&reply.content));
    }
}

/// The fault of an answer, under OpenAI's code for what is not the request's fault; null where nothing did.
fn error_of(place: &Place, completion: &Completion) -> Value {
    completion.error.as_ref().map_or(Value::Null, |error| {
        let message = format!("{place}: {error}");
        json!({"code": "server_error", "message": message})
    })
}

fn batch(request: RequestId, custom_id: &str, labels: &Labels, response: &Value, error: &Value) -> Value {
    let mut line = json!({});
    copy_labels(&mut line, labels);
    // The line's own `id` would be in the place of the answer's.
    if let Some(id) = line.get("id").cloned() {
        line["input_id"] = id;
    }
    line["id"] = json!(format!("batch_req_{}", u64::from(request.0) + 1));
    line["custom_id"] = json!(custom_id);
    line["response"] = response.clone();
    line["error"] = error.clone();
    line
}
