//! Rows of a Parquet file, as JSON objects by the names of columns (<https://parquet.apache.org/docs/file-format>).

use std::fs::File;
use std::panic::AssertUnwindSafe;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use serde_json::{Map, Value};

use super::error::Error;
use super::find::DatasetFile;

/// First and last bytes of a file.
pub(super) const MARK: &[u8] = b"PAR1";

/// Rows of a file, from first to last. A group of rows is described in memory, and a page of each column is decompressed at a time.
pub struct Rows {
    rows: RowIter<'static>,
    path: String,
    is_over: bool,
}

impl Rows {
    pub(super) fn open(opened: File, file: &DatasetFile) -> Result<Self, Error> {
        let path = file.path.display().to_string();
        let opened = guarded(&path, || {
            let reader = SerializedFileReader::new(opened)?;
            // Without a projection: all columns, of which those that a request does not know are let through or refused by name.
            Ok(RowIter::from_file_into(Box::new(reader)))
        });
        Ok(Self { rows: opened?, path, is_over: false })
    }

    /// Number of rows, as the file describes itself.
    pub fn count(file: &DatasetFile) -> Result<u64, Error> {
        let path = file.path.display().to_string();
        let opened = File::open(&file.path).map_err(|source| Error::Unreadable { path: path.clone(), source })?;
        guarded(&path, || Ok(SerializedFileReader::new(opened)?.metadata().file_metadata().num_rows().max(0) as u64))
    }
}

impl Iterator for Rows {
    type Item = Result<Map<String, Value>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let Self { rows, path, is_over } = self;
        let row = guarded(path, || rows.next().transpose()).transpose()?;
        // Where a page is damaged, what follows it cannot be told apart.
        *is_over = row.is_err();
        Some(row.map(|row| match row.to_json_value() {
            Value::Object(fields) => fields,
            other => Map::from_iter([("value".to_owned(), other)]),
        }))
    }
}

/// What `read` gives; a panic of the library at a damaged file is a failure like others.
fn guarded<T>(path: &str, read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, Error> {
    let bad = |reason: String| Error::Table { path: path.to_owned(), reason };
    match std::panic::catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| bad(error.to_string())),
        Err(_) => Err(bad("its pages contradict its description".to_owned())),
    }
}
