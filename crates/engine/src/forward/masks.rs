//! Masks over the vocabulary for sequences with a constraint, computed on threads of their own while a step is computed.
//!
//! A mask is begun as soon as the token before it is known, and waited for only before the next one is chosen. What a constraint is, is
//! not known here, nor how a mask is applied.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::schedule::constraint::{ConstrainedText, Constraint};
use crate::schedule::scheduler_output::SequenceIndex;

/// Threads at most: a mask takes a fraction of a step, and memory bandwidth is the model's.
const MOST_THREADS: usize = 8;

/// Tokens that may be chosen from rows of logits.
#[derive(Debug, Default)]
pub struct TokenMasks {
    rows: Vec<u32>,
    bits: Vec<u32>,
    words: usize,
}

impl TokenMasks {
    /// For rows of `vocab_size` logits.
    pub fn new(vocab_size: usize) -> Self {
        Self { words: vocab_size.div_ceil(u32::BITS as usize), ..Self::default() }
    }

    /// Rows that have a mask, ascending.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// `[rows, words]`: bit `i % 32` of word `i / 32` says that token `i` may be chosen.
    pub fn bits(&self) -> &[u32] {
        &self.bits
    }

    /// Words of a row.
    pub fn words(&self) -> usize {
        self.words
    }

    /// True where any token may be chosen from every row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes all masks out, and keeps their memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.bits.clear();
    }

    /// Adds the mask of `row`, which is above those before it.
    pub fn push(&mut self, row: u32, mask: &[u32]) {
        debug_assert_eq!(mask.len(), self.words);
        self.rows.push(row);
        self.bits.extend_from_slice(mask);
    }
}

/// A text, and the mask of its next token.
struct Masked {
    text: Box<dyn ConstrainedText>,
    mask: Vec<u32>,
}

/// A sequence's mask.
enum MaskState {
    /// A thread computes it.
    Computing,
    Ready(Masked),
    /// There is none, and no next token.
    Failed(String),
}

/// Work of a thread, for a sequence.
struct MaskTask {
    index: SequenceIndex,
    work: Work,
}

enum Work {
    Begin(Arc<dyn Constraint>),
    Compute(Masked),
}

type Outcome = (SequenceIndex, Result<Masked, String>);

struct Thread {
    /// `None` once it is to end.
    tasks: Option<Sender<MaskTask>>,
    handle: Option<JoinHandle<()>>,
    /// Sequences that are its own.
    sequences: usize,
}

/// Sequences of a run that have a constraint. Without any it has no threads.
pub struct ConstrainedSequences {
    states: HashMap<SequenceIndex, (MaskState, usize)>,
    threads: Vec<Thread>,
    outcomes: (Sender<Outcome>, Receiver<Outcome>),
    masks: TokenMasks,
}

impl ConstrainedSequences {
    /// Over a vocabulary of `vocab_size`.
    pub fn new(vocab_size: usize) -> Self {
        Self { states: HashMap::new(), threads: Vec::new(), outcomes: channel(), masks: TokenMasks::new(vocab_size) }
    }

    /// True where no sequence has one.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Begins the text of a sequence, and its first mask.
    pub fn begin(&mut self, index: SequenceIndex, constraint: Arc<dyn Constraint>) {
        if self.threads.is_empty() {
            let count = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
            let words = self.masks.words();
            self.threads = (0..count).map(|number| Thread::start(number, words, self.outcomes.0.clone())).collect();
        }
        // The thread with the fewest sequences. A sequence stays with it, since the lexer that its grammar shares there knows already
        // what others have found out.
        let Some(number) = (0..self.threads.len()).min_by_key(|&number| self.threads[number].sequences) else { return };
        self.threads[number].sequences += 1;
        self.states.insert(index, (MaskState::Computing, number));
        self.give(number, MaskTask { index, work: Work::Begin(constraint) });
    }

    fn give(&mut self, number: usize, task: MaskTask) {
        let index = task.index;
        let given = self.threads[number].tasks.as_ref().is_some_and(|tasks| tasks.send(task).is_ok());
        if !given {
            self.states
                .insert(index, (MaskState::Failed("the thread that computes its masks is gone".to_owned()), number));
        }
    }

