//! An answer's text, taken apart into thoughts, content and tool calls.
//!
//! Formats of calls are those of vLLM's parsers of the same names. A text that does not hold to its format is content, as it is.

use serde_json::{Deserializer, Value, json};

use flashjob_model::ToolCallFormat;

use crate::prepare::{ReplyFormat, Thinking, ToolChoice, ToolUse};

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Name of the function.
    pub name: String,
    /// Its arguments, as JSON.
    pub arguments: String,
}

/// The parts of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// Thoughts before the content, where the model has any.
    pub reasoning: Option<String>,
    /// Everything else.
    pub content: String,
    /// Calls, in their order.
    pub tool_calls: Vec<ToolCall>,
}

impl Reply {
    /// The parts of `text`.
    pub fn of(text: &str, format: &ReplyFormat) -> Self {
        let (reasoning, text) = thoughts(text, format.thinking);
        // A text that is no call in its format is content as it is: nothing that the model wrote is lost.
        let (content, tool_calls) = match &format.tools {
            None => (text, Vec::new()),
            Some(tools) => calls(text, tools).unwrap_or((text, Vec::new())),
        };
        Self { reasoning: reasoning.map(str::to_owned), content: content.to_owned(), tool_calls }
    }

    /// The message in OpenAI's format, of the request with this number.
    pub fn message(&self, request: u32) -> Value {
        // Clients take a content of null for a call without words, and an empty one for an empty answer.
        let content =
            if self.content.is_empty() && !self.tool_calls.is_empty() { Value::Null } else { json!(self.content) };
        let mut message = json!({"role": "assistant", "content": content});
        if let Some(reasoning) = &self.reasoning {
            message["reasoning_content"] = json!(reasoning);
        }
        if !self.tool_calls.is_empty() {
            message["tool_calls"] = self.calls(request);
        }
        message
    }

    /// The calls in OpenAI's format, of the request with this number.
    pub fn calls(&self, request: u32) -> Value {
        let call = |(index, ToolCall { name, arguments }): (usize, &ToolCall)| {
            let function = json!({"name": name, "arguments": arguments});
            json!({"id": format!("call_{request}_{index}"), "type": "function", "function": function})
        };
        self.tool_calls.iter().enumerate().map(call).collect()
    }
}

/// Thoughts, and the text behind them.
fn thoughts(text: &str, thinking: Thinking) -> (Option<&str>, &str) {
    let begun = match thinking {
        Thinking::No => return (None, text),
        // Some models repeat the tag that the prompt has.
        Thinking::Begun => text.trim_start().strip_prefix("<think>").unwrap_or(text),
        Thinking::Tagged => match text.trim_start().strip_prefix("<think>") {
            Some(begun) => begun,
            None => return (None, text),
        },
    };
    // Without an end, it has not come to an answer.
    let (thoughts, content) = begun.split_once("</think>").unwrap_or((begun, ""));
    (Some(thoughts.trim()), content.trim_start())
}

type Parts<'a> = (&'a str, Vec<ToolCall>);

fn calls<'a>(text: &'a str, tools: &ToolUse) -> Option<Parts<'a>> {
    let found = match (&tools.choice, tools.format) {
        (ToolChoice::None, _) => return None,
        (ToolChoice::Named(name), _) => {
            let arguments: Value = serde_json::from_str(text).ok().filter(Value::is_object)?;
            ("", vec![ToolCall { name: name.clone(), arguments: arguments.to_string() }])
        }
        (ToolChoice::Required, _) => ("", list(&serde_json::from_str(text).ok()?)?),
        (ToolChoice::Auto, Some(ToolCallFormat::Hermes)) => hermes(text)?,
        (ToolChoice::Auto, Some(ToolCallFormat::Llama)) => llama(text)?,
        (ToolChoice::Auto, Some(ToolCallFormat::Mistral)) => mistral(text, tools)?,
        (ToolChoice::Auto, None) => return None,
    };
    // A call of what was not offered is none.
    found.1.iter().all(|call| tools.names.contains(&call.name)).then_some(found).filter(|found| !found.1.is_empty())
}

