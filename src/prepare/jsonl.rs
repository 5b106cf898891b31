//! JSON lines, or rows of a table: bare prompts, conversations, or the lines of an OpenAI batch, in any mixture.
//!
//! Format of a batch: <https://platform.openai.com/docs/guides/batch>. What its requests may hold is
//! [`super::openai_request`]'s business.

use std::io::{self, BufRead};
use std::ops::ControlFlow;

use serde_json::{Map, Value};

use flashjob_config::{Columns, Sampling};
use flashjob_dataset::{Line, Rows, next_line};

use super::bounded_json::{self, abbreviated};
use super::entry::Position;
use super::matcher::Matcher;
use super::openai_request::{self, UnknownFields};
use super::pieces::{LONGEST_BYTES, Piece};
use super::question::{
    AnswerForm, DatasetRequest, Endpoint, LONGEST_LABEL_BYTES, Labels, Question, Reason, Refusal, RequestSettings,
};

/// Takes a request in; ends the reading where enough are taken.
type TakeRequest<'a> = dyn FnMut(Position, Result<DatasetRequest, Refusal>) -> ControlFlow<()> + 'a;

/// Hands each line that is not blank to `take`, until the file or `take` ends it.
///
/// # Errors
/// As the file system says.
pub(super) fn read_lines(
    file: &mut dyn BufRead,
    columns: &Columns,
    sampling: Sampling,
    take: &mut TakeRequest<'_>,
) -> io::Result<ControlFlow<()>> {
    let mut number = 0;
    while let Some(line) = next_line(file, LONGEST_BYTES)? {
        number += 1;
        let bytes = match line {
            Line::Whole(bytes) => bytes,
            Line::TooLong(bytes) => {
                let reason = Reason::too_long(Piece::refusal(bytes));
                let refusal = Refusal { form: AnswerForm::default(), reason };
                if take(Position::Line(number), Err(refusal)).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            }
        };
        let line = bytes.trim_ascii();
        // Some editors begin a file with a mark that is no part of its text.
        let line = if number == 1 { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line) } else { line };
        if !line.is_empty() && take(Position::Line(number), parse(line, columns, sampling)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Hands each row to `take`, until the table or `take` ends it.
///
/// # Errors
/// A table that is damaged.
pub(super) fn read_rows(
    rows: Rows,
    columns: &Columns,
    sampling: Sampling,
    take: &mut TakeRequest<'_>,
) -> Result<ControlFlow<()>, flashjob_dataset::Error> {
    for (number, row) in (1..).zip(rows) {
        if take(Position::Row(number), request(row?, columns, sampling)).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn parse(line: &[u8], columns: &Columns, sampling: Sampling) -> Result<DatasetRequest, Refusal> {
    let no_request = |sentence: String| Refusal { form: AnswerForm::default(), reason: sentence.into() };
    let line: Value = bounded_json::parse(line).map_err(|error| no_request(not_json(&error)))?;
    let Value::Object(fields) = line else {
        return Err(no_request(format!("it is not a JSON object but {}", abbreviated(&line))));
    };
    request(fields, columns, sampling)
}

fn request(mut fields: Map<String, Value>, columns: &Columns, sampling: Sampling) -> Result<DatasetRequest, Refusal> {
    let no_request = |sentence: String| Refusal { form: AnswerForm::default(), reason: sentence.into() };
    for (field, column) in columns.iter() {
        if let Some(value) = fields.remove(column) {
            fields.insert(field.to_owned(), value);
        }
    }
    // A line that looks like one of a batch is held to the rules of a batch: read as a bare prompt, its request would be
    // ignored.
    if fields.contains_key("body") || fields.contains_key("url") {
        return batch_line(fields, sampling);
    }
    let form = AnswerForm::Plain(Labels::of(&fields, is_note).map_err(no_request)?);
    let asked = answer(&mut fields)
        .map_err(Reason::from)
        .and_then(|answer| openai_request::read(fields, sampling, UnknownFields::Ignored).map(|asked| (answer, asked)));
    match asked {
        Ok((answer, (question, settings))) => Ok(DatasetRequest { question, settings, reply: None, form, answer }),
        Err(reason) => Err(Refusal { form, reason }),
    }
}

/// Returns whether a field of a plain line is no part of its request.
fn is_note(name: &str) -> bool {
    !openai_request::is_option(name) && name != "answer"
}

/// Takes the correct answer out of a line's fields.
fn answer(fields: &mut Map<String, Value>) -> Result<Option<Matcher>, String> {
    let answer = fields.remove("answer").filter(|answer| !answer.is_null());
    answer.as_ref().map(Matcher::read).transpose()
}

fn batch_line(mut fields: Map<String, Value>, sampling: Sampling) -> Result<DatasetRequest, Refusal> {
    let custom_id = match fields.remove("custom_id") {
        Some(Value::String(id)) if id.len() > LONGEST_LABEL_BYTES => {
            let reason = format!("`custom_id` has {} bytes; up to {LONGEST_LABEL_BYTES} are kept", id.len()).into();
            return Err(Refusal { form: AnswerForm::default(), reason });
        }
        Some(Value::String(id)) if !id.is_empty() => id,
        other => {
            let found = other.map_or("missing".to_owned(), |value| abbreviated(&value));
            let reason = format!("`custom_id` is {found}; give each line of a batch a text of its own").into();
            return Err(Refusal { form: AnswerForm::default(), reason });
        }
    };
    let endpoint = match fields.get("url").and_then(Value::as_str) {
        Some("/v1/completions") => Endpoint::Completions,
        _ => Endpoint::ChatCompletions,
    };
    // A line that asks for too much to be copied is still answered under its own name.
    let is_part = |name: &str| ["method", "url", "body", "answer"].contains(&name);
    let (labels, too_long) = match Labels::of(&fields, |name| !is_part(name)) {
        Ok(labels) => (labels, None),
        Err(sentence) => (Labels::default(), Some(sentence)),
    };
    let form = AnswerForm::Batch { custom_id, endpoint, labels };
    if let Some(sentence) = too_long {
        return Err(Refusal { form, reason: sentence.into() });
    }
    match batch_request(fields, sampling) {
        Ok((question, settings, answer)) => Ok(DatasetRequest { question, settings, reply: None, form, answer }),
        Err(reason) => Err(Refusal { form, reason }),
    }
}

fn batch_request(
    mut fields: Map<String, Value>,
    sampling: Sampling,
) -> Result<(Question, RequestSettings, Option<Matcher>), Reason> {
    if let Some(method) = fields.get("method").filter(|method| *method != "POST") {
        return Err(format!("`method` must be \"POST\", not {}", abbreviated(method)).into());
    }
    let wanted = match fields.get("url").and_then(Value::as_str) {
        Some("/v1/chat/completions") => "messages",
        Some("/v1/completions") => "prompt",
        _ => {
            let found = fields.get("url").map_or("missing".to_owned(), abbreviated);
            return Err(format!("`url` must be /v1/chat/completions or /v1/completions, and is {found}").into());
        }
    };
    let Some(Value::Object(body)) = fields.remove("body") else {
        return Err("`body` must be an object with the request".to_owned().into());
    };
    if body.get(wanted).is_none_or(Value::is_null) {
        return Err(format!("`body` has no `{wanted}`, which its `url` wants").into());
    }
    let answer = answer(&mut fields)?;
    let (question, settings) = openai_request::read(body, sampling, UnknownFields::Refused)?;
    Ok((question, settings, answer))
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
    use super::*;

    const SAMPLING: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };

    fn lines(mut text: &[u8]) -> Vec<(Position, Result<DatasetRequest, Refusal>)> {
        let mut found = Vec::new();
        let mut take = |place, asked| {
            found.push((place, asked));
            ControlFlow::Continue(())
        };
        let _ = read_lines(&mut text, &Columns::default(), SAMPLING, &mut take).unwrap();
        found
    }

    #[test]
    fn blank_lines_and_marks_are_passed_over_but_counted() {
        let found = lines("\u{feff}{\"prompt\": \"a\"}\r\n\n  \n{\"prompt\": \"b\"}".as_bytes());
        let places: Vec<_> = found.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [Position::Line(1), Position::Line(4)]);
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
        let (endpoint, labels) = (Endpoint::Completions, Labels::default());
        assert_eq!(asked.form, AnswerForm::Batch { custom_id: "a".to_owned(), endpoint, labels });
        for (url, body, sentence) in [
            (r#""/v1/chat/completions""#, r#"{"prompt": "x"}"#, "`body` has no `messages`, which its `url` wants"),
            (r#""/v1/completions""#, r#"{"messages": []}"#, "`body` has no `prompt`, which its `url` wants"),
            (
                r#""/v1/completions""#,
                r#"{"prompt": "x", "best_of": 2}"#,
                "`best_of` = 2 is not supported; leave it out",
            ),
            (r#""/v1/completions""#, "[]", "`body` must be an object with the request"),
            (
                r#""/v1/embeddings""#,
                "{}",
                "`url` must be /v1/chat/completions or /v1/completions, and is \"/v1/embeddings\"",
            ),
        ] {
            let refusal = line(url, body).unwrap_err();
            assert_eq!((refusal.form.custom_id(), refusal.reason.sentence.as_str()), (Some("a"), sentence));
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
            assert_eq!((refusal.form.custom_id(), refusal.reason.sentence.as_str()), (None, reason));
        }
        let not_text = lines(b"{\"prompt\": \"\xff\"}").pop().unwrap().1.unwrap_err();
        assert!(not_text.reason.sentence.starts_with("it is not JSON: invalid unicode"), "{:?}", not_text.reason);
    }
}
