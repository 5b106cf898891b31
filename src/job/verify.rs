//! `flashjob verify`: a model's logits where the job would run, beside those of the CPU in single precision.
//!
//! For a machine that nothing has run on yet: what is wrong with a driver, a kernel or a sum over ranks shows here, in a minute and
//! with a number, instead of in texts. Prompts are computed whole and then continued in steps, as a job does; they are random and
//! seeded, and nothing is mounted.
//!
//! The engine is used directly, and not as a backend: what is compared is logits, which no backend hands out, and a second engine
//! computes them in a configuration that no job can ask for.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use flashjob_config::{DtypeChoice, EngineConfig, JobConfig, Sampling};
use flashjob_engine::{self as engine, CandleReport, Cpu, Engine, Output, Platform, Request};
use flashjob_event::{Events, RequestId};
use flashjob_model::Model;

use super::local_model::LocalModel;
use super::{Exit, exit, terminal};

/// Prompts that are compared, of the job's `input-len` each.
const PROMPTS: usize = 4;

/// Tokens that each is continued by, a step each: enough for steps that are recorded to be replayed, too.
const CONTINUED: usize = 8;

/// Largest error that rounding alone makes at half of the positions: a share of the logits' range in units of the format's
/// rounding. transformers 5 in 16 bits, on a CPU, is off by 1.6 to 4.4 of them on the golden models and random prompts.
const TYPICAL_ERROR_UNITS: f64 = 8.0;

/// Largest error of rounding at any position. Errors have a long tail: transformers is off by up to 78 at the worst of 768.
/// What is computed wrongly is off by about the range itself, which is 256 in bfloat16.
const LARGEST_ERROR_UNITS: f64 = 96.0;

/// Logits by position, each over the vocabulary.
type Logits = Vec<Vec<f32>>;

/// Prints one line of JSON. Exit 5 where the numbers differ by more than rounding.
pub fn verify(job: &JobConfig) -> Exit {
    match compare(job) {
        Ok((line, agrees)) => {
            terminal::print(&format!("{line}\n"));
            if agrees { Exit::Done } else { Exit::Inference }
        }
        Err((exit, reason)) => exit::before_log(exit, &reason),
    }
}

fn compare(job: &JobConfig) -> Result<(String, bool), (Exit, String)> {
    let LocalModel { placement, model } = LocalModel::open(job, "verify")?;
    let length = job.workload.input_len.get().min(model.config.max_position.saturating_sub(CONTINUED)).max(1);
    let mut random = ChaCha12Rng::seed_from_u64(job.workload.seed);
    let vocabulary = model.config.vocab_size as u32;
    let mut prompt = || (0..length).map(|_| random.random_range(0..vocabulary)).collect::<Vec<u32>>();
    let prompts: Vec<Vec<u32>> = (0..PROMPTS).map(|_| prompt()).collect();

    let asked = EngineConfig {
        max_model_len: NonZeroUsize::new(length + CONTINUED),
        // Limits take a second to measure and change no logit.
        measure_limits: false,
        ..job.engine.clone()
    };
    let reference =
        EngineConfig { tensor_parallel_size: NonZeroUsize::new(1), dtype: DtypeChoice::Float32, ..asked.clone() };
    let Answers { computed, continued, facts } = answers(placement, &model, &asked, &prompts)?;
    let expected = logits(&Cpu, &model, &reference, &continued)?;
    // For each sequence the rows of its prompt, then the rows that further tokens were chosen from: its last row and those of
    // steps.
    let expected: Logits = expected
        .into_iter()
        .flat_map(|rows| {
            let chosen_from = rows[length - 1..length - 1 + CONTINUED].to_vec();
            rows.into_iter().take(length).chain(chosen_from)
        })
        .collect();

    let rows = || expected.iter().zip(&computed);
    let mut errors: Vec<f64> = rows().map(|(expected, computed)| relative_error(expected, computed)).collect();
    errors.sort_by(f64::total_cmp);
    // Shares of the range of single precision's logits, in units of the rounding of what computed them.
    let units = |error: f64| error / rounding(facts.dtype);
    let (typical, largest) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    let same_choice = rows().filter(|(expected, computed)| argmax(expected) == argmax(computed)).count();
    let agrees = units(typical) <= TYPICAL_ERROR_UNITS && units(largest) <= LARGEST_ERROR_UNITS;
    let line = json!({
        "agrees": agrees,
        "typical_error_units": units(typical),
        "largest_error_units": units(largest),
        "same_choice_share": same_choice as f64 / expected.len() as f64,
        "positions": expected.len(),
        "device": facts.device,
        "dtype": facts.dtype,
        "kernels": facts.kernels,
        "tensor_parallel_size": facts.tensor_parallel_size,
        "architecture": model.architecture,
    });
    Ok((line.to_string(), agrees))
}

