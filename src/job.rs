//! The phases in order, signals, and the exit code: the one room that knows all others.

use std::process::ExitCode;

/// Runs the process.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
