//! The one stream of facts that everything shown to people is derived from.
//!
//! Crates that do work emit [`Fact`]s; those that show work (`telemetry`, `bench`) observe them. This crate does not know
//! the observers, and emitters never format, log or count.

mod answer_kind;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use answer_kind::AnswerKind;

/// Identity of a request within one job: its position in the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// The phases of a job, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Inputs are mounted, copied or found.
    Mount,
    /// Weights are read and packed; the KV cache is allocated.
    Load,
    /// This node computes steps as the leader tells it.
    Follow,
    /// Requests run that are not counted.
    WarmUp,
    /// The measured region.
    Measure,
    /// Results are published.
    Publish,
    /// Metrics stay up for a last scrape.
    Linger,
}

impl Phase {
    /// All phases, in order.
    // Declaration order is the order of `Ord`, and metrics index arrays by it.
    pub const ALL: [Phase; 7] =
        [Phase::Mount, Phase::Load, Phase::Follow, Phase::WarmUp, Phase::Measure, Phase::Publish, Phase::Linger];

    /// Name in metrics, logs and `result.json`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Mount => "mount",
            Phase::Load => "load",
            Phase::Follow => "follow",
            Phase::WarmUp => "warm_up",
            Phase::Measure => "measure",
            Phase::Publish => "publish",
            Phase::Linger => "linger",
        }
    }
}

/// Reason why a request stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It generated as many tokens as requested.
    Length,
    /// It generated a stop token (only if EOS is not ignored).
    Stop,
    /// No further token can be computed for it. Other requests go on.
    Error,
}

impl FinishReason {
    /// Name in metrics and answers: vLLM's, which is OpenAI's where that has one.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Length => "length",
            FinishReason::Stop => "stop",
            FinishReason::Error => "error",
        }
    }
}

/// Lower bounds of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// Floating-point operations; a multiply-add is two.
    pub flops: f64,
    /// Bytes of weights, keys and values read and written, each once.
    pub bytes: f64,
}

impl std::ops::Add for Needs {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

/// Needs of the operations of a step. Those that have the same operations per byte in each layer are one entry, as they are bound by
/// the same limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepNeeds {
    /// Products of all tokens with weights of layers.
    pub layers: Needs,
    /// Products of the last layer that only rows with logits need.
    pub last_layer: Needs,
    /// The output projection.
    pub head: Needs,
    /// Attention to all earlier tokens.
    pub attention: Needs,
    /// Attention within sliding windows.
    pub windowed_attention: Needs,
}

impl StepNeeds {
    /// Needs of each kind of operation.
    pub fn operations(&self) -> [Needs; 5] {
        let Self { layers, last_layer, head, attention, windowed_attention } = *self;
        [layers, last_layer, head, attention, windowed_attention]
    }

    /// Needs of the whole step.
    pub fn total(&self) -> Needs {
        self.operations().into_iter().fold(Needs::default(), |sum, operation| sum + operation)
    }
}

