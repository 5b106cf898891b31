//! Files that a person writes, such as blueprints: small, or they are something else.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// A blueprint with a hundred variables has some 20 kB.
const LARGEST_BYTES: u64 = 1 << 20;

/// The content of the file at `path`.
///
/// # Errors
/// As the system says, and where it is larger than such a file is.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than the limit tells a longer file from one of exactly that length, and a device without an end is no
    // trap.
    File::open(path)?.take(LARGEST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_BYTES {
        let what = format!("it has more than {LARGEST_BYTES} bytes, the limit for such a file");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}
