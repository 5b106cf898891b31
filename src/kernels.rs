//! CPU kernels on plain slices: packed matrix products, paged attention, and the fused elementwise steps.
//!
//! Chosen at run time for what the processor has. Every kernel is bitwise batch-invariant: an output row depends
//! on its own inputs only, never on what shares the call, on the thread count, or on how a prompt was chunked.
//! This room knows nothing of candle, models or scheduling.
