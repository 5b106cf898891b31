//! A job, fully decided.

use std::path::PathBuf;

use super::{
    BackendKind, DeviceChoice, EngineArguments, EngineConfig, InputStorage, ModelPath, MountConfig, NodesConfig,
    OutputStorage, Redaction, Replica, Sampling, Secret, Setting, TelemetryConfig, Tracking, Workload,
};

/// A job, fully decided. Values that depend on the machine or the model stay `Option`: `None` means
/// "decide when you know it", and what was decided is stated in the log and the result.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Engine that runs; never replaced silently.
    pub backend: BackendKind,
    /// Device of the engine.
    pub device: DeviceChoice,
    /// The model's directory or GGUF file.
    pub model: ModelPath,
    /// The tokenizer's directory or file; the model's unless given.
    pub tokenizer: ModelPath,
    /// Object storage to make visible as files before anything is loaded.
    pub inputs: Vec<InputStorage>,
    /// Object storage that takes the results at the end.
    pub output: Option<OutputStorage>,
    /// Settings of mounts.
    pub mount: MountConfig,
    /// Prompts and outputs.
    pub workload: Workload,
    /// Replica of this process.
    pub replica: Replica,
    /// Node of this process among several that share the model; `None` for a single one.
    pub nodes: Option<NodesConfig>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Settings of the engine.
    pub engine: EngineConfig,
    /// Arguments of vLLM's own, for `backend=vllm`.
    pub vllm_arguments: EngineArguments,
    /// Arguments of SGLang's own, for `backend=sglang`.
    pub sglang_arguments: EngineArguments,
    /// Tracking server; `None` keeps results local.
    pub tracking: Option<Tracking>,
    /// Settings of metrics and logs.
    pub telemetry: TelemetryConfig,
    /// Directory for results before they are sent. Default `results`.
    pub results_dir: PathBuf,
    /// Price of one node an hour, in any currency.
    pub price_per_hour: Option<f64>,
    /// Every key with its value and its source, in a stable order and without secrets: for people, for MLflow's
    /// parameters and for `result.json`.
    pub settings: Vec<Setting>,
}

impl JobConfig {
    /// Number of nodes that share the model.
    pub fn num_nodes(&self) -> usize {
        self.nodes.as_ref().map_or(1, |nodes| nodes.num_nodes.get())
    }

    /// Returns whether this node is a worker: prompts and results are with the leader.
    pub fn is_worker(&self) -> bool {
        self.nodes.as_ref().is_some_and(NodesConfig::is_worker)
    }

    /// Last name of the model's path, by which people know it.
    pub fn model_name(&self) -> String {
        self.model.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Secrets, which must never be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        // Of a PAR the token alone: bucket and object are named in messages.
        let pars = self.inputs.iter().filter_map(|input| input.par.as_ref()).chain(self.output.iter().map(|o| &o.par));
        let mut secrets: Vec<Secret> = pars.map(|par| par.token().clone()).collect();
        secrets.extend(self.tracking.iter().flat_map(|tracking| tracking.credentials.secrets()));
        secrets
    }

    /// `sentence` without these texts: for files, MLflow and standard output, where no log redacts it.
    pub fn hide(&self, sentence: &str) -> String {
        // Made for each sentence: they are few, and a redaction that was kept could miss a secret.
        Redaction::new(&self.secrets()).apply(sentence).into_owned()
    }
}
