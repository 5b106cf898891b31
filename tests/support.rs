//! The support of all packages' tests, and the binary that only this package's tests have.

pub use flashjob_test_support::*;

use process::Process;

/// The built `flashjob`.
pub trait Flashjob {
    /// About to run, with no arguments.
    fn flashjob() -> Self;
}

impl Flashjob for Process {
    fn flashjob() -> Self {
        Self::new(env!("CARGO_BIN_EXE_flashjob"))
    }
}
