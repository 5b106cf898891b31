//! Names and the versions behind them: the files of a folder, and objects that a folder cannot hold.
//!
//! The folder stays the truth: a first page of a listing looks at all of it again, a read looks at its file.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::content::{Content, Version, etag_of};

/// Directory of uploads in progress, inside of the served one, so that files can be renamed into place; never listed.
const UPLOADS: &str = ".development-bucket";

/// Objects by name, in the service's order: that of the names' bytes.
pub type Index = BTreeMap<String, Arc<Version>>;

/// An object of the manifest.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    name: String,
    text: Option<String>,
    base64: Option<String>,
    size_bytes: Option<u64>,
    #[serde(default)]
    seed: u64,
}

/// A folder, the objects beside it, and what was learnt about their versions.
pub struct Store {
    folder: PathBuf,
    md5_up_to_bytes: u64,
    memory: RwLock<Index>,
    /// The folder and `memory` as the last first page saw them.
    index: RwLock<Arc<Index>>,
    md5s: Mutex<HashMap<String, [u8; 16]>>,
    /// `opc-multipart-md5` of versions that were uploaded in parts, by ETag.
    multipart_md5s: Mutex<HashMap<String, String>>,
    /// Held while a version takes its place; the last time that was given to one.
    placing: Mutex<SystemTime>,
    next_temporary: std::sync::atomic::AtomicU64,
}

impl Store {
    pub fn open(folder: PathBuf, md5_up_to_bytes: u64) -> Result<Self, String> {
        let folder = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
        if !folder.is_dir() {
            return Err(format!("{} is not a folder", folder.display()));
        }
        // Left by a process that was killed.
        let _ = fs::remove_dir_all(folder.join(UPLOADS));
        Ok(Self {
            folder,
            md5_up_to_bytes,
            memory: RwLock::default(),
            index: RwLock::default(),
            md5s: Mutex::default(),
            multipart_md5s: Mutex::default(),
            placing: Mutex::new(SystemTime::UNIX_EPOCH),
            next_temporary: Default::default(),
        })
    }

    /// Adds objects beside those of the folder, or replaces them.
    pub fn add(&self, listed: Vec<Listed>) -> Result<(), String> {
        for Listed { name, text, base64, size_bytes, seed } in listed {
            let (content, size_bytes) = match (text, base64, size_bytes) {
                (Some(text), None, None) => in_memory(text.into()),
                (None, Some(base64), None) => {
                    in_memory(STANDARD.decode(base64).map_err(|error| format!("{name}: {error}"))?.into())
                }
                (None, None, Some(size_bytes)) => (Content::Pattern { seed }, size_bytes),
                _ => return Err(format!("{name}: give one of text, base64 and size_bytes")),
            };
            let identity = match &content {
                Content::Memory(bytes) => etag_of(&[name.as_bytes(), bytes]),
                _ => etag_of(&[name.as_bytes(), &size_bytes.to_le_bytes(), &seed.to_le_bytes()]),
            };
            self.place_in_memory(name, content, size_bytes, identity);
        }
        Ok(())
    }

    /// Reads all objects there are into memory, as the versions that they are.
    pub fn keep_in_memory(&self) -> std::io::Result<()> {
        for (name, version) in self.index(true).iter() {
            let bytes = version.content.open()?.whole(version.size_bytes)?;
            let version = Version { content: Content::Memory(bytes), ..Version::clone(version) };
            write(&self.memory).insert(name.clone(), Arc::new(version));
        }
        Ok(())
    }

    /// Takes an object away, which no PAR can; false where there is none.
    pub fn remove(&self, name: &str) -> bool {
        let remembered = write(&self.memory).remove(name).is_some();
        let on_disk = self.path_of(name).is_some_and(|path| fs::remove_file(path).is_ok());
        remembered || on_disk
    }

    /// The version of `name` there is now.
    pub fn get(&self, name: &str) -> Option<Arc<Version>> {
        if let Some(version) = read(&self.memory).get(name) {
            return Some(Arc::clone(version));
        }
        let path = self.path_of(name)?;
        let metadata = fs::metadata(&path).ok().filter(Metadata::is_file)?;
        Some(Arc::new(version_of_file(name, path, &metadata)))
    }

    /// All objects. `again` looks at the folder; otherwise it is as the last look saw it.
    pub fn index(&self, again: bool) -> Arc<Index> {
        // Pages after the first see the same index: a listing is consistent even if files change.
        if !again {
            return Arc::clone(&read(&self.index));
        }
        let mut index = Index::new();
        scan(&self.folder, "", &mut index);
        index.extend(read(&self.memory).iter().map(|(name, version)| (name.clone(), Arc::clone(version))));
        let index = Arc::new(index);
        *write(&self.index) = Arc::clone(&index);
        index
    }

    /// MD5 of a version, where the service would know one. May read all of it: for blocking threads.
    pub fn md5(&self, version: &Version) -> Option<[u8; 16]> {
        if version.size_bytes > self.md5_up_to_bytes || self.multipart_md5(version).is_some() {
            return None;
        }
        if let Some(md5) = lock(&self.md5s).get(&version.etag) {
            return Some(*md5);
        }
        let md5 = version.content.open().and_then(|opened| opened.md5(version.size_bytes)).ok()?;
        lock(&self.md5s).insert(version.etag.clone(), md5);
        Some(md5)
    }

