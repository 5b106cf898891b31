//! A path that a person names: a results directory or its `result.json`.

use std::path::{Path, PathBuf};

use super::error::{Error, shown};
use super::run_result::RunResult;
use super::sweep::Sweep;

/// Content of a results directory.
#[derive(Clone, Debug)]
pub enum Stored {
    /// One run, with the path of its `result.json`.
    Run(PathBuf, Box<RunResult>),
    /// A sweep, whose runs are in directories of their own.
    Sweep(Sweep),
}

/// Reads the results directory `path`, or the `result.json` or `sweep.json` at it.
///
/// # Errors
/// A path at which there is no result, and a file that is none.
pub fn open(path: &Path) -> Result<Stored, Error> {
    let there = path.metadata().map_err(|error| Error::unreadable(path, error))?;
    if !there.is_dir() {
        return match path.file_name().is_some_and(|name| name == Sweep::FILE) {
            true => Sweep::read(path.parent().unwrap_or(Path::new(""))).map(Stored::Sweep),
            false => run(path.to_owned()),
        };
    }
    // A sweep may leave a result of its own beside the list of its runs.
    if path.join(Sweep::FILE).exists() {
        return Sweep::read(path).map(Stored::Sweep);
    }
    let file = path.join("result.json");
    match file.exists() {
        true => run(file),
        false => Err(Error::NoResult(shown(path))),
    }
}

fn run(file: PathBuf) -> Result<Stored, Error> {
    let result = RunResult::read(&file)?;
    Ok(Stored::Run(file, Box::new(result)))
}
