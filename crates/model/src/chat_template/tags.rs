//! Statements of a template, rewritten before minijinja compiles them.

use super::parts::{Kind, parts, string_end};

/// `source` with statements replaced that minijinja lacks or handles differently.
///
/// transformers has `{% generation %} … {% endgeneration %}`, which marks answers for training and renders as its
/// content: a condition that is true does the same. The sequence of a loop passes the filter `iterated`, because
/// minijinja takes None for an empty list and Python refuses it. Values that a namespace keeps pass the filter `kept`,
/// which looks for cycles: a filter, because a template may rebind the name of a function.
pub(super) fn rewritten(source: &str, iterated: &str, kept: &str) -> String {
    let mut text = String::with_capacity(source.len());
    for part in parts(source) {
        text.push_str(part.open);
        match part.kind {
            Kind::Statement => text.push_str(&statement(part.body, iterated, kept)),
            Kind::Expression | Kind::Verbatim => text.push_str(part.body),
        }
        text.push_str(part.close);
    }
    text
}

fn statement(body: &str, iterated: &str, kept: &str) -> String {
    let unspaced = body.trim_start();
    let name = &unspaced[..unspaced.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(unspaced.len())];
    let behind = &unspaced[name.len()..];
    let before = &body[..body.len() - behind.len()];
    match name {
        "generation" if behind.trim().is_empty() => " if true ".to_owned(),
        "endgeneration" if behind.trim().is_empty() => " endif ".to_owned(),
        // Blocks are for inheritance, which chat templates have not; each renders where it stands.
        "block" => " if true ".to_owned(),
        "endblock" => " endif ".to_owned(),
        "for" => match iterable(behind) {
            Some((start, end)) => {
                format!("{before}{} ({})|{iterated} {}", &behind[..start], &behind[start..end], &behind[end..])
            }
            None => body.to_owned(),
        },
        "set" => match attribute_value(behind) {
            Some(Kept::Value(start)) => format!("{before}{} ({})|{kept} ", &behind[..start], &behind[start..]),
            Some(Kept::Filtered) => format!("{body}|{kept} "),
            None => body.to_owned(),
        },
        _ => body.to_owned(),
    }
}

/// Source of the value of an attribute.
enum Kept {
    /// The expression that begins at this offset.
    Value(usize),
    /// The text up to `endset`, through filters.
    Filtered,
}

/// Source of the value in a `set` statement with this text `behind` its name, if it sets an attribute.
fn attribute_value(behind: &str) -> Option<Kept> {
    let at = behind.find(['=', '|'])?;
    if !behind[..at].contains('.') {
        return None;
    }
    Some(if behind[at..].starts_with('=') { Kept::Value(at + 1) } else { Kept::Filtered })
}

/// Start and end of the sequence's expression in the text after a statement's `for`.
fn iterable(behind: &str) -> Option<(usize, usize)> {
    let bytes = behind.as_bytes();
    let (mut at, mut depth, mut start) = (0, 0_usize, None);
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => at = string_end(behind, at)? - 1,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                let word = behind[at..].split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
                match word {
                    "in" if start.is_none() && depth == 0 => start = Some(at + word.len()),
                    "if" | "recursive" if depth == 0 && start.is_some() => return start.map(|start| (start, at)),
                    _ => {}
                }
                at += word.len();
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    start.map(|start| (start, behind.len()))
}
