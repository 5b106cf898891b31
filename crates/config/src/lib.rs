//! The types of a decided configuration: [`JobConfig`] and its parts, secrets, and the redaction of texts.
//!
//! `flashjob-config-parser` makes them from what a user gives. This crate knows nothing of flags, variables and files, and its
//! types hold no text that is still to be read.

mod choice;
mod engine;
mod engine_arguments;
mod job_config;
mod nodes;
mod origin;
mod par;
mod redaction;
mod replica;
mod sampling;
mod sampling_options;
mod secret;
mod setting;
mod spellings;
mod storage;
mod sweep;
mod telemetry;
mod tracking;
mod workload;

pub use choice::Choice;
pub use engine::{
    BackendKind, DeviceChoice, DtypeChoice, EngineConfig, InstructionSet, ModelPath, Quantization, Schedule,
};
pub use engine_arguments::EngineArguments;
pub use job_config::JobConfig;
pub use nodes::NodesConfig;
pub use origin::Origin;
pub use par::{Par, ParError, ParTarget};
pub use redaction::{escape_controls, hide_pars, holds_par, redact, shortened};
pub use replica::{Replica, Share};
pub use sampling::Sampling;
pub use sampling_options::SamplingOptions;
pub use secret::Secret;
pub use setting::Setting;
pub use spellings::Redaction;
pub use storage::{InputStorage, MountConfig, MountMode, OutputStorage};
pub use sweep::{Combination, PlannedJob, Refusal, Reload, Sweep, SweptValue};
pub use telemetry::{LogFormat, MetricsLinger, TelemetryConfig};
pub use tracking::{Credentials, Tracking};
pub use workload::{
    ApplyChatTemplate, Batch, Columns, Dataset, OnBadInput, OutputOrder, Repeats, ReplyLength, SharedPrefixes, WarmUp,
    Workload,
};
