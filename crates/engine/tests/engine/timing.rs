//! Times of steps and of their operations.

use std::num::NonZeroUsize;

use flashjob_config::EngineConfig;
use flashjob_engine::{Error, Operation, StepSize};
use tokio_util::sync::CancellationToken;

use super::{GREEDY, config, load, request, serve};

#[test]
fn a_step_is_timed_by_its_operations_on_one_rank_and_on_two() {
    let two = EngineConfig { tensor_parallel_size: NonZeroUsize::new(2), ..config() };
    for (name, config, norms, collectives) in [
        // Two layers: two norms each, and the last one.
        ("llama-gqa", config(), 5, 0),
        // The embedding, the logits, and two sums a layer.
        ("llama-gqa", two, 5, 2 + 2 * 2),
        // Norms of heads besides.
        ("qwen3-qk-norm", config(), 2 * 3 + 1, 0),
    ] {
        let mut engine = load(name, &config);
        let size = StepSize { sequences: 3, new_tokens: 1, context: 37 };
        let times = engine.time_step(size, GREEDY, &CancellationToken::new()).unwrap();
        let calls = |operation| {
            let found = times.operations.iter().find(|times| times.operation == operation);
            found.map_or(0, |times| times.calls)
        };
        assert_eq!((calls(Operation::Qkv), calls(Operation::Attention)), (2, 2), "{name}");
        assert_eq!((calls(Operation::Norm), calls(Operation::Collective)), (norms, collectives), "{name}");
        assert_eq!((calls(Operation::Sampling), calls(Operation::GatherRows)), (1, 0), "{name}");
        let seconds: f64 = times.operations.iter().map(|times| times.seconds).sum();
        assert!(times.seconds > 0.0 && seconds > 0.0 && !times.replayed && times.rounds >= 3, "{times:?}");
        // What runs afterwards is what would have run without.
        let (outputs, _) = serve(&mut engine, vec![request(0, &[3, 1, 4], 6)]).unwrap();
        let (alone, _) = serve(&mut load(name, &config), vec![request(0, &[3, 1, 4], 6)]).unwrap();
        assert_eq!(outputs[0].tokens, alone[0].tokens);
    }
}

#[test]
fn a_size_beyond_what_was_loaded_is_refused_and_says_what_is_missing() {
    let mut engine = load("llama-gqa", &config());
    let mut refusal = |sequences, new_tokens, context| {
        let size = StepSize { sequences, new_tokens, context };
        match engine.time_step(size, GREEDY, &CancellationToken::new()) {
            Err(Error::Setting(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal(17, 1, 0), "it needs 17 max-num-seqs, and there are 16");
    assert_eq!(refusal(3, 100, 0), "it needs 300 max-num-batched-tokens, and there are 256");
    assert!(refusal(1, 1, 1 << 20).starts_with("it needs 1048577 max-model-len"));
    assert!(refusal(0, 1, 0).contains("at least one sequence"));
}
