//! Answers of a batch, written as they come: each into the shard of its line, so that a job that is stopped loses none of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use flashjob_batch::{Answer, AnswerCounts, AnswerKind, Error, FinishedShard, Shards};
use flashjob_event::{Events, Fact, RequestId};

use super::outputs::Answerer;
use crate::backend::Completion;
use crate::bench::Accuracy;
use crate::prepare::{Entry, RefusalKind};

/// The answers of a batch, those of earlier attempts included.
pub struct BatchAnswers {
    state: Mutex<State>,
    /// Name of the model in answers.
    model: String,
    max_errors: Option<u64>,
    events: Events,
    /// Ends the run, once answers cannot be kept or too many are errors.
    stop: CancellationToken,
    /// Answers of earlier attempts.
    found: AnswersFound,
    /// Takes each shard that is finished.
    finished: Box<dyn Fn(FinishedShard) + Send + Sync>,
}

/// Numbers of answers that earlier attempts had given, by the place in which they were found.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct AnswersFound {
    /// In `results-dir`.
    pub on_disk: u64,
    /// In the output bucket alone.
    pub in_bucket: u64,
}

/// State of a batch when a job ends.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BatchReport {
    /// Each line, of this replica's where there are several, has an answer.
    pub is_complete: bool,
    /// Numbers of answers by kind, and their tokens.
    #[serde(flatten)]
    pub counts: AnswerCounts,
    /// Answers among them that earlier attempts had given.
    pub found: AnswersFound,
}

struct State {
    shards: Shards,
    /// Entries that were asked and have no answer yet: no more than are under way in the engine.
    asked: HashMap<RequestId, Entry>,
    most_asked: usize,
    accuracy: Accuracy,
    /// Entries of further requests for one.
    entry_of: HashMap<RequestId, RequestId>,
    /// Completions of entries that wait for more.
    completions: HashMap<RequestId, Vec<Completion>>,
    failure: Option<BatchFailure>,
}

impl State {
    /// The entry that `completion` was the last one of, and all of its completions in their order.
    fn completed(&mut self, completion: &Completion) -> Option<(Entry, Vec<Completion>)> {
        let request = self.entry_of.get(&completion.id).copied().unwrap_or(completion.id);
        // Answered once, whatever a backend hands over twice.
        let count = self.asked.get(&request)?.requests().count();
        let completions = self.completions.entry(request).or_default();
        if completions.iter().any(|other| other.id == completion.id) {
            return None;
        }
        completions.push(completion.clone());
        // A line of several answers is written when all of them are there: a job that is stopped before asks for all again.
        if completions.len() < count {
            return None;
        }
        let (mut completions, entry) = (self.completions.remove(&request)?, self.asked.remove(&request)?);
        for request in entry.requests() {
            self.entry_of.remove(&request);
        }
        // An entry's own number is below those of its further requests.
        completions.sort_by_key(|completion| completion.id);
        self.accuracy.note(&entry, completions.first()?);
        Some((entry, completions))
    }
}

/// Reason for the end of a batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchFailure {
    /// Answers cannot be kept.
    #[error(transparent)]
    Unwritable(#[from] Error),
    /// More lines have no answer than the user takes.
    #[error(
        "{errors} lines of the batch have no answer ({kinds}), and max-errors is {most}; the lines `error` of outputs/ say why, and \
         the same job with a higher max-errors goes on"
    )]
    TooManyErrors {
        /// Lines without an answer.
        errors: u64,
        /// Their kinds and numbers.
        kinds: String,
        /// Most of them that the user takes.
        most: u64,
    },
}

impl BatchAnswers {
    /// The answers in `shards`, of which earlier attempts had given those of `found`. `stop` is cancelled when the batch cannot go on,
    /// `finished` takes each shard that is finished from now on.
    pub fn new(
        shards: Shards,
        found: AnswersFound,
        model: String,
        max_errors: Option<u64>,
        stop: CancellationToken,
        events: Events,
        finished: Box<dyn Fn(FinishedShard) + Send + Sync>,
    ) -> Self {
        let earlier = shards.counts();
        for kind in AnswerKind::ALL.into_iter().filter(|&kind| earlier.of(kind) > 0) {
            events.emit(Fact::LinesAnsweredEarlier { kind, lines: earlier.of(kind) });
        }
        let (asked, entry_of, completions) = (HashMap::new(), HashMap::new(), HashMap::new());
        let accuracy = Accuracy::default();
        let state = State { shards, asked, entry_of, completions, most_asked: 0, accuracy, failure: None };
        Self { state: Mutex::new(state), model, max_errors, events, stop, found, finished }
    }

    /// States how many entries the batch has, as counted or as estimated.
    pub fn sized(&self, entries: u64, is_estimate: bool) {
        let lines = self.state.lock().shards.layout().share_of(entries);
        self.events.emit(Fact::BatchSized { lines, is_estimate });
    }

    /// Returns whether an entry has an answer already, or is for another replica to answer.
    pub fn is_done(&self, request: RequestId) -> bool {
        !self.state.lock().shards.needs(u64::from(request.0))
    }

