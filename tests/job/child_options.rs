//! Options of requests on engines in a child process, held against our own engine.

use std::path::Path;
use std::sync::Arc;

use flashjob::backend::{self, Completion, Guided, Request, Seed, SpelledLogprobs, Stop, TextOptions};
use flashjob_config::{BackendKind, SamplingOptions};
use flashjob_guidance::{Compiler, Grammar};
use flashjob_model::{SharedTexts, TextService};

use super::child_engine::{GREEDY, Loaded, configured, request};

#[test]
fn sglang_gives_log_probabilities_only_where_no_option_changes_logits() {
    let plain = SamplingOptions { logprobs: Some(1), min_p: 0.1, stop_token_ids: vec![3], ..Default::default() };
    let changed = [
        SamplingOptions { logit_bias: vec![(1, 2.0)], ..plain.clone() },
        SamplingOptions { min_tokens: 2, ..plain.clone() },
        SamplingOptions { presence_penalty: 0.5, ..plain.clone() },
    ];
    let refused =
        |backend, options: &SamplingOptions| backend::unsupported_option(backend, options).map(|(name, _)| name);
    for backend in [BackendKind::Candle, BackendKind::Vllm, BackendKind::Sglang] {
        let of_changed = (backend == BackendKind::Sglang).then_some("logprobs");
        assert_eq!(refused(backend, &plain), None);
        for options in &changed {
            assert_eq!(refused(backend, options), of_changed, "{backend:?}, {options:?}");
            assert_eq!(refused(backend, &SamplingOptions { logprobs: None, ..options.clone() }), None);
        }
    }
}

/// Requests with one kind of option each, of which `has_all` says that the engine has all, also beside `ignore_eos`.
pub fn with_options(prompt: &[u32], greedy: &[u32], has_all: bool) -> Vec<Request> {
    let bias = |token: u32, bias: f32| SamplingOptions { logit_bias: vec![(token, bias)], ..Default::default() };
    let options = [
        bias(greedy[0], -100.0),
        SamplingOptions { presence_penalty: 1.5, frequency_penalty: 0.7, ..Default::default() },
        SamplingOptions { stop_token_ids: vec![greedy[12]], ..Default::default() },
        SamplingOptions { stop_token_ids: vec![greedy[12]], min_tokens: 20, ..bias(greedy[3], 2.5) },
        SamplingOptions { repetition_penalty: if has_all { 1.3 } else { 1.0 }, ..Default::default() },
    ];
    let of = |(id, options): (usize, SamplingOptions)| Request {
        ignore_eos: has_all || options.stop_token_ids.is_empty(),
        options: Some(Arc::new(options)),
        ..request(id, prompt, GREEDY, Seed::Job(7))
    };
    options.into_iter().enumerate().map(of).collect()
}

/// Requests for log-probabilities; of those whose options change logits only where `has_all` says so.
fn with_logprobs(prompt: &[u32], greedy: &[u32], has_all: bool) -> Vec<Request> {
    let wanting = |likeliest| SamplingOptions { logprobs: Some(likeliest), ..Default::default() };
    let mut options = vec![
        wanting(0),
        wanting(20),
        SamplingOptions::default(),
        SamplingOptions { stop_token_ids: vec![greedy[12]], ..wanting(3) },
    ];
    if has_all {
        options.extend([
            SamplingOptions { repetition_penalty: 1.3, logit_bias: vec![(greedy[0], -100.0)], ..wanting(2) },
            SamplingOptions { stop_token_ids: vec![greedy[12]], min_tokens: 20, ..wanting(1) },
        ]);
    }
    let of = |(id, options): (usize, SamplingOptions)| Request {
        ignore_eos: options.stop_token_ids.is_empty(),
        options: Some(Arc::new(options)),
        ..request(id, prompt, GREEDY, Seed::Job(7))
    };
    options.into_iter().enumerate().map(of).collect()
}

