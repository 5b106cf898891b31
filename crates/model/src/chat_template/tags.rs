//! What is rewritten in a template's source before minijinja compiles it.

use super::operators::expression;

/// `source` with the statements that minijinja lacks, or takes otherwise than Jinja2, put into ones that it has.
///
/// transformers knows `{% generation %} … {% endgeneration %}`, which mark what a model says for training and render as
/// what they hold: a condition that is true does the same. What a loop goes through passes the filter `iterated`, because
/// minijinja takes None for an empty list and Python refuses it. What a namespace is to keep passes the function `kept`, which
/// looks for itself in it.
pub(super) fn rewritten(source: &str, iterated: &str, kept: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        rest = tag;
        let unsigned = tag.trim_start_matches(['-', '+']);
        let sign = &tag[..tag.len() - unsigned.len()];
        for (name, condition) in [("generation", " if true"), ("endgeneration", " endif")] {
            if let Some(behind) = unsigned.trim_start().strip_prefix(name)
                && behind.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                text.push_str(sign);
                text.push_str(condition);
                // A name that touches the sign behind it would change its meaning.
                text.push(' ');
                rest = behind;
            }
        }
        // Blocks are for templates that extend others, which a chat template cannot; each renders where it stands.
        for (name, condition) in [("block", " if true "), ("endblock", " endif ")] {
            if let Some(behind) = unsigned.trim_start().strip_prefix(name)
                && behind.starts_with(|c: char| c.is_whitespace() || "-+%".contains(c))
                && let Some(end) = behind.find("%}")
            {
                let end = behind[..end].trim_end_matches(['-', '+']).len();
                text.push_str(sign);
                text.push_str(condition);
                rest = &behind[end..];
            }
        }
        if let Some(behind) = unsigned.trim_start().strip_prefix("for")
            && let Some((start, end)) = iterable(behind)
        {
            text.push_str(&tag[..tag.len() - behind.len() + start]);
            text.push_str(" (");
            text.push_str(&behind[start..end]);
            text.push_str(")|");
            text.push_str(iterated);
            text.push(' ');
            rest = &behind[end..];
        }
        if let Some(behind) = unsigned.trim_start().strip_prefix("set")
            && let Some((start, end)) = attribute_value(behind)
        {
            text.push_str(&tag[..tag.len() - behind.len() + start]);
            text.push_str(&format!(" {kept}(("));
            text.push_str(&behind[start..end]);
            text.push_str(")) ");
            rest = &behind[end..];
        }
    }
    text.push_str(rest);
    text
}

/// Where, in the text behind a tag's `set`, the expression begins and ends that an attribute is set to.
fn attribute_value(tag: &str) -> Option<(usize, usize)> {
    let name = tag.find('=')?;
    let target = tag[..name].trim();
    let is_attribute = target.contains('.') && target.chars().all(|c| c.is_alphanumeric() || "_. ".contains(c));
    (is_attribute && tag.starts_with(char::is_whitespace)).then_some(())?;
    let value = &tag[name + 1..];
    let length = value[..expression(value, "%}")?].trim_end_matches(['-', '+']).len();
    Some((name + 1, name + 1 + length))
}

/// Where, in the text behind a tag's `for`, the expression begins and ends that the loop goes through.
fn iterable(tag: &str) -> Option<(usize, usize)> {
    let bytes = tag.as_bytes();
    let (mut at, mut depth, mut start) = (0, 0_usize, None);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while *bytes.get(at)? != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            b'%' | b'-' | b'+' if depth == 0 && tag[at..].trim_start_matches(['-', '+']).starts_with("%}") => {
                return start.map(|start| (start, at));
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                let word = tag[at..].split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
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
    None
}
