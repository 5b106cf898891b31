//! ShareGPT: one JSON array of recorded conversations, as `vllm bench` reads it.
//!
//! The first thing that a human says is the question, and the reply to it the measure of how much is generated. Entries
//! that hold no such pair are passed over, as in vLLM; they are no mistakes but what the well-known file is full of.
//! Entries come in the file's order, so that the same number is the same entry whatever the seed.

use std::io::BufRead;
use std::ops::ControlFlow;

use serde::de::Error as _;
use serde_json::Value;

use flashjob_config::{ReplyLength, Sampling};

use super::bounded_json::{self, abbreviated};
use super::entry::Position;
use super::pieces::{self, End, Piece};
use super::question::{AnswerForm, DatasetRequest, Labels, Question, Reason, Refusal, RequestSettings};

/// Takes one entry; ends the reading where enough are taken.
type Take<'a> = dyn FnMut(Position, Result<DatasetRequest, Refusal>) -> ControlFlow<()> + 'a;

/// Hands each entry with a question and a reply to `take`, until the file or `take` ends it. One entry is in memory at a
/// time.
///
/// # Errors
/// The file cannot be read, or is not a JSON array.
pub(super) fn read(
    file: &mut dyn BufRead,
    sampling: Sampling,
    reply_length: ReplyLength,
    take: &mut Take<'_>,
) -> Result<(), serde_json::Error> {
    // Some editors begin a file with a mark that is no part of its text.
    if file.fill_buf().map_err(serde_json::Error::io)?.starts_with("\u{feff}".as_bytes()) {
        file.consume("\u{feff}".len());
    }
    if !opens(file)? {
        return Err(serde_json::Error::custom("it does not begin as a list of conversations"));
    }
    for number in 1.. {
        let (piece, end) = pieces::element(file).map_err(serde_json::Error::io)?;
        let is_over = match piece {
            // An array without entries has one piece, of spaces.
            Piece::Whole(text) if number == 1 && end == End::Bracket && text.trim_ascii().is_empty() => false,
            Piece::Whole(text) => {
                let entry = bounded_json::parse(&text).map_err(|error| within(number, &error))?;
                let asked = asked(&entry, sampling, reply_length).transpose();
                asked.is_some_and(|asked| take(Position::Entry(number), asked).is_break())
            }
            Piece::TooLong(bytes) => {
                let reason = Reason::too_long(Piece::refusal(bytes));
                let refusal = Refusal { form: AnswerForm::default(), reason };
                take(Position::Entry(number), Err(refusal)).is_break()
            }
        };
        match end {
            // The rest of the file may be long, and is not read.
            _ if is_over => return Ok(()),
            End::Comma => {}
            End::Bracket => break,
            End::File => return Err(serde_json::Error::custom(format!("it ends within entry {number}"))),
        }
    }
    match first_byte(file)? {
        None => Ok(()),
        Some(_) => Err(serde_json::Error::custom("something follows the list")),
    }
}

/// Passes over the bracket that opens the array. False: there is none.
fn opens(file: &mut dyn BufRead) -> Result<bool, serde_json::Error> {
    let found = first_byte(file)? == Some(b'[');
    if found {
        file.consume(1);
    }
    Ok(found)
}

/// The first byte that is no space, which is not passed over.
fn first_byte(file: &mut dyn BufRead) -> Result<Option<u8>, serde_json::Error> {
    loop {
        let buffer = file.fill_buf().map_err(serde_json::Error::io)?;
        let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        match buffer.get(blank) {
            Some(byte) => {
                let byte = *byte;
                file.consume(blank);
                return Ok(Some(byte));
            }
            None if blank == 0 => return Ok(None),
            None => file.consume(blank),
        }
    }
}

/// A mistake within an entry, whose lines are not the file's.
fn within(number: usize, error: &serde_json::Error) -> serde_json::Error {
    serde_json::Error::custom(format!("entry {number} is no JSON ({error} of the entry)"))
}

