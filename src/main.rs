//! The image's entrypoint: everything happens in the library, and the exit code is the contract.

use std::process::ExitCode;

fn main() -> ExitCode {
    flashjob::job::main()
}
