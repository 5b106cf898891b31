//! All files downloaded before anything else, where FUSE is refused or a copy is asked for.
//!
//! Ranges of all objects are fetched in parallel into temporary files, which are checked, synced, given the
//! object's time and renamed: a file under its own name is complete. One that is there already with the right
//! size and time was completed by an earlier copy and is kept, so that a restarted container goes on where the
//! last one stopped.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::TryStreamExt;
use futures_util::stream;
use md5::{Digest, Md5};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::names::MARKER;
use super::source::{BlockSource, Fault, FaultKind};
use super::tree::{Inode, Tree};
use flashjob_bucket::Object;

const MARKER_TEXT: &str = "flashjob copies objects of a bucket into the directory above. Files that have the size and \
time of their object are taken for complete and not copied again.\n";

/// Length of one request, in bytes.
const PART_BYTES: u64 = 8 << 20;
/// Requests that run at a time.
const PARTS_AT_A_TIME: usize = 32;

/// Summary of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) files: usize,
    pub(super) bytes: u64,
    /// Files that an earlier copy had completed.
    pub(super) kept_files: usize,
}

/// Copies all files of `tree` into `location`, which exists.
///
/// # Errors
/// Before anything is fetched, where the files do not fit into `volume_bytes` or the disk. Whatever fails later
/// leaves only complete files.
pub(super) async fn copy(
    tree: &Tree,
    source: &dyn BlockSource,
    location: &Path,
    volume_bytes: Option<u64>,
    cancel: &CancellationToken,
) -> Result<Copied, Error> {
    let too_large = |needed_bytes, limit_bytes, limit| Error::TooLarge {
        location: location.to_owned(),
        needed_bytes,
        limit_bytes,
        limit,
    };
    if let Some(limit_bytes) = volume_bytes.filter(|&limit_bytes| tree.file_bytes() > limit_bytes) {
        return Err(too_large(tree.file_bytes(), limit_bytes, "volume_size_in_gbs"));
    }
    let partial = Partial::make(location)?;
    let (missing, kept_files) = missing_files(tree, location)?;
    // Listed lengths are claims of the server: their sum may overflow.
    let lengths = missing.iter().filter_map(|&inode| tree.attributes(inode)).map(|file| file.size_bytes);
    let bytes = lengths.fold(0, u64::saturating_add);
    let free_bytes = free_bytes(location)?;
    if bytes > free_bytes {
        return Err(too_large(bytes, free_bytes, "the free space of its file system"));
    }
    let files = missing.len();
    let parts = missing.into_iter().flat_map(|inode| parts(tree, inode, location, &partial.directory));
    let work = stream::iter(parts)
        .map(|part| async move { part?.fetch(source).await })
        .buffer_unordered(PARTS_AT_A_TIME)
        .try_collect::<()>();
    tokio::select! {
        () = cancel.cancelled() => Err(Error::Cancelled),
        result = work => result.map(|()| Copied { files, bytes, kept_files }),
    }
}

/// Creates the directories of `tree`, and lists the files that are not complete; counts the complete ones.
fn missing_files(tree: &Tree, location: &Path) -> Result<(Vec<Inode>, usize), Error> {
    let (mut missing, mut kept_files) = (Vec::new(), 0);
    // Directories precede their contents in the order of inodes.
    for (inode, attributes) in tree.inodes().filter_map(|inode| Some((inode, tree.attributes(inode)?))) {
        let path = location.join(tree.path(inode).unwrap_or_default());
        let found = fs::symlink_metadata(&path).ok();
        if attributes.is_directory {
            if found.as_ref().is_some_and(|found| !found.is_dir()) {
                fs::remove_file(&path).map_err(Error::local("replace file", &path))?;
            }
            if !found.is_some_and(|found| found.is_dir()) {
                fs::create_dir(&path).map_err(Error::local("create directory", &path))?;
            }
        // The modification time is set last, so equal size and time prove completeness.
        } else if found.is_some_and(|found| {
            let same_time = attributes.modified.is_some() && found.modified().ok() == attributes.modified;
            found.is_file() && found.len() == attributes.size_bytes && same_time
        }) {
            kept_files += 1;
        } else {
            missing.push(inode);
        }
    }
    Ok((missing, kept_files))
}

