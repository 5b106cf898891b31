//! The command that a user gave, with all that it needs. It knows nothing of texts.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap_complete::Shell;
use flashjob_config::{JobConfig, OutputStorage, Setting, Sweep, Tracking};

use super::error::ConfigError;
use super::flags::{CompareFormat, RenderFormat};

/// The command that the user gave.
#[derive(Debug)]
pub enum Command {
    /// Run the job of this configuration.
    Run(Box<JobConfig>),
    /// Run each combination of this sweep.
    Sweep(Box<Sweep>),
    /// List the combinations of this sweep.
    ListSweep(Box<Sweep>),
    /// Show the job and what is wrong with it.
    Check(Check),
    /// Compare the model's numbers where the job would run with those of the CPU in single precision.
    Verify(Box<JobConfig>),
    /// Time steps and their operations where the job would run.
    Profile(Box<Profile>),
    /// Send what could not be sent.
    Publish(Box<Publish>),
    /// Show results of several runs side by side.
    Compare(Box<Compare>),
    /// Render the page of a results directory again.
    Report {
        /// The `results-dir` of a run or a sweep.
        dir: PathBuf,
    },
    /// Turn a blueprint into a manifest.
    Render(Render),
    /// Judge a blueprint.
    Validate {
        /// Path of the blueprint.
        blueprint: PathBuf,
    },
    /// Print a completion script.
    Completions(Shell),
}

/// The outcome of `flashjob check`, as far as text alone can tell.
#[derive(Debug)]
pub struct Check {
    /// The job, if nothing is wrong; of a sweep the first one that can run.
    pub job: Option<Box<JobConfig>>,
    /// The sweep, where one is given and nothing is wrong.
    pub sweep: Option<Sweep>,
    /// Settings that could be resolved, in the order of [`JobConfig::settings`].
    pub settings: Vec<Setting>,
    /// Everything that is wrong.
    pub errors: Vec<ConfigError>,
}

/// Arguments of `flashjob compare`.
#[derive(Debug)]
pub struct Compare {
    /// Results directories, `result.json` files, or `mlflow:EXPERIMENT[/RUN]`.
    pub runs: Vec<String>,
    /// Format of the comparison.
    pub format: CompareFormat,
    /// Least ratio of throughput, as it was written.
    pub fail_below: Option<String>,
    /// Show runs that measured something else, too.
    pub allow_different: bool,
    /// Server that holds runs of MLflow.
    pub tracking: Option<Tracking>,
}

/// Arguments of `flashjob profile`.
#[derive(Debug)]
pub struct Profile {
    /// The job whose model, device and settings are profiled.
    pub job: JobConfig,
    /// Sequences of decode steps.
    pub batch_sizes: Vec<NonZeroUsize>,
    /// Tokens that each sequence of a decode step has before it.
    pub context_len: usize,
    /// Lengths of prompts.
    pub prompt_lens: Vec<NonZeroUsize>,
    /// File that takes the profile as JSON.
    pub output: Option<PathBuf>,
}

/// Arguments of `flashjob render`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Render {
    /// The blueprint's file.
    pub blueprint: PathBuf,
    /// Format of the manifest.
    pub format: RenderFormat,
}

/// Arguments of `flashjob publish`.
#[derive(Debug)]
pub struct Publish {
    /// The `results-dir` of the run.
    pub dir: PathBuf,
    /// Destination given by the user; otherwise that in the spool. Credentials are never in the spool.
    pub tracking: Option<Tracking>,
    /// The bucket that takes results; its PAR is a secret, so the spool does not know it.
    pub output: Option<OutputStorage>,
}