    /// Waits for the masks of `sampling`, the sequences that are to get a token, one a row. Rows without a constraint have none.
    pub fn masks(&mut self, sampling: impl Iterator<Item = SequenceIndex>) -> &TokenMasks {
        self.masks.clear();
        if self.states.is_empty() {
            return &self.masks;
        }
        // Outcomes come in any order: those of other sequences are kept until it is their row's turn.
        for (index, row) in sampling.zip(0..) {
            while let Some((MaskState::Computing, _)) = self.states.get(&index) {
                // One end of the channel is kept here: it is never closed.
                let Ok((other, outcome)) = self.outcomes.1.recv() else { return &self.masks };
                if let Some((state, _)) = self.states.get_mut(&other) {
                    *state = outcome.map_or_else(MaskState::Failed, MaskState::Ready);
                }
            }
            if let Some((MaskState::Ready(masked), _)) = self.states.get(&index) {
                self.masks.push(row, &masked.mask);
            }
        }
        &self.masks
    }

    /// The reason why a sequence whose mask was waited for has none, if there is one.
    pub fn failure(&self, index: SequenceIndex) -> Option<&str> {
        match self.states.get(&index) {
            Some((MaskState::Failed(reason), _)) => Some(reason),
            _ => None,
        }
    }

    /// Takes the token in that was chosen for a sequence; tells whether its text is complete with it.
    ///
    /// # Errors
    /// A sentence, with which its request ends.
    pub fn accept(&mut self, index: SequenceIndex, token: u32) -> Result<bool, String> {
        match self.states.get_mut(&index) {
            Some((MaskState::Ready(masked), _)) => masked.text.accept(token),
            _ => Ok(false),
        }
    }

    /// Begins the next masks of those of `sampling` that have taken a token in and go on.
    pub fn compute_next(&mut self, sampling: impl Iterator<Item = SequenceIndex>) {
        if self.states.is_empty() {
            return;
        }
        for index in sampling {
            if let Some((state @ MaskState::Ready(_), number)) = self.states.get_mut(&index)
                // The text itself goes to the thread and comes back with its mask, so that no lock is held while either works.
                && let (MaskState::Ready(masked), number) = (std::mem::replace(state, MaskState::Computing), *number)
            {
                self.give(number, MaskTask { index, work: Work::Compute(masked) });
            }
        }
    }

    /// Forgets a sequence that is over.
    pub fn end(&mut self, index: SequenceIndex) {
        if let Some((_, number)) = self.states.remove(&index) {
            self.threads[number].sequences -= 1;
        }
    }
}

impl Thread {
    fn start(number: usize, words: usize, outcomes: Sender<Outcome>) -> Self {
        let (tasks, received) = channel();
        let work = move || {
            for MaskTask { index, work } in received {
                // A panic is the end of one request.
                let computed = catch_unwind(AssertUnwindSafe(|| perform(work, number, words)));
                let computed = computed.unwrap_or_else(|_| Err("computing its masks panicked".to_owned()));
                if outcomes.send((index, computed)).is_err() {
                    return;
                }
            }
        };
        let handle = std::thread::Builder::new().name(format!("masks-{number}")).spawn(work).ok();
        Self { tasks: handle.is_some().then_some(tasks), handle, sequences: 0 }
    }
}

fn perform(work: Work, number: usize, words: usize) -> Result<Masked, String> {
    let mut masked = match work {
        Work::Begin(constraint) => Masked { text: constraint.begin(number)?, mask: vec![0; words] },
        Work::Compute(masked) => masked,
    };
    masked.text.allow(&mut masked.mask)?;
    Ok(masked)
}

impl Drop for ConstrainedSequences {
    fn drop(&mut self) {
        // A closed channel ends a thread once it has done what it was given; all of them end side by side.
        self.threads.iter_mut().for_each(|thread| drop(thread.tasks.take()));
        for handle in self.threads.iter_mut().filter_map(|thread| thread.handle.take()) {
            // A panic there was a request's.
            let _ended = handle.join();
        }
    }
}
