//! The language of the code: one name for one type, docs that state something, comments where code needs a reason.

use std::collections::BTreeMap;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::packages::folders;
use super::sources;

/// First words of a doc that make a riddle of it: the subject of such a sentence comes later, or never.
const RIDDLES: [&str; 9] = ["What", "How", "Where", "Which", "Whether", "Of", "Those", "Who", "Why"];

const MOST_RIDDLES: f64 = 0.02;
const SHORTEST_DOC_CHARACTERS: usize = 15;
const FEWEST_COMMENT_LINES_PER_CODE_LINE: f64 = 0.03;

/// Names that each module of a crate may give to a type of its own.
const OFTEN_DEFINED: [&str; 2] = ["Error", "Result"];

/// Every Rust file of a package, by path; `folder` is its place in the workspace.
fn package(folder: &str, names: &[&str]) -> BTreeMap<String, String> {
    names.iter().flat_map(|name| sources(&format!("{folder}{name}"))).collect()
}

/// Folders of all packages; the root's own is "".
fn covered() -> Vec<String> {
    folders().into_iter().chain([String::new()]).collect()
}

/// Names of the types that `tokens` define, without associated types of impls and traits.
fn types(tokens: TokenStream, associated: bool, found: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut in_impl = false;
    for (index, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if word == "impl" || word == "trait" => in_impl = true,
            TokenTree::Group(group) => {
                types(group.stream(), in_impl && group.delimiter() == Delimiter::Brace, found);
                in_impl &= group.delimiter() != Delimiter::Brace;
            }
            TokenTree::Punct(punct) if punct.as_char() == ';' => in_impl = false,
            _ => {}
        }
        let TokenTree::Ident(word) = token else { continue };
        let defines = ["struct", "enum", "union", "trait"].iter().any(|keyword| word == keyword)
            || (word == "type" && !associated && !in_impl);
        if let (true, Some(TokenTree::Ident(name))) = (defines, tokens.get(index + 1)) {
            found.push(name.to_string());
        }
    }
}

/// Type names that `files`, those of one crate, define more than once.
fn defined_twice(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut places = BTreeMap::<String, Vec<&str>>::new();
    for (path, text) in files {
        let mut found = Vec::new();
        types(text.parse().unwrap(), false, &mut found);
        for name in found {
            places.entry(name).or_default().push(path);
        }
    }
    places
        .into_iter()
        .filter(|(name, places)| places.len() > 1 && !OFTEN_DEFINED.contains(&name.as_str()))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect()
}

/// Files whose docs are help texts of the command line or of `docs/CLI.md`: these are for users, and not held here.
const HELP_TEXTS: [&str; 2] = ["crates/config-parser/src/flags.rs", "crates/config-parser/src/keys.rs"];

/// The docs of items, each as its place and its text in one line; without help texts.
fn docs(files: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| !HELP_TEXTS.contains(&path.as_str())) {
        let mut before = false;
        for (index, line) in text.lines().enumerate() {
            let doc = line.trim_start().strip_prefix("///").map(str::trim);
            match (doc, before) {
                (Some(doc), true) => {
                    let text = &mut found.last_mut().unwrap().1;
                    text.push(' ');
                    text.push_str(doc);
                }
                (Some(doc), false) => found.push((format!("{path}:{}", index + 1), doc.to_owned())),
                // The doc of an argument is its help.
                (None, true) if line.trim_start().starts_with("#[arg(") => drop(found.pop()),
                (None, _) => {}
            }
            before = doc.is_some();
        }
    }
    found
}

fn is_riddle(doc: &str) -> bool {
    let word = doc.split(|character: char| !character.is_ascii_alphabetic()).next();
    word.is_some_and(|word| RIDDLES.contains(&word))
}

/// A shape or a formula in backticks states a fact, however short.
fn is_too_short(doc: &str) -> bool {
    let doc = doc.trim();
    doc.chars().count() < SHORTEST_DOC_CHARACTERS && !(doc.starts_with('`') && doc.ends_with("`."))
}

