//! The format of the messages that a model writes, as its chat template shows it: tool calls, and thoughts before an answer.
//!
//! A template writes the calls and thoughts of earlier messages as its model was trained to write its own. How such texts are taken
//! apart is not known here.

use serde::{Deserialize, Serialize};

/// Format in which a model calls tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolCallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3.
    Hermes,
    /// `{"name": …, "parameters": {…}}`, perhaps behind `<|python_tag|>`: Llama 3.1 to 3.3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`: Mistral.
    Mistral,
}

/// What is known of the messages that a model writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageFormat {
    /// Format of tool calls, where the template has tools and this program knows it.
    pub tool_calls: Option<ToolCallFormat>,
    /// It thinks between `<think>` and `</think>` before it answers.
    pub thinks: bool,
}

impl MessageFormat {
    /// That of the model whose chat template is `source`.
    pub fn of(source: &str) -> Self {
        let has = |part: &str| source.contains(part);
        let tool_calls = if !has("tools") {
            None
        } else if has("<tool_call>") {
            Some(ToolCallFormat::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(ToolCallFormat::Mistral)
        } else if has("<|python_tag|>") || (has("<|start_header_id|>") && has("\"parameters\"")) {
            Some(ToolCallFormat::Llama)
        } else {
            None
        };
        Self { tool_calls, thinks: has("</think>") }
    }
}
