//! Support for the tests of several packages: servers started once, temporary folders, programs run from outside.

use std::path::Path;

pub mod browser;
pub mod bucket_server;
pub mod folders;
pub mod kubernetes;
pub mod manifests;
pub mod mlflow_server;
pub mod mount_table;
pub mod process;
pub mod prometheus;
pub mod real_files;
pub mod result_files;
pub mod venv;
pub mod workplace;

/// The folder of the whole project, which has `scripts`, `docs` and the fixtures.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this package lies two folders below")
}
