//! The engine from outside.

mod allocations;
mod engine;

use flashjob_test_models as model;
