//! The platform's own JSON schema, evaluated: the keywords that it uses, and no others.
//!
//! Written here because a finding needs its line, its column and a sentence, which validators do not give. A test holds every
//! keyword of the schema to those that are known here, and another compares verdicts with those of Python's jsonschema.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::Value;

use super::Finding;
use super::document::{Content, Node, inside};
use flashjob_config::redact;

/// The schema as the platform publishes it.
const TEXT: &str = include_str!("blueprint_schema.json");

/// Least similarity (Jaro–Winkler) of a wrong name and a known one that is suggested for it.
const ALIKE: f64 = 0.85;

/// Characters of a wrong value that are repeated.
const LONGEST_SHOWN: usize = 60;

fn root() -> &'static Value {
    // Parsed once; the text is a constant of the program, held by a test.
    static ROOT: OnceLock<Value> = OnceLock::new();
    // A test reads it; a build with another text does not pass.
    ROOT.get_or_init(|| serde_json::from_str(TEXT).unwrap_or_default())
}

/// Everything in `document` that the schema does not allow. A document is a whole blueprint, or one recipe as it is deployed:
/// the schema of the former has the latter as a part.
pub(super) fn check(document: &Node) -> Vec<Finding> {
    let is_whole = ["blueprint_category", "pre_filled_samples", "deployment_group", "blueprint_type"]
        .iter()
        .any(|key| document.member(key).is_some());
    let recipe = serde_json::json!({"$ref": "#/$defs/recipe_payload", "unevaluatedProperties": false});
    evaluate(document, if is_whole { root() } else { &recipe }, "").findings
}

/// Result of validating a node against a schema.
#[derive(Default)]
struct Verdict {
    findings: Vec<Finding>,
    /// Members that some keyword has looked at.
    evaluated: BTreeSet<String>,
}

impl Verdict {
    fn add(&mut self, other: Verdict) {
        self.findings.extend(other.findings);
        self.evaluated.extend(other.evaluated);
    }
}

fn evaluate(node: &Node, schema: &Value, at: &str) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(keywords) = schema.as_object() else { return verdict };
    let refuse = |verdict: &mut Verdict, problem: String| {
        verdict.findings.push(Finding { place: node.place, at: at.to_owned(), problem });
    };
    if let Some(types) = keywords.get("type")
        && !has_type(node, types)
    {
        refuse(&mut verdict, format!("is {}, but {} is called for", shown(node), type_words(types)));
        // Other keywords would only report consequences of the wrong type.
        return verdict;
    }
    if let Some(pointer) = keywords.get("$ref").and_then(Value::as_str)
        && let Some(target) = root().pointer(pointer.trim_start_matches('#'))
    {
        verdict.add(evaluate(node, target, at));
    }
    for part in keywords.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        verdict.add(evaluate(node, part, at));
    }
    if let Some(allowed) = keywords.get("enum").and_then(Value::as_array)
        && !allowed.contains(&node.json())
    {
        refuse(&mut verdict, format!("is {}, but must be one of {}", shown(node), words(allowed.iter())));
    }
    if let Some(allowed) = keywords.get("const")
        && *allowed != node.json()
    {
        refuse(&mut verdict, format!("is {}, but must be {allowed}", shown(node)));
    }
    if let Some(forms) = keywords.get("oneOf").and_then(Value::as_array) {
        // JSON Schema's `oneOf` demands exactly one fitting form.
        let mut fitting: Vec<Verdict> =
            forms.iter().map(|form| evaluate(node, form, at)).filter(|form| form.findings.is_empty()).collect();
        match (fitting.pop(), fitting.is_empty()) {
            (Some(form), true) => verdict.add(form),
            (None, _) => refuse(&mut verdict, no_form(node, forms)),
            (Some(_), false) => {
                refuse(&mut verdict, format!("fits more than one form: {}; keep one", forms_in_words(forms)))
            }
        }
    }
    match &node.content {
        Content::List(items) => {
            if let Some(each) = keywords.get("items") {
                for (index, item) in items.iter().enumerate() {
                    verdict.findings.extend(evaluate(item, each, &format!("{at}[{index}]")).findings);
                }
            }
            if keywords.get("uniqueItems") == Some(&Value::Bool(true)) {
                for (index, item) in items.iter().enumerate() {
                    if items[..index].iter().any(|earlier| earlier.json() == item.json()) {
                        let problem = "is there twice; keep one of them".to_owned();
                        verdict.findings.push(Finding { place: item.place, at: format!("{at}[{index}]"), problem });
                    }
                }
            }
        }
        Content::Object(_) => members(node, keywords, at, &mut verdict),
        Content::Plain(_) => {}
    }
    verdict
}

