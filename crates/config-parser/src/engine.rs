//! Settings of the engine from their keys.

use std::num::NonZeroUsize;

use flashjob_config::{DeviceChoice, EngineConfig, InstructionSet, Schedule};

use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// Divisor of the KV block size: the smallest page of the attention kernels.
const BLOCK_MULTIPLE: usize = 32;

/// Reads all keys of the engine, which answers a batch or measures. `None`: an error was noted.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw, is_batch: bool) -> Option<EngineConfig> {
    let show_count = |count: &NonZeroUsize| count.to_string();
    let tensor_parallel_size = resolver.read_open(&raw.tensor_parallel_size, parsing::count, show_count);
    let data_parallel_size = resolver.read_open(&raw.data_parallel_size, parsing::count, show_count);
    let max_model_len = resolver.read_open(&raw.max_model_len, parsing::count, show_count);
    let dtype = resolver.choose(&raw.dtype);
    let quantization = resolver.choose(&raw.quantization);
    let memory_utilization = resolver.read(
        &raw.gpu_memory_utilization,
        |text| parsing::number(text, "a number above 0 and at most 1", |share| share > 0.0 && share <= 1.0),
        f64::to_string,
    );
    let kv_cache = resolver.read_open(&raw.kv_cache_memory, parsing::bytes, u64::to_string);
    let max_num_seqs = resolver.read_open(&raw.max_num_seqs, parsing::count, show_count);
    let max_num_batched_tokens = resolver.read_open(&raw.max_num_batched_tokens, parsing::count, show_count);
    // A benchmark that reuses work measures less of it; a batch wants its answers.
    let prefix_caching =
        resolver.read_or(&raw.enable_prefix_caching, Some(is_batch), parsing::boolean, bool::to_string);
    let schedule: Option<Schedule> = resolver.choose(&raw.schedule);
    if let (Some(Some(false)), Some(Schedule::Prefix)) = (prefix_caching, schedule) {
        resolver.errors.push(ConfigError::Together(
            "schedule is prefix, but enable-prefix-caching is false, so that nothing would be found again; set \
             enable-prefix-caching=true, or leave schedule out"
                .to_owned(),
        ));
    }
    let enforce_eager = resolver.read(&raw.enforce_eager, parsing::boolean, bool::to_string);
    let deterministic = resolver.read(&raw.deterministic, parsing::boolean, bool::to_string);
    let block_tokens = resolver.read(
        &raw.block_size,
        |text| {
            let count = parsing::count(text).ok().filter(|count| count.get().is_multiple_of(BLOCK_MULTIPLE));
            count.ok_or_else(|| format!("it must be a multiple of {BLOCK_MULTIPLE}"))
        },
        show_count,
    );
    let threads = resolver.read_open(&raw.threads, parsing::count, show_count);
    let validate_weights = resolver.read(&raw.validate_weights, parsing::boolean, bool::to_string);
    let measure_limits = resolver.read(&raw.measure_limits, parsing::boolean, bool::to_string);
    let step_timeout = resolver.read(
        &raw.step_timeout_seconds,
        |text| match text {
            "auto" => Ok(None),
            _ => parsing::duration(text).ok().filter(|duration| !duration.is_zero()).map(Some).ok_or_else(|| {
                "it must be a duration above 0 in seconds, or with a unit such as 90s or 5m, or auto".to_owned()
            }),
        },
        |timeout| timeout.as_ref().map_or_else(|| "auto".to_owned(), parsing::shown_seconds),
    );
    let instruction_set = resolver.variable(&raw.flashjob_isa, "flashjob-isa", parsing::choice::<InstructionSet>);
    // Only where both are given: a default is chosen to fit the other one.
    if let (Some(Some(tokens)), Some(Some(sequences))) = (max_num_batched_tokens, max_num_seqs)
        && tokens < sequences
    {
        resolver.errors.push(ConfigError::Together(format!(
            "max-num-batched-tokens is {tokens}, below max-num-seqs, which is {sequences}; each sequence needs a token in \
             a step, so raise the one or lower the other"
        )));
    }
    Some(EngineConfig {
        tensor_parallel_size: tensor_parallel_size?,
        data_parallel_size: data_parallel_size?,
        max_model_len: max_model_len?,
        dtype: dtype?,
        quantization: quantization?,
        memory_utilization: memory_utilization?,
        kv_cache_memory_bytes: kv_cache?,
        max_num_seqs: max_num_seqs?,
        max_num_batched_tokens: max_num_batched_tokens?,
        prefix_caching: prefix_caching?.unwrap_or(is_batch),
        schedule: schedule?,
        enforce_eager: enforce_eager?,
        deterministic: deterministic?,
        block_tokens: block_tokens?,
        threads: threads?,
        validate_weights: validate_weights?,
        measure_limits: measure_limits?,
        step_timeout: step_timeout?,
        instruction_set: instruction_set?,
    })
}

/// Checks that there are no more ranks than GPUs in the container.
pub(super) fn check_ranks(
    resolver: &mut Resolver,
    device: DeviceChoice,
    engine: &EngineConfig,
    gpus: u64,
    num_nodes: usize,
) {
    let (ranks, engines) = (engine.tensor_parallel_size, engine.data_parallel_size);
    let sizes = [ranks, engines].map(|size| size.map_or(1, NonZeroUsize::get));
    let needed = sizes[0].div_ceil(num_nodes).saturating_mul(sizes[1]);
    // A blueprint for nodes without GPUs has 0; ranks are threads then.
    if device == DeviceChoice::Cpu || gpus == 0 || needed as u64 <= gpus {
        return;
    }
    let on_each = if num_nodes > 1 { format!(" on {num_nodes} nodes") } else { String::new() };
    let asked = match (ranks, engines) {
        (Some(ranks), Some(engines)) => {
            format!("data-parallel-size is {engines} and tensor-parallel-size {ranks}, together {needed} ranks")
        }
        (None, Some(engines)) => format!("data-parallel-size is {engines}"),
        (Some(ranks), None) => format!("tensor-parallel-size is {ranks}{on_each}"),
        (None, None) => return,
    };
    resolver.errors.push(ConfigError::Together(format!(
        "{asked}, above recipe-nvidia-gpu-count, which is {gpus}; each rank needs a GPU of its own"
    )));
}
