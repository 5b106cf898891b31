//! The correct answer of a line, and the rule by which a text is compared with it.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::bounded_json::abbreviated;

/// Longest correct answer or expression, in bytes.
const LONGEST_BYTES: usize = 4096;

/// Memory that a compiled expression, and its cache, may take.
const LARGEST_EXPRESSION_BYTES: usize = 1 << 20;

/// A rule for correct answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Matcher {
    /// The whole text, without white space around it.
    Exact(String),
    /// The first number of the text, after `####` where that stands (as in GSM8K's solutions), else from the left.
    Number(f64),
    /// The first of the letters A to Z that stands alone, in any case.
    Choice(char),
    /// An expression that must match somewhere. Kept as text: compiled, one a line would fill the memory.
    Regex(String),
}

impl Matcher {
    /// Reads `"answer"` of a line: a text, a number, or an object with `exact`, `number`, `choice` or `regex`.
    ///
    /// # Errors
    /// A sentence on its fault.
    pub(super) fn read(answer: &Value) -> Result<Self, String> {
        match answer {
            Value::String(text) => Self::exact(text),
            Value::Number(number) => number.as_f64().map(Matcher::Number).ok_or_else(|| refusal(answer)),
            Value::Object(fields) if fields.len() == 1 => match fields.iter().next() {
                Some((kind, value)) => Self::of_kind(kind, value),
                None => Err(refusal(answer)),
            },
            other => Err(refusal(other)),
        }
    }

    fn of_kind(kind: &str, value: &Value) -> Result<Self, String> {
        match (kind, value) {
            ("exact", Value::String(text)) => Self::exact(text),
            ("number", Value::Number(number)) => {
                number.as_f64().map(Matcher::Number).ok_or_else(|| "its `answer` is too large a number".to_owned())
            }
            ("number", Value::String(text)) => text
                .trim()
                .replace(',', "")
                .parse()
                .ok()
                .filter(|number: &f64| number.is_finite())
                .map(Matcher::Number)
                .ok_or_else(|| format!("`number` of its `answer` is {}, which is no number", abbreviated(value))),
            ("choice", Value::String(text)) => match text.trim().chars().collect::<Vec<_>>()[..] {
                [letter] if letter.is_ascii_alphabetic() => Ok(Matcher::Choice(letter.to_ascii_uppercase())),
                _ => {
                    Err(format!("`choice` of its `answer` must be one letter from A to Z, not {}", abbreviated(value)))
                }
            },
            ("regex", Value::String(text)) if text.len() <= LONGEST_BYTES => {
                compile(text).map(|_checked| Matcher::Regex(text.clone())).map_err(|error| {
                    // The library draws its reason over several lines; the last one has it.
                    let error = error.to_string();
                    let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    format!("`regex` of its `answer` cannot be used: {reason}")
                })
            }
            ("regex", Value::String(text)) => {
                Err(format!("`regex` of its `answer` has {} bytes; up to {LONGEST_BYTES} are kept", text.len()))
            }
            ("exact" | "number" | "choice" | "regex", other) => {
                Err(format!("`{kind}` of its `answer` cannot be {}", abbreviated(other)))
            }
            _ => Err(format!(
                "its `answer` has the unknown kind `{}`; there are exact, number, choice, regex",
                cut(kind)
            )),
        }
    }

    fn exact(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Err("its `answer` is empty".to_owned()),
            text if text.len() > LONGEST_BYTES => {
                Err(format!("its `answer` has {} bytes; up to {LONGEST_BYTES} are kept", text.len()))
            }
            text => Ok(Matcher::Exact(text.to_owned())),
        }
    }

    /// Tells that `text` is a correct answer.
    pub fn is_met(&self, text: &str) -> bool {
        match self {
            Matcher::Exact(answer) => text.trim() == answer,
            Matcher::Number(answer) => number_in(text).is_some_and(|number| is_near(number, *answer)),
            Matcher::Choice(letter) => choice_in(text) == Some(*letter),
            Matcher::Regex(expression) => compile(expression).is_ok_and(|expression| expression.is_match(text)),
        }
    }
}

fn compile(expression: &str) -> Result<Regex, regex::Error> {
    let mut builder = RegexBuilder::new(expression);
    builder.size_limit(LARGEST_EXPRESSION_BYTES).dfa_size_limit(LARGEST_EXPRESSION_BYTES).build()
}

fn cut(kind: &str) -> String {
    kind.chars().take(40).collect()
}

fn refusal(answer: &Value) -> String {
    format!(
        "its `answer` must be a text, a number, or an object with one of exact, number, choice, regex, not {}",
        abbreviated(answer)
    )
}

/// Equal up to the rounding of decimals.
fn is_near(number: f64, answer: f64) -> bool {
    (number - answer).abs() <= 1e-6 * answer.abs().max(1.0)
}

