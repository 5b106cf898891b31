//! A file of JSON lines: bare prompts, conversations, or the lines of an OpenAI batch, in any mixture.
//!
//! Format of a batch: <https://platform.openai.com/docs/guides/batch>. What its requests may hold is
//! [`super::openai_request`]'s business.

use std::io::{self, BufRead};
use std::ops::ControlFlow;

use serde_json::{Map, Value};

use flashjob_config::Sampling;

use super::bounded_json::{self, abbreviated};
use super::entry::Place;
use super::matcher::Matcher;
use super::openai_request::{self, UnknownFields};
use super::pieces::{self, Piece};
use super::question::{AnswerForm, DatasetRequest, Endpoint, LONGEST_LABEL_BYTES, Labels, Refusal};

/// Hands each line that is not blank to `take`, until the file or `take` ends it.
///
/// # Errors
/// As the file system says.
pub(super) fn read(
    mut file: impl BufRead,
    sampling: Sampling,
    take: &mut dyn FnMut(Place, Result<DatasetRequest, Refusal>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut number = 0;
    while let Some(piece) = pieces::line(&mut file)? {
        number += 1;
        let bytes = match piece {
            Piece::Whole(bytes) => bytes,
            Piece::TooLong(bytes) => {
                let refusal = Refusal { custom_id: None, reason: Piece::refusal(bytes) };
                if take(Place::Line(number), Err(refusal)).is_break() {
                    return Ok(());
                }
                continue;
            }
        };
        let line = bytes.trim_ascii();
        // Some editors begin a file with a mark that is no part of its text.
        let line = if number == 1 { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line) } else { line };
        if !line.is_empty() && take(Place::Line(number), parse(line, sampling)).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

fn parse(line: &[u8], sampling: Sampling) -> Result<DatasetRequest, Refusal> {
    let refuse = |reason: String| Refusal { custom_id: None, reason };
    let line: Value = bounded_json::parse(line).map_err(|error| refuse(not_json(&error)))?;
    let Value::Object(mut fields) = line else {
        return Err(refuse(format!("it is not a JSON object but {}", abbreviated(&line))));
    };
    // A line that looks like one of a batch is held to the rules of a batch: read as a bare prompt, its request would be
    // ignored.
    if fields.contains_key("body") || fields.contains_key("url") {
        return batch_line(fields, sampling);
    }
    let form = AnswerForm::Plain(Labels::of(&fields).map_err(refuse)?);
    let answer = answer(&mut fields).map_err(refuse)?;
    let (question, settings) = openai_request::read(fields, sampling, UnknownFields::Ignored).map_err(refuse)?;
    Ok(DatasetRequest { question, settings, reply: None, form, answer })
}

/// Takes the correct answer out of a line's fields.
fn answer(fields: &mut Map<String, Value>) -> Result<Option<Matcher>, String> {
    let answer = fields.remove("answer").filter(|answer| !answer.is_null());
    answer.as_ref().map(Matcher::read).transpose()
}

fn batch_line(mut fields: Map<String, Value>, sampling: Sampling) -> Result<DatasetRequest, Refusal> {
    let custom_id = match fields.remove("custom_id") {
        Some(Value::String(id)) if id.len() > LONGEST_LABEL_BYTES => {
            let reason = format!("`custom_id` has {} bytes; up to {LONGEST_LABEL_BYTES} are kept", id.len());
            return Err(Refusal { custom_id: None, reason });
        }
        Some(Value::String(id)) if !id.is_empty() => id,
        other => {
            let found = other.map_or("missing".to_owned(), |value| abbreviated(&value));
            let reason = format!("`custom_id` is {found}; give each line of a batch a text of its own");
            return Err(Refusal { custom_id: None, reason });
        }
    };
    match batch_request(fields, sampling, custom_id.clone()) {
        Ok(asked) => Ok(asked),
        Err(reason) => Err(Refusal { custom_id: Some(custom_id), reason }),
    }
}

fn batch_request(
    mut fields: Map<String, Value>,
    sampling: Sampling,
    custom_id: String,
) -> Result<DatasetRequest, String> {
    if let Some(method) = fields.get("method").filter(|method| *method != "POST") {
        return Err(format!("`method` must be \"POST\", not {}", abbreviated(method)));
    }
    let (endpoint, wanted) = match fields.get("url").and_then(Value::as_str) {
        Some("/v1/chat/completions") => (Endpoint::ChatCompletions, "messages"),
        Some("/v1/completions") => (Endpoint::Completions, "prompt"),
        _ => {
            let found = fields.get("url").map_or("missing".to_owned(), abbreviated);
            return Err(format!("`url` must be /v1/chat/completions or /v1/completions, and is {found}"));
        }
    };
    let Some(Value::Object(body)) = fields.remove("body") else {
        return Err("`body` must be an object with the request".to_owned());
    };
    if body.get(wanted).is_none_or(Value::is_null) {
        return Err(format!("`body` has no `{wanted}`, which its `url` wants"));
    }
    let answer = answer(&mut fields)?;
    let (question, settings) = openai_request::read(body, sampling, UnknownFields::Refused)?;
    Ok(DatasetRequest { question, settings, reply: None, form: AnswerForm::Batch { custom_id, endpoint }, answer })
}

/// serde_json counts lines too, and here there is only ever one.
fn not_json(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match said.strip_suffix(&place) {
        Some(what) => format!("it is not JSON: {what} at column {}", error.column()),
        None => format!("it is not JSON: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::question::Question;
    use super::*;

    const SAMPLING: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };

    fn lines(text: &[u8]) -> Vec<(Place, Result<DatasetRequest, Refusal>)> {
        let mut found = Vec::new();
        let mut take = |place, asked| {
            found.push((place, asked));
            ControlFlow::Continue(())
        };
        read(text, SAMPLING, &mut take).unwrap();
        found
    }

    #[test]
    fn blank_lines_and_marks_are_passed_over_but_counted() {
        let found = lines("\u{feff}{\"prompt\": \"a\"}\r\n\n  \n{\"prompt\": \"b\"}".as_bytes());
        let places: Vec<_> = found.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [Place::Line(1), Place::Line(4)]);
        for ((_, asked), text) in found.into_iter().zip(["a", "b"]) {
            assert_eq!(asked.unwrap().question, Question::Prompt(text.to_owned()));
        }
    }

    #[test]
    fn a_batch_line_keeps_its_name_even_when_it_is_refused() {
        let line = |url: &str, body: &str| {
            let line = format!("{{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": {url}, \"body\": {body}}}");
            lines(line.as_bytes()).pop().unwrap().1
        };
        let asked = line(r#""/v1/completions""#, r#"{"model": "m", "prompt": "x"}"#).unwrap();
        let endpoint = Endpoint::Completions;
        assert_eq!(asked.form, AnswerForm::Batch { custom_id: "a".to_owned(), endpoint });
        for (url, body, sentence) in [
            (r#""/v1/chat/completions""#, r#"{"prompt": "x"}"#, "`body` has no `messages`, which its `url` wants"),
            (r#""/v1/completions""#, r#"{"messages": []}"#, "`body` has no `prompt`, which its `url` wants"),
            (r#""/v1/completions""#, r#"{"prompt": "x", "n": 2}"#, "`n` = 2 is not supported; leave it out"),
            (r#""/v1/completions""#, "[]", "`body` must be an object with the request"),
            (
                r#""/v1/embeddings""#,
                "{}",
                "`url` must be /v1/chat/completions or /v1/completions, and is \"/v1/embeddings\"",
            ),
        ] {
            let refusal = line(url, body).unwrap_err();
            assert_eq!((refusal.custom_id.as_deref(), refusal.reason.as_str()), (Some("a"), sentence));
        }
    }

    #[test]
    fn what_is_no_question_is_refused() {
        for (line, reason) in [
            (&b"{\"prompt\": }"[..], "it is not JSON: expected value at column 12"),
            (b"{\"prompt\": \"x", "it is not JSON: EOF while parsing a string at column 13"),
            (b"[1]", "it is not a JSON object but [1]"),
            (b"{}", "it has neither `prompt` nor `messages`"),
            (b"{\"url\": \"/v1/completions\"}", "`custom_id` is missing; give each line of a batch a text of its own"),
        ] {
            let refusal = lines(line).pop().unwrap().1.unwrap_err();
            assert_eq!((refusal.custom_id, refusal.reason.as_str()), (None, reason));
        }
        let not_text = lines(b"{\"prompt\": \"\xff\"}").pop().unwrap().1.unwrap_err();
        assert!(not_text.reason.starts_with("it is not JSON: invalid unicode"), "{}", not_text.reason);
    }
}
