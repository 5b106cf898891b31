//! Steps that were recorded as CUDA graphs: one launch in the place of hundreds.
//!
//! A size of step is computed as usual the first time, which loads and warms whatever it needs; the second time it is recorded
//! as it is queued, and replayed from then on. What a step is about lies where it always lies, so a graph holds for every step of
//! its size. What is recorded is not known here.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::gpu::Gpu;
use flashjob_engine::{Error, ReplaySize};

/// What decides which kernels a step launches, and on how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphKey {
    /// The size of the step.
    pub size: ReplaySize,
    /// Keys are attended to in parts, whose number and width follow from the size.
    pub splits_keys: bool,
}

/// The graphs of one rank.
#[derive(Default)]
pub struct Graphs {
    /// `None` where such a step has been seen once.
    seen: HashMap<GraphKey, Option<Graph>>,
}

struct Graph(CudaGraph);

// SAFETY: a graph may be used from any thread, by one at a time; it is its rank's alone.
unsafe impl Send for Graph {}

impl Graphs {
    /// Computes a step, of which `queue` queues everything on `gpu`'s stream.
    ///
    /// # Errors
    /// Those of `queue`, and [`Error::Compute`] of recording or replaying.
    pub fn compute(
        &mut self,
        gpu: &Gpu,
        key: GraphKey,
        queue: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let failed = Error::compute("replay a step; enforce-eager=true does without");
        match self.seen.get(&key) {
            Some(Some(Graph(graph))) => graph.launch().w().map_err(failed),
            Some(None) => {
                let graph = record(gpu, queue)?;
                graph.0.launch().w().map_err(failed)?;
                self.seen.insert(key, Some(graph));
                Ok(())
            }
            // The first step of a size is not recorded: libraries allocate and load when they are first used, which a
            // recording forbids.
            None => {
                queue()?;
                self.seen.insert(key, None);
                Ok(())
            }
        }
    }
}

/// Records what `queue` queues; nothing of it is computed.
fn record(gpu: &Gpu, queue: &mut dyn FnMut() -> Result<(), Error>) -> Result<Graph, Error> {
    let stream = gpu.stream();
    let failed = Error::compute("record a step as a CUDA graph; enforce-eager=true does without");
    // Other ranks' threads may allocate meanwhile.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w().map_err(&failed)?;
    gpu.recording.set(true);
    let queued = queue();
    gpu.recording.set(false);
    // A recording that was begun must be ended, also where it came to nothing.
    let graph = Arc::clone(&stream).end_capture(CUgraphInstantiate_flags(0)).w();
    queued?;
    match graph.map_err(&failed)? {
        Some(graph) => Ok(Graph(graph)),
        None => Err(failed(candle_core::Error::msg("the driver recorded nothing"))),
    }
}
