//! All sources → a [`JobConfig`], or a list of all mistakes.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::choice::Choice;
use super::error::ConfigError;
use super::keys::Raw;
use super::origin::Origin;
use super::output::{self, Output};
use super::resolver::Resolver;
use super::setting::Setting;
use super::{
    BackendKind, DeviceChoice, EngineConfig, InstructionSet, JobConfig, MetricsLinger, ModelPath, MountConfig,
    OutputStorage, Sampling, TelemetryConfig, Tracking, input, machines, parsing, prompts, replica, tracking,
};

/// Default port of metrics.
const METRICS_PORT: u16 = 8000;

/// Divisor of the KV block size: the smallest page of the attention kernels.
const BLOCK_MULTIPLE: usize = 32;

const BYTES_PER_MB: u64 = 1_000_000;

/// Settings that could be resolved, and the errors of others.
#[derive(Debug)]
pub(super) struct Resolved {
    pub job: Option<JobConfig>,
    pub settings: Vec<Setting>,
    pub errors: Vec<ConfigError>,
}

/// Destination of `publish`.
#[derive(Debug)]
pub(super) struct Destination {
    pub tracking: Option<Tracking>,
    pub output: Option<OutputStorage>,
}

/// Resolves the whole configuration.
pub(super) fn job(mut resolver: Resolver, raw: &Raw) -> Resolved {
    let job = assemble(&mut resolver, raw);
    let settings = resolver.settings();
    let errors = resolver.errors;
    // A job exists only if nothing is wrong: half a configuration must not reach a bucket.
    let job = job.filter(|_| errors.is_empty()).map(|job| JobConfig { settings: settings.clone(), ..job });
    Resolved { job, settings, errors }
}

/// Resolves only the destination of results.
pub(super) fn destination(mut resolver: Resolver, raw: &Raw) -> Result<Destination, Vec<ConfigError>> {
    let tracking = tracking::resolve(&mut resolver, raw);
    let output = output::resolve(&mut resolver, raw);
    match (tracking, output) {
        (Some(tracking), Some(output)) if resolver.errors.is_empty() => {
            Ok(Destination { tracking, output: output.storage })
        }
        _ => Err(resolver.errors),
    }
}

/// Reads all keys before it gives up, so that all mistakes are reported.
// No `?` until the end: a missing value must not hide the mistakes after it.
fn assemble(resolver: &mut Resolver, raw: &Raw) -> Option<JobConfig> {
    let backend: Option<BackendKind> = resolver.choose(&raw.backend);
    let device: Option<DeviceChoice> = resolver.choose(&raw.device);
    let model = resolver.read(&raw.model, parsing::path, |path| path.display().to_string());
    let tokenizer = resolver.read_open(&raw.tokenizer, parsing::path, |path| path.display().to_string());
    let inputs = input::resolve(resolver, raw);
    let output = output::resolve(resolver, raw);
    let mount = mount(resolver, raw);
    let machines = machines::resolve(resolver, raw);
    let in_a_group = !matches!(machines, Some(None));
    let replica = replica::resolve(resolver, raw, in_a_group);
    let workload = prompts::resolve(resolver, raw, replica.as_ref().map(|replica| replica.share));
    let sampling = sampling(resolver, raw);
    let engine = engine(resolver, raw);
    let tracking = tracking::resolve(resolver, raw);
    let telemetry = telemetry(resolver, raw);
    let results_dir = results_dir(resolver, raw, output.as_ref());
    let price_per_hour = resolver.read_open(
        &raw.price_per_hour,
        |text| parsing::number(text, "a number above 0", |price| price > 0.0),
        f64::to_string,
    );
    let gpus = resolver.read_open(
        &raw.recipe_nvidia_gpu_count,
        |text| parsing::whole(text, 0, parsing::LARGEST_COUNT),
        u64::to_string,
    );
    // Checks across keys run only on values that are valid by themselves.
    if let (Some(workload), Some(engine)) = (&workload, &engine) {
        prompts::check_lengths(resolver, raw, workload, engine);
    }
    if let (Some(replica), Some(workload), Some(tracking)) = (&replica, &workload, &tracking) {
        replica::check(resolver, raw, replica, workload, tracking.as_ref());
    }
    if let (Some(Some(machines)), Some(backend), Some(engine), Some(replica)) = (&machines, backend, &engine, &replica)
    {
        machines::check(resolver, raw, machines, backend, engine, replica);
    }
    if let (Some(device), Some(engine), Some(Some(gpus)), Some(machines)) = (device, &engine, gpus, &machines) {
        let count = machines.as_ref().map_or(1, |machines| machines.count.get());
        check_ranks(resolver, device, engine, gpus, count);
    }
    let model = ModelPath(model?);
    Some(JobConfig {
        backend: backend?,
        device: device?,
        tokenizer: tokenizer?.map_or_else(|| model.clone(), ModelPath),
        model,
        inputs: inputs?,
        results_dir: results_dir?,
        output: output?.storage,
        mount: mount?,
        workload: workload?,
        replica: replica?,
        machines: machines?,
        sampling: sampling?,
        engine: engine?,
        tracking: tracking?,
        telemetry: telemetry?,
        price_per_hour: price_per_hour?,
        settings: Vec::new(),
    })
}

