//! The record of a multipart upload, with which a later process resumes it; removed once the object is complete.
//!
//! The URL of an upload contains the PAR's token, and secrets are not written to disks. The record has the path behind the
//! token, to which a later process prepends its own. The first line is the upload, each further one a part that has arrived.
//! Nothing in it is trusted before it is compared with the file; a line that was cut off is a part that is sent again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::digest::{self, Hash};
use super::super::object;
use flashjob_config::Par;

/// Refuses symbolic links, which would lead out of the directory to a file of another owner.
const NO_LINK: i32 = libc::O_NOFOLLOW;

/// An upload, and the file that it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) object: String,
    /// Path of the upload's URL after its token.
    pub(super) behind_token: String,
    pub(super) size_bytes: u64,
    pub(super) part_bytes: u64,
}

/// A part that has arrived, by its number from 1 on.
#[derive(Serialize, Deserialize)]
struct Arrived {
    part: u64,
    md5: String,
}

/// The record of one upload, open and locked: only one process resumes it.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    path: PathBuf,
}

/// Path of the record of uploads to the object called `name`: each destination has a file of its own.
pub(super) fn place(folder: &Path, par: &Par, name: &str) -> PathBuf {
    folder.join(file_name(par, name))
}

/// Last component of [`place`].
pub(super) fn file_name(par: &Par, name: &str) -> String {
    // The `Display` of a PAR has no token, so the hash reveals none.
    let destination = digest::hash(format!("{par}{name}").as_bytes());
    let digits: String = destination.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(".upload-{digits}.jsonl")
}

impl Record {
    /// The record that an earlier process has left at `path`, if it is readable and no other process has locked it.
    pub(super) fn find(path: &Path) -> Option<(Self, Begun, BTreeMap<u64, Hash>)> {
        let mut file = OpenOptions::new().read(true).append(true).custom_flags(NO_LINK).open(path).ok()?;
        file.try_lock().ok()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        let mut lines = text.split(|byte| *byte == b'\n');
        let begun: Begun = serde_json::from_slice(lines.next()?).ok()?;
        // A line that was cut off by a crash is skipped, and its part is sent again.
        let parts = lines.filter_map(|line| {
            let arrived: Arrived = serde_json::from_slice(line).ok()?;
            Some((arrived.part, object::md5(&arrived.md5)?))
        });
        let parts = parts.collect();
        Some((Self { file, path: path.to_owned() }, begun, parts))
    }

    /// Begins the record of an upload at `path`, replacing an earlier one.
    pub(super) fn begin(path: &Path, begun: &Begun) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).custom_flags(NO_LINK).open(path)?;
        file.try_lock()?;
        let record = Self { file, path: path.to_owned() };
        // Truncated only under the lock: another process may be resuming from it.
        record.file.set_len(0)?;
        record.write(begun)?;
        Ok(record)
    }

    /// Records that a part has arrived. If that fails, the part is sent once more after a crash.
    pub(super) fn arrived(&self, part: u64, hash: Hash) {
        let _ = self.write(&Arrived { part, md5: digest::of_whole(hash) });
    }

    /// Removes the record of a finished upload.
    pub(super) fn remove(self) {
        // If the file stays, the service does not know its upload, and the next process starts anew.
        let _ = fs::remove_file(&self.path);
    }

    /// Writes one line by one call: the file is in append mode, and parts arrive in any order.
    fn write(&self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        (&self.file).write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Begun {
        Begun { object: "a".into(), behind_token: "/n/ns/b/x/u/a/id/1/".into(), size_bytes: 30, part_bytes: 10 }
    }

    #[test]
    fn what_was_noted_is_found_and_what_was_torn_off_is_not() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("record");
        assert!(Record::find(&path).is_none());
        let record = Record::begin(&path, &begun()).unwrap();
        record.arrived(3, [3; 16]);
        record.arrived(1, [1; 16]);
        assert!(Record::find(&path).is_none() && Record::begin(&path, &begun()).is_err(), "it is locked");
        drop(record);
        let whole = std::fs::read(&path).unwrap();
        let (_, found, parts) = Record::find(&path).unwrap();
        assert_eq!((found, parts), (begun(), BTreeMap::from([(1, [1; 16]), (3, [3; 16])])));
        for length in 0..whole.len() - 1 {
            std::fs::write(&path, &whole[..length]).unwrap();
            if let Some((_, found, parts)) = Record::find(&path) {
                assert_eq!(found, begun());
                assert!(parts.iter().all(|(part, hash)| *hash == [*part as u8; 16]) && !parts.contains_key(&1));
            }
        }
        let (record, ..) = Record::find(&path).unwrap();
        record.remove();
        assert!(!path.exists());
    }

    #[test]
    fn destinations_are_kept_apart() {
        let par = |bucket: &str| Par::parse(&format!("https://host/p/s3cr3t/n/ns/b/{bucket}/o/")).unwrap();
        let of = |bucket: &str, name: &str| place(Path::new("/x"), &par(bucket), name);
        assert_eq!(of("a", "b"), of("a", "b"));
        assert!(of("a", "b") != of("a", "c") && of("a", "b") != of("b", "b"));
        let other_token = Par::parse("https://host/p/renewed/n/ns/b/a/o/").unwrap();
        assert_eq!(of("a", "b"), place(Path::new("/x"), &other_token, "b"), "an upload goes on under a renewed PAR");
    }
}
