//! The tiny models of `tests/golden`, as they are and with one thing changed, and where real weights lie.

pub mod altered;
pub mod golden;
pub mod smollm2;