/// Resolves `results-dir`; by default the directory from which the platform collects results, if it does.
fn results_dir(resolver: &mut Resolver, raw: &Raw, output: Option<&Output>) -> Option<PathBuf> {
    match (output.and_then(|output| output.collected.clone()), &raw.output_object_storage.given) {
        // The platform collects results from there; a path that was given wins all the same.
        (Some(collected), Some(given)) if raw.results_dir.given.is_none() => {
            resolver.note(&raw.results_dir, collected.display().to_string(), given.origin.clone());
            Some(collected)
        }
        _ => resolver.read(&raw.results_dir, parsing::path, |path| path.display().to_string()),
    }
}

/// Upper bound of descriptor numbers (`fs.nr_open`).
const MOST_DESCRIPTORS: u64 = 1 << 20;

fn mount(resolver: &mut Resolver, raw: &Raw) -> Option<MountConfig> {
    let mode = resolver.choose(&raw.mount_mode);
    let memory = resolver.read_open(
        &raw.mount_memory_mb,
        |text| Ok(parsing::whole(text, 1, parsing::LARGEST_COUNT)? * BYTES_PER_MB),
        |bytes| (bytes / BYTES_PER_MB).to_string(),
    );
    let cache = resolver.read_open(&raw.cache_dir, parsing::path, |path| path.display().to_string());
    let descriptor = resolver.read_open(
        &raw.mount_descriptor,
        // 0 to 2 are the standard streams.
        |text| Ok(parsing::whole(text, 3, MOST_DESCRIPTORS)? as i32),
        i32::to_string,
    );
    let storage_timeout = resolver.read(&raw.storage_timeout, parsing::duration, seconds);
    Some(MountConfig {
        mode: mode?,
        memory_bytes: memory?,
        cache_directory: cache?,
        descriptor: descriptor?,
        storage_timeout: storage_timeout?,
    })
}

fn sampling(resolver: &mut Resolver, raw: &Raw) -> Option<Sampling> {
    // Checked as `f32`: a value that rounds to infinity or zero is not the value that was meant.
    let temperature = resolver.read(
        &raw.temperature,
        |text| {
            let fits = |number: f64| (number as f32).is_finite() && (number == 0.0 || number as f32 > 0.0);
            parsing::number(text, "a number of at least 0", fits).map(|number| number as f32)
        },
        f32::to_string,
    );
    let top_p = resolver.read(
        &raw.top_p,
        |text| {
            let fits = |share: f64| share as f32 > 0.0 && share <= 1.0;
            parsing::number(text, "a number above 0 and at most 1", fits).map(|number| number as f32)
        },
        f32::to_string,
    );
    let top_k = resolver.read(
        &raw.top_k,
        |text| match text {
            // Both are spellings of vLLM for "all tokens".
            "0" | "-1" => Ok(None),
            _ => parsing::count(text).map(Some).map_err(|clause| format!("{clause}, or 0 or -1 for all")),
        },
        |top_k| top_k.map_or_else(|| "0".to_owned(), |count| count.to_string()),
    );
    Some(Sampling { temperature: temperature?, top_p: top_p?, top_k: top_k? })
}

