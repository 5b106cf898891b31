//! The engine from outside: tiny models with seeded weights, real requests, all facts observed.

mod allocations;
mod constraints;
mod data_parallel;
mod golden;
mod invariance;
mod not_finite;
mod options;
mod prefix_caching;
mod quantized;
mod ranks;
mod refusals;
mod schedule;
mod serving;
mod timing;

use flashjob_config::EngineConfig;
use flashjob_engine::Engine;
use flashjob_event::Events;
pub(crate) use flashjob_test_engine::{Facts, GREEDY, config, open, request, serve};
use tokio_util::sync::CancellationToken;

fn load(name: &str, config: &EngineConfig) -> Engine {
    Engine::load(&open(name), config, &Events::default(), &CancellationToken::new()).unwrap()
}