/// Lines that are comments but no docs, and lines of code.
fn comments_and_code(files: &BTreeMap<String, String>) -> (usize, usize) {
    let lines = || files.values().flat_map(|text| text.lines()).map(str::trim_start).filter(|line| !line.is_empty());
    let is_doc = |line: &str| line.starts_with("///") || line.starts_with("//!");
    let comments = lines().filter(|line| line.starts_with("//") && !is_doc(line)).count();
    (comments, lines().filter(|line| !line.starts_with("//")).count())
}

/// The files of all packages that are covered: code, without tests.
fn code() -> BTreeMap<String, String> {
    covered().iter().flat_map(|folder| package(folder, &["src"])).collect()
}

fn code_and_tests() -> BTreeMap<String, String> {
    covered().iter().flat_map(|folder| package(folder, &["src", "tests", "benches", "examples"])).collect()
}

#[test]
fn a_crate_has_one_type_of_a_name() {
    let found: Vec<String> = covered().iter().flat_map(|folder| defined_twice(&package(folder, &["src"]))).collect();
    assert!(found.is_empty(), "types of one name in one crate:\n{}", found.join("\n"));
}

#[test]
fn docs_state_something() {
    let docs = docs(&code_and_tests());
    let found: Vec<String> =
        docs.iter().filter(|(_, doc)| is_riddle(doc)).map(|(place, doc)| format!("{place} {doc}")).collect();
    let share = found.len() as f64 / docs.len() as f64;
    assert!(share <= MOST_RIDDLES, "{:.1} % of {} docs:\n{}", share * 100.0, docs.len(), found.join("\n"));
}

#[test]
fn docs_say_more_than_a_name() {
    let docs = docs(&code_and_tests());
    let found: Vec<String> =
        docs.iter().filter(|(_, doc)| is_too_short(doc)).map(|(place, doc)| format!("{place} {doc}")).collect();
    assert!(found.is_empty(), "docs of fewer than {SHORTEST_DOC_CHARACTERS} characters:\n{}", found.join("\n"));
}

#[test]
fn code_has_comments() {
    let (comments, code) = comments_and_code(&code());
    let share = comments as f64 / code as f64;
    assert!(
        share >= FEWEST_COMMENT_LINES_PER_CODE_LINE,
        "{comments} comment lines for {code} lines of code: {share:.4}"
    );
}

#[test]
fn planted_language_is_found() {
    let files = |texts: &[&str]| -> BTreeMap<String, String> {
        texts.iter().enumerate().map(|(index, text)| (format!("{index}.rs"), (*text).to_owned())).collect()
    };
    let twice = |texts: &[&str]| defined_twice(&files(texts));
    assert_eq!(twice(&["struct Limits;", "mod a { pub(crate) enum Limits {} }"]), ["Limits: 0.rs, 1.rs"]);
    assert_eq!(twice(&["type Job = u8; fn f() { trait Job {} }"]), ["Job: 0.rs, 0.rs"]);
    assert!(twice(&["impl A for B { type Item = u8; }", "trait C { type Item; } struct D<T>(T);"]).is_empty());
    assert!(
        twice(&["enum Error {}", "struct Error;", "// struct E;\nstruct E; const S: &str = \"struct E;\";"]).is_empty()
    );

    let docs_of = |text: &str| docs(&files(&[text]));
    let read = docs_of(
        "/// Where.\nfn f() {}\n/// Bytes of\n/// a block.\nstruct S {\n    /// How many.\n    x: u8,\n}\n//! What\n// Who",
    );
    assert_eq!(
        read.iter().map(|(_, doc)| doc.as_str()).collect::<Vec<_>>(),
        ["Where.", "Bytes of a block.", "How many."]
    );
    assert_eq!(read[2].0, "0.rs:6");
    assert!(["What a thing is.", "How: so.", "Of one page.", "Why"].into_iter().all(is_riddle));
    assert!(["Offset in bytes.", "Whole blocks.", "`What`"].into_iter().all(|doc| !is_riddle(doc)));
    assert!(docs_of("/// What it is.\n#[arg(long)]\nx: u8").is_empty());
    assert!(is_too_short("Fourteen, yes.") && !is_too_short("Fifteen of them") && !is_too_short("`[hidden]`."));

    assert_eq!(comments_and_code(&files(&["//! a\n/// b\n// c\n\n  // d\nfn f() {}\nlet s = \"x\"; // e\n"])), (2, 2));
}
