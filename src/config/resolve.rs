//! What all sources said → a [`JobConfig`], or everything that is wrong with it.

use std::path::PathBuf;

use super::error::ConfigError;
use super::keys::Raw;
use super::output::{self, Output};
use super::resolver::Resolver;
use super::setting::Setting;
use super::{
    BackendKind, Dataset, DeviceChoice, EngineConfig, JobConfig, ModelPath, OutputStorage, Tracking, Workload, engine,
    input, parsing, storage, tracking, watching, workload,
};

/// Everything that could be resolved, and all that could not.
#[derive(Debug)]
pub(super) struct Resolved {
    pub job: Option<JobConfig>,
    pub settings: Vec<Setting>,
    pub errors: Vec<ConfigError>,
}

/// What `publish` needs.
#[derive(Debug)]
pub(super) struct Destination {
    pub tracking: Option<Tracking>,
    pub output: Option<OutputStorage>,
}

/// Decides all of `raw`.
pub(super) fn job(mut resolver: Resolver, raw: &Raw) -> Resolved {
    let job = assemble(&mut resolver, raw);
    let settings = resolver.settings();
    let errors = resolver.errors;
    let job = job.filter(|_| errors.is_empty()).map(|job| JobConfig { settings: settings.clone(), ..job });
    Resolved { job, settings, errors }
}

/// Decides only where results go.
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

/// Reads everything before it gives up on anything, so that all mistakes are noted.
fn assemble(resolver: &mut Resolver, raw: &Raw) -> Option<JobConfig> {
    let backend: Option<BackendKind> = resolver.choose(&raw.backend);
    let device: Option<DeviceChoice> = resolver.choose(&raw.device);
    let model = resolver.read(&raw.model, parsing::path, |path| path.display().to_string());
    let tokenizer = resolver.read_open(&raw.tokenizer, parsing::path, |path| path.display().to_string());
    let inputs = input::resolve(resolver, raw);
    let output = output::resolve(resolver, raw);
    let mount = storage::resolve(resolver, raw);
    let workload = workload::resolve(resolver, raw);
    let sampling = workload::resolve_sampling(resolver, raw);
    let engine = engine::resolve(resolver, raw);
    let tracking = tracking::resolve(resolver, raw);
    let telemetry = watching::resolve(resolver, raw);
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
    if let (Some(workload), Some(engine)) = (&workload, &engine) {
        check_lengths(resolver, workload, engine);
    }
    if let (Some(device), Some(engine), Some(Some(gpus))) = (device, &engine, gpus) {
        check_ranks(resolver, device, engine, gpus);
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
        sampling: sampling?,
        engine: engine?,
        tracking: tracking?,
        telemetry: telemetry?,
        price_per_hour: price_per_hour?,
        settings: Vec::new(),
    })
}

/// `results-dir`, by default where the platform collects results, if it does.
fn results_dir(resolver: &mut Resolver, raw: &Raw, output: Option<&Output>) -> Option<PathBuf> {
    match (output.and_then(|output| output.collected.clone()), &raw.output_object_storage.given) {
        (Some(collected), Some(given)) if raw.results_dir.given.is_none() => {
            resolver.note(&raw.results_dir, collected.display().to_string(), given.origin.clone());
            Some(collected)
        }
        _ => resolver.read(&raw.results_dir, parsing::path, |path| path.display().to_string()),
    }
}

/// The longest request must fit the longest sequence, where both are known before the model is.
fn check_lengths(resolver: &mut Resolver, workload: &Workload, engine: &EngineConfig) {
    let Some(longest) = engine.max_model_len else { return };
    let output_len = workload.output_len;
    match workload.dataset {
        Dataset::Random => {
            let input_len = workload.input_len;
            let sum = input_len.get() + output_len.get();
            if sum > longest.get() {
                resolver.errors.push(ConfigError::Together(format!(
                    "input-len {input_len} + output-len {output_len} = {sum} is above max-model-len {longest}; lower one of \
                     the two or raise max-model-len"
                )));
            }
        }
        Dataset::Jsonl(_) if output_len >= longest => resolver.errors.push(ConfigError::Together(format!(
            "output-len {output_len} leaves no room for a prompt in max-model-len {longest}; lower the one or raise the other"
        ))),
        Dataset::Jsonl(_) => {}
    }
}

/// No more ranks than GPUs were given to the container.
fn check_ranks(resolver: &mut Resolver, device: DeviceChoice, engine: &EngineConfig, gpus: u64) {
    let Some(ranks) = engine.tensor_parallel_size else { return };
    // A blueprint for a machine without GPUs says 0, and then ranks are threads.
    if device != DeviceChoice::Cpu && gpus > 0 && ranks.get() as u64 > gpus {
        resolver.errors.push(ConfigError::Together(format!(
            "tensor-parallel-size is {ranks}, above recipe-nvidia-gpu-count, which is {gpus}; each rank needs a GPU of its own"
        )));
    }
}
