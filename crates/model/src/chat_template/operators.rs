//! `%` between expressions, which minijinja has for numbers only, becomes a call; a plus that is a sign is left out.

use super::parts::{Kind, parts, string_end};

/// Most `%` of one tag that become calls. minijinja refuses nested calls long before; each insertion here moves the
/// text behind it.
const MOST_CALLS: usize = 1000;

/// `source` with each `left % right` in its expressions replaced by a call of `modulo`.
pub(super) fn rewritten(source: &str, modulo: &str) -> String {
    let mut text = String::with_capacity(source.len());
    for part in parts(source) {
        text.push_str(part.open);
        match part.kind {
            Kind::Statement | Kind::Expression => text.push_str(&with_calls(part.body, modulo)),
            Kind::Verbatim => text.push_str(part.body),
        }
        text.push_str(part.close);
    }
    text
}

/// Operators and words of lower precedence than `%`: a new operand begins after them.
const WEAKER: [&str; 12] = ["and", "or", "not", "in", "is", "if", "else", "elif", "set", "for", "recursive", "call"];

/// `text` with each `left % right` replaced by a call, bracket by bracket. Syntax that is not understood stays
/// unchanged: minijinja reports it.
fn with_calls(text: &str, modulo: &str) -> String {
    let mut written = String::with_capacity(text.len());
    // Start of the present chain of products in the output; one entry for each open bracket.
    let mut starts: Vec<Option<usize>> = vec![None];
    // Depths of calls whose closing bracket is missing: it follows the operand after `%`.
    let mut open: Vec<usize> = Vec::new();
    let (mut at, mut calls) = (0, 0);
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
                // Before trailing white space: the bracket belongs to the operand.
                open.pop();
                let end = written.trim_end().len();
                written.insert(end, ')');
            }
        }
        match c {
            '"' | '\'' => {
                let end = string_end(text, at).unwrap_or(text.len());
                starts[depth - 1].get_or_insert(written.len());
                // A backslash at the end of a line continues the string without a line break.
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
                if let Some(start) = starts[depth - 1]
                    && calls < MOST_CALLS
                // `%` is left-associative and has the precedence of `*`: the whole chain so far becomes the first
                // argument.
                {
                    calls += 1;
                    written.insert_str(start, &format!("{modulo}("));
                    written.push_str(", ");
                    open.push(depth);
                    at += 1;
                    continue;
                }
            }
            '-' | '+' if starts[depth - 1].is_none() || behind_operator(&written) => {
                starts[depth - 1].get_or_insert(written.len());
                // minijinja has no unary plus, which has no effect. Several are dropped at once, as the output's end
                // decides whether the next sign is unary.
                if c == '+' {
                    let behind = text[at..].trim_start_matches(|c: char| c == '+' || c.is_whitespace());
                    at = text.len() - behind.len();
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
        let end = written.trim_end().len();
        written.insert(end, ')');
    }
    written
}

/// Returns whether the output ends with an operator, so that a sign after it belongs to the next operand.
fn behind_operator(written: &str) -> bool {
    written.trim_end().ends_with(['*', '/', '+', '-', '~', '<', '>', '=', '!', ',', ':', '(', '[', '{', '|', '%'])
}
