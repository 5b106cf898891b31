//! The client against the development bucket server.

mod bucket;

use flashjob_test_support as support;
