//! All sources → a [`JobConfig`], or a list of all mistakes.

use std::path::PathBuf;

use flashjob_config::{BackendKind, DeviceChoice, JobConfig, ModelPath, OutputStorage, Setting, Tracking};

use super::error::ConfigError;
use super::keys::Raw;
use super::resolver::Resolver;
use super::storage::output::{self, Output};
use super::storage::{input, mount};
use super::{engine, engine_arguments, nodes, parsing, replica, sampling, telemetry, tracking, workload};

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
    let mount = mount::resolve(resolver, raw);
    let nodes = nodes::resolve(resolver, raw);
    let in_a_group = !matches!(nodes, Some(None));
    let replica = replica::resolve(resolver, raw, in_a_group);
    let workload = workload::resolve(resolver, raw, replica.as_ref().map(|replica| replica.share));
    let sampling = sampling::resolve(resolver, raw);
    let is_batch = workload.as_ref().is_some_and(|workload| workload.batch.is_some());
    let engine = engine::resolve(resolver, raw, is_batch);
    let vllm_arguments = resolver.read_open(&raw.vllm_args, engine_arguments::parse, ToString::to_string);
    let sglang_arguments = resolver.read_open(&raw.sglang_args, engine_arguments::parse, ToString::to_string);
    let tracking = tracking::resolve(resolver, raw);
    let telemetry = telemetry::resolve(resolver, raw);
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
        workload::check_lengths(resolver, raw, workload, engine);
    }
    if let (Some(replica), Some(workload), Some(tracking)) = (&replica, &workload, &tracking) {
        replica::check(resolver, raw, replica, workload, tracking.as_ref());
    }
    if let (Some(Some(nodes)), Some(backend), Some(engine), Some(replica)) = (&nodes, backend, &engine, &replica) {
        nodes::check(resolver, raw, nodes, backend, engine, replica);
    }
    if let (Some(device), Some(engine), Some(Some(gpus)), Some(nodes)) = (device, &engine, gpus, &nodes) {
        let num_nodes = nodes.as_ref().map_or(1, |nodes| nodes.num_nodes.get());
        engine::check_ranks(resolver, device, engine, gpus, num_nodes);
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
        nodes: nodes?,
        sampling: sampling?,
        engine: engine?,
        vllm_arguments: vllm_arguments?.unwrap_or_default(),
        sglang_arguments: sglang_arguments?.unwrap_or_default(),
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
