//! The development bucket as a program.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    development_bucket::main().await
}
