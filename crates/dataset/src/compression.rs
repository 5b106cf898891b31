//! Decompression as a file is read: gzip and Zstandard, told by their first bytes, of any number of members or frames.

use std::io::{self, BufReader, Read};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTANDARD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Logarithm of the largest window that Zstandard may ask for: 128 MiB, what its own program takes by default.
const WINDOW_LOG: u32 = 27;

/// Bytes that each stored byte may become, beyond [`ALWAYS_BYTES`]. Text rarely becomes a hundred times as large.
const LARGEST_RATIO: u64 = 1000;

const ALWAYS_BYTES: u64 = 1 << 30;

/// The text of a file that begins with `first` and has `bytes` as it is stored.
pub(super) fn decompressed(
    first: &[u8],
    file: impl Read + Send + 'static,
    bytes: u64,
) -> io::Result<Box<dyn Read + Send>> {
    let most = ALWAYS_BYTES + bytes.saturating_mul(LARGEST_RATIO);
    Ok(if first.starts_with(&GZIP) {
        Box::new(Limited { inner: flate2::bufread::MultiGzDecoder::new(BufReader::new(file)), left: most })
    } else if first.starts_with(&ZSTANDARD) {
        // A larger window is the whole file in memory.
        let mut decoder = zstd::stream::read::Decoder::new(file)?;
        decoder.window_log_max(WINDOW_LOG)?;
        Box::new(Limited { inner: decoder, left: most })
    } else {
        Box::new(file)
    })
}

/// A reader that fails where a file becomes larger than any dataset.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("decompressed it has more than {LARGEST_RATIO} times its size, as no dataset has"),
            )
        })?;
        Ok(read)
    }
}
