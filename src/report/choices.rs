//! The answers to one line as OpenAI's format has them: choices with their texts and log-probabilities, and the tokens used.
//!
//! <https://platform.openai.com/docs/api-reference/chat/object>, <https://platform.openai.com/docs/api-reference/completions/object>.

use serde_json::{Value, json};

use flashjob_event::FinishReason;

use super::reply::Reply;
use crate::backend::{Completion, SpelledLogprobs};
use crate::prepare::Endpoint;

/// `choices` of a response.
pub(super) fn choices(endpoint: Endpoint, completions: &[&Completion], replies: &[Reply], echo: Option<&str>) -> Value {
    let choice = |(index, (completion, reply)): (usize, (&&Completion, &Reply))| {
        let (reason, logprobs) = (finish_reason(completion, reply), completion.logprobs.as_deref());
        match endpoint {
            Endpoint::ChatCompletions => json!({
                "index": index,
                "message": reply.message(completion.id.0),
                "logprobs": logprobs.map(of_chat),
                "finish_reason": reason,
            }),
            Endpoint::Completions => json!({
                "index": index,
                "text": echoed(echo, &completion.text),
                "logprobs": logprobs.map(of_completion),
                "finish_reason": reason,
            }),
        }
    };
    completions.iter().zip(replies).enumerate().map(choice).collect()
}

/// The reason of its end in OpenAI's words.
pub(super) fn finish_reason(completion: &Completion, reply: &Reply) -> &'static str {
    match completion.reason {
        FinishReason::Stop if !reply.tool_calls.is_empty() => "tool_calls",
        reason => reason.name(),
    }
}

/// `usage` of a response: a prompt counts once.
pub(super) fn usage(completions: &[&Completion], prompt_tokens: usize) -> Value {
    let output_tokens: usize = completions.iter().map(|completion| completion.tokens.len()).sum();
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    })
}

/// The text of an answer behind its prompt, where that is to be repeated.
pub(super) fn echoed(echo: Option<&str>, text: &str) -> String {
    [echo.unwrap_or_default(), text].concat()
}

/// `logprobs` of a choice of a chat completion.
pub(super) fn of_chat(logprobs: &[SpelledLogprobs]) -> Value {
    let spelled =
        |text: &str, logprob: f32| json!({"token": text, "logprob": finite(logprob), "bytes": text.as_bytes()});
    let content = logprobs.iter().map(|token| {
        let mut entry = spelled(&token.text, token.logprob);
        entry["top_logprobs"] = token.top.iter().map(|(text, logprob)| spelled(text, *logprob)).collect();
        entry
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a choice of a completion.
fn of_completion(logprobs: &[SpelledLogprobs]) -> Value {
    let top = |token: &SpelledLogprobs| {
        let mut top: serde_json::Map<String, Value> =
            token.top.iter().map(|(text, logprob)| (text.clone(), json!(finite(*logprob)))).collect();
        // The token itself is always there, as with OpenAI, also where it is none of the likeliest.
        top.entry(token.text.clone()).or_insert_with(|| json!(finite(token.logprob)));
        top
    };
    // In characters, from the beginning of the text that was generated.
    let offsets = logprobs.iter().scan(0, |end, token| {
        let start = *end;
        *end += token.text.chars().count();
        Some(start)
    });
    json!({
        "tokens": logprobs.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": logprobs.iter().map(|token| finite(token.logprob)).collect::<Vec<_>>(),
        "top_logprobs": logprobs.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets.collect::<Vec<usize>>(),
    })
}

/// `logprob` in a millionth, which is more than is known of it; OpenAI's number for one that is not finite.
fn finite(logprob: f32) -> f64 {
    if logprob.is_finite() { (f64::from(logprob) * 1e6).round() / 1e6 } else { -9999.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, logprob: f32, top: &[(&str, f32)]) -> SpelledLogprobs {
        let top = top.iter().map(|&(text, logprob)| (text.to_owned(), logprob)).collect();
        SpelledLogprobs { text: text.to_owned(), logprob, top }
    }

    #[test]
    fn log_probabilities_have_the_fields_of_openais_two_formats() {
        let tokens = [token("é", -0.5, &[("é", -0.5), ("b", f32::NEG_INFINITY)]), token("c", -2.0, &[("d", -1.0)])];
        assert_eq!(
            of_chat(&tokens),
            json!({"refusal": null, "content": [
                {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
                    {"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "b", "logprob": -9999.0, "bytes": [98]},
                ]},
                {"token": "c", "logprob": -2.0, "bytes": [99], "top_logprobs": [{"token": "d", "logprob": -1.0, "bytes": [100]}]},
            ]})
        );
        assert_eq!(
            of_completion(&tokens),
            json!({
                "tokens": ["é", "c"], "token_logprobs": [-0.5, -2.0], "text_offset": [0, 1],
                "top_logprobs": [{"é": -0.5, "b": -9999.0}, {"c": -2.0, "d": -1.0}],
            })
        );
    }
}