/// Holds that the engine gives requests with options the tokens and log-probabilities that our own one does, and texts of a grammar
/// the same texts.
pub fn expect_options_as_of_our_own(engine: &mut Loaded, model: &Path, prompt: &[u32], greedy: &[u32], has_all: bool) {
    let job = configured(&["--device=cpu", "--dtype=float32", "--kv-cache-memory=64MiB", "--measure-limits=false"]);
    let mut own = Loaded::open(backend::check(&job).unwrap(), &job, model);
    for requests in [with_options(prompt, greedy, has_all), with_logprobs(prompt, greedy, has_all)] {
        let (expected, found) = (own.run(&requests).unwrap().0, engine.run(&requests).unwrap().0);
        for ((expected, found), request) in expected.iter().zip(&found).zip(&requests) {
            let options = &request.options;
            assert_eq!((&found.tokens, found.reason), (&expected.tokens, expected.reason), "{options:?}");
            expect_text(found, expected);
        }
    }
    let texts = SharedTexts::new(model.to_owned(), model.to_owned()).get().unwrap();
    // Several, so that the engine is likely to be a step ahead of one that ends.
    let stopped: Vec<Request> = (0..8).map(|id| until("aF", id, prompt, &texts)).collect();
    for requests in [guided(prompt, &texts), stopped] {
        let (expected, found) = (own.run(&requests).unwrap().0, engine.run(&requests).unwrap().0);
        for ((expected, found), request) in expected.iter().zip(&found).zip(&requests) {
            // Other engines end a text of a grammar with one more token.
            let tokens = &found.tokens[..found.tokens.len().min(expected.tokens.len())];
            assert_eq!(
                (tokens, found.reason),
                (&expected.tokens[..], expected.reason),
                "{found:?}, {:?}",
                request.text
            );
            expect_text(found, expected);
        }
    }
    let object: serde_json::Value = serde_json::from_str(&json_of(engine, prompt, &texts)).unwrap();
    assert!(object["a"] == "x" || object["a"] == "y", "{object}");
}

/// Holds that two texts are the same, and their log-probabilities where they have some.
fn expect_text(found: &Completion, expected: &Completion) {
    // vLLM leaves out the beginning of a character at the end of a text, transformers and we do not.
    let [text, own_text] = [found, expected].map(|completion| completion.text.trim_end_matches('\u{fffd}'));
    assert_eq!(text, own_text);
    let (Some(found), Some(expected)) = (&found.logprobs, &expected.logprobs) else {
        assert_eq!(found.logprobs, expected.logprobs);
        return;
    };
    assert_eq!(found.len(), expected.len(), "{text}");
    for (found, expected) in found.iter().zip(expected) {
        let is_close = |[found, expected]: [f32; 2]| found == expected || (found - expected).abs() < 2e-3;
        let tops = found.top.iter().zip(&expected.top).all(|(found, expected)| is_close([found.1, expected.1]));
        let names = |of: &SpelledLogprobs| -> Vec<String> { of.top.iter().map(|(text, _)| text.clone()).collect() };
        assert!(tops && is_close([found.logprob, expected.logprob]), "{text}: {found:?}, {expected:?}");
        assert_eq!((&found.text, names(found)), (&expected.text, names(expected)), "{text}");
    }
}

/// Requests whose texts our own engine and others write alike.
fn guided(prompt: &[u32], texts: &TextService) -> Vec<Request> {
    let choice = Grammar::Choice(["yes", "no", "perhaps"].map(str::to_owned).into());
    let date = Grammar::Regex("[0-9]{4}-(0|1)[0-9]".to_owned());
    let grammars = [choice, date].into_iter().enumerate();
    grammars.map(|(id, grammar)| of_grammar(id, prompt, grammar, texts)).collect()
}

/// Text of an object with one property; white space is the engine's own choice.
fn json_of(engine: &mut Loaded, prompt: &[u32], texts: &TextService) -> String {
    let schema = r#"{"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false}"#;
    let request = of_grammar(0, prompt, Grammar::JsonSchema(schema.into()), texts);
    engine.run(&[request]).unwrap().0.remove(0).text
}

fn of_grammar(id: usize, prompt: &[u32], grammar: Grammar, texts: &TextService) -> Request {
    let compiler = Compiler::new(&texts.token_bytes().unwrap(), &texts.facts().eos_tokens, 1).unwrap();
    let guided = Some(Guided { grammar, compiler: Arc::new(compiler) });
    Request {
        text: Some(Arc::new(TextOptions { stop: None, guided })),
        options: Some(Arc::new(SamplingOptions { logprobs: Some(2), ..Default::default() })),
        ..request(id, prompt, GREEDY, Seed::Job(7))
    }
}

/// A request that `stop` ends.
fn until(stop: &str, id: usize, prompt: &[u32], texts: &TextService) -> Request {
    let stop = Some(Stop::new(vec![stop.to_owned()], false, texts.token_bytes().unwrap()).unwrap());
    Request {
        text: Some(Arc::new(TextOptions { stop, guided: None })),
        options: Some(Arc::new(SamplingOptions { logprobs: Some(1), ..Default::default() })),
        ..request(id, prompt, GREEDY, Seed::Job(7))
    }
}
