//! Texts of finished requests, decoded on a thread of their own while the engine computes on.
//!
//! Completions are handed over in the order in which requests finish. What an engine is, is not known here.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};

use flashjob_engine::Output;
use flashjob_event::{Events, Fact};
use flashjob_model::{Error, TextService};

use crate::backend::{Completion, SpelledLogprobs};

/// Outputs that wait for their text at most: an engine that is faster than the texts waits for them then, and memory does not grow.
const MOST_WAITING: usize = 4096;

/// Outputs that are decoded in one go at most.
const MOST_TOGETHER: usize = 64;

/// Runs `serve`, which hands outputs to its argument; each becomes a completion with its text, of which `finished` is told on another
/// thread. Returns when all are there, with what `serve` returns and the first output's error that could not be decoded.
pub fn decoded_beside<T>(
    texts: &TextService,
    events: &Events,
    finished: &mut (dyn FnMut(Completion) + Send),
    serve: impl FnOnce(&mut dyn FnMut(Output)) -> T,
) -> (T, Result<(), Error>) {
    let (outputs, waiting) = sync_channel(MOST_WAITING);
    std::thread::scope(|scope| {
        let detokenizer = scope.spawn(move || decode(texts, &waiting, events, finished));
        let served = serve(&mut |output| {
            // Where the thread has panicked, so does this one once `serve` is done.
            let _ended = outputs.send(output);
        });
        drop(outputs);
        (served, detokenizer.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Decodes until nobody hands over any more. Goes on after an error: the measurement of the run is kept for diagnosis.
fn decode(
    texts: &TextService,
    waiting: &Receiver<Output>,
    events: &Events,
    finished: &mut (dyn FnMut(Completion) + Send),
) -> Result<(), Error> {
    let mut undecodable = Ok(());
    while let Ok(first) = waiting.recv() {
        // Those that finished meanwhile come along: sequences of a batch often end in the same step.
        let outputs: Vec<Output> = std::iter::once(first).chain(waiting.try_iter().take(MOST_TOGETHER - 1)).collect();
        let tokens: Vec<&[u32]> = outputs.iter().map(answer).collect();
        let decoded = texts.decode(&tokens);
        for (output, text) in outputs.into_iter().zip(decoded) {
            let text = text.unwrap_or_else(|error| {
                if undecodable.is_ok() {
                    undecodable = Err(error);
                }
                String::new()
            });
            let text = match &output.stop_texts {
                Some(stops) => stops.answer(text, &output.tokens),
                None => text,
            };
            let logprobs = spelled(texts, &output).unwrap_or_else(|error| {
                if undecodable.is_ok() {
                    undecodable = Err(error);
                }
                None
            });
            // After decoding, so that end-to-end latency includes the text.
            events.emit(Fact::RequestFinished {
                request: output.id,
                output_tokens: output.tokens.len() as u32,
                reason: output.reason,
            });
            let error = output.error.map(Into::into);
            finished(Completion { id: output.id, text, logprobs, tokens: output.tokens, reason: output.reason, error });
        }
    }
    undecodable
}

/// Log-probabilities of an answer's tokens with their texts; `None` where none were asked for.
fn spelled(texts: &TextService, output: &Output) -> Result<Option<Vec<SpelledLogprobs>>, Error> {
    let is_asked = !output.logprobs.is_empty();
    is_asked.then(|| SpelledLogprobs::of(texts, answer(output), &output.logprobs)).transpose()
}

/// The tokens of an answer: without the one that ended it.
fn answer(output: &Output) -> &[u32] {
    // Special ones have no text anyway; a token that a line names may be any.
    &output.tokens[..output.tokens.len() - usize::from(output.stop_token.is_some())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use flashjob_event::{FinishReason, RequestId};
    use flashjob_model::{SharedTexts, Texts};

    fn model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-gqa")
    }

    fn texts() -> Arc<TextService> {
        let model = model();
        SharedTexts::new(model.clone(), model).get().unwrap()
    }

    fn output(id: u32, tokens: &[u32]) -> Output {
        Output {
            id: RequestId(id),
            tokens: tokens.to_vec(),
            logprobs: Vec::new(),
            reason: FinishReason::Length,
            stop_token: None,
            stop_texts: None,
            error: None,
        }
    }

    #[test]
    fn completions_come_in_the_order_of_outputs_with_their_own_texts() {
        let (texts, mut completions) = (texts(), Vec::new());
        let tokens = |id: u32| (0..1 + id % 7).map(|i| (id + i) % 60).collect::<Vec<u32>>();
        let count = 3 * MOST_TOGETHER as u32 + 5;
        let mut keep = |completion| completions.push(completion);
        let (served, decoded) = decoded_beside(&texts, &Events::default(), &mut keep, |finished| {
            (0..count).for_each(|id| finished(output(id, &tokens(id))));
            "served"
        });
        decoded.unwrap();
        assert_eq!((served, completions.len()), ("served", count as usize));
        let directory = model();
        let tokenizer = Texts::open(&directory, &directory).unwrap().tokenizer;
        for (completion, id) in completions.iter().zip(0..) {
            assert_eq!((completion.id, &completion.tokens), (RequestId(id), &tokens(id)));
            assert_eq!(completion.text, tokenizer.decode(&tokens(id)).unwrap());
        }
    }

    /// The engine gets on to its next step before anybody has taken the text of an output.
    #[test]
    fn an_engine_goes_on_while_a_completion_is_taken() {
        let texts = texts();
        let (go_on, wait) = channel::<()>();
        let mut taken = 0;
        let count = &mut taken;
        let mut take = move |_completion| {
            wait.recv().unwrap();
            *count += 1;
        };
        let (_, decoded) = decoded_beside(&texts, &Events::default(), &mut take, |finished| {
            (0..3).for_each(|id| finished(output(id, &[1, 2])));
            (0..3).for_each(|_| go_on.send(()).unwrap());
        });
        decoded.unwrap();
        assert_eq!(taken, 3);
    }

    #[test]
    fn a_panic_of_whoever_takes_completions_is_passed_on() {
        let texts = texts();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut take = |_completion| panic!("it fell over");
            decoded_beside(&texts, &Events::default(), &mut take, |finished| {
                (0..2 * MOST_WAITING as u32).for_each(|id| finished(output(id, &[1])));
            })
        }));
        assert_eq!(panicked.err().and_then(|panic| panic.downcast::<&str>().ok()).as_deref(), Some(&"it fell over"));
    }
}
