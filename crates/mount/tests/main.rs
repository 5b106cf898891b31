//! The mount from outside.

mod hostile;
mod mount;

use flashjob_test_support as support;
