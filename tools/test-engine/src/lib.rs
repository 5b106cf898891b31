//! The engine for tests: tiny models with seeded weights, settings, real requests, all facts observed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use flashjob_config::{DtypeChoice, EngineConfig, Quantization, Sampling, Schedule};
use flashjob_engine::{Engine, Error, Output, Request};
use flashjob_event::{Event, Events, Fact, Observer, RequestId};
use flashjob_model::Model;
use flashjob_test_models::golden::directory;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The likeliest token, always.
pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };

/// A directory in Hugging Face layout, or one that holds a GGUF file.
pub fn open(name: &str) -> Model {
    Model::open(&directory(name)).unwrap()
}

/// Single precision, two threads, everything else as decided by the engine.
pub fn config() -> EngineConfig {
    EngineConfig {
        tensor_parallel_size: None,
        data_parallel_size: None,
        max_model_len: None,
        dtype: DtypeChoice::Float32,
        quantization: Quantization::Auto,
        memory_utilization: 0.5,
        kv_cache_memory_bytes: None,
        max_num_seqs: NonZeroUsize::new(16),
        max_num_batched_tokens: NonZeroUsize::new(256),
        prefix_caching: false,
        schedule: Schedule::Input,
        enforce_eager: false,
        deterministic: false,
        block_tokens: NonZeroUsize::new(32).unwrap(),
        threads: NonZeroUsize::new(2),
        validate_weights: true,
        measure_limits: false,
        step_timeout: None,
        // As FLASHJOB_ISA says.
        instruction_set: None,
    }
}

/// A request that is answered greedily and ends at its length alone.
pub fn request(id: u32, prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.to_vec(),
        max_tokens,
        stop_tokens: Vec::new(),
        stop_texts: None,
        constraint: None,
        sampling: GREEDY,
        options: None,
        seed: 0,
        stream: id,
    }
}

/// Every fact, in order.
#[derive(Default)]
pub struct Facts(pub Mutex<Vec<Fact>>);

impl Observer for Facts {
    fn observe(&self, event: &Event) {
        self.0.lock().push(event.fact.clone());
    }
}

/// The bits of all logits from which tokens of `requests` were chosen, by request and position.
pub fn watched_logits(engine: &mut Engine, requests: Vec<Request>) -> BTreeMap<(u32, usize), Vec<u32>> {
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let watcher = seen.clone();
    engine.watch_logits(Some(Box::new(move |RequestId(request), position, row| {
        let bits = row.iter().map(|number| number.to_bits()).collect();
        watcher.lock().insert((request, position), bits);
    })));
    serve(engine, requests).unwrap();
    engine.watch_logits(None);
    std::mem::take(&mut *seen.lock())
}

/// Outputs by request, and what was stated on the way.
pub fn serve(engine: &mut Engine, requests: Vec<Request>) -> Result<(Vec<Output>, Vec<Fact>), Error> {
    let facts = Arc::new(Facts::default());
    let mut outputs = Vec::new();
    engine.run(requests, &Events::to(vec![facts.clone()]), &CancellationToken::new(), &mut |output| {
        outputs.push(output);
    })?;
    outputs.sort_by_key(|output| output.id);
    let facts = std::mem::take(&mut *facts.0.lock());
    Ok((outputs, facts))
}
