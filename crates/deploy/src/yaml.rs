//! JSON values as YAML in block style. Texts are always in quotes: `no`, `1e3` and `08` stay texts for every reader.

use std::fmt::Write;

use serde_json::Value;

/// The document that holds `value`, ending in a line break.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let _ = write!(text, "{:indent$}{}:", "", key(name));
                nested(value, indent + 2, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(item, indent + 2, &mut inner);
                // The first line follows the dash; its own indentation is dropped.
                let _ = write!(text, "{:indent$}- {}", "", inner.trim_start());
            }
        }
        plain => {
            let _ = writeln!(text, "{:indent$}{plain}", "");
        }
    }
}

fn nested(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            text.push('\n');
            block(value, indent, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            block(value, indent, text);
        }
        // JSON's scalars are valid YAML, quotes and escapes included.
        plain => {
            let _ = writeln!(text, " {plain}");
        }
    }
}

/// Bare where no reader takes it for anything but a text.
fn key(name: &str) -> String {
    let bare = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&name.to_ascii_lowercase().as_str());
    if bare { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_objects_nest() {
        let value = json!({"a": {"b": [1, {"c": "no", "d": [[2]]}], "on": []}, "e": {}, "f g": null});
        let expected =
            "a:\n  b:\n    - 1\n    - c: \"no\"\n      d:\n        - - 2\n  \"on\": []\ne: {}\n\"f g\": null\n";
        assert_eq!(document(&value), expected);
    }
}
