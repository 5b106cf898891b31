//! CPU kernels on plain slices: packed matrix products, paged attention, and the fused elementwise steps.
//!
//! Chosen at run time for what the processor has. Every kernel is bitwise batch-invariant: an output row depends
//! on its own inputs only, never on what shares the call, on the thread count, or on how a prompt was chunked.
//! This room knows nothing of candle, models or scheduling. Shapes are preconditions: a caller that breaks one is
//! a bug in the caller, and each function panics with the shapes it was given.

mod activation;
mod attention;
mod cache;
mod coding;
mod exp;
mod isa;
mod limits;
mod log_probabilities;
mod logit_adjustments;
mod mask;
mod matmul;
mod memory;
mod norm;
mod packed;
mod pool;
mod rope;
mod sampling;
mod simd;
mod softcap;
mod tile;
mod token_choice;

pub use activation::{GateActivation, gated_activation};
pub use attention::{PagedAttention, paged_attention};
pub use cache::{AttentionShape, CacheLayout, CacheSlice, CacheSliceMut};
pub use isa::{Isa, capabilities};
pub use limits::{ClockAround, Limits, TooLittleMemory, measure_limits};
pub use log_probabilities::{LogprobsRow, RowDistribution, RowSummary, TokenLogprobs, row_distributions};
pub use logit_adjustments::{LogitAdjustments, Penalties, RowAdjustments, TokenEntry, adjust_logits};
pub use mask::mask_logits;
pub use matmul::matmul;
pub use memory::{LINE_BYTES, prefer_huge_pages, untouched_zeros};
pub use norm::{AddedRows, add_rms_norm, head_rms_norm};
pub use packed::{PackedMatrix, Packing, Storage, WeightSlice};
pub use pool::{Pool, cpu_quota_threads};
pub use rope::{RopeTable, rope_and_cache};
pub use sampling::{argmax, log_softmax};
pub use softcap::softcap;
pub use token_choice::{NO_TOKEN, TokenChoice, choose_tokens};
