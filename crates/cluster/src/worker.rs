//! A node's ranks that compute what another node says, step after step, until that one says how the job ended.
//!
//! It has no requests, no scheduler and no logits.

use tokio_util::sync::CancellationToken;

use super::rendezvous::Rendezvous;
use flashjob_config::EngineConfig;
use flashjob_engine::{CandleReport, End, Engine, Error, Platform};
use flashjob_event::Events;
use flashjob_model::Model;

/// Ranks that are loaded and wait for steps.
pub struct Worker {
    engine: Engine,
}

impl Worker {
    /// Finds the leader, loads this node's ranks, and reports to it.
    ///
    /// # Errors
    /// As [`Engine::load_distributed`].
    pub fn load(
        platform: &'static dyn Platform,
        model: &Model,
        config: &EngineConfig,
        rendezvous: &Rendezvous,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let engine = Engine::load_distributed(platform, model, config, rendezvous, events, cancel)?;
        Ok(Self { engine })
    }

    /// Everything that was decided while loading.
    pub fn report(&self) -> &CandleReport {
        self.engine.report()
    }

    /// Computes until the leader says its last word.
    ///
    /// # Errors
    /// Those of computing, and [`Error::Machines`] where the leader is gone without a word.
    pub fn follow(mut self, cancel: &CancellationToken) -> Result<End, Error> {
        loop {
            match self.engine.follow(cancel) {
                Ok(()) => {}
                // The leader's word is how a worker's job ends, well or not: it has no outcome of its own.
                Err(Error::Ended { end, .. }) => return Ok(end),
                Err(error) => return Err(error),
            }
        }
    }
}
