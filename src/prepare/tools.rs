//! Fields of a request that let its answer call tools: `tools`, `tool_choice`, `parallel_tool_calls`.
//!
//! A call that must come is a grammar, as in vLLM: a list of calls in JSON for `required`, the arguments alone for a function that is
//! named. One that may come is written in the model's own format.

use serde_json::{Map, Value, json};

use flashjob_guidance::Grammar;

use super::bounded_json::abbreviated;
use super::question::Reason;
use super::reply_format::{ToolChoice, ToolUse};

/// Tools of a request at most, as in OpenAI's interface.
const MOST_TOOLS: usize = 128;

/// Reads the tools, which the template is given, and their use, where there is one.
///
/// # Errors
/// A sentence that names the field and its fault.
pub(super) fn read(fields: &Map<String, Value>) -> Result<(Vec<Value>, Option<ToolUse>), Reason> {
    let tools = match fields.get("tools") {
        None => Vec::new(),
        Some(Value::Array(tools)) => tools.clone(),
        Some(other) => return Err(format!("`tools` must be a list, not {}", abbreviated(other)).into()),
    };
    if tools.len() > MOST_TOOLS {
        return Err(format!("`tools` has {} tools; up to {MOST_TOOLS} are taken", tools.len()).into());
    }
    let mut names = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        match (tool.get("type").and_then(Value::as_str), tool["function"].get("name").and_then(Value::as_str)) {
            (Some("function"), Some(name)) if !name.is_empty() => names.push(name.to_owned()),
            (Some("function") | None, _) => return Err(format!("`tools[{index}]` is no function with a name").into()),
            (Some(other), _) => {
                return Err(Reason::unsupported(format!(
                    "`tools[{index}]` is a `{other}`; only functions are supported"
                )));
            }
        }
    }
    let choice = choice(fields.get("tool_choice"))?;
    // As OpenAI has it: an empty list is no list, and only a call that must come has nothing to call then.
    if names.is_empty() {
        return match choice {
            ToolChoice::Required | ToolChoice::Named(_) => Err("`tool_choice` needs `tools`".to_owned().into()),
            ToolChoice::None | ToolChoice::Auto => Ok((tools, None)),
        };
    }
    if let ToolChoice::Named(name) = &choice
        && !names.contains(name)
    {
        return Err(format!("`tool_choice` names the function `{name}`, which `tools` does not have").into());
    }
    let tool_use = (choice != ToolChoice::None).then_some(ToolUse { names, choice, format: None });
    Ok((tools, tool_use))
}

fn choice(value: Option<&Value>) -> Result<ToolChoice, Reason> {
    let Some(value) = value else { return Ok(ToolChoice::Auto) };
    match (value.as_str(), value["function"].get("name").and_then(Value::as_str)) {
        (Some("none"), _) => Ok(ToolChoice::None),
        (Some("auto"), _) => Ok(ToolChoice::Auto),
        (Some("required"), _) => Ok(ToolChoice::Required),
        (None, Some(name)) if value["type"] == "function" => Ok(ToolChoice::Named(name.to_owned())),
        _ => Err(format!(
            "`tool_choice` must be `none`, `auto`, `required` or a function by its name, not {}",
            abbreviated(value)
        )
        .into()),
    }
}

