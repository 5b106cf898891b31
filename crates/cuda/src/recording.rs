//! Nodes of a step while it is recorded: what is queued and does not become one is missing from each replay, and nothing else would
//! say so.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUstreamCaptureStatus, cuGraphGetNodes, cuStreamGetCaptureInfo_v3,
};
use candle_core::{Result, bail};

use super::gpu::Gpu;

/// Kind of a call that queues work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queued {
    /// A launch of one kernel: one node of a recording.
    Kernel,
    /// A call of a library, which launches as many kernels as it likes: one node or more.
    Library,
}

/// Tells whether a stream is being recorded.
#[derive(Default)]
pub(super) struct Recording(AtomicBool);

impl Recording {
    /// Notes that a recording has begun or ended.
    pub(super) fn set(&self, is_on: bool) {
        self.0.store(is_on, Ordering::Relaxed);
    }
}

impl Gpu {
    /// Makes `call`, which queues `what` on the stream; while a step is recorded, counts the nodes that come of it.
    ///
    /// # Errors
    /// That of `call`, and a recording without what was queued.
    pub(super) fn queue(&self, what: &str, kind: Queued, call: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.recording.0.load(Ordering::Relaxed) {
            return call();
        }
        let stream = self.stream();
        let before = recorded_nodes(&stream)?;
        call()?;
        match (kind, recorded_nodes(&stream)?.saturating_sub(before)) {
            (Queued::Kernel, 1) | (Queued::Library, 1..) => Ok(()),
            (_, added) => bail!("{what} was queued, and {added} nodes of it are in the CUDA graph"),
        }
    }
}

/// Nodes of what is being recorded on `stream` so far.
fn recorded_nodes(stream: &CudaStream) -> Result<usize> {
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let (mut graph, mut count) = (null_mut(), 0);
    // SAFETY: the stream is alive, what is written to lives, and what is null is not asked for.
    let asked = unsafe {
        cuStreamGetCaptureInfo_v3(
            stream.cu_stream(),
            &raw mut status,
            null_mut(),
            &raw mut graph,
            null_mut(),
            null_mut(),
            null_mut(),
        )
    };
    asked.result().w()?;
    if status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE {
        bail!("the recording has become invalid: {status:?}");
    }
    // SAFETY: the graph is the stream's while that is recorded; without room for nodes their number is all that is written.
    unsafe { cuGraphGetNodes(graph, null_mut(), &raw mut count) }.result().w()?;
    Ok(count)
}
