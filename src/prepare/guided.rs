//! Fields of a request that say what its text must be: `response_format` of OpenAI, `guided_…` and `structured_outputs` of vLLM.
//!
//! They become one grammar. Whether it is one, its compiler knows.

use serde_json::{Map, Value};

use flashjob_guidance::Grammar;

use super::bounded_json::abbreviated;
use super::question::Reason;

/// Reads a grammar from the value of a field.
type ReadGrammar = fn(&Value) -> Option<Grammar>;

/// The fields, each with what its value must be.
const FIELDS: [(&str, &str, ReadGrammar); 4] = [
    ("guided_json", "a JSON schema, as an object or a text", json_schema),
    ("guided_regex", "a text", |value| text(value).map(Grammar::Regex)),
    ("guided_choice", "a list of texts", choice),
    ("guided_grammar", "a text", |value| text(value).map(Grammar::Lark)),
];

/// The entries of `structured_outputs`, of the same kinds.
const STRUCTURED: [(&str, &str, ReadGrammar); 5] = [
    ("json", FIELDS[0].1, json_schema),
    ("regex", FIELDS[1].1, FIELDS[1].2),
    ("choice", FIELDS[2].1, choice),
    ("grammar", FIELDS[3].1, FIELDS[3].2),
    ("json_object", "true", |value| (*value == Value::Bool(true)).then_some(Grammar::JsonObject)),
];

/// The grammar of a request; `None` where it has none.
///
/// # Errors
/// A sentence that names the field and its fault; also where a request has several.
pub(super) fn read(fields: &Map<String, Value>) -> Result<Option<Grammar>, Reason> {
    let mut found: Vec<(String, Grammar)> = Vec::new();
    for (name, allowed, read) in FIELDS {
        if let Some(value) = fields.get(name) {
            found.push((name.to_owned(), read(value).ok_or_else(|| refused(name, allowed, value))?));
        }
    }
    if let Some(value) = fields.get("structured_outputs") {
        let name = "structured_outputs";
        let entries = value.as_object().ok_or_else(|| refused(name, "an object", value))?;
        for (entry, value) in entries.iter().filter(|(_, value)| !value.is_null() && **value != Value::Bool(false)) {
            let name = format!("{name}.{entry}");
            let Some((_, allowed, read)) = STRUCTURED.iter().find(|(known, ..)| known == entry) else {
                return Err(Reason::unsupported(format!("`{name}` is not supported; leave it out")));
            };
            let grammar = read(value).ok_or_else(|| refused(&name, allowed, value))?;
            found.push((name, grammar));
        }
    }
    if let Some(value) = fields.get("response_format")
        && let Some(grammar) = response_format(value)?
    {
        found.push(("response_format".to_owned(), grammar));
    }
    match &found[..] {
        [(one, _), (other, _), ..] => {
            Err(format!("`{one}` and `{other}` both say what the text must be; leave one of them out").into())
        }
        _ => Ok(found.pop().map(|(_, grammar)| grammar)),
    }
}

fn refused(name: &str, allowed: &str, value: &Value) -> String {
    format!("`{name}` must be {allowed}, not {}", abbreviated(value))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn json_schema(value: &Value) -> Option<Grammar> {
    match value {
        Value::Object(_) | Value::Bool(_) => Some(Grammar::JsonSchema(value.to_string())),
        _ => text(value).map(Grammar::JsonSchema),
    }
}

fn choice(value: &Value) -> Option<Grammar> {
    let texts = value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned));
    texts.collect::<Option<Vec<_>>>().map(Grammar::Choice)
}

fn response_format(value: &Value) -> Result<Option<Grammar>, Reason> {
    let schema = || value.get("json_schema")?.get("schema").filter(|schema| schema.is_object()).and_then(json_schema);
    match value.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonObject)),
        Some("json_schema") => match schema() {
            Some(grammar) => Ok(Some(grammar)),
            None => Err("`response_format.json_schema` has no object `schema`".to_owned().into()),
        },
        Some(_) => Err(Reason::unsupported(format!(
            "`response_format` = {} is not supported; leave it out",
            abbreviated(value)
        ))),
        None => Err(refused("response_format", "an object with a `type`", value).into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: Value) -> Result<Option<Grammar>, String> {
        let Value::Object(fields) = fields else { panic!("{fields}") };
        super::read(&fields).map_err(|reason| reason.sentence)
    }

    #[test]
    fn each_field_is_a_grammar() {
        let schema = || Grammar::JsonSchema(r#"{"type":"object","properties":{"b":{},"a":{}}}"#.to_owned());
        let value = json!({"type": "object", "properties": {"b": {}, "a": {}}});
        let choice = || Grammar::Choice(vec!["a".to_owned(), "b".to_owned()]);
        for (fields, grammar) in [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"response_format": {"type": "json_object"}}), Some(Grammar::JsonObject)),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": value}}}),
                Some(schema()),
            ),
            (json!({"guided_json": value}), Some(schema())),
            (json!({"guided_json": value.to_string()}), Some(schema())),
            (json!({"guided_regex": "a+"}), Some(Grammar::Regex("a+".to_owned()))),
            (json!({"guided_choice": ["a", "b"]}), Some(choice())),
            (json!({"guided_grammar": "start: \"a\""}), Some(Grammar::Lark("start: \"a\"".to_owned()))),
            (json!({"structured_outputs": {"choice": ["a", "b"], "regex": null}}), Some(choice())),
            (json!({"structured_outputs": {"json_object": true}}), Some(Grammar::JsonObject)),
            (json!({"structured_outputs": {"json": value}}), Some(schema())),
        ] {
            assert_eq!(read(fields.clone()), Ok(grammar), "{fields}");
        }
    }

    #[test]
    fn what_is_no_grammar_is_refused_by_name() {
        for (fields, sentence) in [
            (json!({"guided_json": 7}), "`guided_json` must be a JSON schema, as an object or a text, not 7"),
            (json!({"guided_regex": ""}), "`guided_regex` must be a text, not \"\""),
            (json!({"guided_choice": ["a", 1]}), "`guided_choice` must be a list of texts, not [\"a\",1]"),
            (json!({"structured_outputs": []}), "`structured_outputs` must be an object, not []"),
            (
                json!({"structured_outputs": {"structural_tag": "x"}}),
                "`structured_outputs.structural_tag` is not supported; leave it out",
            ),
            (json!({"response_format": {}}), "`response_format` must be an object with a `type`, not {}"),
            (
                json!({"response_format": {"type": "structural_tag"}}),
                "`response_format` = {\"type\":\"structural_tag\"} is not supported; leave it out",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
                "`response_format.json_schema` has no object `schema`",
            ),
            (
                json!({"guided_regex": "a", "response_format": {"type": "json_object"}}),
                "`guided_regex` and `response_format` both say what the text must be; leave one of them out",
            ),
        ] {
            assert_eq!(read(fields), Err(sentence.to_owned()));
        }
    }
}
