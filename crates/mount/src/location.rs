//! The directory at which files appear: whether it can be used, and making it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::names::MARKER;
use flashjob_config::InputStorage;

/// All reasons why an input's location cannot be used, one sentence each. Changes nothing and uses no network.
pub fn preflight(input: &InputStorage) -> Vec<String> {
    let location = &input.location;
    let shown = location.display();
    if !location.is_absolute() {
        return vec![format!("mount location `{shown}` is relative; write its absolute path")];
    }
    // A stale mount is cleared when the job starts; what is below it cannot be seen until then. Its attributes may be
    // cached, so the directory is opened.
    if fs::read_dir(location).is_err_and(|error| super::stale::is_stale_error(&error)) {
        return Vec::new();
    }
    let is_directory = match fs::metadata(location) {
        Ok(metadata) => Some(metadata.is_dir()),
        Err(error) if error.kind() == ErrorKind::NotFound && !is_link(location) => None,
        Err(error) => return vec![format!("mount location `{shown}` cannot be used: {error}")],
    };
    match (is_directory, &input.par) {
        (Some(false), _) => vec![format!("mount location `{shown}` is not a directory; name another path")],
        (None, None) => vec![format!(
            "mount location `{shown}` does not exist and no PAR is given; give a PAR, or put the files there first"
        )],
        (Some(true), None) => fs::read_dir(location)
            .err()
            .map(|error| format!("mount location `{shown}` cannot be read: {error}"))
            .into_iter()
            .collect(),
        (None, Some(_)) => missing(location),
        (Some(true), Some(_)) => occupied(location),
    }
}

/// Faults of a location that must be created.
fn missing(location: &Path) -> Vec<String> {
    let shown = location.display();
    // The nearest existing ancestor receives the new directories.
    let Some(above) = location.ancestors().skip(1).find(|above| above.exists() || is_link(above)) else {
        return vec![format!("no directory above mount location `{shown}` exists")];
    };
    let fault = if !above.is_dir() {
        "is not a directory; name another path"
    } else if !is_writable(above) {
        "is not writable; create the location beforehand or run as a user who may"
    } else {
        return Vec::new();
    };
    vec![format!("mount location `{shown}` cannot be created: `{}` {fault}", above.display())]
}

/// Faults of a directory that exists.
fn occupied(location: &Path) -> Vec<String> {
    let shown = location.display();
    let entries: Vec<_> = match fs::read_dir(location) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name()).collect(),
        Err(error) => return vec![format!("mount location `{shown}` cannot be read: {error}")],
    };
    // A copy of an earlier run is resumed.
    if entries.is_empty() || entries.iter().any(|name| name == MARKER) {
        return Vec::new();
    }
    let fault = if super::stale::is_mounted(location) {
        "has something mounted already; unmount it or name another path"
    } else {
        "is not empty; name an empty or a new directory"
    };
    vec![format!("mount location `{shown}` {fault}")]
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

fn is_writable(directory: &Path) -> bool {
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// Directories that were created for a mount; the empty ones are removed on drop.
#[derive(Debug, Default)]
pub struct MadeDirectories {
    /// Created directories, outermost first.
    made: Vec<PathBuf>,
}

impl MadeDirectories {
    /// Makes `location` and whatever is missing above it.
    ///
    /// # Errors
    /// The system's refusal; what was made before it is removed again.
    pub fn make(location: &Path) -> Result<Self, Error> {
        let mut made = Self::default();
        let missing: Vec<&Path> = location.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.into_iter().rev() {
            match fs::create_dir(path) {
                Ok(()) => made.made.push(path.to_owned()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::local("create directory", path)(error)),
            }
        }
        Ok(made)
    }

    /// Keeps the directories on drop.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for MadeDirectories {
    fn drop(&mut self) {
        // A directory that is not empty has content of another process, and so have its parents.
        for path in self.made.iter().rev() {
            // A directory that is not empty has content of another process, and so have its parents.
            if fs::remove_dir(path).is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_config::Par;

    fn input(location: &Path, with_par: bool) -> InputStorage {
        let par = with_par.then(|| Par::parse("http://host/p/token/n/ns/b/bucket/o/").unwrap());
        InputStorage { par, location: location.to_owned(), volume_bytes: None, include: vec![], exclude: vec![] }
    }

    #[test]
    fn each_fault_of_a_location_is_one_sentence() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("empty")).unwrap();
        fs::create_dir(at("full")).unwrap();
        fs::write(at("full/x"), "").unwrap();
        fs::create_dir_all(at("copied").join(MARKER)).unwrap();
        fs::write(at("copied/model"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        for (location, with_par, expected) in [
            (at("empty"), true, ""),
            (at("new/and/deep"), true, ""),
            (at("copied"), true, ""),
            (at("full"), false, ""),
            (at("empty"), false, ""),
            (PathBuf::from("models"), true, "is relative"),
            (at("file"), true, "is not a directory"),
            (at("file"), false, "is not a directory"),
            (at("file/below"), true, "cannot be used"),
            (at("full"), true, "is not empty"),
            (at("new"), false, "no PAR is given"),
            (at("dangling"), true, "cannot be used"),
            (at("dangling/below"), true, "cannot be created"),
            (PathBuf::from("/proc"), true, "has something mounted already"),
        ] {
            let faults = preflight(&input(&location, with_par));
            match expected {
                "" => assert!(faults.is_empty(), "{location:?}: {faults:?}"),
                part => assert!(faults.len() == 1 && faults[0].contains(part), "{location:?}: {faults:?}"),
            }
        }
        assert!(!at("new").exists());
    }

    #[test]
    fn made_directories_go_unless_they_are_in_use() {
        let root = tempfile::tempdir().unwrap();
        let location = root.path().join("a/b/c");
        drop(MadeDirectories::make(&location).unwrap());
        assert!(!root.path().join("a").exists());
        let made = MadeDirectories::make(&location).unwrap();
        assert!(location.is_dir());
        fs::write(root.path().join("a/theirs"), "").unwrap();
        drop(made);
        assert!(root.path().join("a/theirs").exists() && !root.path().join("a/b").exists());
        drop(MadeDirectories::make(root.path()).unwrap());
        assert!(root.path().exists());
    }
}
