//! JSON of strangers, parsed only where what comes of it is not much larger than its text.
//!
//! A text of `[0,0,…` takes sixteen times its size once it is values. Depth is bounded by serde_json itself.

use std::io;

use serde::de::Error as _;
use serde_json::Value;

/// Values in one line, entry or text of arguments: in memory less than a hundred bytes each. A conversation of a thousand
/// messages has five thousand.
const MOST_VALUES: usize = 1_000_000;

/// Longest value that is quoted in a message, in characters.
const QUOTED_CHARS: usize = 60;

/// Parses `text`.
///
/// # Errors
/// Text that is no JSON, or that holds too many values.
pub(super) fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    // Counted on the bytes, before the parser allocates a value.
    if values_at_most(text) > MOST_VALUES {
        return Err(serde_json::Error::custom(format!("it holds more than {MOST_VALUES} values")));
    }
    serde_json::from_slice(text)
}

/// At least as many as there are: each is the first, or follows one of these outside a text.
fn values_at_most(text: &[u8]) -> usize {
    let (mut count, mut in_text, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' | b',' | b':' if !in_text => count += 1,
            _ => {}
        }
    }
    count
}

/// Enough of a value to recognise it in an error.
pub(super) fn abbreviated(value: &Value) -> String {
    let mut beginning = Prefix(Vec::new());
    // Written as far as it is shown; a failure is the end of the room.
    let whole = serde_json::to_writer(&mut beginning, value).is_ok();
    let text = String::from_utf8_lossy(&beginning.0);
    match text.char_indices().nth(QUOTED_CHARS) {
        None if whole => text.into_owned(),
        end => format!("{}…", &text[..end.map_or(text.len(), |(end, _)| end)]),
    }
}

/// Takes what is shown of a value, whatever its characters are.
struct Prefix(Vec<u8>);

impl io::Write for Prefix {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match 8 * QUOTED_CHARS - self.0.len() {
            0 => Err(io::ErrorKind::StorageFull.into()),
            room => {
                let taken = bytes.len().min(room);
                self.0.extend_from_slice(&bytes[..taken]);
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_that_grow_are_refused_and_long_texts_are_not() {
        let numbers = format!("[0{}]", ",0".repeat(MOST_VALUES));
        assert!(parse(numbers.as_bytes()).unwrap_err().to_string().contains("more than 1000000 values"));
        let text = format!("{{\"prompt\": \"{}\"}}", "[\\\",".repeat(MOST_VALUES));
        assert_eq!(parse(text.as_bytes()).unwrap()["prompt"].as_str().unwrap().len(), 3 * MOST_VALUES);
        assert!(parse("[".repeat(10_000).as_bytes()).unwrap_err().to_string().contains("recursion"));
    }

    #[test]
    fn values_are_quoted_to_a_length() {
        for (value, quoted) in [
            (json!({"a": [1, "é"]}), "{\"a\":[1,\"é\"]}".to_owned()),
            (json!("x".repeat(58)), format!("\"{}\"", "x".repeat(58))),
            (json!("x".repeat(1 << 20)), format!("\"{}…", "x".repeat(59))),
            (json!("\u{1f600}".repeat(1 << 10)), format!("\"{}…", "\u{1f600}".repeat(59))),
        ] {
            assert_eq!(abbreviated(&value), quoted);
        }
    }
}