fn free_bytes(location: &Path) -> Result<u64, Error> {
    let space = rustix::fs::statvfs(location)
        .map_err(|errno| Error::local("find the free space of", location)(errno.into()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// A file that is being downloaded, shared by its parts.
struct Target {
    object: Object,
    partial: PathBuf,
    path: PathBuf,
    file: File,
    /// Parts that are not downloaded yet.
    missing_parts: AtomicU64,
}

/// A byte range of one object.
struct Part {
    target: Arc<Target>,
    start: u64,
    end: u64,
}

/// The parts of a file, created lazily; the first one creates the temporary file.
fn parts(
    tree: &Tree,
    inode: Inode,
    location: &Path,
    partial: &Path,
) -> impl Iterator<Item = Result<Part, Error>> + use<> {
    let partial = partial.join(inode.number().to_string());
    let target = tree.object(inode).zip(tree.path(inode)).map(|(object, path)| {
        let file = File::options().read(true).write(true).create_new(true).open(&partial);
        let file = file.map_err(Error::local("create", &partial))?;
        // An empty file has one empty part: the last part completes a file.
        let missing_parts = AtomicU64::new(object.size_bytes.div_ceil(PART_BYTES).max(1));
        Ok(Arc::new(Target { object, partial, path: location.join(path), file, missing_parts }))
    });
    let (target, error) = match target {
        Some(Ok(target)) => (Some(target), None),
        Some(Err(error)) => (None, Some(Err(error))),
        None => (None, None),
    };
    let parts = target.into_iter().flat_map(|target| {
        let count = target.missing_parts.load(Ordering::Relaxed);
        (0..count).map(move |part| {
            let start = part * PART_BYTES;
            let end = target.object.size_bytes.min(start.saturating_add(PART_BYTES));
            Ok(Part { target: Arc::clone(&target), start, end })
        })
    });
    error.into_iter().chain(parts)
}

impl Part {
    async fn fetch(self, source: &dyn BlockSource) -> Result<(), Error> {
        let Self { target, start, end } = self;
        let failed = |fault| Error::Object { object: target.object.name.clone(), fault };
        let mut written = Ok(start);
        if start < end {
            let mut sink = |bytes: &[u8]| {
                if let Ok(position) = &mut written {
                    match target.file.write_all_at(bytes, *position) {
                        Ok(()) => *position += bytes.len() as u64,
                        Err(error) => written = Err(error),
                    }
                }
            };
            source.read(&target.object, start..end, &mut sink).await.map_err(failed)?;
        }
        let position = written.map_err(Error::local("write", &target.partial))?;
        if position != end {
            let message = format!("{} bytes came where {} were asked for", position - start, end - start);
            return Err(failed(Fault::new(FaultKind::Unreachable, message)));
        }
        // The task that completes the last part checks and renames the file. AcqRel orders the writes of all parts
        // before that.
        if target.missing_parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            let complete = tokio::task::spawn_blocking(move || target.complete());
            // Joining fails only when the runtime shuts down.
            complete.await.unwrap_or(Err(Error::Cancelled))?;
        }
        Ok(())
    }
}

impl Target {
    /// Verifies the file and renames it into place. The open file is verified, whatever its path names meanwhile.
    fn complete(&self) -> Result<(), Error> {
        if let Some(expected) = self.object.md5 {
            let found = md5_of(&self.file).map_err(Error::local("read back", &self.partial))?;
            if found != expected {
                return Err(Error::Checksum(self.object.name.clone()));
            }
        }
        self.named().map_err(Error::local("complete", &self.path))
    }

    fn named(&self) -> io::Result<()> {
        let is_own = |path: &Path| -> io::Result<bool> {
            let (own, there) = (self.file.metadata()?, fs::symlink_metadata(path)?);
            Ok((own.dev(), own.ino(), own.len()) == (there.dev(), there.ino(), self.object.size_bytes))
        };
        let another = || io::Error::other("another process has put another file in its place");
        // The modification time marks completeness: the bytes must be on disk before the file has its name.
        let modified = self.object.modified.unwrap_or_else(SystemTime::now);
        self.file.sync_data()?;
        self.file.set_times(FileTimes::new().set_modified(modified))?;
        if !is_own(&self.partial)? {
            return Err(another());
        }
        fs::rename(&self.partial, &self.path)?;
        if !is_own(&self.path)? {
            // Under this name it would be taken for a complete copy.
            fs::remove_file(&self.path)?;
            return Err(another());
        }
        Ok(())
    }
}

fn md5_of(file: &File) -> io::Result<[u8; 16]> {
    let mut hash = Md5::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(hash.finalize().into()),
            count => {
                hash.update(&buffer[..count]);
                offset += count as u64;
            }
        }
    }
}

/// The marker directory, with incomplete files in it, which are removed on drop.
struct Partial {
    directory: PathBuf,
}

impl Partial {
    fn make(location: &Path) -> Result<Self, Error> {
        let marker = location.join(MARKER);
        // A link of this name leads elsewhere, where nothing may be removed or written.
        if fs::symlink_metadata(&marker).is_ok_and(|there| !there.is_dir()) {
            fs::remove_file(&marker).map_err(Error::local("replace file", &marker))?;
        }
        let made = Self { directory: marker.join("partial") };
        // Left by a process that was killed.
        made.remove();
        fs::create_dir_all(&made.directory).map_err(Error::local("create directory", &made.directory))?;
        let text = marker.join("README");
        let written = match fs::remove_file(&text) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::create_new(&text).and_then(|mut file| file.write_all(MARKER_TEXT.as_bytes())),
        };
        written.map_err(Error::local("write", &text))?;
        Ok(made)
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot remove incomplete files");
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.remove();
    }
}
