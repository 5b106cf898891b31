//! Texts that end are as their grammar says, whatever is drawn.

use std::sync::Arc;

use flashjob_guidance::{Compiler, Grammar, Progress};
use flashjob_model::TokenBytes;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{Vocabulary, schema};

const SEEDS: u64 = 40;

/// The texts of `grammar` that end within 300 tokens, of which there must be some.
fn drawn(vocabulary: &Vocabulary, grammar: &Grammar) -> Vec<String> {
    let texts: Vec<String> = (0..SEEDS).filter_map(|seed| vocabulary.draw(grammar, seed, 300).unwrap()).collect();
    assert!(texts.len() > 3, "{} texts of {grammar:?} end", texts.len());
    texts
}

#[test]
fn texts_of_a_schema_are_valid_for_it() {
    let vocabulary = Vocabulary::of_tiny_model();
    for source in [
        json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
            "required": ["name", "age"], "additionalProperties": false}),
        json!({"type": "array", "items": {"type": "number", "minimum": -3, "maximum": 7.5}, "minItems": 1, "maxItems": 4}),
        json!({"enum": ["red", "green", 7, null]}),
        json!({"const": {"a": [1, true]}}),
        json!({"type": "string", "pattern": "^[a-f]{2,5}-[0-9]+$", "maxLength": 12}),
        json!({"type": "string", "format": "date"}),
        json!({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]}),
        json!({"type": "object", "properties": {"next": {"$ref": "#"}, "v": {"type": "boolean"}}, "required": ["v"],
            "additionalProperties": false}),
        json!({"$defs": {"leaf": {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 999}},
            "type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 3}),
    ] {
        let validator = jsonschema::validator_for(&source).unwrap();
        for text in drawn(&vocabulary, &schema(source.clone())) {
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{source}: {text:?}: {error}"));
            assert!(validator.is_valid(&value), "{source}: {text}");
        }
    }
}

#[test]
fn a_json_object_is_one() {
    let vocabulary = Vocabulary::of_tiny_model();
    for text in drawn(&vocabulary, &Grammar::JsonObject) {
        match serde_json::from_str::<Value>(&text) {
            Ok(value) => assert!(value.is_object(), "{text}"),
            // JSON has no largest number; double precision has.
            Err(error) => assert!(error.to_string().starts_with("number out of range"), "{text}: {error}"),
        }
    }
}

#[test]
fn texts_of_an_expression_match_all_of_it() {
    let vocabulary = Vocabulary::of_tiny_model();
    for source in [r"[a-z]{3}\d+", r"(foo|bar)?x", r"é+|漢字", r"\d{4}-\d{2}-\d{2}", r"a/b\\c", "(?i)yes"] {
        let whole = regex::Regex::new(&format!("^(?:{source})$")).unwrap();
        for text in drawn(&vocabulary, &Grammar::Regex(source.to_owned())) {
            assert!(whole.is_match(&text), "{source}: {text:?}");
        }
    }
}

/// Masks that one text of an expression computes are read by the next; of a grammar with the same expression none are.
#[test]
fn masks_that_texts_share_are_those_that_each_would_compute() {
    let vocabulary = Vocabulary::of_tiny_model();
    let expressions = [
        r"[a-z]{3}\d+",
        r"(foo|bar)?x",
        r"é+|漢字",
        r"(?i)yes,? (no|yes)+",
        r"a.{0,3}b.*",
        r"(?s)a.{0,3}b",
        r"([A-Za-z]{1,12}[ ,.])+",
        r"\w+\s\S[^a]*",
        r"(a|ab)(c|bcd)*",
        r"a*|a{3,5}b",
        // Without shared masks: an anchor, and too many states.
        r"^a+(b|c)$",
        r"(a|b)*a(a|b){18}",
    ];
    for expression in expressions {
        let shared = vocabulary.compiler.compile(&Grammar::Regex(expression.to_owned())).unwrap();
        let grammar = Grammar::Lark(format!("start: /{expression}/"));
        let computed = vocabulary.compiler.compile(&grammar).unwrap();
        for seed in 0..30 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut texts = [shared.begin(seed as usize), computed.begin(seed as usize)];
            let mut masks = [(); 2].map(|()| vec![0; vocabulary.tokens.len().div_ceil(32)]);
            for place in 0..40 {
                for (text, mask) in texts.iter_mut().zip(&mut masks) {
                    text.allowed(mask).unwrap();
                }
                assert_eq!(masks[0], masks[1], "{expression}: text {seed}, token {place}");
                let token = vocabulary.any_of(&masks[0], &mut random);
                let progress = texts.each_mut().map(|text| text.accept(token).unwrap());
                assert_eq!(progress[0], progress[1], "{expression}: text {seed}, token {place}");
                if progress[0] == Progress::Complete {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_choice_is_one_of_its_texts() {
    let vocabulary = Vocabulary::of_tiny_model();
    let choices: Vec<String> = ["yes", "no", "yes, but", "a|b", "(\"é/\\", "\n"].map(str::to_owned).to_vec();
    let mut texts = drawn(&vocabulary, &Grammar::Choice(choices.clone()));
    assert!(texts.iter().all(|text| choices.contains(text)), "{texts:?}");
    texts.sort();
    texts.dedup();
    assert!(texts.len() > 3, "{texts:?}");
}

#[test]
fn texts_of_a_grammar_are_of_its_language() {
    let vocabulary = Vocabulary::of_tiny_model();
    let lark = "start: sum\nsum: item | item \"+\" sum\nitem: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]{1,3}/\n";
    for text in drawn(&vocabulary, &Grammar::Lark(lark.to_owned())) {
        let depth = text.bytes().try_fold(0i32, |depth, byte| match byte {
            b'(' => Some(depth + 1),
            b')' => Some(depth - 1).filter(|&depth| depth >= 0),
            b'+' | b'0'..=b'9' => Some(depth),
            _ => None,
        });
        assert_eq!(depth, Some(0), "{text}");
        assert!(!text.contains("++") && !text.contains("()") && !text.ends_with('+'), "{text}");
    }
}

#[test]
fn a_model_without_an_end_of_texts_ends_where_nothing_may_come() {
    let words: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let tokens = TokenBytes::new(words.iter().map(Vec::as_slice), []);
    let compiler = Compiler::new(&tokens, &[], 1).unwrap();
    let mut text = compiler.compile(&Grammar::Choice(vec!["ab".to_owned()])).unwrap().begin(0);
    // Wider than the vocabulary, as the head of a model may be.
    let mut mask = vec![u32::MAX; 12];
    text.allowed(&mut mask).unwrap();
    assert_eq!(mask.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
    assert_eq!(text.accept(u32::from(b'a')), Ok(Progress::Open));
    assert_eq!(text.accept(u32::from(b'b')), Ok(Progress::Complete));
}

#[test]
fn a_grammar_is_compiled_once_for_all_texts() {
    let vocabulary = Vocabulary::of_tiny_model();
    let grammar = Grammar::Regex("a+".to_owned());
    let compile = |grammar: &Grammar| vocabulary.compiler.compile(grammar).unwrap();
    let first = compile(&grammar);
    assert!(Arc::ptr_eq(&first, &compile(&grammar)));
    (0..64).for_each(|number| drop(compile(&Grammar::Regex(format!("b{number}")))));
    assert!(!Arc::ptr_eq(&first, &compile(&grammar)), "it is no longer kept");
}
