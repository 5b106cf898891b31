//! A template's source in the parts that minijinja's lexer takes it for, so that nothing is rewritten in what is no tag, and no tag is
//! missed that a quote or a bracket in a text or a comment seems to be part of.

/// A part of a source: what it consists of, one behind the other, is the part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub kind: Kind,
    /// Delimiter, with the sign for whitespace.
    pub open: &'a str,
    pub body: &'a str,
    /// Delimiter, with the sign for whitespace.
    pub close: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `{% … %}`
    Statement,
    /// `{{ … }}`
    Expression,
    /// Text, a comment, a raw block, or a tag without an end, with all that follows: minijinja refuses that one.
    Verbatim,
}

/// The parts of `source`, in their order.
pub(super) fn parts(source: &str) -> Vec<Part<'_>> {
    let (mut parts, mut rest, mut text) = (Vec::new(), source, 0);
    while let Some(brace) = rest[text..].find('{') {
        let at = text + brace;
        let tag = match rest.as_bytes().get(at + 1) {
            Some(b'#') => {
                text = rest[at + 2..].find("#}").map_or(rest.len(), |end| at + 2 + end + 2);
                continue;
            }
            Some(b'%') => match raw(&rest[at..]) {
                Some(length) => {
                    text = at + length;
                    continue;
                }
                None => tag(&rest[at..], Kind::Statement, "%}"),
            },
            Some(b'{') => tag(&rest[at..], Kind::Expression, "}}"),
            _ => {
                text = at + 1;
                continue;
            }
        };
        let Some(tag) = tag else { break };
        if at > 0 {
            parts.push(verbatim(&rest[..at]));
        }
        rest = &rest[at + tag.open.len() + tag.body.len() + tag.close.len()..];
        text = 0;
        parts.push(tag);
    }
    if !rest.is_empty() {
        parts.push(verbatim(rest));
    }
    parts
}

fn verbatim(body: &str) -> Part<'_> {
    Part { kind: Kind::Verbatim, open: "", body, close: "" }
}

fn is_sign(c: char) -> bool {
    c == '-' || c == '+'
}

/// The tag that `source` begins with, unless it has no end.
fn tag<'a>(source: &'a str, kind: Kind, end: &str) -> Option<Part<'a>> {
    let (open, rest) = source.split_at(2 + usize::from(source[2..].starts_with(is_sign)));
    let length = expression(rest, end)?;
    let body = &rest[..length];
    let body = body.strip_suffix(is_sign).unwrap_or(body);
    Some(Part { kind, open, body, close: &rest[body.len()..length + end.len()] })
}

/// Length of the raw block that `source` begins with, if it does; of one without an end, of all that is left.
fn raw(source: &str) -> Option<usize> {
    let behind = basic_tag(source[2..].strip_prefix(is_sign).unwrap_or(&source[2..]), "raw")?;
    let mut rest = behind;
    while let Some(at) = rest.find("{%") {
        rest = &rest[at + 2..];
        if let Some(behind) = basic_tag(rest.strip_prefix(is_sign).unwrap_or(rest), "endraw") {
            return Some(source.len() - behind.len());
        }
    }
    Some(source.len())
}

/// What is behind a tag of nothing but `name`, without its opening, that `source` begins with.
fn basic_tag<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    let is_space = |c: char| c.is_ascii_whitespace();
    let rest = source.trim_start_matches(is_space).strip_prefix(name)?.trim_start_matches(is_space);
    rest.strip_prefix(is_sign).unwrap_or(rest).strip_prefix("%}")
}

/// The bytes up to where an expression ends, which is the first `end` outside texts and brackets.
fn expression(text: &str, end: &str) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    while at < text.len() {
        if depth == 0 && text.as_bytes()[at..].starts_with(end.as_bytes()) {
            return Some(at);
        }
        match text.as_bytes()[at] {
            b'"' | b'\'' => at = string_end(text, at)? - 1,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the quoted text that begins at `at` is over.
pub(super) fn string_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut end = at + 1;
    while *bytes.get(end)? != bytes[at] {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    Some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(source: &str) -> Vec<&str> {
        let parts = parts(source);
        let whole: String = parts.iter().flat_map(|part| [part.open, part.body, part.close]).collect();
        assert_eq!(whole, source);
        parts.iter().filter(|part| part.kind != Kind::Verbatim).map(|part| part.body).collect()
    }

    #[test]
    fn what_is_no_tag_hides_none_and_is_none() {
        for (source, expected) in [
            ("a{{ b }}c{%- d -%}e", &[" b ", " d "] as &[&str]),
            ("{{ '}}' }}{{ {'a': {}}}}", &[" '}}' ", " {'a': {}}"]),
            ("{# {% a = { #}{% b %}", &[" b "]),
            ("{% raw %}{% a = ( {{ ' {% endraw %}{% b %}", &[" b "]),
            ("{%+ raw -%} endraw {% a %}{%- endraw +%}{% b %}", &[" b "]),
            ("{{ \"{% a = '\" }}{% b %}{{ \"' %}\" }}", &[" \"{% a = '\" ", " b ", " \"' %}\" "]),
            ("{ {%a%} } {", &["a"]),
            ("{% raw b %}{% c %}", &[" raw b ", " c "]),
            ("{% a %}{% (b %}{% c %}", &[" a "]),
            ("{% a %}{% b) %}{% c %}", &[" a "]),
            ("{{ 1 --}}{{-}}", &[" 1 -", ""]),
        ] {
            assert_eq!(tags(source), expected, "{source}");
        }
    }
}
