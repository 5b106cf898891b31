//! A template's source, split as minijinja's lexer splits it, so that rewriting touches tags only, and finds all of them whatever
//! quotes or brackets texts and comments contain.

/// A part of a source; its pieces in order make up the part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub kind: Kind,
    /// Opening delimiter, with the white space control.
    pub open: &'a str,
    pub body: &'a str,
    /// Closing delimiter, with the white space control.
    pub close: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A tag `{% … %}`.
    Statement,
    /// A tag `{{ … }}`.
    Expression,
    /// Text, a comment, a raw block, or a tag without an end with all that follows, which minijinja refuses.
    Verbatim,
}

/// Splits `source` into its parts, in order.
pub(super) fn parts(source: &str) -> Vec<Part<'_>> {
    let (mut parts, mut rest, mut text) = (Vec::new(), source, 0);
    while let Some(brace) = rest[text..].find('{') {
        let at = text + brace;
        let tag = match rest.as_bytes().get(at + 1) {
            Some(b'#') => {
                // A comment may contain tags and quotes, and ends at the first `#}`.
                text = rest[at + 2..].find("#}").map_or(rest.len(), |end| at + 2 + end + 2);
                continue;
            }
            Some(b'%') => match raw(&rest[at..]) {
                // Inside of a raw block nothing is a tag.
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

/// Length of the raw block that `source` begins with, if it does; one without an end takes all that is left.
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

/// The text after a tag that consists of `name` only, without its opening, if `source` begins with one.
fn basic_tag<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    let is_space = |c: char| c.is_ascii_whitespace();
    let rest = source.trim_start_matches(is_space).strip_prefix(name)?.trim_start_matches(is_space);
    rest.strip_prefix(is_sign).unwrap_or(rest).strip_prefix("%}")
}

/// Number of bytes up to the end of an expression: the first `end` outside of strings and brackets.
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

/// Offset after the quoted string that begins at `at`.
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
