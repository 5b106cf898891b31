//! A path, folder or pattern becomes the files of a dataset, and each of them lines of text or rows of a table.
//!
//! Files are read from first to last in bounded memory: compressed ones are decompressed as they are read, and a line that does not
//! fit is passed over. What a line means is not known here.

mod compression;
mod error;
mod find;
mod lines;
mod rows;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

pub use error::Error;
pub use find::{DatasetFile, find};
pub use lines::{Line, next_line};
pub use rows::Rows;

/// Content of a file.
pub enum Content {
    /// Lines of a text file.
    Lines(Box<dyn BufRead + Send>),
    /// Rows of a table.
    Rows(Rows),
}

/// Opens a file of a dataset. Its format is told by its first bytes.
///
/// # Errors
/// As the file system says, and a table whose description cannot be read.
pub fn open(file: &DatasetFile) -> Result<Content, Error> {
    let unreadable = |source| Error::Unreadable { path: file.path.display().to_string(), source };
    let mut opened = File::open(&file.path).map_err(unreadable)?;
    let mut first = Vec::with_capacity(4);
    opened.by_ref().take(4).read_to_end(&mut first).map_err(unreadable)?;
    if first == rows::MARK {
        return Rows::open(opened, file).map(Content::Rows);
    }
    let whole = std::io::Cursor::new(first.clone()).chain(opened);
    let text = compression::decompressed(&first, whole, file.bytes).map_err(unreadable)?;
    Ok(Content::Lines(Box::new(BufReader::with_capacity(1 << 18, text))))
}
