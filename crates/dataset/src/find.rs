//! The files that a path stands for: itself, all below a folder, or those that match a pattern.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use glob::MatchOptions;

use super::error::Error;

/// Number of files that are taken at most.
const MOST_FILES: usize = 100_000;

/// Folders within each other at most.
const MOST_DEPTH: usize = 16;

/// Endings of names that are taken from a folder.
const ENDINGS: [&str; 3] = [".jsonl", ".ndjson", ".parquet"];

/// Endings that may follow.
const COMPRESSED: [&str; 2] = [".gz", ".zst"];

/// A file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetFile {
    /// Path under which it is opened.
    pub path: PathBuf,
    /// Name in messages and results: the path below the folder that holds all of the dataset.
    pub name: String,
    /// Size as it is stored.
    pub bytes: u64,
}

impl DatasetFile {
    /// Returns whether the name says that the file is compressed: its size says little of the number of lines then.
    pub fn is_compressed(&self) -> bool {
        COMPRESSED.iter().any(|ending| self.name.ends_with(ending))
    }
}

/// The files that `path` stands for, in the order of their paths. A folder stands for all datasets in it and below; hidden files, and those
/// whose names begin with `_`, are notes of the program that wrote it.
///
/// # Errors
/// No such file, a pattern that is none, or too many files.
pub fn find(path: &Path) -> Result<Vec<DatasetFile>, Error> {
    let shown = || path.display().to_string();
    let mut paths = Vec::new();
    // A file of this name goes before a pattern that reads like it.
    let base = match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            walk(path, path, 0, &mut paths)?;
            if paths.is_empty() {
                return Err(Error::NoFile(shown()));
            }
            path.to_owned()
        }
        // Opening it would wait for somebody who writes, and it could not be read a second time.
        Ok(there) if there.file_type().is_fifo() => {
            let source = io::Error::other("it is a pipe, and a dataset has to be a file");
            return Err(Error::Unreadable { path: shown(), source });
        }
        Ok(_) => {
            paths.push(path.to_owned());
            path.parent().unwrap_or(Path::new("")).to_owned()
        }
        Err(_) if is_pattern(path) => {
            matching(path, &mut paths)?;
            if paths.is_empty() {
                return Err(Error::NoMatch(shown()));
            }
            // The part of a pattern that is no pattern.
            path.iter().take_while(|part| !is_pattern(Path::new(part))).collect()
        }
        Err(source) => return Err(Error::Unreadable { path: shown(), source }),
    };
    paths.sort();
    let described = paths.into_iter().map(|path| {
        let found =
            fs::metadata(&path).map_err(|source| Error::Unreadable { path: path.display().to_string(), source })?;
        let name = path.strip_prefix(&base).unwrap_or(&path).display().to_string();
        Ok(DatasetFile { bytes: found.len(), name, path })
    });
    described.collect()
}

/// Tells that `path` has a sign of a pattern.
fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

fn matching(pattern: &Path, paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    let text = pattern.to_string_lossy();
    let options =
        MatchOptions { require_literal_leading_dot: true, require_literal_separator: true, ..MatchOptions::new() };
    let found = glob::glob_with(&text, options)
        .map_err(|error| Error::Pattern { pattern: text.clone().into_owned(), reason: error.msg })?;
    for path in found {
        let path =
            path.map_err(|error| Error::Unreadable { path: error.path().display().to_string(), source: error.into() })?;
        if path.is_file() {
            take(pattern, path, paths)?;
        }
    }
    Ok(())
}

fn walk(root: &Path, folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    let unreadable = |source| Error::Unreadable { path: folder.display().to_string(), source };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // `_SUCCESS` and the like, which Spark and others leave.
        if name.starts_with(['.', '_']) {
            continue;
        }
        // A link to a folder above would never end, but for the depth.
        match path.is_dir() {
            true if depth < MOST_DEPTH => walk(root, &path, depth + 1, paths)?,
            false if is_dataset(&name) => take(root, path, paths)?,
            _ => {}
        }
    }
    Ok(())
}

fn is_dataset(name: &str) -> bool {
    let plain = COMPRESSED.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    ENDINGS.iter().any(|ending| plain.ends_with(ending))
}

fn take(from: &Path, path: PathBuf, paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    if paths.len() == MOST_FILES {
        return Err(Error::TooMany { path: from.display().to_string(), most: MOST_FILES });
    }
    paths.push(path);
    Ok(())
}
