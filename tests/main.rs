//! Whole jobs by behaviour: the built binary, real servers, real files. What needs no more than one package is tested beside it.
//!
//! One binary, so that servers start once and the linker runs once.

mod support;

mod config;
mod container;
#[cfg(feature = "cuda")]
mod cuda;
mod deploy;
mod fuzzing;
mod hostile;
mod job;
mod kubernetes;
mod layout;
mod mount;
mod scripts;

use flashjob_test_engine as engine;
use flashjob_test_models as model;
