//! Whole jobs of a build with feature `cuda`, on a stand-in for NVIDIA's libraries (`scripts/test-cuda`).

mod acceptance;
mod failures;
mod session;
mod trace;
