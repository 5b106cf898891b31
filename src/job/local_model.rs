//! The model of commands that run no job: on this disk, for our own engine, on this node alone.

use std::path::Path;

use flashjob_config::JobConfig;
use flashjob_engine::Platform;
use flashjob_model::Model;

use super::Exit;
use super::locate::locate;
use crate::backend::{self, Found};

/// A model with its headers read, and the devices that the job would compute on.
pub struct LocalModel {
    /// Kind of devices.
    pub placement: &'static dyn Platform,
    /// Weights that are yet to be loaded.
    pub model: Model,
}

impl LocalModel {
    /// Opens the model of `job` for `command`.
    ///
    /// # Errors
    /// The exit code and a sentence: another engine, several nodes, or files that are not there.
    pub fn open(job: &JobConfig, command: &str) -> Result<Self, (Exit, String)> {
        let Found::Candle(placement) = backend::check(job).map_err(|reason| (Exit::Configuration, reason))? else {
            return Err((Exit::Configuration, format!("{command} runs our own engine; set backend=candle")));
        };
        if job.num_nodes() > 1 {
            return Err((Exit::Configuration, format!("{command} runs on one node; leave the LWS variables out")));
        }
        let path = locate(&job.model, &job.inputs, "model", &Path::exists).map_err(|clause| {
            (Exit::Model, format!("{clause}; {command} mounts nothing, so name what is on this disk"))
        })?;
        let model = Model::open(&path).map_err(|error| (Exit::Model, error.to_string()))?;
        Ok(Self { placement, model })
    }
}
