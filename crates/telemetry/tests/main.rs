//! Telemetry from outside.

mod telemetry;

use flashjob_test_support as support;
