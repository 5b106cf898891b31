//! Sums, differences and products with their results: a smoke test that a model still answers.
//!
//! A setting that makes an engine faster may make its answers wrong. These questions find gross faults, such as a broken number
//! format; they say little about a model's ability.

use std::ops::ControlFlow;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use flashjob_config::Sampling;

use super::entry::Position;
use super::matcher::Matcher;
use super::question::{AnswerForm, DatasetRequest, Labels, Question, Refusal, RequestSettings};

/// Examples before each question, so that models that were not trained on conversations know the form of an answer.
const EXAMPLES: &str = "Q: 2 + 3 = ?\nA: 5\nQ: 9 - 4 = ?\nA: 5\nQ: 3 * 4 = ?\nA: 12\n";

/// Hands questions to `take` until it has enough of them.
pub(super) fn read(
    seed: u64,
    sampling: Sampling,
    take: &mut dyn FnMut(Position, Result<DatasetRequest, Refusal>) -> ControlFlow<()>,
) {
    let mut random = ChaCha12Rng::seed_from_u64(seed);
    for number in 1.. {
        let (left, right) = (random.random_range(1..50i64), random.random_range(1..50i64));
        let (sign, result) = match random.random_range(0..3) {
            0 => ('+', left + right),
            1 => ('-', left - right),
            _ => ('*', left * right),
        };
        let request = DatasetRequest {
            question: Question::Prompt(format!("{EXAMPLES}Q: {left} {sign} {right} = ?\nA:")),
            settings: RequestSettings::of_job(sampling),
            reply: None,
            form: AnswerForm::Plain(Labels::default()),
            answer: Some(Matcher::Number(result as f64)),
        };
        if take(Position::Entry(number), Ok(request)).is_break() {
            return;
        }
    }
}
