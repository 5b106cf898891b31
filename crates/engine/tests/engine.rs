//! The engine from outside: tiny models with seeded weights, real requests, all facts observed.

mod allocations;
mod golden;
mod invariance;
pub(crate) mod machines;
mod not_finite;
mod prefix_caching;
mod ranks;
mod refusals;
mod serving;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use flashjob::config::{DtypeChoice, EngineConfig, Sampling};
use flashjob::engine::{Engine, Error, Output, Request};
use flashjob::event::{Event, Events, Fact, Observer, RequestId};
use flashjob::model::Model;
use tokio_util::sync::CancellationToken;

use crate::model::golden::directory;

const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };

/// A directory in Hugging Face layout, or one that holds a GGUF file.
pub(crate) fn open(name: &str) -> Model {
    Model::open(&directory(name)).unwrap()
}

/// Single precision, two threads, everything else as decided by the engine.
pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        tensor_parallel_size: None,
        max_model_len: None,
        dtype: DtypeChoice::Float32,
        memory_utilization: 0.5,
        kv_cache_memory_bytes: None,
        max_num_seqs: NonZeroUsize::new(16),
        max_num_batched_tokens: NonZeroUsize::new(256),
        prefix_caching: false,
        enforce_eager: false,
        block_tokens: NonZeroUsize::new(32).unwrap(),
        threads: NonZeroUsize::new(2),
        validate_weights: true,
        measure_limits: false,
        // As FLASHJOB_ISA says.
        instruction_set: None,
    }
}

fn load(name: &str, config: &EngineConfig) -> Engine {
    Engine::load(&open(name), config, &Events::default(), &CancellationToken::new()).unwrap()
}

pub(crate) fn request(id: u32, prompt: &[u32], max_new_tokens: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.to_vec(),
        max_new_tokens,
        stop_tokens: Vec::new(),
        sampling: GREEDY,
        seed: 0,
    }
}

/// Every fact, in order.
#[derive(Default)]
struct Facts(Mutex<Vec<Fact>>);

impl Observer for Facts {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(event.fact.clone());
    }
}

/// Outputs by request, and what was stated on the way.
pub(crate) fn serve(engine: &mut Engine, requests: Vec<Request>) -> Result<(Vec<Output>, Vec<Fact>), Error> {
    let facts = Arc::new(Facts::default());
    let mut outputs = Vec::new();
    engine.run(requests, &Events::to(vec![facts.clone()]), &CancellationToken::new(), &mut |output| {
        outputs.push(output);
    })?;
    outputs.sort_by_key(|output| output.id);
    let facts = std::mem::take(&mut *facts.0.lock().unwrap());
    Ok((outputs, facts))
}
