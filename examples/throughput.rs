//! Uncommitted: measures.
#![allow(clippy::print_stdout)]
use flashjob::{config::*, engine::*, event::*, model::Model};
use std::{num::NonZeroUsize, path::Path, time::Instant};
use tokio_util::sync::CancellationToken;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let path = Path::new(&args[1]);
    let n: u32 = args[2].parse().unwrap();
    let tokens: usize = args[3].parse().unwrap();
    let dtype = match args.get(4).map(String::as_str) {
        Some("bf16") => DtypeChoice::Bfloat16,
        Some("f16") => DtypeChoice::Float16,
        _ => DtypeChoice::Float32,
    };
    let model = Model::open(path, path).unwrap();
    let nz = NonZeroUsize::new;
    let config = EngineConfig {
        tensor_parallel_size: None,
        max_model_len: None,
        dtype,
        memory_utilization: 0.9,
        kv_cache_memory_bytes: None,
        max_num_seqs: None,
        max_num_batched_tokens: nz(tokens),
        prefix_caching: false,
        block_tokens: nz(32).unwrap(),
        threads: nz(2),
        validate_weights: false,
    };
    let cancel = CancellationToken::new();
    let started = Instant::now();
    let mut engine = Engine::load(&model, &config, &Events::default(), &cancel).unwrap();
    println!("load {:?} {:?}", started.elapsed(), engine.facts());
    let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
    if let Some(prompt) = args.get(5) {
        let prompt = model.tokenizer.encode(prompt, true).unwrap();
        let request = Request {
            id: RequestId(0),
            prompt,
            max_new_tokens: 48,
            stop_tokens: model.eos_tokens().to_vec(),
            sampling: greedy,
            seed: 0,
        };
        engine
            .run(vec![request], &Events::default(), &cancel, &mut |out| {
                println!("{}", model.tokenizer.decode(&out.tokens).unwrap())
            })
            .unwrap();
    }
    for _ in 0..2 {
        let requests = (0..n)
            .map(|id| Request {
                id: RequestId(id),
                prompt: (0..128u32).map(|i| (i * 7919 + id * 104729 + 17) % 400).collect(),
                max_new_tokens: 128,
                stop_tokens: vec![],
                sampling: greedy,
                seed: 0,
            })
            .collect();
        let started = Instant::now();
        struct Steps(std::sync::Mutex<(std::time::Duration, std::time::Duration)>);
        impl Observer for Steps {
            fn observe(&self, e: &Event) {
                if let Fact::StepFinished { duration, prefill_tokens, .. } = e.fact {
                    let mut t = self.0.lock().unwrap();
                    if prefill_tokens > 0 { t.0 += duration } else { t.1 += duration }
                }
            }
        }
        let steps = std::sync::Arc::new(Steps(Default::default()));
        engine.run(requests, &Events::to(vec![steps.clone()]), &cancel, &mut |_| ()).unwrap();
        let s = started.elapsed().as_secs_f64();
        println!(
            "{n} x 128/128: {s:.2} s, {:.1} output tokens/s; prefill, decode {:?}",
            n as f64 * 128.0 / s,
            steps.0.lock().unwrap()
        );
    }
}
