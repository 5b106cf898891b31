//! Blueprints from outside.

mod deploy;

use flashjob_test_support as support;