fn engine(resolver: &mut Resolver, raw: &Raw) -> Option<EngineConfig> {
    let show_count = |count: &NonZeroUsize| count.to_string();
    let tensor_parallel_size = resolver.read_open(&raw.tensor_parallel_size, parsing::count, show_count);
    let max_model_len = resolver.read_open(&raw.max_model_len, parsing::count, show_count);
    let dtype = resolver.choose(&raw.dtype);
    let memory_utilization = resolver.read(
        &raw.gpu_memory_utilization,
        |text| parsing::number(text, "a number above 0 and at most 1", |share| share > 0.0 && share <= 1.0),
        f64::to_string,
    );
    let kv_cache = resolver.read_open(&raw.kv_cache_memory, parsing::bytes, u64::to_string);
    let max_num_seqs = resolver.read_open(&raw.max_num_seqs, parsing::count, show_count);
    let max_num_batched_tokens = resolver.read_open(&raw.max_num_batched_tokens, parsing::count, show_count);
    let prefix_caching = resolver.read(&raw.enable_prefix_caching, parsing::boolean, bool::to_string);
    let enforce_eager = resolver.read(&raw.enforce_eager, parsing::boolean, bool::to_string);
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
    let instruction_set = replica::variable(resolver, &raw.flashjob_isa, "flashjob-isa", InstructionSet::parse);
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
        max_model_len: max_model_len?,
        dtype: dtype?,
        memory_utilization: memory_utilization?,
        kv_cache_memory_bytes: kv_cache?,
        max_num_seqs: max_num_seqs?,
        max_num_batched_tokens: max_num_batched_tokens?,
        prefix_caching: prefix_caching?,
        enforce_eager: enforce_eager?,
        block_tokens: block_tokens?,
        threads: threads?,
        validate_weights: validate_weights?,
        measure_limits: measure_limits?,
        instruction_set: instruction_set?,
    })
}

fn telemetry(resolver: &mut Resolver, raw: &Raw) -> Option<TelemetryConfig> {
    let parse_port = |text: &str| {
        let port = parsing::whole(text, 0, u64::from(u16::MAX))?;
        u16::try_from(port).map_err(|_| "it is too large".to_owned())
    };
    // The platform forwards exactly this port, so that it is the better default.
    let blueprint_port = resolver.read_open(&raw.recipe_container_port, parse_port, u16::to_string);
    let port = match (&raw.metrics_port.given, blueprint_port) {
        (None, blueprint_port) => blueprint_port.map(|port| {
            let port = port.unwrap_or(METRICS_PORT);
            let origin = raw.recipe_container_port.given.as_ref().map(|given| given.origin.clone());
            resolver.note(&raw.metrics_port, port.to_string(), origin.unwrap_or(Origin::Default));
            port
        }),
        (Some(_), _) => resolver.read(&raw.metrics_port, parse_port, u16::to_string),
    };
    let address = resolver.read(
        &raw.metrics_address,
        |text| text.parse::<IpAddr>().map_err(|_| "it must be an IP address such as 0.0.0.0 or ::".to_owned()),
        IpAddr::to_string,
    );
    let metrics_linger = resolver.read(
        &raw.metrics_linger_seconds,
        |text| match text {
            "auto" => Ok(MetricsLinger::Auto),
            _ => parsing::duration(text).map(MetricsLinger::For).map_err(|reason| format!("{reason}, or auto")),
        },
        |linger| match linger {
            MetricsLinger::Auto => "auto".to_owned(),
            MetricsLinger::For(duration) => seconds(duration),
        },
    );
    let log_format = resolver.choose(&raw.log_format);
    let termination_message = resolver.read(
        &raw.termination_message_path,
        |text| match text {
            "none" => Ok(None),
            _ => parsing::path(text).map(Some),
        },
        |path: &Option<PathBuf>| path.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string()),
    );
    Some(TelemetryConfig {
        metrics_address: SocketAddr::new(address?, port?),
        metrics_linger: metrics_linger?,
        log_format: log_format?,
        termination_message: termination_message?,
    })
}

/// A duration in seconds, as it is given.
fn seconds(duration: &Duration) -> String {
    duration.as_secs_f64().to_string()
}

/// Checks that there are no more ranks than GPUs in the container.
fn check_ranks(resolver: &mut Resolver, device: DeviceChoice, engine: &EngineConfig, gpus: u64, machines: usize) {
    let Some(ranks) = engine.tensor_parallel_size else { return };
    // A blueprint for a machine without GPUs has 0; ranks are threads then.
    if device != DeviceChoice::Cpu && gpus > 0 && ranks.get().div_ceil(machines) as u64 > gpus {
        let on_each = if machines > 1 { format!(" on {machines} machines") } else { String::new() };
        resolver.errors.push(ConfigError::Together(format!(
            "tensor-parallel-size is {ranks}{on_each}, above recipe-nvidia-gpu-count, which is {gpus}; each rank needs a GPU of its own"
        )));
    }
}
