//! Models from outside.

mod model;

use flashjob_test_support as support;
