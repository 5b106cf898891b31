//! Finds what a Rust file names of its own crate's top level, and of this project's other packages.
//!
//! Works on tokens, not on lines: comments, doc links and strings do not count, macro bodies and inline
//! paths do, and nothing needs to compile.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One path that leads to the crate's top level or into another package.
#[derive(Debug, PartialEq)]
pub struct Import {
    pub line: usize,
    pub target: Target,
}

/// A path inside a file's own crate, from its top.
#[derive(Debug, PartialEq)]
pub struct CratePath {
    pub line: usize,
    pub segments: Vec<String>,
}

/// Imports and paths found by a walk over a file's tokens.
#[derive(Default)]
struct Found {
    imports: Vec<Import>,
    paths: Vec<CratePath>,
    /// Leaves out modules for tests.
    without_tests: bool,
}

/// Where a path leads.
#[derive(Debug, PartialEq)]
pub enum Target {
    /// Into this module at the top of the file's own crate.
    Crate(String),
    /// Into this module of the library, named from a program.
    Library(String),
    /// Into the package with this name behind `flashjob_`.
    Package(String),
    /// Somewhere that cannot be told from the path, with what hides it.
    Hidden(&'static str),
}

/// All imports of `source`, which is the file of `module` (empty for a crate's top).
pub fn imports(source: &str, module: &[String]) -> Vec<Import> {
    let tokens: TokenStream = source.parse().unwrap_or_else(|error| panic!("{module:?}: {error}"));
    let mut found = Found::default();
    walk(&tokens.into_iter().collect::<Vec<_>>(), module, &mut found);
    // One `use` of several things from one room is one import.
    found.imports.dedup();
    found.imports
}

/// All paths of `source`, the file of `module`, into its own crate, and those of its `use` lines as if they began in `module`;
/// those of `mod tests` are left out.
pub fn crate_paths(source: &str, module: &[String]) -> Vec<CratePath> {
    let tokens: TokenStream = source.parse().unwrap_or_else(|error| panic!("{module:?}: {error}"));
    let mut found = Found { without_tests: true, ..Found::default() };
    walk(&tokens.into_iter().collect::<Vec<_>>(), module, &mut found);
    found.paths
}

fn walk(tokens: &[TokenTree], module: &[String], found: &mut Found) {
    let mut at = 0;
    while at < tokens.len() {
        let inside_path = at >= 2 && is_separator(tokens, at - 2);
        match &tokens[at] {
            TokenTree::Ident(ident) if ident == "mod" && inline_module(tokens, at).is_some() => {
                let (name, body) = inline_module(tokens, at).unwrap();
                if !(found.without_tests && name == "tests") {
                    let inner: Vec<String> = module.iter().cloned().chain([name]).collect();
                    walk(&body, &inner, found);
                }
                at += 3;
            }
            // Also behind `::`, where it is still a crate's name.
            TokenTree::Ident(ident) if names_a_crate(tokens, at) && ident.to_string().starts_with("flashjob_") => {
                let package = ident.to_string()["flashjob_".len()..].to_owned();
                found.imports.push(Import { line: ident.span().start().line, target: Target::Package(package) });
                at += 1;
            }
            // A path from the file's own module on, or into another crate.
            TokenTree::Ident(ident) if ident == "use" && found.without_tests && !is_rooted(tokens.get(at + 1)) => {
                at = follow(tokens, at + 1, module.to_vec(), found);
            }
            TokenTree::Ident(ident) if !inside_path => {
                let line = ident.span().start().line;
                let mut hidden = |how| found.imports.push(Import { line, target: Target::Hidden(how) });
                match ident.to_string().as_str() {
                    "crate" if at > 0 && is_word(&tokens[at - 1], "extern") => hidden("extern crate"),
                    "crate" if is_separator(tokens, at + 1) => {
                        at = follow(tokens, at + 3, Vec::new(), found);
                        continue;
                    }
                    "crate" if tokens.get(at + 1).is_some_and(|next| is_word(next, "as")) => hidden("crate as …"),
                    "flashjob" if is_separator(tokens, at + 1) => {
                        let first = found.imports.len();
                        at = follow(tokens, at + 3, Vec::new(), found);
                        for import in &mut found.imports[first..] {
                            if let Target::Crate(room) = &mut import.target {
                                import.target = Target::Library(std::mem::take(room));
                            }
                        }
                        continue;
                    }
                    // `pub(super)` is no import.
                    "super" if found.without_tests && !is_separator(tokens, at + 1) => {}
                    "super" | "self" if is_separator(tokens, at + 1) || is_word(&tokens[at], "super") => {
                        at = follow(tokens, at, module.to_vec(), found);
                        continue;
                    }
                    "path" if is_punctuation(tokens.get(at + 1), '=') && is_attribute(tokens, at) => {
                        hidden("#[path]");
                    }
                    "include" if is_punctuation(tokens.get(at + 1), '!') => hidden("include!"),
                    _ => {}
                }
                at += 1;
            }
            TokenTree::Group(group) => {
                walk(&group.stream().into_iter().collect::<Vec<_>>(), module, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Follows a path whose next segment is `tokens[at]` from `position`, notes where it leads, and returns
/// the index after it.
fn follow(tokens: &[TokenTree], mut at: usize, mut position: Vec<String>, found: &mut Found) -> usize {
    let Some(first) = tokens.get(at) else { return at };
    let line = first.span().start().line;
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(ident)) if ident == "super" => drop(position.pop()),
            Some(TokenTree::Ident(ident)) if ident == "self" => {}
            Some(TokenTree::Ident(ident)) => position.push(ident.to_string()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for item in inner.split(|token| is_punctuation(Some(token), ',')).filter(|item| !item.is_empty()) {
                    follow(item, 0, position.clone(), found);
                }
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        if !is_separator(tokens, at) {
            break;
        }
        at += 2;
    }
    let target = match position.first() {
        Some(room) => Target::Crate(room.clone()),
        None => Target::Hidden("the crate's top as a whole"),
    };
    found.imports.push(Import { line, target });
    found.paths.push(CratePath { line, segments: position });
    at
}

/// Tells whether a path that begins here is rooted in its crate or module.
fn is_rooted(token: Option<&TokenTree>) -> bool {
    token.is_some_and(|token| ["crate", "super", "self"].iter().any(|word| is_word(token, word)))
}

/// `mod name { … }` at `at`: its name and body.
fn inline_module(tokens: &[TokenTree], at: usize) -> Option<(String, Vec<TokenTree>)> {
    match (tokens.get(at + 1)?, tokens.get(at + 2)?) {
        (TokenTree::Ident(name), TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
            Some((name.to_string(), body.stream().into_iter().collect()))
        }
        _ => None,
    }
}

/// Whether `tokens` are what stands in `#[…]`: the attribute's name comes first.
fn is_attribute(tokens: &[TokenTree], at: usize) -> bool {
    at == 0 && matches!(tokens.get(2), Some(TokenTree::Literal(_)))
}

/// Every crate that `source` names, as far as a path begins with its name or it is renamed; modules and types look the same.
pub fn crates(source: &str) -> BTreeSet<String> {
    fn walk(tokens: TokenStream, found: &mut BTreeSet<String>) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Ident(ident) if names_a_crate(&tokens, at) && !continues_a_path(&tokens, at) => {
                    found.insert(ident.to_string());
                }
                // Of `std::{time::Instant}` the outer path says the crate.
                TokenTree::Group(group) if !continues_a_path(&tokens, at) => walk(group.stream(), found),
                _ => {}
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(source.parse().unwrap(), &mut found);
    found
}

/// True where the token at `at` may be a crate's name: `name::` or `name as`.
fn names_a_crate(tokens: &[TokenTree], at: usize) -> bool {
    is_separator(tokens, at + 1) || tokens.get(at + 1).is_some_and(|next| is_word(next, "as"))
}

/// True where a path leads to the token at `at`, as to `time` in `std::time`. In `use ::time` it begins there.
fn continues_a_path(tokens: &[TokenTree], at: usize) -> bool {
    let is_segment = |token: &TokenTree| matches!(token, TokenTree::Ident(_)) && !is_word(token, "use");
    at >= 3 && is_separator(tokens, at - 2) && is_segment(&tokens[at - 3])
}

/// Whether `::` stands at `at`.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    is_punctuation(tokens.get(at), ':') && is_punctuation(tokens.get(at + 1), ':')
}

fn is_punctuation(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punctuation)) if punctuation.as_char() == character)
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}