/// The grammar of an answer that must call `tools`.
pub(super) fn grammar(tools: &[Value], tool_use: Option<&ToolUse>, fields: &Map<String, Value>) -> Option<Grammar> {
    let parameters = |tool: &Value| match tool["function"].get("parameters").filter(|schema| schema.is_object()) {
        Some(schema) => schema.clone(),
        // A function without parameters takes an empty object. A schema without a type would permit any JSON.
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    };
    let schema = match &tool_use?.choice {
        ToolChoice::None | ToolChoice::Auto => return None,
        ToolChoice::Named(name) => parameters(tools.iter().find(|tool| tool["function"]["name"] == name.as_str())?),
        ToolChoice::Required => {
            // Definitions of two functions that have the same name are merged, and the later one counts: schemas that are generated
            // from one program agree on what a name means.
            // References of a function's schema are to its own root, which lies deeper here.
            let mut definitions = Map::new();
            let call = |tool: &Value| {
                let mut parameters = parameters(tool);
                for name in ["$defs", "definitions"] {
                    if let Some(Value::Object(own)) = parameters.get_mut(name).map(Value::take) {
                        definitions.entry(name).or_insert_with(|| json!({})).as_object_mut()?.extend(own);
                    }
                }
                Some(json!({
                    "type": "object",
                    "properties": {"name": {"const": tool["function"]["name"]}, "parameters": parameters},
                    "required": ["name", "parameters"],
                    "additionalProperties": false,
                }))
            };
            let calls: Vec<Value> = tools.iter().filter_map(call).collect();
            let mut schema = json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}});
            if fields.get("parallel_tool_calls") == Some(&Value::Bool(false)) {
                schema["maxItems"] = json!(1);
            }
            schema.as_object_mut()?.extend(definitions);
            schema
        }
    };
    Some(Grammar::JsonSchema(schema.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Value {
        json!([
            {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
                "type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
                "$defs": {"city": {"type": "string"}}}}},
            {"type": "function", "function": {"name": "now"}},
        ])
    }

    fn read(fields: Value) -> Result<Option<ToolChoice>, String> {
        let Value::Object(fields) = fields else { panic!() };
        let read = super::read(&fields).map_err(|reason| reason.sentence)?;
        Ok(read.1.map(|tool_use| tool_use.choice))
    }

    #[test]
    fn a_choice_is_one_of_four() {
        let named = json!({"type": "function", "function": {"name": "now"}});
        for (fields, choice) in [
            (json!({}), None),
            (json!({"tools": [], "tool_choice": "auto"}), None),
            (json!({"tools": tools()}), Some(ToolChoice::Auto)),
            (json!({"tools": tools(), "tool_choice": "none"}), None),
            (json!({"tools": tools(), "tool_choice": "required"}), Some(ToolChoice::Required)),
            (json!({"tools": tools(), "tool_choice": named}), Some(ToolChoice::Named("now".to_owned()))),
        ] {
            assert_eq!(read(fields.clone()), Ok(choice), "{fields}");
        }
    }

    #[test]
    fn what_is_no_tool_or_choice_is_refused() {
        for (fields, sentence) in [
            (json!({"tools": 7}), "`tools` must be a list, not 7"),
            (json!({"tools": [{"type": "function", "function": {}}]}), "`tools[0]` is no function with a name"),
            (json!({"tools": [{"type": "web_search"}]}), "`tools[0]` is a `web_search`; only functions are supported"),
            (json!({"tool_choice": "required"}), "`tool_choice` needs `tools`"),
            (
                json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "other"}}}),
                "`tool_choice` names the function `other`, which `tools` does not have",
            ),
            (
                json!({"tools": tools(), "tool_choice": 7}),
                "`tool_choice` must be `none`, `auto`, `required` or a function by its name, not 7",
            ),
        ] {
            assert_eq!(read(fields), Err(sentence.to_owned()));
        }
    }

    #[test]
    fn definitions_of_functions_are_found_where_a_list_of_calls_must_come() {
        let fields = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false});
        let Value::Object(fields) = fields else { panic!() };
        let (tools, tool_use) = super::read(&fields).unwrap();
        let Some(Grammar::JsonSchema(schema)) = grammar(&tools, tool_use.as_ref(), &fields) else { panic!() };
        let schema: Value = serde_json::from_str(&schema).unwrap();
        assert_eq!(schema["$defs"], json!({"city": {"type": "string"}}));
        assert_eq!((&schema["minItems"], &schema["maxItems"]), (&json!(1), &json!(1)));
        let parameters = &schema["items"]["anyOf"][0]["properties"]["parameters"];
        assert_eq!(parameters["properties"]["city"]["$ref"], "#/$defs/city");
    }
}
