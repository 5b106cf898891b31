//! Arguments of an engine that is not ours, from JSON or from words as on a command line.

use flashjob_config::EngineArguments;
use serde_json::{Map, Value};

use super::quoting::quoted;

/// Longest text of all arguments.
const LONGEST_BYTES: usize = 64 << 10;

/// Reads a JSON object, or words: `--name=value`, `--name` for true and `--no-name` for false. A value of a word is JSON where it can
/// be read so, and text otherwise.
///
/// # Errors
/// The rest of a sentence about the text.
pub(super) fn parse(text: &str) -> Result<EngineArguments, String> {
    if text.len() > LONGEST_BYTES {
        return Err(format!("it must be at most {LONGEST_BYTES} bytes long"));
    }
    let text = text.trim();
    let mut arguments = Map::new();
    let mut insert = |name: &str, value: Value| {
        let name = normalised(name)?;
        // Engines take null for an argument that was not given; one that is named and has no value is a mistake.
        if value.is_null() {
            return Err(format!("`{name}` has no value"));
        }
        match arguments.insert(name.clone(), value) {
            None => Ok(()),
            Some(_) => Err(format!("`{name}` stands in it twice")),
        }
    };
    if text.starts_with('{') {
        let object: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("it must be a JSON object: {error}"))?;
        object.into_iter().try_for_each(|(name, value)| insert(&name, value))?;
    } else {
        text.split_whitespace().map(word).try_for_each(|word| word.and_then(|(name, value)| insert(name, value)))?;
    }
    Ok(EngineArguments::new(arguments))
}

fn word(word: &str) -> Result<(&str, Value), String> {
    let Some(stated) = word.strip_prefix("--") else {
        return Err(format!("it must be a JSON object or words like --name=value, and {} is neither", quoted(word)));
    };
    Ok(match stated.split_once('=') {
        // A word has no types: 4 is a number, fp8 a text.
        Some((name, value)) => (name, serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()))),
        None => match stated.strip_prefix("no-") {
            Some(name) => (name, Value::Bool(false)),
            None => (stated, Value::Bool(true)),
        },
    })
}

/// The name as the engine's Python has it.
fn normalised(name: &str) -> Result<String, String> {
    let is_part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic())
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-'))
    };
    let mut parts = name.trim_start_matches("--").split('.');
    match parts.clone().all(is_part) {
        true => {
            // Parts of a setting have the names that its own documentation gives them.
            let first = parts.next().unwrap_or_default().replace('-', "_");
            Ok([first.as_str()].into_iter().chain(parts).collect::<Vec<_>>().join("."))
        }
        false => Err(format!("{} is no name of an argument", quoted(name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_words_say_the_same() {
        let json = r#"{"kv_cache_dtype": "fp8", "max-loras": 4, "async_scheduling": false, "enable_lora": true,
            "compilation-config.mode": 3, "speculative_config": {"method": "ngram"}, "hf_token": "007"}"#;
        let words = "--kv-cache-dtype=fp8 --max_loras=4 --no-async-scheduling --enable-lora --compilation-config.mode=3 \
            --speculative-config={\"method\":\"ngram\"} --hf-token=007";
        let parsed = parse(json).unwrap();
        assert_eq!(parsed, parse(words).unwrap());
        assert_eq!(
            parsed.to_string(),
            r#"{"kv_cache_dtype":"fp8","max_loras":4,"async_scheduling":false,"enable_lora":true,"compilation_config.mode":3,"speculative_config":{"method":"ngram"},"hf_token":"007"}"#
        );
        assert_eq!(parse("  ").unwrap(), EngineArguments::default());
    }

    #[test]
    fn what_is_neither_is_refused_with_its_place() {
        for (text, reason) in [
            ("{", "it must be a JSON object: EOF while parsing an object at line 1 column 1"),
            ("{\"a\": }", "it must be a JSON object: expected value at line 1 column 7"),
            ("{\"a\": 1} x", "it must be a JSON object: trailing characters at line 1 column 10"),
            ("[1]", "it must be a JSON object or words like --name=value, and `[1]` is neither"),
            ("max_loras=4", "it must be a JSON object or words like --name=value, and `max_loras=4` is neither"),
            ("--a=1 b", "it must be a JSON object or words like --name=value, and `b` is neither"),
            ("-O3", "it must be a JSON object or words like --name=value, and `-O3` is neither"),
            ("--", "empty is no name of an argument"),
            ("--=1", "empty is no name of an argument"),
            ("--a..b=1", "`a..b` is no name of an argument"),
            ("{\"a b\": 1}", "`a b` is no name of an argument"),
            (
                "https://host/p/s3cr3t/n/ns/b/x/o/",
                "it must be a JSON object or words like --name=value, and `https://host/p/<redacted>/n/ns/b/x/o/` is neither",
            ),
            ("--a=null", "`a` has no value"),
            ("--max-loras=1 --max_loras=2", "`max_loras` stands in it twice"),
            ("{\"max-loras\": 1, \"max_loras\": 1}", "`max_loras` stands in it twice"),
        ] {
            assert_eq!(parse(text).unwrap_err(), reason, "{text}");
        }
        let long = format!("--a={}", "x".repeat(LONGEST_BYTES));
        assert_eq!(parse(&long).unwrap_err(), "it must be at most 65536 bytes long");
    }
}