/// A call as an object of its name and arguments.
fn call(value: &Value) -> Option<ToolCall> {
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        Some(Value::String(arguments)) => arguments.clone(),
        Some(arguments) => arguments.to_string(),
        None => "{}".to_owned(),
    };
    Some(ToolCall { name: value.get("name")?.as_str()?.to_owned(), arguments })
}

fn list(value: &Value) -> Option<Vec<ToolCall>> {
    value.as_array()?.iter().map(call).collect()
}

/// `<tool_call>` around each call, behind the content.
fn hermes(text: &str) -> Option<Parts<'_>> {
    let (content, mut rest) = text.split_once("<tool_call>")?;
    let mut calls = Vec::new();
    loop {
        // The last one may have been cut off before its end.
        let (inside, behind) = rest.split_once("</tool_call>").unwrap_or((rest, ""));
        calls.push(call(&serde_json::from_str(inside.trim()).ok()?)?);
        match behind.split_once("<tool_call>") {
            Some((_, next)) => rest = next,
            None => return Some((content.trim_end(), calls)),
        }
    }
}

/// Objects one behind the other, with `;` between them, and nothing else.
fn llama(text: &str) -> Option<Parts<'_>> {
    let mut rest = text.trim_start();
    rest = rest.strip_prefix("<|python_tag|>").unwrap_or(rest).trim();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let mut objects = Deserializer::from_str(rest).into_iter::<Value>();
        let value = objects.next()?.ok()?;
        // Its calls always have arguments, which tell them from an answer in JSON.
        value.get("parameters").or_else(|| value.get("arguments"))?;
        calls.push(call(&value)?);
        rest = rest[objects.byte_offset()..].trim_start().trim_start_matches(';').trim_start();
    }
    Some(("", calls))
}

