//! Translation of a job's settings for vLLM, and refusal of those that vLLM does not have.

use std::path::Path;

use flashjob_config::{JobConfig, Origin};

use super::protocol::Settings;

/// Keys without a counterpart: what comes of them with vLLM, and why nothing else can be had.
const WITHOUT_COUNTERPART: [(&str, &str, &str); 2] = [
    ("validate-weights", "false", "vLLM does not look at the weights that it loads"),
    ("measure-limits", "false", "vLLM does not say what its steps need, so there is nothing to hold limits against"),
];

/// The settings of `job` for vLLM.
pub fn of<'a>(job: &JobConfig, model: &'a Path, tokenizer: &'a Path) -> Settings<'a> {
    let engine = &job.engine;
    Settings {
        model,
        tokenizer,
        device: job.device,
        dtype: engine.dtype,
        tensor_parallel_size: engine.tensor_parallel_size.map(usize::from),
        max_model_len: engine.max_model_len.map(usize::from),
        // The default stays vLLM's own: there it is a share of all memory, not of the free one.
        gpu_memory_utilization: given(job, "gpu-memory-utilization").then_some(engine.memory_utilization),
        kv_cache_memory_bytes: engine.kv_cache_memory_bytes,
        max_num_seqs: engine.max_num_seqs.map(usize::from),
        max_num_batched_tokens: engine.max_num_batched_tokens.map(usize::from),
        enable_prefix_caching: engine.prefix_caching,
        enforce_eager: engine.enforce_eager,
        // Which sizes there are depends on vLLM's attention.
        block_size: given(job, "block-size").then(|| engine.block_tokens.get()),
        threads: engine.threads.map(usize::from),
        seed: job.workload.seed,
    }
}

/// A sentence on everything that was asked for and that vLLM cannot do, if there is anything.
pub fn refused(job: &JobConfig) -> Option<String> {
    let asked = |key: &str, value: &str| {
        job.settings
            .iter()
            // A default is no request of the user, so that vLLM may do otherwise.
            .any(|setting| setting.key == key && setting.origin != Origin::Default && setting.value != value)
    };
    let refused = WITHOUT_COUNTERPART.iter().filter(|(key, value, _)| asked(key, value));
    let refused =
        refused.map(|(key, value, why)| format!("{key} has no counterpart in vLLM: {why}; set it to {value}"));
    let instruction_set = job
        .engine
        .instruction_set
        .map(|_| "FLASHJOB_ISA has no counterpart in vLLM: its kernels are chosen by itself; leave it out".to_owned());
    let reasons: Vec<String> = refused.chain(instruction_set).collect();
    (!reasons.is_empty()).then(|| format!("{}, or use backend=candle", reasons.join("; ")))
}

fn given(job: &JobConfig, key: &str) -> bool {
    job.settings.iter().any(|setting| setting.key == key && setting.origin != Origin::Default)
}
