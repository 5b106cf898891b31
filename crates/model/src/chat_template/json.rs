//! The filter `tojson` of transformers: Python's `json.dumps` without escapes for HTML.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::limits::check_length;
use super::python::{float, float_text, given_or_named, keys};

/// Widest indentation, in characters per level.
const MAX_INDENT: usize = 64;

/// Deepest nesting of lists that is written. Messages come from JSON, which is no deeper; a template can nest its own.
const MAX_DEPTH: usize = 256;

pub(super) fn to_json(value: &Value, given: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let named = |at: usize, name: &str| given_or_named(&given, at, &options, name);
    let (ensure_ascii, indent, separators, sort_keys) =
        (named(0, "ensure_ascii")?, named(1, "indent")?, named(2, "separators")?, named(3, "sort_keys")?);
    options.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) if text.len() <= MAX_INDENT => text.to_owned(),
            (None, Some(width)) if width <= MAX_INDENT as i64 => " ".repeat(usize::try_from(width).unwrap_or(0)),
            _ => return Err(failed(&format!("an indent of {indent} is not supported: at most {MAX_INDENT}"))),
        }),
    };
    let (between, behind_key) = match separators {
        // Python's defaults: no space after a comma at a line's end.
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let texts: Vec<String> = pair.try_iter()?.filter_map(|text| text.as_str().map(str::to_owned)).collect();
            <[String; 2]>::try_from(texts).map_err(|_| failed("separators are two texts"))?.into()
        }
    };
    let truth = |option: Option<Value>| option.is_some_and(|value| value.is_true());
    let (ascii, sort_keys) = (truth(ensure_ascii), truth(sort_keys));
    let mut writer = Writer { text: String::new(), indent, between, behind_key, ascii, sort_keys };
    writer.value(value, 0)?;
    Ok(writer.text)
}

fn failed(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"))
}

struct Writer {
    text: String,
    indent: Option<String>,
    between: String,
    behind_key: String,
    ascii: bool,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // Checked before recursion: the stack is limited, too.
        if depth > MAX_DEPTH {
            return Err(failed("lists in lists are nested too deeply"));
        }
        check_length(self.text.len())?;
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                // Iterated lazily: a range may claim any length without being in memory.
                self.entries(['[', ']'], value.try_iter()?, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys = keys(value)?;
                if self.sort_keys {
                    keys.sort();
                }
                self.entries(['{', '}'], keys.into_iter(), depth, |writer, key| {
                    let name = match key.kind() {
                        ValueKind::String => key.to_string(),
                        ValueKind::Number => number(key),
                        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
                        ValueKind::None => "null".to_owned(),
                        kind => return Err(failed(&format!("a key must be a text, not a {kind}"))),
                    };
                    writer.string(&name);
                    writer.text.push_str(&writer.behind_key.clone());
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(failed(&format!("a value that is {kind} has no JSON"))),
        }
        Ok(())
    }

    fn entries(
        &mut self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut entry: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.text.push_str(&self.between.clone());
            }
            is_empty = false;
            self.line(depth + 1);
            entry(self, &item)?;
        }
        if !is_empty {
            self.line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                // Control characters must be escaped in JSON, whatever `ensure_ascii` says.
                ..' ' => self.units(c),
                '\u{7f}'.. if self.ascii => self.units(c),
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    /// Writes a character as escapes of its UTF-16 units, as Python does.
    fn units(&mut self, c: char) {
        // Characters beyond U+FFFF become a surrogate pair, as JSON has escapes of 16 bits only.
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.text.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

fn number(value: &Value) -> String {
    match float(value) {
        None => value.to_string(),
        Some(number) if number.is_nan() => "NaN".to_owned(),
        Some(number) if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Some(number) => float_text(number),
    }
}
