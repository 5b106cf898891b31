//! Results from outside: files of runs, and files that are none.

mod results;

use flashjob_test_support::result_files;
