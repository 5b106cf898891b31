//! The record of a run from outside.

mod mlflow;

use flashjob_test_support as support;
