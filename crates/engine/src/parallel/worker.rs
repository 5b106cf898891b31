//! A node's ranks that compute what another node says, step after step, until that one says how the job ended.
//!
//! It has no requests, no scheduler and no logits.

use tokio_util::sync::CancellationToken;

use super::frame::End;
use super::rendezvous::Rendezvous;
use crate::engine::Engine;
use crate::error::Error;
use crate::report::EngineFacts;
use crate::schedule::limits::EngineLimits;
use crate::start::loader::Loading;
use crate::start::platform::Platform;
use flashjob_config::EngineConfig;
use flashjob_event::Events;
use flashjob_model::Model;

/// Ranks that are loaded and wait for steps.
pub struct Worker {
    engine: Engine,
    /// Bounds of the steps that the leader may ask for.
    limits: EngineLimits,
}

impl Worker {
    /// Finds the leader, loads this node's ranks, and reports to it.
    ///
    /// # Errors
    /// As [`Engine::load_leading`].
    pub fn load(
        platform: Platform,
        model: &Model,
        config: &EngineConfig,
        rendezvous: &Rendezvous,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let loading = Loading { platform, model, config, rendezvous: Some(rendezvous), events, cancel };
        let (engine, limits) = loading.load()?;
        Ok(Self { engine, limits })
    }

    /// Everything that was decided while loading.
    pub fn facts(&self) -> &EngineFacts {
        self.engine.facts()
    }

    /// Computes until the leader says its last word.
    ///
    /// # Errors
    /// Of computing, and where the leader is gone without one.
    pub fn follow(mut self, cancel: &CancellationToken) -> Result<End, Error> {
        let Engine { executor, batch, .. } = &mut self.engine;
        loop {
            match executor.follow(batch, &self.limits, cancel) {
                Ok(()) => {}
                // The leader's word is how a worker's job ends, well or not: it has no outcome of its own.
                Err(Error::Ended { end, .. }) => return Ok(end),
                Err(error) => return Err(error),
            }
        }
    }
}
