//! Reasons for which a dataset cannot be read, each as one sentence.

use std::io;

/// Reason for refusing a dataset or one of its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// As the file system says.
    #[error("`{path}` cannot be read: {source}; check the name and its rights")]
    Unreadable {
        /// File or directory.
        path: String,
        /// Reason of the system.
        source: io::Error,
    },
    /// A pattern that none can match.
    #[error("`{pattern}` is no pattern: {reason}; a pattern has `*`, `?`, `[…]` and `**`")]
    Pattern {
        /// Pattern as it was given.
        pattern: String,
        /// Reason of the parser.
        reason: &'static str,
    },
    /// Nothing has such a name.
    #[error("no file matches `{0}`; check the pattern, and that `include` lets the files through")]
    NoMatch(String),
    /// A folder without a dataset.
    #[error(
        "the folder `{0}` has no file whose name ends in .jsonl, .ndjson or .parquet, with or without .gz or .zst; name a file, or \
         a pattern that matches other names"
    )]
    NoFile(String),
    /// More files than are taken.
    #[error("`{path}` stands for more than {most} files; divide the dataset")]
    TooMany {
        /// Folder or pattern.
        path: String,
        /// Number of files that are taken at most.
        most: usize,
    },
    /// A table that cannot be read.
    #[error(
        "`{path}` is no table that can be read: {reason}; write it again, uncompressed or with Snappy, gzip or Zstandard"
    )]
    Table {
        /// Path of the file.
        path: String,
        /// The parser's reason, as a clause.
        reason: String,
    },
}
