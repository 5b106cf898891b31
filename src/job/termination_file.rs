//! The file of the termination message, which Kubernetes reads when the container has ended.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Writes `message` to the file at `path`, if there is such a file. A message that cannot be written is no failure of the job.
pub fn write(path: Option<&Path>, message: &str) {
    if let Some(path) = path
        && let Err(error) = replace(path, message)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "the termination message could not be written");
    }
}

/// Replaces the content of the file at `path`.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link could lead to any file of this user, and opening a pipe would wait for its reader.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = File::options().write(true).custom_flags(flags.bits() as i32).open(path);
    let mut file = open.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => io::Error::other("it is a symbolic link, which is not followed"),
        _ => error,
    })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}
