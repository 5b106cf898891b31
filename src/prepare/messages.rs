//! The messages of a conversation in OpenAI's format, made ready for a chat template.
//!
//! Templates expect texts; a content of several text parts becomes one. What a template makes of roles is its own
//! business.

use serde_json::{Map, Value};

use super::bounded_json::{self, abbreviated};

/// Reads `messages`.
///
/// # Errors
/// A sentence that names the message and its fault.
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
    // Templates test for fields with `is defined`: one that is null or empty would change the prompt.
    fields.retain(|name, value| !is_left_open(name, value));
    if let Err(reason) = parse_arguments(&mut fields) {
        return refuse(reason);
    }
    let content = match fields.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => match text_of(&parts) {
            Ok(text) => text,
            Err(reason) => return refuse(reason),
        },
        // An assistant may have called tools, thought or refused, and said nothing beside it.
        None if fields["role"] == "assistant" => String::new(),
        None => return refuse("has no `content`".to_owned()),
        Some(other) => return refuse(format!("has a `content` that is no text: {}", abbreviated(&other))),
    };
    // Role first and content second, as they are written, for templates that go through a message's fields.
    let mut ordered = Map::new();
    ordered.extend(fields.remove_entry("role"));
    ordered.insert("content".to_owned(), Value::String(content));
    ordered.extend(fields);
    Ok(Value::Object(ordered))
}

/// Tells that a field has a value with which SDKs mean nothing: it counts as absent.
fn is_left_open(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty() && name != "content",
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Puts the values that the `arguments` of tool calls mean in the place of their JSON, as vLLM does: templates encode them
/// themselves.
fn parse_arguments(fields: &mut Map<String, Value>) -> Result<(), String> {
    let calls = fields.get_mut("tool_calls").and_then(Value::as_array_mut);
    for (index, call) in calls.into_iter().flatten().enumerate() {
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else { continue };
        let parsed = match function.get("arguments") {
            Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
            Some(Value::String(text)) => bounded_json::parse(text.as_bytes()).map_err(|error| {
                format!(
                    "has `tool_calls[{index}].function.arguments` that are no JSON ({error}): {}",
                    abbreviated(&function["arguments"])
                )
            })?,
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(_) => continue,
        };
        function.insert("arguments".to_owned(), parsed);
    }
    Ok(())
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
    fn arguments_of_tool_calls_are_the_values_that_their_text_means() {
        for (arguments, parsed) in [
            (json!(r#"{"a": [1, "é"]}"#), json!({"a": [1, "é"]})),
            (json!({"a": 1}), json!({"a": 1})),
            (json!(""), json!({})),
            (json!(null), json!({})),
        ] {
            let call = json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
            let messages = read(json!([{"role": "assistant", "content": null, "tool_calls": [call]}])).unwrap();
            assert_eq!(messages[0]["tool_calls"][0]["function"]["arguments"], parsed);
        }
        let call = json!({"function": {"name": "f", "arguments": "{"}});
        let said = read(json!([{"role": "assistant", "tool_calls": [call]}])).unwrap_err();
        assert!(said.starts_with("`messages[0]` has `tool_calls[0].function.arguments` that are no JSON ("), "{said}");
    }

    #[test]
    fn fields_that_sdks_leave_open_count_as_absent() {
        let bare = read(json!([{"role": "assistant", "content": "x"}])).unwrap();
        for open in [
            json!({"tool_calls": null}),
            json!({"tool_calls": []}),
            json!({"function_call": null}),
            json!({"audio": null}),
            json!({"refusal": null}),
            json!({"annotations": []}),
            json!({"name": null}),
            json!({"additional_kwargs": {}}),
            json!({"reasoning_content": null}),
            json!({"provider_specific_fields": null}),
        ] {
            let mut message = json!({"role": "assistant", "content": "x"});
            message.as_object_mut().unwrap().extend(open.as_object().unwrap().clone());
            assert_eq!(read(json!([message])).unwrap(), bare, "{open}");
        }
        for silent in [json!({"role": "assistant"}), json!({"role": "assistant", "content": null, "tool_calls": []})] {
            assert_eq!(read(json!([silent])).unwrap()[0]["content"], "");
        }
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
