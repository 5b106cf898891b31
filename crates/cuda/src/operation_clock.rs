//! Times of operations by events of a GPU's stream (CUDA Driver API, "Event Management"), each half a microsecond exact.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaEvent;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;

use super::gpu::Gpu;
use flashjob_engine::{Operation, OperationTime};

/// Bytes that a copy of [`HOLDING_COPIES`] takes and leaves.
const HOLDING_BYTES: usize = 32 << 20;

/// Copies that keep a GPU busy while the host begins to queue what is timed, some 20 microseconds each at 3 TB/s. Without them the
/// time of a short kernel would be that of its launch. An estimate that no GPU has confirmed.
const HOLDING_COPIES: usize = 128;

/// Clock of the operations that one rank queues; stopped until it is started.
#[derive(Default)]
pub struct OperationClock(Mutex<Option<Vec<Timed>>>);

/// Events around one operation.
struct Timed {
    operation: Operation,
    begin: CudaEvent,
    end: Option<CudaEvent>,
}

impl OperationClock {
    /// Times operations from now on, once `gpu` has been kept busy for a while.
    ///
    /// # Errors
    /// The driver's own error, too little memory among others.
    pub fn start(&self, gpu: &Gpu) -> Result<()> {
        let stream = gpu.stream();
        let from = stream.alloc_zeros::<u8>(HOLDING_BYTES).w()?;
        let mut to = stream.alloc_zeros::<u8>(HOLDING_BYTES).w()?;
        for _ in 0..HOLDING_COPIES {
            stream.memcpy_dtod(&from, &mut to).w()?;
        }
        *self.lock() = Some(Vec::new());
        Ok(())
    }

    /// Queues an event before `operation`.
    ///
    /// # Errors
    /// The driver's own error.
    pub fn begin(&self, gpu: &Gpu, operation: Operation) -> Result<()> {
        if let Some(timed) = self.lock().as_mut() {
            timed.push(Timed { operation, begin: event(gpu)?, end: None });
        }
        Ok(())
    }

    /// Queues an event behind the operation that was begun last.
    ///
    /// # Errors
    /// The driver's own error.
    pub fn end(&self, gpu: &Gpu) -> Result<()> {
        if let Some(last) = self.lock().as_mut().and_then(|timed| timed.last_mut()) {
            last.end = Some(event(gpu)?);
        }
        Ok(())
    }

    /// Stops, waits, and gives the times since the start, in order.
    ///
    /// # Errors
    /// The failure of what was queued.
    pub fn stop(&self) -> Result<Vec<OperationTime>> {
        let timed = self.lock().take().unwrap_or_default();
        let time = |Timed { operation, begin, end }: Timed| {
            let milliseconds = end.map(|end| begin.elapsed_ms(&end)).transpose().w()?;
            Ok(milliseconds.map(|ms| OperationTime { operation, seconds: f64::from(ms) / 1e3 }))
        };
        timed.into_iter().filter_map(|timed| time(timed).transpose()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Timed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event that has been queued.
fn event(gpu: &Gpu) -> Result<CudaEvent> {
    gpu.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w()
}
