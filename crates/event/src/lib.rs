//! The one stream of facts that everything shown to people is derived from.
//!
//! Rooms that do work emit [`Fact`]s; rooms that show work (`telemetry`, `bench`)
//! observe them. This module does not know who listens, and emitters never format, log or count.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Identifies a request within one job: its position in the workload.
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
    /// Steps are computed as another machine says.
    Follow,
    /// Requests that are not counted.
    WarmUp,
    /// The measured region.
    Measure,
    /// Results leave the process.
    Publish,
    /// Metrics stay up for a last scrape.
    Linger,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 7] =
        [Phase::Mount, Phase::Load, Phase::Follow, Phase::WarmUp, Phase::Measure, Phase::Publish, Phase::Linger];

    /// The name used in metrics, logs and `result.json`.
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

/// Why a request stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It produced as many tokens as were asked for.
    Length,
    /// It produced a stop token (only where EOS is not ignored).
    Stop,
    /// No further token can be computed for it. Other requests go on.
    Error,
}

impl FinishReason {
    /// The name used in metrics and answers: that of vLLM, and of OpenAI where it has one.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Length => "length",
            FinishReason::Stop => "stop",
            FinishReason::Error => "error",
        }
    }
}

/// Something that happened. Amounts are increments unless a name says otherwise.
#[derive(Clone, Debug)]
pub enum Fact {
    /// A phase began, and with it the previous one ended.
    PhaseStarted(Phase),
    /// Body bytes arrived from the bucket.
    BucketRead {
        /// How many, in this chunk.
        bytes: u64,
    },
    /// Bytes were written to the bucket.
    BucketWritten {
        /// How many, in this request.
        bytes: u64,
    },
    /// A bucket request is about to be tried again.
    BucketRetried {
        /// A short stable word for metrics: `throttled`, `server_error`, `timeout`, `reset`, `short_body`.
        reason: &'static str,
    },
    /// An upload in parts has an address, and begins or goes on.
    UploadOpened {
        /// Parts in all.
        parts: u64,
        /// Those that an earlier process has sent.
        parts_there: u64,
        /// Why no later process can go on with it, where none can.
        not_resumable: Option<&'static str>,
    },
    /// Weights arrived in memory.
    WeightsRead {
        /// How many, in this tensor.
        bytes: u64,
        /// How many there are in all (the same in every fact of one load).
        total_bytes: u64,
    },
    /// The KV cache stands; requests can be served.
    EngineReady {
        /// Blocks in the KV cache.
        kv_blocks: usize,
        /// Tokens a block holds.
        block_tokens: usize,
    },
    /// What the processors can do at most was measured.
    LimitsMeasured {
        /// Floating-point operations of a large matrix product.
        flops_per_second: f64,
        /// Bytes between memory and processors.
        bytes_per_second: f64,
    },
    /// A request entered the waiting queue.
    RequestQueued {
        /// Which.
        request: RequestId,
        /// Length of its prompt.
        prompt_tokens: u32,
    },
    /// A request was given its first place in a step.
    RequestScheduled {
        /// Which.
        request: RequestId,
    },
    /// Cached beginnings were searched for the prompt of a request that got its first place in a step. What a preempted
    /// request finds again of its own is not stated.
    PrefixSearched {
        /// Which.
        request: RequestId,
        /// Length of its prompt.
        prompt_tokens: u32,
        /// Tokens found: they are not computed again.
        hit_tokens: u32,
    },
    /// A running request lost its blocks and will be recomputed.
    RequestPreempted {
        /// Which.
        request: RequestId,
    },
    /// A request produced one token.
    TokenGenerated {
        /// Which.
        request: RequestId,
        /// The token's id in the vocabulary.
        token: u32,
    },
    /// A request is over, its text included.
    RequestFinished {
        /// Which.
        request: RequestId,
        /// Tokens it produced.
        output_tokens: u32,
        /// Why it stopped.
        reason: FinishReason,
    },
    /// What the forward pass that is about to be stated finished takes at least, however it is computed.
    StepNeeded {
        /// Floating-point operations; a multiply-add is two.
        flops: f64,
        /// Bytes of weights, keys and values read and written, each once.
        bytes: f64,
    },
    /// One forward pass of the model over a batch.
    StepFinished {
        /// How long it took.
        duration: Duration,
        /// Prompt tokens computed in it.
        prefill_tokens: usize,
        /// Sequences that decoded one token in it.
        decode_tokens: usize,
        /// Sequences running after it (a level).
        running: usize,
        /// Sequences waiting after it (a level).
        waiting: usize,
        /// Blocks in use after it (a level).
        kv_blocks_used: usize,
    },
}

/// A fact and the moment it became true.
#[derive(Clone, Debug)]
pub struct Event {
    /// On the monotonic clock.
    pub at: Instant,
    /// What happened.
    pub fact: Fact,
}

/// Someone who wants to know. Called on the emitter's thread: be quick, never block, never panic.
pub trait Observer: Send + Sync {
    /// Takes note of one event. Events of one thread arrive in the order in which they happened.
    fn observe(&self, event: &Event);
}

/// The sending end, cheap to clone and safe to use from any thread.
#[derive(Clone, Default)]
pub struct Events {
    observers: Arc<[Arc<dyn Observer>]>,
}

impl Events {
    /// Delivers to each of `observers`, in order.
    pub fn to(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self { observers: observers.into() }
    }

    /// States a fact that became true now.
    pub fn emit(&self, fact: Fact) {
        self.emit_at(Instant::now(), fact);
    }

    /// States a fact that became true at `at`.
    pub fn emit_at(&self, at: Instant, fact: Fact) {
        let event = Event { at, fact };
        for observer in self.observers.iter() {
            observer.observe(&event);
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Events({} observers)", self.observers.len())
    }
}
