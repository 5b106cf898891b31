//! Files of the run before this one go to `earlier/RUN`, and nothing else goes anywhere.
//!
//! A file that has a name of this run's files and is not in the record is foreign: the job does not start. All of
//! this is looked at before anything is moved. Directories are held open, so that no link leads out of them, and nothing is
//! written over. A process that is killed half-way leaves the record where it is, for the next one to go on with.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, mkdirat, openat, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

use super::DirectoryError;
use super::record::{FILES, RECORD, RecordFile, SPOOL, Written};

/// Folder of earlier runs' files, with one folder a run.
pub(super) const EARLIER: &str = "earlier";

/// Files that were moved.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Folder that has them now.
    pub to: PathBuf,
    /// Names of the files.
    pub names: Vec<String>,
}

/// Makes room for a run at `path`, which `directory` is; says what was moved.
pub(super) fn make_room(path: &Path, directory: &File) -> Result<Option<Moved>, DirectoryError> {
    let written = match Written::find(path) {
        RecordFile::Record(written) => Some(written),
        RecordFile::Nothing | RecordFile::Empty => None,
        RecordFile::Unreadable(why) => {
            let reason = format!("which {why}");
            return Err(DirectoryError::Foreign { name: RECORD.to_owned(), reason });
        }
    };
    let is_there = |name: &str| path.join(name).symlink_metadata().is_ok();
    let is_own = |name: &str| written.as_ref().is_some_and(|written| written.wrote(path, name));
    if let Some(name) = FILES.into_iter().chain([SPOOL]).find(|name| is_there(name) && !is_own(name)) {
        let reason = match written {
            Some(_) => format!("which differs from what `{RECORD}` has of the run before"),
            None => format!("and no `{RECORD}` says that an earlier run of flashjob wrote it"),
        };
        return Err(DirectoryError::Foreign { name: name.to_owned(), reason });
    }
    let names = written.iter().flat_map(|written| written.names().into_iter().filter(|name| written.wrote(path, name)));
    let mut names: Vec<String> = names.collect();
    let Some(written) = written.filter(|_| !names.is_empty()) else {
        // A record of nothing, if any: of a process that was killed at its very beginning.
        return match unlinkat(directory, RECORD, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io::Error::from(error).into()),
        };
    };
    // The record goes last: as long as it stays, a later process goes on here.
    names.push(RECORD.to_owned());
    let to = Path::new(EARLIER).join(written.run());
    for name in &names {
        set_aside(directory, &to, name).map_err(|source| DirectoryError::Earlier {
            name: name.clone(),
            folder: to.clone(),
            source,
        })?;
    }
    if let Err(error) = unlinkat(directory, SPOOL, AtFlags::REMOVEDIR)
        && error != Errno::NOENT
    {
        return Err(io::Error::from(error).into());
    }
    rustix::fs::fsync(directory).map_err(io::Error::from)?;
    Ok(Some(Moved { to: path.join(to), names }))
}

/// Moves `name` of `directory` to the same name in its folder `to`.
fn set_aside(directory: &File, to: &Path, name: &str) -> io::Result<()> {
    let (folder, name) = name.split_once('/').map_or((None, name), |(folder, name)| (Some(folder), name));
    let (source, target) = match folder {
        Some(folder) => {
            (open_folder(directory, Path::new(folder), false)?, open_folder(directory, &to.join(folder), true)?)
        }
        None => (open_folder(directory, Path::new("."), false)?, open_folder(directory, to, true)?),
    };
    match renameat_with(&source, name, &target, name, RenameFlags::NOREPLACE) {
        // Some network file systems cannot refuse to replace.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if statat(&target, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return Err(Errno::EXIST.into());
            }
            renameat(&source, name, &target, name)?;
        }
        renamed => renamed?,
    }
    Ok(())
}

/// Opens the folder `path` in `directory`, none of whose components may be a link; makes what is missing where `make` is set.
fn open_folder(directory: &File, path: &Path, make: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut open = openat(directory, ".", flags, Mode::empty())?;
    for component in path {
        if make {
            match mkdirat(&open, component, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        open = openat(&open, component, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => {
                io::Error::other(format!("`{}` is a link or a file, and not a directory", component.display()))
            }
            error => error.into(),
        })?;
    }
    Ok(open)
}
