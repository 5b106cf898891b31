//! Requests, and the tokens and blocks of each step.
//!
//! Requests wait in a `queue`, in the order of `request_order`. `scheduler` takes them from there when `admission` says, owns their
//! sequences and fills a step with their tokens, `blocks` is the memory that it divides among them, `sequence_adjustments` what options
//! change of logits, and `limits` says how large a step may be. Nothing here knows tensors or
//! devices.

pub mod admission;
pub mod blocks;
pub mod constraint;
pub mod limits;
pub mod queue;
pub mod request;
pub mod request_order;
pub mod scheduler;
pub mod scheduler_output;
pub mod sequence;
pub mod sequence_adjustments;
pub mod sequences;
pub mod stop_texts;
