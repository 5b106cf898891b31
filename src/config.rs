//! Text in, [`JobConfig`] out, checked once.
//!
//! Flags, environment variables and a blueprint file fill one raw struct; one function turns it into
//! [`JobConfig`] or into every reason why it cannot. Nothing behind this room sees those strings again.
//! It knows nothing of I/O beyond the text it is handed, and nothing of tokio.

mod par;
mod secret;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

pub use par::{Par, ParError, ParTarget};
pub use secret::Secret;

/// A job, fully decided. Values that depend on the machine or the model stay `Option`: `None` means
/// "decide when you know it", and what was decided is stated in the log and the result.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Which engine runs, and nothing else: never a silent substitute.
    pub backend: BackendKind,
    /// Where it runs.
    pub device: DeviceChoice,
    /// The model's directory or GGUF file.
    pub model: ModelPath,
    /// The tokenizer's directory or file; the model's unless given.
    pub tokenizer: ModelPath,
    /// Object storage to make visible as files before anything is loaded.
    pub inputs: Vec<InputStorage>,
    /// Object storage that takes the results at the end.
    pub output: Option<OutputStorage>,
    /// How inputs become files.
    pub mount: MountConfig,
    /// What is run.
    pub workload: Workload,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// How the engine is set up.
    pub engine: EngineConfig,
    /// Where the run is recorded; `None` keeps results local.
    pub tracking: Option<Tracking>,
    /// How the job is watched.
    pub telemetry: TelemetryConfig,
    /// Where results are written before anything is sent. Default `results`.
    pub results_dir: PathBuf,
}

/// The engines a job can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Ours.
    Candle,
    /// vLLM as a child process, in images that have it.
    Vllm,
    /// SGLang as a child process, in images that have it.
    Sglang,
}

/// Where the candle backend runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// CUDA where this build and this machine have it, the CPU otherwise; the log says which and why.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA or an error.
    Cuda,
}

/// A model as it was named: joined to a mount location unless absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPath(pub PathBuf);

/// One entry of `input_object_storage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputStorage {
    /// What to mount. `None`: the platform has put files at `location` already.
    pub par: Option<Par>,
    /// Absolute path of the directory at which objects appear.
    pub location: PathBuf,
    /// Upper bound on local disk used for this input.
    pub volume_bytes: Option<u64>,
    /// Object name prefixes to show; empty shows all.
    pub include: Vec<String>,
    /// Object name prefixes to hide, also from `include`.
    pub exclude: Vec<String>,
}

/// `output_object_storage`: where `results-dir` is uploaded at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputStorage {
    /// A writable bucket or prefix PAR.
    pub par: Par,
    /// Put before each object name, may be empty.
    pub prefix: String,
}

/// How inputs become files.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// FUSE, copy, or whichever works.
    pub mode: MountMode,
    /// Budget of the block map; `None`: a share of the memory limit.
    pub memory_bytes: Option<u64>,
    /// How long an unreachable bucket is retried before a read fails. Default 5 minutes.
    pub storage_timeout: Duration,
}

/// `mount-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MountMode {
    /// FUSE, and where the system refuses it, a copy (the log says why).
    Auto,
    /// FUSE or an error.
    Fuse,
    /// A parallel download.
    Copy,
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where prompts come from.
    pub dataset: Dataset,
    /// Tokens in each random prompt.
    pub input_len: NonZeroUsize,
    /// Tokens to generate for each request.
    pub output_len: NonZeroUsize,
    /// Requests; `None` is all of the dataset (64 random ones).
    pub num_prompts: Option<NonZeroUsize>,
    /// Requests before the measured region. Default 1.
    pub warmup: usize,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// Generate exactly `output_len` tokens, whatever the model says. Default true for random prompts,
    /// false for real ones.
    pub ignore_eos: bool,
}

/// `dataset`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dataset {
    /// Distinct sequences of random tokens.
    Random,
    /// A file of JSON lines, each `{"prompt": "…"}`.
    Jsonl(PathBuf),
}

/// How tokens are chosen. Temperature 0 is greedy.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// ≥ 0; 0 takes the likeliest token.
    pub temperature: f32,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep the `k` likeliest; `None` keeps all.
    pub top_k: Option<NonZeroUsize>,
}

/// How the engine is set up; names are vLLM's where vLLM has the setting.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Ranks; `None`: all visible GPUs, 1 on the CPU.
    pub tensor_parallel_size: Option<NonZeroUsize>,
    /// Longest prompt plus output; `None`: the model's.
    pub max_model_len: Option<NonZeroUsize>,
    /// Number format of weights and KV cache.
    pub dtype: DtypeChoice,
    /// Share of free device memory that weights, activations and KV cache may take. Default 0.9.
    pub memory_utilization: f64,
    /// Bytes for the KV cache; `None`: what `memory_utilization` leaves.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Sequences in one step at most; `None`: best for the device.
    pub max_num_seqs: Option<NonZeroUsize>,
    /// Tokens in one step at most; `None`: best for the device.
    pub max_num_batched_tokens: Option<NonZeroUsize>,
    /// Tokens in a KV block, a multiple of 32. Default 32.
    pub block_tokens: NonZeroUsize,
    /// CPU threads; `None`: the container's CPU quota.
    pub threads: Option<NonZeroUsize>,
    /// Look for NaN and infinities in the weights while loading.
    pub validate_weights: bool,
}

/// `dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// The checkpoint's.
    Auto,
    /// `float16`, `half`.
    Float16,
    /// `bfloat16`.
    Bfloat16,
    /// `float32`, `float`.
    Float32,
}

/// An MLflow tracking server and what to write there.
#[derive(Clone, Debug)]
pub struct Tracking {
    /// Base URL with scheme, without trailing slash and without user info.
    pub uri: url::Url,
    /// Experiment, made when missing. Default `flashjob`.
    pub experiment: String,
    /// Run name; `None` lets a name be made from model, device and time.
    pub run_name: Option<String>,
    /// How to log in.
    pub credentials: Credentials,
    /// `MLFLOW_TRACKING_INSECURE_TLS`.
    pub insecure_tls: bool,
    /// `MLFLOW_TRACKING_SERVER_CERT_PATH`.
    pub server_cert_path: Option<PathBuf>,
    /// `MLFLOW_WORKSPACE`: sent as `X-MLFLOW-WORKSPACE`.
    pub workspace: Option<String>,
}

/// How to log in at the tracking server. Basic beats token, as in MLflow's own client.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// None needed.
    Anonymous,
    /// `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// `MLFLOW_TRACKING_TOKEN`.
    Bearer(Secret),
}

/// How the job is watched.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Where `/metrics`, `/healthz` and `/readyz` listen. Default `0.0.0.0:8000`.
    pub metrics_address: SocketAddr,
    /// How long metrics stay up at the end for a last scrape; it ends early after one.
    pub metrics_linger: Duration,
    /// Log lines.
    pub log_format: LogFormat,
    /// Where the result or the error is left for Kubernetes, in at most 4 KiB; `None` writes none.
    pub termination_message: Option<PathBuf>,
}

/// `log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
}
