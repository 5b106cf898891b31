//! The entries of a batch, read and tokenised ahead of what runs them, in bounded memory.
//!
//! A thread reads the dataset and has texts tokenised by the workers of the model's texts; what is ready waits in a window of
//! limited size, and reading waits while that is full. Whoever runs requests takes them from the window, so that what is in memory
//! does not depend on the length of the input. A fault in the dataset ends the reading; what was read before it is still there to be
//! taken.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use flashjob_config::{BackendKind, Sampling, Workload};
use flashjob_event::RequestId;
use flashjob_model::TextService;

use super::Error;
use super::entries::{self, EntryCounts, PreparedEntry, ToRead};
use super::entry::Entry;
use super::question::RefusalKind;
use super::window::{self, Window};
use crate::backend::Request;

/// Memory of a window that is large enough to hide the pace of reading. A prompt of 1000 tokens takes 4 kB.
pub const WINDOW_BYTES: usize = 64 << 20;

/// What is ready before anything is run: a mistake among the first entries ends the job before that.
const HEAD_START_BYTES: usize = 4 << 20;

/// Time between two looks at a cancellation, which wakes nobody who waits.
const PATIENCE: Duration = Duration::from_millis(20);

/// Everything that reading a batch takes, for a thread of its own.
pub(super) struct BatchInput {
    pub workload: Workload,
    pub sampling: Sampling,
    pub backend: BackendKind,
    pub path: Option<PathBuf>,
    pub texts: Arc<TextService>,
    pub max_model_len: usize,
    /// Tells the entries, by number, that are not to be run.
    pub is_done: Arc<dyn Fn(RequestId) -> bool + Send + Sync>,
    /// Takes the number of all entries, once they are read.
    pub counted: Arc<dyn Fn(usize) + Send + Sync>,
}

impl BatchInput {
    /// As [`entries::read`].
    pub fn read(&self, take: &mut entries::TakePrepared<'_>) -> Result<EntryCounts, Error> {
        let Self { workload, sampling, backend, path, texts, max_model_len, is_done, .. } = self;
        let to_read = ToRead {
            workload,
            sampling: *sampling,
            backend: *backend,
            path: path.as_deref(),
            texts,
            max_model_len: *max_model_len,
            is_done: &**is_done,
        };
        entries::read(&to_read, take)
    }
}

/// Entries of a batch, in the order in which they are to be run.
pub struct EntryStream(Arc<Ahead>);

/// The next entry of a stream.
#[derive(Debug)]
pub enum NextEntry {
    /// An entry that is ready.
    Entry(Box<PreparedEntry>),
    /// It is not ready yet.
    Later,
    /// There is none any more.
    End,
}

/// What the reader and those who take entries share.
struct Ahead {
    state: Mutex<StreamState>,
    /// An entry came or went, or the reading has ended.
    changed: Condvar,
    window_bytes: usize,
}

#[derive(Default)]
struct StreamState {
    window: Window,
    /// Bytes of all entries so far.
    pushed_bytes: usize,
    /// Most bytes that were in the window at once.
    most_bytes: usize,
    /// Outcome of the reading, once it has ended.
    end: Option<Result<EntryCounts, Error>>,
    /// Longest prompt plus output that is served, once that is known.
    max_model_len: Option<usize>,
    /// Nobody takes entries any more.
    is_left: bool,
}

impl EntryStream {
    /// Begins to read `batch` into `window`, of which at most `window_bytes`, and one entry, are ready at once.
    pub(super) fn open(batch: BatchInput, window: Window, window_bytes: usize) -> Self {
        let state = Mutex::new(StreamState { window, ..StreamState::default() });
        let ahead = Arc::new(Ahead { state, changed: Condvar::new(), window_bytes });
        let reader = Reader(ahead.clone());
        // It ends when it has read all, or soon after the stream is dropped. Nobody waits for it: it may be amid a long text.
        std::thread::spawn(move || reader.run(&batch));
        Self(ahead)
    }

