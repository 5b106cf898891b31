//! The messages of a conversation in OpenAI's format, made ready for a chat template.
//!
//! Templates expect texts; a content of several text parts becomes one. What a template makes of roles is its own
//! business.

use serde_json::{Map, Value};

use super::openai_request::abbreviated;

/// Reads `messages`.
///
/// # Errors
/// What is wrong, naming the message.
pub(super) fn read(messages: Value) -> Result<Vec<Value>, String> {
    let Value::Array(messages) = messages else {
        return Err(format!("`messages` must be a list, not {}", abbreviated(&messages)));
    };
    if messages.is_empty() {
        return Err("`messages` is empty".to_owned());
    }
    messages.into_iter().enumerate().map(|(index, message)| message_of(index, message)).collect()
}

/// The one message of a user who says `text`.
pub(super) fn of_user(text: &str) -> Vec<Value> {
    vec![serde_json::json!({"role": "user", "content": text})]
}

fn message_of(index: usize, message: Value) -> Result<Value, String> {
    let refuse = |reason: String| Err(format!("`messages[{index}]` {reason}"));
    let Value::Object(mut fields) = message else {
        return refuse(format!("must be an object with `role` and `content`, not {}", abbreviated(&message)));
    };
    if !fields.get("role").is_some_and(Value::is_string) {
        return refuse("has no `role`".to_owned());
    }
    let content = match fields.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => match text_of(&parts) {
            Ok(text) => text,
            Err(reason) => return refuse(reason),
        },
        // An assistant that called tools may have said nothing beside it.
        None | Some(Value::Null) if fields.get("tool_calls").is_some_and(|calls| !calls.is_null()) => String::new(),
        None | Some(Value::Null) => return refuse("has no `content`".to_owned()),
        Some(other) => return refuse(format!("has a `content` that is no text: {}", abbreviated(&other))),
    };
    // Role first and content second, as they are written, for templates that go through a message's fields.
    let mut ordered = Map::new();
    ordered.extend(fields.remove_entry("role"));
    ordered.insert("content".to_owned(), Value::String(content));
    ordered.extend(fields);
    Ok(Value::Object(ordered))
}

/// Text parts, each on a line of its own, as vLLM joins them for templates that take texts.
fn text_of(parts: &[Value]) -> Result<String, String> {
    let texts: Result<Vec<&str>, String> = parts
        .iter()
        .map(|part| match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => Ok(text),
            _ => Err(format!("has a part that is no text: {}", abbreviated(part))),
        })
        .collect();
    Ok(texts?.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_become_one_text_and_other_fields_stay() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let messages = read(json!([{"content": parts, "name": "n", "role": "user"}])).unwrap();
        assert_eq!(Value::from(messages).to_string(), r#"[{"role":"user","content":"a\nb","name":"n"}]"#);
        let called = read(json!([{"role": "assistant", "content": null, "tool_calls": [{}]}])).unwrap();
        assert_eq!(called[0]["content"], "");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (messages, sentence) in [
            (json!("x"), "`messages` must be a list, not \"x\""),
            (json!([]), "`messages` is empty"),
            (json!(["x"]), "`messages[0]` must be an object with `role` and `content`, not \"x\""),
            (json!([{"role": "user", "content": "x"}, {"content": "y"}]), "`messages[1]` has no `role`"),
            (json!([{"role": "user"}]), "`messages[0]` has no `content`"),
            (json!([{"role": "user", "content": 1}]), "`messages[0]` has a `content` that is no text: 1"),
            (
                json!([{"role": "user", "content": [{"type": "image_url"}]}]),
                "`messages[0]` has a part that is no text: {\"type\":\"image_url\"}",
            ),
        ] {
            assert_eq!(read(messages).unwrap_err(), sentence);
        }
    }
}
