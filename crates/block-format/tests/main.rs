//! Tests of this crate's behaviour, as one binary.

mod block_format;
