//! Files beside a model's weights, read whole where they are as small as such files are.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::Error;

/// A configuration, and whatever else is JSON beside it, but for the tokenizer: real ones are below 2 MiB. Values take up to sixteen
/// times their text.
pub(super) const LARGEST_JSON_BYTES: u64 = 4 << 20;

/// A `tokenizer.json`: that of Gemma 3 has 33 MB.
pub(super) const LARGEST_TOKENIZER_BYTES: u64 = 64 << 20;

/// A chat template: real ones are below 100 kB.
pub(super) const LARGEST_TEMPLATE_BYTES: u64 = 1 << 20;

/// An index of weights: some 90,000 tensors have 9 MB.
pub(super) const LARGEST_INDEX_BYTES: u64 = 32 << 20;

/// The file at `path`, which is `what`, of at most `limit` bytes.
///
/// # Errors
/// [`Error::Read`], and [`Error::Malformed`] where it is larger.
pub(super) fn read(path: &Path, what: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::read(path, what, source);
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut bytes = Vec::with_capacity(size.min(limit) as usize);
    // One more than there may be: a size is only a claim.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        let bytes = size.max(bytes.len() as u64);
        return Err(Error::malformed(path, format!("it has {bytes} bytes, and {limit} are the limit for {what}")));
    }
    Ok(bytes)
}

/// The same, unless there is none.
pub(super) fn read_if_there(path: &Path, what: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    match read(path, what, limit) {
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}
