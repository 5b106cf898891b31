//! Operations of the decoder besides products with weights and attention: one operation a file.
//!
//! Each is a candle in-place operation on the tensor that it changes most; what else it needs, it borrows. Nothing is
//! allocated. On a CPU they call [`flashjob_cpu`]; the shapes that those demand are the decoder's to keep.

pub mod access;
mod add_rms_norm;
mod embed;
mod gated_activation;
mod gather_rows;
mod norm_heads;
mod rope_and_cache;
mod softcap;

pub use add_rms_norm::AddRmsNorm;
pub use embed::Embed;
pub use gated_activation::Gated;
pub use gather_rows::GatherRows;
pub use norm_heads::NormHeads;
pub use rope_and_cache::RopeAndCache;
pub use softcap::Softcap;