/// The question of an entry; `None` where it is passed over.
fn asked(entry: &Value, sampling: Sampling, reply_length: ReplyLength) -> Result<Option<DatasetRequest>, Refusal> {
    let refuse = |sentence: String| Refusal { form: AnswerForm::default(), reason: sentence.into() };
    let Some(conversations) = entry.get("conversations").and_then(Value::as_array) else {
        return Err(refuse(format!("it has no list `conversations`: {}", abbreviated(entry))));
    };
    let mut turns = Vec::with_capacity(conversations.len());
    for turn in conversations {
        let text = |key: &str| turn.get(key).and_then(Value::as_str);
        match (text("from"), text("value")) {
            (Some(from), Some(value)) => turns.push((from, value)),
            _ => return Err(refuse(format!("a turn has no texts `from` and `value`: {}", abbreviated(turn)))),
        }
    }
    // As in vLLM, turns of a system or tool before and between the two do not count.
    let mut rest = turns.iter().skip_while(|(from, _)| !matches!(*from, "human" | "user"));
    let question = rest.next();
    let reply = rest.find(|(from, _)| matches!(*from, "gpt" | "chatgpt" | "assistant"));
    let (Some((_, question)), Some((_, reply))) = (question, reply) else { return Ok(None) };
    let names = |fields| Labels::of(fields, |name| ["custom_id", "id"].contains(&name));
    let labels = entry.as_object().map(names).transpose().map_err(refuse)?.unwrap_or_default();
    Ok(Some(DatasetRequest {
        question: Question::Turn((*question).to_owned()),
        settings: RequestSettings::of_job(sampling),
        reply: (reply_length == ReplyLength::Recorded).then(|| (*reply).to_owned()),
        form: AnswerForm::Plain(labels),
        answer: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLING: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };

    type Entries = Vec<(Position, Result<DatasetRequest, Refusal>)>;

    fn entries(text: &str, limit: usize) -> (Result<(), serde_json::Error>, Entries) {
        let mut found = Vec::new();
        let outcome = read(&mut text.as_bytes(), SAMPLING, ReplyLength::Recorded, &mut |place, asked| {
            found.push((place, asked));
            if found.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (outcome, found)
    }

    fn turn(from: &str, value: &str) -> String {
        format!("{{\"from\": \"{from}\", \"value\": \"{value}\"}}")
    }

    fn entry(turns: &[String]) -> String {
        format!("{{\"id\": \"x\", \"conversations\": [{}]}}", turns.join(","))
    }

    #[test]
    fn the_first_human_turn_is_the_question_and_pairs_that_are_none_are_passed_over() {
        let text = format!(
            "[{}, {}, {}, {}]",
            entry(&[turn("human", "alone")]),
            entry(&[
                turn("gpt", "before"),
                turn("human", "q"),
                turn("system", "s"),
                turn("gpt", "r"),
                turn("gpt", "t")
            ]),
            entry(&[turn("gpt", "a"), turn("gpt", "b")]),
            entry(&[turn("human", "p"), turn("gpt", "")]),
        );
        let (outcome, found) = entries(&text, 9);
        outcome.unwrap();
        let found: Vec<_> = found
            .into_iter()
            .map(|(place, asked)| asked.map(|asked| (place, asked.question, asked.reply)).unwrap())
            .collect();
        let expected = |number, question: &str, reply: &str| {
            (Position::Entry(number), Question::Turn(question.to_owned()), Some(reply.to_owned()))
        };
        assert_eq!(found, [expected(2, "q", "r"), expected(4, "p", "")]);
    }

    #[test]
    fn reading_ends_where_it_is_enough_and_what_follows_is_not_looked_at() {
        let one = entry(&[turn("human", "q"), turn("gpt", "r")]);
        let (outcome, found) = entries(&format!("[{one}, {one}, not JSON"), 2);
        outcome.unwrap();
        assert_eq!(found.len(), 2);
        assert!(entries(&format!("[{one}, {one}, not JSON"), 3).0.is_err());
        assert!(entries(&format!("{{\"data\": [{one}]}}"), 3).0.unwrap_err().to_string().contains("a list"));
        assert!(entries("[] []", 3).0.is_err());
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_once_and_no_other_byte_is_lost() {
        let one = entry(&[turn("human", "q"), turn("gpt", "r")]);
        for (text, count) in [
            (format!("\u{feff}[{one}]"), Some(1)),
            (format!("\u{feff}\r\n [{one}, {one}]\r\n"), Some(2)),
            (format!("[{one}]"), Some(1)),
            ("\u{feff}[]".to_owned(), Some(0)),
            (format!("\u{feff}\u{feff}[{one}]"), None),
            ("\u{feff}".to_owned(), None),
            (String::new(), None),
        ] {
            let (outcome, found) = entries(&text, 9);
            assert_eq!(outcome.ok().map(|()| found.len()), count, "{text:?}");
        }
    }

    #[test]
    fn entries_of_another_shape_are_refused() {
        for (entry, reason) in [
            ("{\"id\": 1}", "it has no list `conversations`: {\"id\":1}"),
            ("7", "it has no list `conversations`: 7"),
            (
                "{\"conversations\": [{\"from\": \"human\"}]}",
                "a turn has no texts `from` and `value`: {\"from\":\"human\"}",
            ),
        ] {
            let (outcome, found) = entries(&format!("[{entry}]"), 9);
            outcome.unwrap();
            assert_eq!(found[0].1.as_ref().unwrap_err().reason.sentence, reason);
        }
    }
}