    pub fn multipart_md5(&self, version: &Version) -> Option<String> {
        lock(&self.multipart_md5s).get(&version.etag).cloned()
    }

    /// A new file for something that is being uploaded.
    pub fn temporary(&self) -> std::io::Result<(PathBuf, File)> {
        let number = self.next_temporary.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = self.folder.join(UPLOADS);
        fs::create_dir_all(&directory)?;
        let path = directory.join(number.to_string());
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok((path, file))
    }

    /// Makes the file at `temporary` the content of `name`, if `allowed` says so of the version before it.
    pub fn place<E>(
        &self,
        name: &str,
        temporary: &Path,
        md5: Option<[u8; 16]>,
        multipart_md5: Option<String>,
        allowed: impl FnOnce(Option<&Version>) -> Result<(), E>,
    ) -> Result<std::io::Result<Arc<Version>>, E> {
        let mut last = lock(&self.placing);
        if let Err(refusal) = allowed(self.get(name).as_deref()) {
            let _ = fs::remove_file(temporary);
            return Err(refusal);
        }
        // Each version gets a time of its own on disk, so that its ETag is new and survives this process.
        let modified = SystemTime::now().max(*last + Duration::from_nanos(1));
        *last = modified;
        Ok(self.place_at(name, temporary, modified).inspect(|version| {
            if let Some(md5) = md5 {
                lock(&self.md5s).insert(version.etag.clone(), md5);
            }
            if let Some(md5) = multipart_md5 {
                lock(&self.multipart_md5s).insert(version.etag.clone(), md5);
            }
        }))
    }

    fn place_at(&self, name: &str, temporary: &Path, modified: SystemTime) -> std::io::Result<Arc<Version>> {
        File::options().write(true).open(temporary)?.set_modified(modified)?;
        let on_disk = self.path_of(name).and_then(|path| {
            fs::create_dir_all(path.parent()?).ok()?;
            fs::rename(temporary, &path).ok()?;
            // An object in memory would hide the file of the same name.
            write(&self.memory).remove(name);
            Some(Arc::new(version_of_file(name, path.clone(), &fs::metadata(path).ok()?)))
        });
        if let Some(version) = on_disk {
            return Ok(version);
        }
        // A name that this file system cannot have.
        let (content, size_bytes) = in_memory(fs::read(temporary)?.into());
        fs::remove_file(temporary)?;
        let nanoseconds = since_epoch(modified).as_nanos().to_le_bytes();
        let etag = etag_of(&[name.as_bytes(), &nanoseconds]);
        Ok(self.place_in_memory(name.to_owned(), content, size_bytes, etag))
    }

    fn place_in_memory(&self, name: String, content: Content, size_bytes: u64, etag: String) -> Arc<Version> {
        let version = Arc::new(Version { content, size_bytes, etag, modified: SystemTime::now() });
        write(&self.memory).insert(name, Arc::clone(&version));
        version
    }

    /// Path of the file called `name`, if a file system can have that name.
    fn path_of(&self, name: &str) -> Option<PathBuf> {
        let fits = name.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255);
        let ours = name.split('/').next() == Some(UPLOADS);
        (fits && !ours && !name.contains('\0')).then(|| self.folder.join(name))
    }
}

fn in_memory(bytes: Bytes) -> (Content, u64) {
    let size_bytes = bytes.len() as u64;
    (Content::Memory(bytes), size_bytes)
}

/// Adds the files under `folder` to `index`. Links to files are followed, links to folders are not: those could
/// lead in circles. Names that are not UTF-8 cannot be objects.
fn scan(folder: &Path, prefix: &str, index: &mut Index) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
        if name == UPLOADS {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => scan(&entry.path(), &format!("{name}/"), index),
            _ => {
                if let Ok(metadata) = fs::metadata(entry.path())
                    && metadata.is_file()
                {
                    let version = version_of_file(&name, entry.path(), &metadata);
                    index.insert(name, Arc::new(version));
                }
            }
        }
    }
}

fn version_of_file(name: &str, path: PathBuf, metadata: &Metadata) -> Version {
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    // Inode and time in nanoseconds tell a replaced file from the earlier one of equal length.
    let etag = etag_of(&[
        name.as_bytes(),
        &metadata.len().to_le_bytes(),
        &metadata.ino().to_le_bytes(),
        &since_epoch(modified).as_nanos().to_le_bytes(),
    ]);
    Version { content: Content::File(path), size_bytes: metadata.len(), etag, modified }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

// The locks protect single collections, which are consistent after every statement: there is no invariant across them.

fn lock<T>(mutex: &Mutex<T>) -> parking_lot::MutexGuard<'_, T> {
    mutex.lock()
}

fn read<T>(lock: &RwLock<T>) -> parking_lot::RwLockReadGuard<'_, T> {
    lock.read()
}

fn write<T>(lock: &RwLock<T>) -> parking_lot::RwLockWriteGuard<'_, T> {
    lock.write()
}