/// An event of the job. Amounts are increments unless a name says otherwise.
#[derive(Clone, Debug)]
pub enum Fact {
    /// A phase began, and with it the previous one ended.
    PhaseStarted(Phase),
    /// Body bytes arrived from the bucket.
    BucketRead {
        /// Bytes of this chunk.
        bytes: u64,
    },
    /// Bytes were written to the bucket.
    BucketWritten {
        /// Bytes of this request.
        bytes: u64,
    },
    /// A bucket request is about to be tried again.
    BucketRetried {
        /// A short stable word for metrics: `throttled`, `server_error`, `timeout`, `reset`, `short_body`.
        reason: &'static str,
    },
    /// A multipart upload was opened or resumed.
    UploadOpened {
        /// Number of parts.
        parts: u64,
        /// Number of parts that an earlier process has sent.
        parts_there: u64,
        /// Reason why no later process can resume it, if there is one.
        not_resumable: Option<&'static str>,
    },
    /// Weights arrived in memory.
    WeightsRead {
        /// Bytes of this tensor.
        bytes: u64,
        /// Bytes of all weights (the same in every fact of one load).
        total_bytes: u64,
    },
    /// The KV caches are allocated; requests can be served.
    EngineReady {
        /// Engines that share the requests.
        engines: usize,
        /// Blocks in the KV caches of all engines.
        kv_blocks: usize,
        /// Tokens a block holds.
        block_tokens: usize,
    },
    /// The limits of the processors were measured.
    LimitsMeasured {
        /// Floating-point operations per second of a large matrix product.
        flops_per_second: f64,
        /// Bytes per second between memory and processors.
        bytes_per_second: f64,
    },
    /// A request entered the waiting queue.
    RequestQueued {
        /// The request that was queued.
        request: RequestId,
        /// Length of its prompt.
        prompt_tokens: u32,
    },
    /// A request was given its first place in a step.
    RequestScheduled {
        /// The request that was scheduled.
        request: RequestId,
    },
    /// The prefix cache was searched for the prompt of a request at its first scheduling. What a preempted request
    /// finds of its own is not stated.
    PrefixSearched {
        /// The request of the prompt.
        request: RequestId,
        /// Length of its prompt.
        prompt_tokens: u32,
        /// Tokens found, which are not computed again.
        hit_tokens: u32,
    },
    /// A running request lost its blocks and will be recomputed.
    RequestPreempted {
        /// The request that was preempted.
        request: RequestId,
    },
    /// A request produced one token.
    TokenGenerated {
        /// The request that the token is for.
        request: RequestId,
        /// ID of the token in the vocabulary.
        token: u32,
    },
    /// A request has ended, and its text is complete.
    RequestFinished {
        /// The request that ended.
        request: RequestId,
        /// Number of generated tokens.
        output_tokens: u32,
        /// Reason for the end.
        reason: FinishReason,
    },
    /// Lower bounds for the forward pass of the same engine whose end is stated next, independent of the implementation. Not stated of
    /// one that nobody needed.
    StepNeeded {
        /// Number of the engine, from 0, among those that share the requests.
        engine: usize,
        /// By kind of operation.
        needs: StepNeeds,
    },
    /// A forward pass begins. Of an engine that queues one behind another, the next may begin before the last has ended.
    StepStarted {
        /// Number of the engine, from 0, among those that share the requests.
        engine: usize,
        /// Prompt tokens that it computes.
        prefill_tokens: usize,
        /// Sequences that decode one token in it.
        decode_tokens: usize,
    },
    /// The job is to answer the lines of a batch.
    BatchStarted {
        /// Price of all its machines for an hour, where one is configured.
        price_per_hour: Option<f64>,
    },
    /// Lines of the batch, or of this replica's share of it (a level).
    BatchSized {
        /// Number of lines.
        lines: u64,
        /// The number is estimated: not all lines have been read.
        is_estimate: bool,
    },
    /// Lines of the batch got their answers.
    LinesAnswered {
        /// Kind of the answers.
        kind: AnswerKind,
        /// Number of lines.
        lines: u64,
    },
    /// Lines of the batch have answers that an earlier job gave them.
    LinesAnsweredEarlier {
        /// Kind of the answers.
        kind: AnswerKind,
        /// Number of lines.
        lines: u64,
    },
    /// One forward pass of the model over a batch. Levels are those of all engines together, each after its last step.
    StepFinished {
        /// Number of the engine, from 0, among those that share the requests.
        engine: usize,
        /// Duration of the forward pass.
        duration: Duration,
        /// Prompt tokens computed in it.
        prefill_tokens: usize,
        /// Sequences that decoded one token in it.
        decode_tokens: usize,
        /// Sequences running after it (a level).
        running: usize,
        /// Requests and sequences waiting after it (a level).
        waiting: usize,
        /// Blocks in use after it (a level).
        kv_blocks_used: usize,
    },
}

/// A fact with its time.
#[derive(Clone, Debug)]
pub struct Event {
    /// Time on the monotonic clock.
    pub at: Instant,
    /// The fact itself.
    pub fact: Fact,
}

/// A consumer of events. Called on the emitter's thread: it must be fast, never block and never panic.
pub trait Observer: Send + Sync {
    /// Receives one event. Events of one thread arrive in order.
    fn observe(&self, event: &Event);

    /// Receives events that became true at once, in order. For those who would take a lock a thousand times.
    fn observe_all(&self, events: &[Event]) {
        events.iter().for_each(|event| self.observe(event));
    }
}

/// The sending end of the stream. Cheap to clone, and usable from any thread.
#[derive(Clone, Default)]
pub struct Events {
    observers: Arc<[Arc<dyn Observer>]>,
}

impl Events {
    /// A stream that delivers to `observers`, in order.
    pub fn to(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self { observers: observers.into() }
    }

    /// Emits a fact that became true now.
    pub fn emit(&self, fact: Fact) {
        self.emit_at(Instant::now(), fact);
    }

    /// Emits a fact that became true at `at`.
    pub fn emit_at(&self, at: Instant, fact: Fact) {
        let event = Event { at, fact };
        // Synchronous and without a queue: an observer sees a fact before the emitter goes on, so that counts are never
        // behind.
        for observer in self.observers.iter() {
            observer.observe(&event);
        }
    }

    /// Emits facts that became true at once: the tokens of a step. Each observer sees all of them before the next one does.
    pub fn emit_all(&self, events: &[Event]) {
        for observer in self.observers.iter() {
            observer.observe_all(events);
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Events({} observers)", self.observers.len())
    }
}
