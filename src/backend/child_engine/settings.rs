//! Translation of a job's settings for an engine, and refusal of those that it does not have.

use std::path::Path;

use flashjob_config::{EngineArguments, JobConfig, Origin};

use super::Product;
use super::protocol::Settings;

/// The settings of `job` for the driver.
pub fn of<'a>(job: &JobConfig, arguments: &'a EngineArguments, model: &'a Path, tokenizer: &'a Path) -> Settings<'a> {
    let engine = &job.engine;
    Settings {
        model,
        tokenizer,
        device: job.device,
        dtype: engine.dtype,
        tensor_parallel_size: engine.tensor_parallel_size.map(usize::from),
        data_parallel_size: engine.data_parallel_size.map(usize::from),
        max_model_len: engine.max_model_len.map(usize::from),
        // The default stays the engine's own: there it is a share of all memory, or of another part of it.
        gpu_memory_utilization: given(job, "gpu-memory-utilization").then_some(engine.memory_utilization),
        kv_cache_memory_bytes: engine.kv_cache_memory_bytes,
        max_num_seqs: engine.max_num_seqs.map(usize::from),
        max_num_batched_tokens: engine.max_num_batched_tokens.map(usize::from),
        enable_prefix_caching: engine.prefix_caching,
        enforce_eager: engine.enforce_eager,
        // Which sizes there are depends on the engine's attention.
        block_size: given(job, "block-size").then(|| engine.block_tokens.get()),
        threads: engine.threads.map(usize::from),
        seed: job.workload.seed,
        arguments,
    }
}

/// A sentence on everything that was asked for and that `product` cannot do, if there is anything.
pub fn refused(product: &Product, job: &JobConfig) -> Option<String> {
    let name = product.name;
    let keys = product.without_counterpart.iter().filter(|(key, value, _)| asked_otherwise(job, key, value));
    let keys = keys.map(|(key, value, why)| match *value {
        "" => format!("{key} has no counterpart in {name}: {why}"),
        value => format!("{key} has no counterpart in {name}: {why}; set it to {value}"),
    });
    let instruction_set = job
        .engine
        .instruction_set
        .map(|_| format!("FLASHJOB_ISA has no counterpart in {name}: its kernels are chosen by itself; leave it out"));
    let arguments = (product.arguments)(job).names().filter_map(|argument| {
        // A part of a setting is decided where the whole is.
        let base = argument.split('.').next().unwrap_or(argument);
        let (_, remedy) = product.decided.iter().find(|(decided, _)| *decided == base)?;
        Some(format!("{} holds `{base}`, which flashjob decides: {remedy}", product.arguments_key))
    });
    let reasons: Vec<String> = keys.chain(instruction_set).chain(arguments).collect();
    (!reasons.is_empty()).then(|| format!("{}, or use backend=candle", reasons.join("; ")))
}

/// `key` was given with another value. A default is no request of the user, so that the engine may do otherwise.
fn asked_otherwise(job: &JobConfig, key: &str, value: &str) -> bool {
    job.settings.iter().any(|setting| setting.key == key && setting.origin != Origin::Default && setting.value != value)
}

fn given(job: &JobConfig, key: &str) -> bool {
    job.settings.iter().any(|setting| setting.key == key && setting.origin != Origin::Default)
}
