//! The user that a job started by root becomes, where everything that it needs is within that user's reach.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{CapabilitySet, capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::places::Places;

/// The user of the images: `nonroot` of distroless images.
const NONROOT: (u32, u32) = (65532, 65532);

/// Files of a directory that are looked at.
const MOST_ENTRIES: usize = 10_000;

/// Mode of directories in which files are moved and removed by their owners alone.
const STICKY: u32 = 0o1000;

/// Rights that becoming another user takes, so that its files are handed over and the supervisor can still signal it.
const NEEDED: CapabilitySet =
    CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::CHOWN).union(CapabilitySet::KILL);

/// The user to run as, and the reason.
#[derive(Debug)]
pub struct User {
    numbers: (u32, u32),
    is_switched: bool,
    reason: String,
}

impl User {
    /// Stays what it is unless that is root. Instead of root: the owner of the results' directory, or else the images' own user, if
    /// all of `places` can be used by it.
    pub fn choose(places: &Places) -> Self {
        let present = (geteuid().as_raw(), getegid().as_raw());
        let stay = |reason: String| Self { numbers: present, is_switched: false, reason };
        if present.0 != 0 {
            return stay("as it was started".to_owned());
        }
        let held = capabilities(None).map_or(CapabilitySet::empty(), |held| held.effective);
        if !held.contains(NEEDED) {
            let missing: Vec<&str> = (NEEDED - held).iter_names().map(|(name, _)| name).collect();
            return stay(format!("root may not become another user here: it has no CAP_{}", missing.join(", CAP_")));
        }
        let owner = places.kept.first().and_then(|results| owner(results)).filter(|&(user, _)| user != 0);
        let mut obstacles = Vec::new();
        for candidate in owner.into_iter().chain([NONROOT]) {
            match with_access_of(candidate, || obstacle(candidate.0, places)) {
                Ok(None) => {
                    let reason = match owner == Some(candidate) {
                        true => "results-dir belongs to it",
                        false => "everything that the job needs is within its reach",
                    };
                    return Self { numbers: candidate, is_switched: true, reason: reason.to_owned() };
                }
                Ok(Some(obstacle)) => obstacles.push(format!("user {} {obstacle}", candidate.0)),
                Err(error) => obstacles.push(format!("user {} cannot be tried: {error}", candidate.0)),
            }
        }
        stay(format!("as it was started: {}", obstacles.join("; ")))
    }

    /// User and group to become, where they are others.
    pub fn switched(&self) -> Option<(u32, u32)> {
        self.is_switched.then_some(self.numbers)
    }

    /// `UID:GID`.
    pub fn numbers(&self) -> String {
        format!("{}:{}", self.numbers.0, self.numbers.1)
    }

    /// Clause on why it is this one.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Becomes it, for good.
    pub fn become_it(&self) -> io::Result<()> {
        let Some((user, group)) = self.switched() else { return Ok(()) };
        set_thread_groups(&further_groups()?)?;
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        set_thread_res_gid(group, group, group)?;
        Ok(set_thread_res_uid(user, user, user)?)
    }
}

/// Groups that the process was given besides root's, as Kubernetes does with `fsGroup`: files may belong to them.
fn further_groups() -> io::Result<Vec<Gid>> {
    Ok(getgroups()?.into_iter().filter(|group| !group.is_root()).collect())
}

/// User and group of `path`, or of the nearest directory above it that exists.
fn owner(path: &Path) -> Option<(u32, u32)> {
    fs::metadata(nearest(path)?).ok().map(|found| (found.uid(), found.gid()))
}

/// `path`, or the nearest directory above it that exists.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors()
        .map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path })
        .find(|path| path.exists())
}

/// Runs `look`, in which access(2), which goes by the real user, answers for `candidate`.
fn with_access_of<T>(candidate: (u32, u32), look: impl FnOnce() -> T) -> io::Result<T> {
    let groups = getgroups()?;
    let found = become_really(candidate).map(|()| look());
    set_thread_res_uid(Uid::ROOT, None, None)?;
    set_thread_res_gid(getegid(), None, None)?;
    if getgroups()? != groups {
        set_thread_groups(&groups)?;
    }
    found
}

/// Changes the real user and group, not the effective ones that rights go by.
fn become_really((user, group): (u32, u32)) -> io::Result<()> {
    set_thread_groups(&further_groups()?)?;
    set_thread_res_gid(Gid::from_raw(group), None, None)?;
    Ok(set_thread_res_uid(Uid::from_raw(user), None, None)?)
}

/// The first thing that `user` cannot do, as a clause.
fn obstacle(user: u32, places: &Places) -> Option<String> {
    let may = |path: &Path, access_mode: Access| access(path, access_mode).is_ok();
    for directory in places.kept.iter().chain(&places.copies).chain(&places.home).filter(|path| path.exists()) {
        if !may(directory, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            return Some(format!("cannot write `{}`", directory.display()));
        }
    }
    // What is missing is made for it by root, but a directory above that is closed to it would still keep it out.
    for path in places.kept.iter().chain(&places.copies).chain(&places.locations).filter(|path| !path.exists()) {
        if let Some(above) = nearest(path).filter(|above| !may(above, Access::EXEC_OK)) {
            return Some(format!("cannot enter `{}`", above.display()));
        }
    }
    // Directories that an earlier job left as another user could be neither moved nor continued.
    for directory in places.kept.iter().chain(&places.copies) {
        let is_sticky = fs::metadata(directory).is_ok_and(|directory| directory.mode() & STICKY != 0);
        let stands_in_the_way = |entry: &FolderEntry| entry.owner != user && (entry.is_directory || is_sticky);
        if let Some(foreign) = entries(directory).find(|entry| stands_in_the_way(entry) && entry.name != "lost+found") {
            return Some(format!("does not own `{}`", directory.join(foreign.name).display()));
        }
    }
    for path in &places.read {
        let is_readable = may(path, if path.is_dir() { Access::READ_OK | Access::EXEC_OK } else { Access::READ_OK });
        let is_all_readable = is_readable && entries(path).all(|entry| may(&path.join(entry.name), Access::READ_OK));
        if !is_all_readable {
            return Some(format!("cannot read all of `{}`", path.display()));
        }
    }
    let written = places.files.iter().chain(&places.devices).find(|path| path.exists() && !may(path, Access::WRITE_OK));
    written.map(|path| format!("cannot write `{}`", path.display()))
}

/// An entry of a directory.
struct FolderEntry {
    name: OsString,
    owner: u32,
    is_directory: bool,
}

/// Entries of `directory`; none where it is no directory.
fn entries(directory: &Path) -> impl Iterator<Item = FolderEntry> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(MOST_ENTRIES);
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(FolderEntry { name: entry.file_name(), owner: metadata.uid(), is_directory: metadata.is_dir() })
    })
}
