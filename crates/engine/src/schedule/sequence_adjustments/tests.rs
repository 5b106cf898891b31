//! Options against transformers' logits processors and vLLM's formulas: `tests/golden/options.json`, made by `scripts/golden_options.py`.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use flashjob_cpu::{Pool, TokenChoice, adjust_logits, choose_tokens};
use flashjob_test_models::golden::directory;
use serde_json::Value;

use super::*;

fn number(options: &Value, name: &str, otherwise: f32) -> f32 {
    options[name].as_f64().map_or(otherwise, |number| number as f32)
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().into_iter().flatten().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn options_of(given: &Value) -> Arc<SamplingOptions> {
    let bias = |(token, bias): (&String, &Value)| (token.parse().unwrap(), bias.as_f64().unwrap() as f32);
    Arc::new(SamplingOptions {
        min_p: number(given, "min_p", 0.0),
        min_tokens: given["min_tokens"].as_u64().unwrap_or(0) as usize,
        stop_token_ids: ids(&given["stop_token_ids"]),
        presence_penalty: number(given, "presence_penalty", 0.0),
        frequency_penalty: number(given, "frequency_penalty", 0.0),
        repetition_penalty: number(given, "repetition_penalty", 1.0),
        logit_bias: given["logit_bias"].as_object().into_iter().flatten().map(bias).collect(),
        logprobs: None,
    })
}

/// Row 1 of three, of which the others have no options.
fn adjusted(options: &Arc<SamplingOptions>, prompt: &[u32], generated: &[u32], row: &[f32]) -> Vec<f32> {
    let mut adjustments = LogitAdjustments::default();
    if let Some(mut adjusts) = SequenceAdjustments::new(options, &options.stop_token_ids, prompt) {
        generated.iter().for_each(|&token| adjusts.count(token));
        adjusts.push(1, generated.len(), &mut adjustments);
    }
    let mut rows = [row, row, row].concat();
    adjust_logits(&Pool::new(2), &mut rows, row.len(), &adjustments);
    assert!(rows[..row.len()] == *row && rows[2 * row.len()..] == *row, "rows without options stay as they are");
    rows[row.len()..][..row.len()].to_vec()
}

#[test]
fn logits_and_tokens_are_those_of_transformers() {
    let golden: Value = serde_json::from_slice(&std::fs::read(directory("options.json")).unwrap()).unwrap();
    let (pool, mut cases) = (Pool::new(1), 0);
    for of in golden["of"].as_array().unwrap() {
        let (given, options) = (&of["options"], options_of(&of["options"]));
        for case in of["cases"].as_array().unwrap() {
            let logits: Vec<f32> =
                case["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
            let found = adjusted(&options, &ids(&case["prompt"]), &ids(&case["generated"]), &logits);
            for (token, (found, expected)) in found.iter().zip(case["changed"].as_array().unwrap()).enumerate() {
                let expected = expected.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32);
                let near = *found == expected || (found - expected).abs() <= 2e-5 + 1e-5 * expected.abs();
                assert!(near, "{given}, token {token}: {found} and not {expected}");
            }
            let choose = |temperature, draw| {
                let top_k = given["top_k"].as_u64().and_then(|k| NonZeroUsize::new(k as usize));
                let choice = TokenChoice::new(temperature, top_k, number(given, "top_p", 1.0), draw);
                let mut token = [0];
                choose_tokens(&pool, &found, found.len(), &[choice.with_min_p(options.min_p)], &mut token);
                token[0]
            };
            assert_eq!(u64::from(choose(0.0, 0)), case["likeliest"], "{given}");
            let temperature = number(given, "temperature", 1.0);
            let kept: BTreeSet<u32> = ids(&case["kept"]).into_iter().collect();
            // Spread evenly, so that each token of more than 1/4096 is drawn.
            let drawn: BTreeSet<u32> = (0..4096u64).map(|draw| choose(temperature, draw << 52 | 1 << 51)).collect();
            assert!(drawn.is_subset(&kept), "{given}: {drawn:?} of {kept:?}");
            let highest = found.iter().copied().fold(f32::MIN, f32::max);
            let weight = |token: &u32| f64::from((found[*token as usize] - highest) / temperature).exp();
            let whole: f64 = kept.iter().map(weight).sum();
            let missed = kept.difference(&drawn).find(|token| weight(token) / whole > 1.0 / 4000.0);
            assert_eq!(missed, None, "{given}: {drawn:?} of {kept:?}");
            cases += 1;
        }
    }
    assert_eq!(cases, 96);
}

#[test]
fn a_token_that_would_end_it_is_ruled_out_whatever_its_bias() {
    let options = SamplingOptions { min_tokens: 2, logit_bias: vec![(1, 100.0), (2, 3.0)], ..Default::default() };
    let options = Arc::new(options);
    let mut adjusts = SequenceAdjustments::new(&options, &[1, 1, 3], &[0]).unwrap();
    for (generated, expected) in [(0, [0.0, f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY]), (2, [0.0, 100.0, 3.0, 0.0])] {
        let (mut adjustments, mut logits) = (LogitAdjustments::default(), [0.0; 4]);
        adjusts.push(0, generated, &mut adjustments);
        adjust_logits(&Pool::new(1), &mut logits, 4, &adjustments);
        assert_eq!(logits, expected);
        adjusts.count(2);
    }
    assert!(
        SequenceAdjustments::new(&Arc::default(), &[1], &[0]).is_none(),
        "nothing is kept where nothing is changed"
    );
}