    /// Takes an entry: answers it where it was refused, and keeps it until its completion otherwise.
    pub fn entered(&self, entry: Entry) {
        match &entry {
            Entry::Asked { request, others, .. } => {
                let mut state = self.state.lock();
                state.entry_of.extend(others.clone().map(|other| (RequestId(other), *request)));
                state.asked.insert(*request, entry);
                state.most_asked = state.most_asked.max(state.asked.len());
            }
            Entry::Skipped { request, kind, .. } => {
                let kind = match kind {
                    RefusalKind::Invalid => AnswerKind::Invalid,
                    RefusalKind::TooLong => AnswerKind::TooLong,
                    RefusalKind::Unsupported => AnswerKind::Unsupported,
                };
                let line = self.answerer().refusal(&entry).map(|line| line.to_string()).unwrap_or_default();
                self.keep(&Answer { entry: request.0.into(), kind, input_tokens: 0, output_tokens: 0, line: &line });
            }
        }
    }

    /// Writes the answer to an entry, once it has all completions that it waits for; gives the entry then.
    pub fn completed(&self, completion: &Completion) -> Option<Entry> {
        // The line is made without the lock: it may be long, and the reader asks for what is done.
        let (entry, completions) = self.state.lock().completed(completion)?;
        let Entry::Asked { request, prompt_tokens, .. } = entry else { return None };
        let completions: Vec<&Completion> = completions.iter().collect();
        let kind = match completions.iter().find_map(|completion| completion.error.as_ref()) {
            None => AnswerKind::Completed,
            Some(error) if error.is_not_finite() => AnswerKind::NonFinite,
            Some(_) => AnswerKind::Failed,
        };
        let line = self.answerer().answer(&entry, &completions).map(|line| line.to_string()).unwrap_or_default();
        self.keep(&Answer {
            entry: request.0.into(),
            kind,
            input_tokens: prompt_tokens as u64,
            output_tokens: completions.iter().map(|completion| completion.tokens.len() as u64).sum(),
            line: &line,
        });
        Some(entry)
    }

    /// Most entries that were under way at once.
    pub fn most_asked(&self) -> usize {
        self.state.lock().most_asked
    }

    /// Correct answers of this job, where any line has one.
    pub fn accuracy(&self) -> Option<Accuracy> {
        self.state.lock().accuracy.of_any()
    }

    /// Says that the batch has `entries`; completes the shards that have all of their answers by that.
    pub fn end(&self, entries: usize) {
        self.sized(entries as u64, false);
        let mut state = self.state.lock();
        match state.shards.end(entries as u64) {
            Ok(finished) => finished.into_iter().for_each(&self.finished),
            Err(error) => self.fail(&mut state, error.into()),
        }
    }

    /// Journals of shards that are not complete, and the number of entries once all have been seen.
    pub fn rest(&self) -> (Vec<PathBuf>, Option<u64>) {
        let state = self.state.lock();
        (state.shards.journals().map(Path::to_owned).collect(), state.shards.all_entries())
    }

    /// State of the answers.
    pub fn report(&self) -> BatchReport {
        let state = self.state.lock();
        BatchReport { is_complete: state.shards.is_complete(), counts: state.shards.counts(), found: self.found }
    }

    /// Numbers of answers, of entries where all of them have been seen, and of shards that are finished and that are not.
    pub(super) fn state(&self) -> (AnswerCounts, Option<u64>, [u64; 2]) {
        let State { shards, .. } = &*self.state.lock();
        let of_shards = [shards.finished().count() as u64, shards.unfinished() as u64];
        (shards.counts(), shards.entries(), of_shards)
    }

    /// The reason for which the batch was ended, if it was.
    pub fn failure(&self) -> Option<BatchFailure> {
        self.state.lock().failure.take()
    }

    fn answerer(&self) -> Answerer<'_> {
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Answerer { model: &self.model, created }
    }

    fn keep(&self, answer: &Answer<'_>) {
        let mut state = self.state.lock();
        match state.shards.answer(answer) {
            Ok(finished) => finished.into_iter().for_each(&self.finished),
            Err(error) => return self.fail(&mut state, error.into()),
        }
        self.events.emit(Fact::LinesAnswered { kind: answer.kind, lines: 1 });
        let counts = state.shards.counts();
        if let Some(most) = self.max_errors.filter(|&most| counts.errors() > most) {
            let kinds = AnswerKind::errors().filter(|&kind| counts.of(kind) > 0);
            let kinds: Vec<String> = kinds.map(|kind| format!("{} {}", counts.of(kind), kind.name())).collect();
            let failure = BatchFailure::TooManyErrors { errors: counts.errors(), kinds: kinds.join(", "), most };
            self.fail(&mut state, failure);
        }
    }

    /// Ends the batch. The first reason counts: others follow from it.
    fn fail(&self, state: &mut State, failure: BatchFailure) {
        state.failure.get_or_insert(failure);
        self.stop.cancel();
    }
}