/// The number that a text answers with.
fn number_in(text: &str) -> Option<f64> {
    let text = text.rsplit_once("####").map_or(text, |(_, answer)| answer);
    let mut rest = text;
    loop {
        let begin = rest.find(|c: char| c.is_ascii_digit())?;
        let digits = &rest[begin..];
        let end = digits.find(|c: char| !c.is_ascii_digit() && c != ',' && c != '.').unwrap_or(digits.len());
        let number = digits[..end].trim_end_matches(['.', ',']).replace(',', "");
        let is_negative = rest[..begin].ends_with(['-', '\u{2212}']);
        if let Ok(number) = number.parse::<f64>() {
            return Some(if is_negative { -number } else { number });
        }
        // A date or a version, such as 1.2.3.
        rest = &digits[end..];
    }
}

/// The first letter that stands alone, upper case. The articles `a` and `I` of a sentence count only in upper case or in brackets.
fn choice_in(text: &str) -> Option<char> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut letters = words.filter(|word| word.len() == 1 && word.as_bytes()[0].is_ascii_alphabetic());
    let first = letters.next()?;
    let is_whole = text.trim().len() <= 3;
    // "b" or "(b)" is an answer; "a" in a sentence is an article.
    let upper = first.chars().next().filter(|letter| letter.is_ascii_uppercase() || is_whole);
    let letter = upper.or_else(|| letters.find_map(|word| word.chars().next().filter(char::is_ascii_uppercase)))?;
    Some(letter.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_answer_is_compared_by_its_rule() {
        for (answer, text, correct) in [
            (json!("Paris"), " Paris\n", true),
            (json!("Paris"), "Paris.", false),
            (json!({"exact": "Paris"}), "paris", false),
            (json!(42), "42", true),
            (json!(42), "The answer is 42.", true),
            (json!(42), "It is 41, not 42", false),
            (json!({"number": "1,234.5"}), "about 1,234.50 dollars", true),
            (json!({"number": -3}), "-3", true),
            (json!({"number": -3}), "3", false),
            (json!({"number": 7}), "3 + 4 = 7\n#### 7", true),
            (json!({"number": 7}), "no idea", false),
            (json!({"number": 7}), "", false),
            (json!({"number": 0.1}), "0.1000000001", true),
            (json!({"number": 5}), "version 1.2.3, so 5", true),
            (json!({"choice": "b"}), "B", true),
            (json!({"choice": "B"}), "(b)", true),
            (json!({"choice": "B"}), "a good question: B.", true),
            (json!({"choice": "B"}), "Both are fine", false),
            (json!({"choice": "A"}), "a good question", false),
            (json!({"choice": "A"}), "", false),
            (json!({"regex": "(?i)^paris\\b"}), "PARIS, France", true),
            (json!({"regex": "^Lyon"}), "Paris", false),
        ] {
            let matcher = Matcher::read(&answer).unwrap();
            assert_eq!(matcher.is_met(text), correct, "{answer} and {text:?}");
        }
    }

    #[test]
    fn answers_that_cannot_be_used_are_refused() {
        for (answer, sentence) in [
            (
                json!(null),
                "its `answer` must be a text, a number, or an object with one of exact, number, choice, regex, not null",
            ),
            (
                json!([1]),
                "its `answer` must be a text, a number, or an object with one of exact, number, choice, regex, not [1]",
            ),
            (
                json!({}),
                "its `answer` must be a text, a number, or an object with one of exact, number, choice, regex, not {}",
            ),
            (
                json!({"exact": "x", "number": 1}),
                "its `answer` must be a text, a number, or an object with one of exact, number, choice, regex, not \
                 {\"exact\":\"x\",\"number\":1}",
            ),
            (json!(" "), "its `answer` is empty"),
            (json!("x".repeat(5000)), "its `answer` has 5000 bytes; up to 4096 are kept"),
            (json!({"number": "twelve"}), "`number` of its `answer` is \"twelve\", which is no number"),
            (json!({"number": "inf"}), "`number` of its `answer` is \"inf\", which is no number"),
            (json!({"number": true}), "`number` of its `answer` cannot be true"),
            (json!({"choice": "AB"}), "`choice` of its `answer` must be one letter from A to Z, not \"AB\""),
            (json!({"choice": "1"}), "`choice` of its `answer` must be one letter from A to Z, not \"1\""),
            (json!({"regex": "("}), "`regex` of its `answer` cannot be used: unclosed group"),
            (
                json!({"regex": "(a{1000}){1000}"}),
                "`regex` of its `answer` cannot be used: Compiled regex exceeds size limit of 1048576 bytes.",
            ),
            (
                json!({"contains": "x"}),
                "its `answer` has the unknown kind `contains`; there are exact, number, choice, regex",
            ),
        ] {
            assert_eq!(Matcher::read(&answer).unwrap_err(), sentence);
        }
    }
}