fn members(node: &Node, keywords: &serde_json::Map<String, Value>, at: &str, verdict: &mut Verdict) {
    for name in keywords.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if node.member(name).is_none() {
            let problem = format!("has no `{name}`, which it must have");
            verdict.findings.push(Finding { place: node.place, at: at.to_owned(), problem });
        }
    }
    let properties = keywords.get("properties").and_then(Value::as_object);
    for member in node.members() {
        let at = inside(at, &member.name);
        if let Some(schema) = properties.and_then(|properties| properties.get(&member.name)) {
            verdict.findings.extend(evaluate(&member.value, schema, &at).findings);
            verdict.evaluated.insert(member.name.clone());
            continue;
        }
        match keywords.get("additionalProperties") {
            None => {}
            Some(Value::Bool(false)) => {
                verdict.findings.push(unknown(member.place, at, &member.name, properties));
                verdict.evaluated.insert(member.name.clone());
            }
            Some(schema) => {
                verdict.findings.extend(evaluate(&member.value, schema, &at).findings);
                verdict.evaluated.insert(member.name.clone());
            }
        }
    }
    // Only after all subschemas: a member is unevaluated if none of them looked at it.
    if keywords.get("unevaluatedProperties") == Some(&Value::Bool(false)) {
        for member in node.members().iter().filter(|member| !verdict.evaluated.contains(&member.name)) {
            let known = if keywords.contains_key("properties") { properties } else { recipe_properties() };
            verdict.findings.push(unknown(member.place, inside(at, &member.name), &member.name, known));
        }
    }
}

fn recipe_properties() -> Option<&'static serde_json::Map<String, Value>> {
    root().pointer("/$defs/recipe_payload/properties").and_then(Value::as_object)
}

fn unknown(place: super::Place, at: String, name: &str, known: Option<&serde_json::Map<String, Value>>) -> Finding {
    let nearest = known
        .into_iter()
        .flat_map(|known| known.keys())
        .map(|key| (strsim::jaro_winkler(name, key), key))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = nearest.map(|(_, key)| format!("; did you mean `{key}`?")).unwrap_or_default();
    Finding { place, at, problem: format!("is no key that the platform knows{hint}") }
}

fn has_type(node: &Node, types: &Value) -> bool {
    let is = |name: &str| match (name, &node.content) {
        ("object", Content::Object(_)) | ("array", Content::List(_)) => true,
        ("string", Content::Plain(Value::String(_))) | ("boolean", Content::Plain(Value::Bool(_))) => true,
        ("number", Content::Plain(Value::Number(_))) | ("null", Content::Plain(Value::Null)) => true,
        // JSON Schema counts 2.0 as an integer.
        ("integer", Content::Plain(Value::Number(number))) => {
            number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => false,
    };
    match types {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

fn type_words(types: &Value) -> String {
    let word = |name: &str| match name {
        "object" => "an object",
        "array" => "a list",
        "string" => "a text",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        _ => "null",
    };
    let names: Vec<&str> = match types {
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(word).collect(),
        other => other.as_str().map(word).into_iter().collect(),
    };
    names.join(" or ")
}

/// Reason why none of `forms` fits: the allowed words, or what each form requires.
fn no_form(node: &Node, forms: &[Value]) -> String {
    let constants: Vec<&Value> = forms.iter().filter_map(|form| form.get("const")).collect();
    if constants.len() == forms.len() {
        return format!("is {}, but must be one of {}", shown(node), words(constants.into_iter()));
    }
    format!("fits none of its forms: {}", forms_in_words(forms))
}

fn forms_in_words(forms: &[Value]) -> String {
    let form = |form: &Value| {
        let names: Vec<&str> = form["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        format!("one with {}", names.join(", "))
    };
    forms.iter().map(form).collect::<Vec<_>>().join("; or ")
}

fn words<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    values.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect::<Vec<_>>().join(", ")
}

/// A value for a sentence: itself where it is short and plain, its type otherwise.
fn shown(node: &Node) -> String {
    match &node.content {
        Content::Plain(value) if !value.is_null() => {
            let text = redact(&value.to_string());
            let short: String = text.chars().take(LONGEST_SHOWN).collect();
            format!("{} ({short}{})", node.type_name(), if short.len() < text.len() { "…" } else { "" })
        }
        _ => node.type_name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keywords that are evaluated, and those that only explain.
    const KNOWN: [&str; 13] = [
        "type",
        "$ref",
        "allOf",
        "oneOf",
        "enum",
        "const",
        "items",
        "uniqueItems",
        "properties",
        "required",
        "additionalProperties",
        "unevaluatedProperties",
        "$defs",
    ];
    const EXPLAINING: [&str; 5] = ["$schema", "$id", "title", "description", "examples"];

    fn walk(schema: &Value, found: &mut BTreeSet<String>) {
        let Some(keywords) = schema.as_object() else { return };
        for (keyword, value) in keywords {
            found.insert(keyword.clone());
            match keyword.as_str() {
                "properties" | "$defs" => value.as_object().unwrap().values().for_each(|schema| walk(schema, found)),
                "allOf" | "oneOf" => value.as_array().unwrap().iter().for_each(|schema| walk(schema, found)),
                "items" | "additionalProperties" => walk(value, found),
                _ => {}
            }
        }
    }

    #[test]
    fn every_keyword_of_the_schema_is_known() {
        let mut found = BTreeSet::new();
        walk(&serde_json::from_str(TEXT).unwrap(), &mut found);
        let unknown: Vec<&String> = found
            .iter()
            .filter(|keyword| !KNOWN.contains(&keyword.as_str()) && !EXPLAINING.contains(&keyword.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(recipe_properties().unwrap().len() > 60);
    }
}