/// A list of calls behind the content, or in later versions each as its name and an object. The token `[TOOL_CALLS]` before them is a
/// special one, which decoded texts do not have.
fn mistral<'a>(text: &'a str, tools: &ToolUse) -> Option<Parts<'a>> {
    const TOKEN: &str = "[TOOL_CALLS]";
    let is_called = |rest: &str| rest.starts_with('{') || rest.starts_with("[ARGS]");
    let begins = |name: &String| text.trim_start().strip_prefix(name.as_str()).is_some_and(is_called);
    let (content, begun) = match text.split_once(TOKEN) {
        _ if tools.names.iter().any(begins) => ("", text),
        Some(parts) => parts,
        None => text.split_at(text.find("[{").unwrap_or(0)),
    };
    let mut rest = begun.trim();
    if rest.starts_with('[') {
        return Some((content.trim_end(), list(&serde_json::from_str(rest).ok()?)?));
    }
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let end = rest.find(['{', '['])?;
        let name = tools.names.iter().find(|name| *name == rest[..end].trim())?;
        rest = rest[end..].trim_start_matches("[ARGS]").trim_start();
        let mut objects = Deserializer::from_str(rest).into_iter::<Value>();
        let arguments = objects.next()?.ok()?;
        calls.push(ToolCall { name: name.clone(), arguments: arguments.to_string() });
        rest = rest[objects.byte_offset()..].trim_start().trim_start_matches(TOKEN).trim_start();
    }
    Some((content.trim_end(), calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: ToolChoice, format: Option<ToolCallFormat>) -> ReplyFormat {
        let names = ["weather", "now"].map(str::to_owned).to_vec();
        ReplyFormat { thinking: Thinking::No, tools: Some(ToolUse { names, choice, format }) }
    }

    #[test]
    fn thoughts_come_before_the_content() {
        use Thinking::{Begun, No, Tagged};
        for (thinking, text, reasoning, content) in [
            (No, "<think>a</think>b", None, "<think>a</think>b"),
            (Tagged, "<think>\na\n</think>\n\nb", Some("a"), "b"),
            (Tagged, "b </think>", None, "b </think>"),
            (Tagged, "<think>a", Some("a"), ""),
            (Begun, "a\n</think>\n\nb", Some("a"), "b"),
            (Begun, "<think>a</think>b", Some("a"), "b"),
            (Begun, "a", Some("a"), ""),
        ] {
            let reply = Reply::of(text, &ReplyFormat { thinking, tools: None });
            assert_eq!((reply.reasoning.as_deref(), reply.content.as_str()), (reasoning, content), "{text}");
        }
    }

    #[test]
    fn calls_are_read_in_the_formats_of_their_families() {
        use ToolCallFormat::{Hermes, Llama, Mistral};
        let weather = |city: &str| ("weather", format!("{{\"city\":\"{city}\"}}"));
        let two = || vec![weather("Oslo"), ("now", "{}".to_owned())];
        let one = || vec![weather("Oslo")];
        let auto = |format| tools(ToolChoice::Auto, Some(format));
        let hermes_two = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n\
                          <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        for (format, text, content, calls) in [
            (auto(Hermes), hermes_two, "Let me see.", two()),
            (
                auto(Hermes),
                "<tool_call>{\"name\": \"weather\", \"arguments\": \"{\\\"city\\\":\\\"Oslo\\\"}\"}",
                "",
                one(),
            ),
            (auto(Llama), "{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}", "", one()),
            (
                auto(Llama),
                "<|python_tag|>{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}; {\"name\": \"now\", \"parameters\": {}}",
                "",
                two(),
            ),
            (auto(Mistral), "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}]", "", one()),
            (auto(Mistral), "Well. [{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}]", "Well.", one()),
            (auto(Mistral), "weather[ARGS]{\"city\": \"Oslo\"}[TOOL_CALLS]now{}", "", two()),
            (auto(Mistral), "weather{\"city\": \"Oslo\"}", "", one()),
            (tools(ToolChoice::Named("weather".to_owned()), None), "{ \"city\": \"Oslo\" }", "", one()),
            (
                tools(ToolChoice::Required, Some(Hermes)),
                "[{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}, {\"name\": \"now\", \"parameters\": {}}]",
                "",
                two(),
            ),
        ] {
            let reply = Reply::of(text, &format);
            let found: Vec<(&str, String)> =
                reply.tool_calls.iter().map(|call| (call.name.as_str(), call.arguments.clone())).collect();
            assert_eq!((reply.content.as_str(), found), (content, calls), "{text}");
        }
    }

    #[test]
    fn what_is_no_call_is_content() {
        use ToolCallFormat::{Hermes, Llama, Mistral};
        let auto = |format| tools(ToolChoice::Auto, Some(format));
        for (format, text) in [
            (auto(Hermes), "It is sunny."),
            (auto(Hermes), "<tool_call>{\"name\": \"weather\", \"argu"),
            (auto(Hermes), "<tool_call>{\"name\": \"unheard_of\", \"arguments\": {}}</tool_call>"),
            (auto(Llama), "{\"name\": \"weather\"}"),
            (auto(Llama), "{\"name\": \"weather\", \"parameters\": {}} and more"),
            (auto(Llama), ""),
            (auto(Mistral), "See [1] and {2}."),
            (auto(Mistral), "[{\"name\": 7}]"),
            (tools(ToolChoice::Auto, None), "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>"),
            (tools(ToolChoice::Named("now".to_owned()), None), "{\"cut\": "),
            (tools(ToolChoice::Required, None), "[{\"name\": \"now\", \"para"),
            (tools(ToolChoice::None, Some(Hermes)), "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>"),
        ] {
            let reply = Reply::of(text, &format);
            assert_eq!((reply.content.as_str(), reply.tool_calls.len()), (text, 0));
        }
    }

    #[test]
    fn a_message_that_calls_tools_and_says_nothing_has_no_content() {
        let named = tools(ToolChoice::Named("now".to_owned()), None);
        assert_eq!(
            Reply::of("{}", &named).message(3),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_3_0", "type": "function", "function": {"name": "now", "arguments": "{}"}}]})
        );
        let thought = ReplyFormat { thinking: Thinking::Begun, tools: None };
        assert_eq!(
            Reply::of("a</think>b", &thought).message(3),
            json!({"role": "assistant", "content": "b", "reasoning_content": "a"})
        );
    }
}
