//! Mounts through the built binary.

mod ladder;
mod signals;
