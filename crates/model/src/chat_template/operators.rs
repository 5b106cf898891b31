//! `%` between expressions, which minijinja has for numbers only, becomes a call; a plus that is a sign is left out.

/// `source` with each `left % right` of its expressions as a call of `modulo`.
pub(super) fn rewritten(source: &str, modulo: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'%') if is_raw(&tag[2..]) => tag.find("endraw").unwrap_or(tag.len()),
            Some(b'%') => expression(&tag[2..], "%}").map_or(tag.len(), |length| length + 2),
            Some(b'{') => expression(&tag[2..], "}}").map_or(tag.len(), |length| length + 2),
            _ => 1,
        };
        match tag.as_bytes().get(1) {
            Some(b'%' | b'{') if !is_raw(&tag[2..]) && length > 2 => {
                text.push_str(&tag[..2]);
                text.push_str(&with_calls(&tag[2..length], modulo));
            }
            _ => text.push_str(&tag[..length]),
        }
        rest = &tag[length..];
    }
    text.push_str(rest);
    text
}

fn is_raw(tag: &str) -> bool {
    let name = tag.trim_start_matches(['-', '+']).trim_start();
    name.strip_prefix("raw").is_some_and(|behind| !behind.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The bytes up to where an expression ends, which is the first `end` outside texts and brackets.
pub(super) fn expression(text: &str, end: &str) -> Option<usize> {
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
fn string_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut end = at + 1;
    while *bytes.get(end)? != bytes[at] {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    Some(end + 1)
}

/// Operators and words that bind less than `%`: behind them a new operand begins.
const WEAKER: [&str; 12] = ["and", "or", "not", "in", "is", "if", "else", "elif", "set", "for", "recursive", "call"];

/// Bracket by bracket, `left % right` as calls. What cannot be read as expected stays as it is: minijinja says what is
/// wrong with it.
fn with_calls(text: &str, modulo: &str) -> String {
    let mut written = String::with_capacity(text.len());
    // Where, in what is written, the chain of products began that is at hand; one for each open bracket.
    let mut starts: Vec<Option<usize>> = vec![None];
    // Calls that lack their closing bracket, which follows the operand behind `%`: by depth of brackets.
    let mut open: Vec<usize> = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let depth = starts.len();
        let word =
            text[at..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(&text[at..], |end| &text[at..at + end]);
        let ends_operand = match c {
            '*' => !text[at..].starts_with("**") && !text[..at].ends_with('*'),
            '+' | '-' | '/' | '%' | '~' | '<' | '>' | '=' | '!' | ',' | ':' | ')' | ']' | '}' => true,
            _ => WEAKER.contains(&word) && !text[..at].ends_with('.'),
        };
        if ends_operand && starts[depth - 1].is_some() && !behind_operator(&written) {
            while open.last() == Some(&depth) {
                open.pop();
                let end = written.trim_end().len();
                written.insert(end, ')');
            }
        }
        match c {
            '"' | '\'' => {
                let end = string_end(text, at).unwrap_or(text.len());
                starts[depth - 1].get_or_insert(written.len());
                // A line that ends with a backslash goes on without a break.
                written.push_str(&text[at..end].replace("\\\n", ""));
                at = end;
                continue;
            }
            '(' | '[' | '{' => {
                starts[depth - 1].get_or_insert(written.len());
                starts.push(None);
            }
            ')' | ']' | '}' if depth > 1 => {
                starts.pop();
            }
            '%' => {
                if let Some(start) = starts[depth - 1] {
                    written.insert_str(start, &format!("{modulo}("));
                    written.push_str(", ");
                    open.push(depth);
                    at += 1;
                    continue;
                }
            }
            '-' | '+' if starts[depth - 1].is_none() || behind_operator(&written) => {
                starts[depth - 1].get_or_insert(written.len());
                // minijinja has no unary plus, which changes nothing.
                if c == '+' && !text[at + 1..].trim().is_empty() {
                    at += 1;
                    continue;
                }
            }
            '+' | '-' | '~' | '<' | '>' | '=' | '!' | ',' | ':' => starts[depth - 1] = None,
            _ if !word.is_empty() => {
                if WEAKER.contains(&word) && !text[..at].ends_with('.') {
                    starts[depth - 1] = None;
                } else {
                    starts[depth - 1].get_or_insert(written.len());
                }
                written.push_str(word);
                at += word.len();
                continue;
            }
            _ => {}
        }
        written.push(c);
        at += c.len_utf8();
    }
    while open.pop().is_some() {
        let end = written.trim_end().trim_end_matches(['-', '+']).trim_end().len();
        written.insert(end, ')');
    }
    written
}

/// Whether what is written ends with an operator, so that a sign behind it belongs to the next operand.
fn behind_operator(written: &str) -> bool {
    written.trim_end().ends_with(['*', '/', '+', '-', '~', '<', '>', '=', '!', ',', ':', '(', '[', '{', '|', '%'])
}
