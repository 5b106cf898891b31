//! JSON in which everything knows where it stands.

use jsonc_parser::ast::Value as Ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::Value;

use super::{Finding, Place};

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub place: Place,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// null, a boolean, a number or a text.
    Plain(Value),
    List(Vec<Node>),
    Object(Vec<Member>),
}

/// A name, its place and its value.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub name: String,
    pub place: Place,
    pub value: Node,
}

impl Node {
    pub(super) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Plain(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match &self.content {
            Content::Plain(value) => value.as_i64(),
            _ => None,
        }
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn members(&self) -> &[Member] {
        match &self.content {
            Content::Object(members) => members,
            _ => &[],
        }
    }

    pub(super) fn member(&self, name: &str) -> Option<&Node> {
        self.members().iter().find(|member| member.name == name).map(|member| &member.value)
    }

    /// Without places.
    pub(super) fn json(&self) -> Value {
        match &self.content {
            Content::Plain(value) => value.clone(),
            Content::List(items) => Value::Array(items.iter().map(Node::json).collect()),
            Content::Object(members) => {
                Value::Object(members.iter().map(|member| (member.name.clone(), member.value.json())).collect())
            }
        }
    }

    /// Name of the type in JSON.
    pub(super) fn type_name(&self) -> &'static str {
        match &self.content {
            Content::Plain(Value::Null) => "null",
            Content::Plain(Value::Bool(_)) => "a boolean",
            Content::Plain(Value::Number(_)) => "a number",
            Content::Plain(_) => "a text",
            Content::List(_) => "a list",
            Content::Object(_) => "an object",
        }
    }
}

/// Reads strict JSON: one value, each name once.
pub(super) fn read(text: &str) -> Result<Node, Finding> {
    // Some editors begin a file with a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    // The parser is lenient by default; the platform's is not.
    let strict = ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    // A finding about the whole file has no key.
    let whole = |place, problem: String| Finding { place, at: String::new(), problem };
    let parsed = parse_to_ast(text, &CollectOptions::default(), &strict).map_err(|error| {
        let place = Place { line: error.line_display(), column: error.column_display() };
        whole(place, format!("is not JSON: {}", error.kind()))
    })?;
    let start = Place { line: 1, column: 1 };
    match parsed.value {
        Some(value @ Ast::Object(_)) => node(&value, &Lines::of(text), ""),
        Some(_) => Err(whole(start, "is not a JSON object; give the JSON that the recipe is deployed with".to_owned())),
        None => Err(whole(start, "is empty; give the JSON that the recipe is deployed with".to_owned())),
    }
}

/// Offsets of lines in a text.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    fn place(&self, at: usize) -> Place {
        // The last line that starts at or before the offset.
        let line = self.starts.partition_point(|start| *start <= at);
        let column = self.text[self.starts[line - 1]..at].chars().count() + 1;
        Place { line, column }
    }
}

fn node(value: &Ast<'_>, lines: &Lines<'_>, at: &str) -> Result<Node, Finding> {
    let place = lines.place(value.start());
    let content = match value {
        Ast::NullKeyword(_) => Content::Plain(Value::Null),
        Ast::BooleanLit(literal) => Content::Plain(Value::Bool(literal.value)),
        Ast::StringLit(literal) => Content::Plain(Value::String(literal.value.to_string())),
        // serde_json's number keeps the exact text, so that large integers are not rounded.
        Ast::NumberLit(literal) => Content::Plain(serde_json::from_str(literal.value).map_err(|_| Finding {
            place,
            at: at.to_owned(),
            problem: format!("is {}, which is no number of JSON", literal.value),
        })?),
        Ast::Array(array) => {
            let items = array.elements.iter().enumerate();
            let items = items.map(|(index, item)| node(item, lines, &format!("{at}[{index}]")));
            Content::List(items.collect::<Result<_, _>>()?)
        }
        Ast::Object(object) => {
            let mut members: Vec<Member> = Vec::new();
            for property in &object.properties {
                let name = property.name.clone().into_string();
                let place = lines.place(property.name.start());
                let at = inside(at, &name);
                // Parsers differ in which of two equal keys wins, so neither is taken.
                if let Some(first) = members.iter().find(|member| member.name == name) {
                    let problem = format!("is there twice, first in line {}; keep one of them", first.place.line);
                    return Err(Finding { place, at, problem });
                }
                let value = node(&property.value, lines, &at)?;
                members.push(Member { name, place, value });
            }
            Content::Object(members)
        }
    };
    Ok(Node { place, content })
}

/// The name of a member of what is called `at`.
pub(super) fn inside(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}
