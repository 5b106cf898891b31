//! Comparisons from outside: results in, tables out.

mod compare;

use flashjob_test_support::result_files;
