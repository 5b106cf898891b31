//! Configuration through the built binary.

mod binary;