/// Results of the configuration under test.
struct Answers {
    /// Logits of each prompt at all of its positions, and then those that each further token was chosen from.
    computed: Logits,
    /// The prompts and the tokens chosen.
    continued: Vec<Vec<u32>>,
    facts: CandleReport,
}

/// Each prompt by itself, and then all together, continued step by step.
fn answers(
    placement: &'static dyn Platform,
    model: &Model,
    config: &EngineConfig,
    prompts: &[Vec<u32>],
) -> Result<Answers, (Exit, String)> {
    let cancel = CancellationToken::new();
    let mut engine = load(placement, model, config)?;
    // Each prompt by itself first: its logits then depend on no batch and no cache.
    let of_prompts = prompts.iter().map(|prompt| engine.logits(prompt, &cancel).map_err(failed));
    let of_prompts = of_prompts.collect::<Result<Vec<Logits>, _>>()?;
    // By request and position.
    let chosen_from = Arc::new(Mutex::new(HashMap::<(u32, usize), Vec<f32>>::new()));
    let seen = Arc::clone(&chosen_from);
    engine.watch_logits(Some(Box::new(move |RequestId(request), position, row| {
        seen.lock().insert((request, position), row.to_vec());
    })));
    let requests = prompts.iter().zip(0..).map(|(prompt, id)| Request {
        id: RequestId(id),
        prompt: prompt.clone(),
        max_tokens: CONTINUED,
        stop_tokens: Vec::new(),
        stop_texts: None,
        constraint: None,
        sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: None },
        options: None,
        seed: 0,
        stream: id,
    });
    let mut continued = prompts.to_vec();
    let mut failure = None;
    let mut finished = |output: Output| {
        continued[output.id.0 as usize].extend(output.tokens);
        failure = failure.take().or(output.error);
    };
    engine.run(requests.collect(), &Events::default(), &cancel, &mut finished).map_err(failed)?;
    if let Some(error) = failure {
        return Err((Exit::Inference, error.to_string()));
    }
    let mut chosen_from = std::mem::take(&mut *chosen_from.lock());
    let mut computed = Logits::new();
    for ((rows, prompt), id) in of_prompts.into_iter().zip(prompts).zip(0..) {
        computed.extend(rows);
        let steps = prompt.len()..prompt.len() + CONTINUED;
        computed.extend(steps.map(|position| chosen_from.remove(&(id, position)).unwrap_or_default()));
    }
    Ok(Answers { computed, continued, facts: engine.report().clone() })
}

/// Logits at every position of each of `sequences`.
fn logits(
    placement: &'static dyn Platform,
    model: &Model,
    config: &EngineConfig,
    sequences: &[Vec<u32>],
) -> Result<Vec<Logits>, (Exit, String)> {
    let mut engine = load(placement, model, config)?;
    let cancel = CancellationToken::new();
    sequences.iter().map(|tokens| engine.logits(tokens, &cancel).map_err(failed)).collect()
}

fn load(placement: &'static dyn Platform, model: &Model, config: &EngineConfig) -> Result<Engine, (Exit, String)> {
    Engine::load_on(placement, model, config, &Events::default(), &CancellationToken::new())
        .map_err(|error| (Exit::Model, error.to_string()))
}

fn failed(error: engine::Error) -> (Exit, String) {
    (Exit::Inference, error.to_string())
}

fn rounding(dtype: &str) -> f64 {
    match dtype {
        "bfloat16" => (-8f64).exp2(),
        "float16" => (-11f64).exp2(),
        // Sums of thousands of products in another order.
        _ => 1e-5,
    }
}

/// The largest difference as a share of the reference's range; infinite where a number is none or is missing.
fn relative_error(expected: &[f32], computed: &[f32]) -> f64 {
    if expected.len() != computed.len() {
        return f64::INFINITY;
    }
    let extreme = |fold: fn(f32, f32) -> f32, start| expected.iter().copied().fold(start, fold);
    let range = f64::from(extreme(f32::max, f32::MIN)) - f64::from(extreme(f32::min, f32::MAX));
    let differences = expected.iter().zip(computed).map(|(a, b)| f64::from((a - b).abs()) / range);
    differences
        .fold(0.0, |largest, difference| if difference.is_nan() { f64::INFINITY } else { largest.max(difference) })
}

fn argmax(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]))
}
