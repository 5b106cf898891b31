//! The parts that an answer's text is taken apart into: thoughts, content, tool calls.
//!
//! What can be known before there is an answer is decided here; the text is taken apart by those who write answers.

use flashjob_model::{TextFacts, TextService, ToolCallFormat};

use super::question::Reason;
use crate::backend::Request;

/// Tokens at the end of a prompt among which the beginning of thoughts is looked for.
const TAIL_TOKENS: usize = 16;

/// Whether an answer must call a tool, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// Tools are named in the prompt, and a call is text.
    None,
    /// The model decides, and writes calls in its own format.
    Auto,
    /// It must call one at least.
    Required,
    /// It must call this function.
    Named(String),
}

/// The tools that an answer may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolUse {
    /// Names of all functions.
    pub names: Vec<String>,
    /// Whether one must be called.
    pub choice: ToolChoice,
    /// Format of calls that the model writes by itself.
    pub format: Option<ToolCallFormat>,
}

/// Thoughts in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// None are looked for.
    #[default]
    No,
    /// Between `<think>` and `</think>`, at the beginning.
    Tagged,
    /// Up to `</think>`: the prompt ends with `<think>`.
    Begun,
}

/// The parts of an answer. By default it is all content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyFormat {
    /// Where thoughts begin and end.
    pub thinking: Thinking,
    /// The tools that it may call, where there are any.
    pub tools: Option<ToolUse>,
}

impl ReplyFormat {
    /// That of the answer to `request`, to a conversation where it `is_chat`.
    pub(super) fn of(request: &Request, tools: Option<ToolUse>, is_chat: bool, texts: &TextService) -> Self {
        // A text of a grammar has no thoughts before it.
        let is_guided = request.text.as_ref().is_some_and(|text| text.guided.is_some());
        // Only the prompt tells whether thoughts have begun: the template may have opened them for the model.
        let thinking = match is_chat && !is_guided && texts.facts().message_format.thinks {
            false => Thinking::No,
            true if ends_with_tag(&request.prompt, texts) => Thinking::Begun,
            true => Thinking::Tagged,
        };
        Self { thinking, tools }
    }
}

/// True where a prompt's text ends with `<think>`.
fn ends_with_tag(prompt: &[u32], texts: &TextService) -> bool {
    let Ok(tokens) = texts.token_bytes() else { return false };
    // The tag may be one token or several, by the vocabulary.
    let tail = &prompt[prompt.len().saturating_sub(TAIL_TOKENS)..];
    let bytes: Vec<u8> = tail.iter().flat_map(|&token| tokens.spelled(token)).copied().collect();
    bytes.trim_ascii_end().ends_with(b"<think>")
}

/// `tools` with the format in which the model calls them.
///
/// # Errors
/// A model whose calls would not be understood.
pub(super) fn understood(tools: Option<ToolUse>, texts: &TextFacts) -> Result<Option<ToolUse>, Reason> {
    let format = texts.message_format.tool_calls;
    match tools {
        Some(ToolUse { choice: ToolChoice::Auto, .. }) if format.is_none() => Err(Reason::unsupported(
            "`tools` are not supported with this model: its chat template has none, or calls in a format that is not known \
             here; require a call with `tool_choice`, or leave them out"
                .to_owned(),
        )),
        // With a call that must come the format is that of a grammar, whatever the model was trained on.
        tools => Ok(tools.map(|tools| ToolUse { format, ..tools })),
    }
}