    /// Waits until there is something to begin with, which takes the longer the more of the batch is done.
    ///
    /// # Errors
    /// A fault in the dataset before that: nothing of it is to be run.
    pub(super) fn wait_for_head_start(&self, cancel: &CancellationToken) -> Result<(), Error> {
        let mut state = self.0.state.lock();
        // A window may be smaller than that: it is never fuller than full.
        let head_start = HEAD_START_BYTES.min(self.0.window_bytes);
        // A cancellation is looked for in turns, since a token of tokio's cannot wake a thread that waits here.
        while state.end.is_none() && state.window.bytes() < head_start && !cancel.is_cancelled() {
            self.0.changed.wait_for(&mut state, PATIENCE);
        }
        // However far the reader has come meanwhile.
        match state.end.take_if(|end| end.is_err()) {
            Some(Err(error)) if state.pushed_bytes < head_start => Err(error),
            Some(end) => {
                state.end = Some(end);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Refuses what is longer than `max_model_len` from here on, prompt and output together: what an engine serves is known only when it
    /// is loaded.
    pub fn limit(&self, max_model_len: usize) {
        self.0.state.lock().max_model_len = Some(max_model_len);
    }

    /// The next entry, which is waited for up to `patience`.
    pub fn next(&self, patience: Duration) -> NextEntry {
        // The reader wakes all who wait, and not each time with an entry for this one.
        let until = Instant::now() + patience;
        let mut state = self.0.state.lock();
        loop {
            if let Some(entry) = state.window.pop() {
                // The reader may wait for the room that this entry has taken.
                self.0.changed.notify_all();
                let max_model_len = state.max_model_len;
                return NextEntry::Entry(Box::new(judged(entry, max_model_len)));
            }
            if state.end.is_some() {
                return NextEntry::End;
            }
            if self.0.changed.wait_until(&mut state, until).timed_out() {
                return NextEntry::Later;
            }
        }
    }

    /// Copies of up to `count` requests that are ready, none of which is taken.
    pub fn ready(&self, count: usize) -> Vec<Request> {
        self.0.state.lock().window.requests().take(count).cloned().collect()
    }

    /// Number of all entries, those included that are done; `None` while they are not all read, or where a fault kept that from
    /// being known.
    pub fn count(&self) -> Option<usize> {
        let state = self.0.state.lock();
        state.end.as_ref().and_then(|end| end.as_ref().ok()).map(|counts| counts.all)
    }

    /// Takes the fault that has ended the reading, if one did.
    pub fn take_fault(&self) -> Option<Error> {
        let mut state = self.0.state.lock();
        state.end.take_if(|end| end.is_err()).and_then(Result::err)
    }

    /// Most bytes that were ready at once.
    pub fn most_bytes(&self) -> usize {
        self.0.state.lock().most_bytes
    }
}

impl Drop for EntryStream {
    fn drop(&mut self) {
        self.0.state.lock().is_left = true;
        self.0.changed.notify_all();
    }
}

/// The reader's end of a stream.
struct Reader(Arc<Ahead>);

impl Reader {
    fn run(self, batch: &BatchInput) {
        let end = batch.read(&mut |entry| self.0.push(entry));
        if let Ok(EntryCounts { all, .. }) = end {
            (batch.counted)(all);
        }
        // The number of entries is told before the end is seen: whoever sees the end may ask for it at once.
        self.0.state.lock().end.get_or_insert(end);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Also where it has panicked: nobody is to wait for it.
        let gone = || {
            Error::Workload("the thread that reads the dataset has failed; this is a bug, please report it".to_owned())
        };
        self.0.state.lock().end.get_or_insert_with(|| Err(gone()));
        self.0.changed.notify_all();
    }
}

impl Ahead {
    /// Puts `entry` into the window once there is room.
    fn push(&self, entry: PreparedEntry) -> ControlFlow<()> {
        let mut state = self.state.lock();
        // An entry that is larger than the window fits once that is empty.
        while state.window.bytes() >= self.window_bytes && !state.is_left {
            self.changed.wait(&mut state);
        }
        if state.is_left {
            return ControlFlow::Break(());
        }
        state.pushed_bytes += window::bytes(&entry);
        state.window.push(entry);
        state.most_bytes = state.most_bytes.max(state.window.bytes());
        self.changed.notify_all();
        ControlFlow::Continue(())
    }
}

/// `prepared`, refused where it is longer than `max_model_len`.
fn judged(prepared: PreparedEntry, max_model_len: Option<usize>) -> PreparedEntry {
    // The reader has judged it by what the model was made for, which is as much or more.
    let (Some(max_model_len), Some(request)) = (max_model_len, &prepared.request) else { return prepared };
    let Err(reason) = entries::check_length(request.prompt.len(), request.max_tokens, max_model_len) else {
        return prepared;
    };
    match prepared.entry {
        Entry::Asked { place, request, form, .. } => {
            let entry = Entry::Skipped { place, request, form, kind: RefusalKind::TooLong, reason: reason.sentence };
            PreparedEntry { entry, request: None }
        }
        Entry::Skipped { .. } => prepared,
    }
}
