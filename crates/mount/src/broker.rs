//! Mounts made by another process: the one that keeps the rights for them, on behalf of one that has given them up.
//!
//! As `fusermount3` of libfuse does it, the descriptor of `/dev/fuse` comes back over a socket. The process with the rights acts at
//! locations that it was given beforehand and nowhere else, whatever it is asked.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::descriptor::is_fuse_device;
use super::kernel::{self, KernelMounts, Unmounted};
use super::stale::{self, Cleared, resolved};

/// Largest message, in bytes: a refusal of a sentence or two.
const MOST_BYTES: usize = 4096;

/// Most descriptors in one message: a FUSE device and a file.
const MOST_DESCRIPTORS: usize = 2;

/// Index of a location in the list that both sides have.
type Location = usize;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    ClearStale(Location),
    Mount(Location),
    RaiseReadahead(Location),
    Unmount(Location),
    /// With two descriptors: a FUSE device and a file.
    OpenBacking,
    /// With one descriptor: a FUSE device.
    CloseBacking(u32),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    Cleared(Cleared),
    /// With one descriptor: the FUSE device.
    Mounted,
    Unmounted(Unmounted),
    Backing(u32),
    /// A refusal, as a phrase.
    Refused(String),
    /// The errno of a system call.
    Errno(i32),
}

/// Both ends of the broker: the client, and the server of mounts at `locations`, for a process that keeps its rights.
pub(super) fn pair(locations: &[PathBuf]) -> io::Result<(Client, MountBroker)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let client = Client { socket: Mutex::new(ours), locations: locations.to_vec() };
    // Resolved before the other process exists: it could otherwise replace a directory by a link and have anything
    // mounted over.
    let locations = locations.iter().map(|location| resolved(location)).collect();
    Ok((client, MountBroker { socket: theirs, locations, mounts: KernelMounts::default() }))
}

/// The unprivileged side, which sends requests.
pub(super) struct Client {
    socket: Mutex<OwnedFd>,
    locations: Vec<PathBuf>,
}

impl Client {
    pub(super) fn clear_stale(&self, location: &Path) -> Result<Cleared, String> {
        match self.ask_at(location, Request::ClearStale)?.0 {
            Answer::Cleared(cleared) => Ok(cleared),
            other => Err(refusal(other)),
        }
    }

    pub(super) fn mount(&self, location: &Path) -> Result<OwnedFd, String> {
        match self.ask_at(location, Request::Mount)? {
            (Answer::Mounted, mut descriptors) => descriptors.pop().ok_or_else(|| "no descriptor came".to_owned()),
            (other, _) => Err(refusal(other)),
        }
    }

    pub(super) fn raise_readahead(&self, location: &Path) -> Result<(), String> {
        match self.ask_at(location, Request::RaiseReadahead)?.0 {
            Answer::Done => Ok(()),
            other => Err(refusal(other)),
        }
    }

    pub(super) fn unmount(&self, location: &Path) -> io::Result<Unmounted> {
        match self.ask_at(location, Request::Unmount).map_err(io::Error::other)?.0 {
            Answer::Unmounted(unmounted) => Ok(unmounted),
            other => Err(error(other)),
        }
    }

    pub(super) fn open_backing(&self, device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
        match self.ask(&Request::OpenBacking, &[device, file])?.0 {
            Answer::Backing(id) => Ok(id),
            other => Err(error(other)),
        }
    }

    pub(super) fn close_backing(&self, device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
        match self.ask(&Request::CloseBacking(id), &[device])?.0 {
            Answer::Done => Ok(()),
            other => Err(error(other)),
        }
    }

    fn ask_at(&self, location: &Path, request: fn(Location) -> Request) -> Result<(Answer, Vec<OwnedFd>), String> {
        let known = self.locations.iter().position(|known| known == location);
        let number = known.ok_or_else(|| format!("`{}` is not one of this job's locations", location.display()))?;
        let asked = self.ask(&request(number), &[]);
        asked.map_err(|error| format!("the process that keeps the rights to mount does not answer: {error}"))
    }

    fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let socket = self.socket.lock();
        send(&socket, request, descriptors)?;
        receive(&socket)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

fn refusal(answer: Answer) -> String {
    match answer {
        Answer::Refused(reason) => reason,
        other => error(other).to_string(),
    }
}

fn error(answer: Answer) -> io::Error {
    match answer {
        Answer::Errno(errno) => io::Error::from_raw_os_error(errno),
        Answer::Refused(reason) => io::Error::other(reason),
        other => io::Error::other(format!("an answer to another question: {other:?}")),
    }
}

/// The privileged side, which keeps its rights.
pub struct MountBroker {
    socket: OwnedFd,
    locations: Vec<PathBuf>,
    mounts: KernelMounts,
}

impl MountBroker {
    /// Serves requests until the other process has ended, then unmounts what is still mounted.
    pub fn serve(mut self) {
        while let Ok(Some((request, descriptors))) = receive(&self.socket) {
            let (answer, descriptor) = self.answer(request, &descriptors);
            let beside: Vec<BorrowedFd<'_>> = descriptor.iter().map(OwnedFd::as_fd).collect();
            if send(&self.socket, &answer, &beside).is_err() {
                break;
            }
        }
        for location in &self.locations {
            // There is no log any more, and the supervisor checks again.
            let _ = self.mounts.unmount(location);
        }
    }

    fn answer(&mut self, request: Request, descriptors: &[OwnedFd]) -> (Answer, Option<OwnedFd>) {
        let answer =
            match request {
                Request::ClearStale(location) => self.at(location).map(|path| Answer::Cleared(stale::clear(&path))),
                Request::Mount(location) => match self.at(location).and_then(|path| self.mounts.mount(&path)) {
                    Ok(device) => return (Answer::Mounted, Some(device)),
                    Err(reason) => Err(reason),
                },
                Request::RaiseReadahead(location) => {
                    let raised = self.at(location).map(|path| self.mounts.raise_readahead(&path));
                    raised.map(|raised| raised.map_or_else(|error| errno_of(&error), |()| Answer::Done))
                }
                Request::Unmount(location) => self.at(location).map(|path| match self.mounts.unmount(&path) {
                    Ok(unmounted) => Answer::Unmounted(unmounted),
                    Err(errno) => Answer::Errno(errno.raw_os_error()),
                }),
                Request::OpenBacking => match descriptors {
                    // The descriptor comes from an unprivileged process: the ioctl must reach nothing but a FUSE
                    // device.
                    [device, file] if is_fuse_device(device.as_fd()) => {
                        Ok(kernel::open_backing(device.as_fd(), file.as_fd())
                            .map_or_else(|error| errno_of(&error), Answer::Backing))
                    }
                    _ => Err("it takes a FUSE device and a file".to_owned()),
                },
                Request::CloseBacking(id) => match descriptors {
                    [device] if is_fuse_device(device.as_fd()) => Ok(kernel::close_backing(device.as_fd(), id)
                        .map_or_else(|error| errno_of(&error), |()| Answer::Done)),
                    _ => Err("it takes a FUSE device".to_owned()),
                },
            };
        (answer.unwrap_or_else(Answer::Refused), None)
    }

    fn at(&self, location: Location) -> Result<PathBuf, String> {
        self.locations.get(location).cloned().ok_or_else(|| "it is not one of this job's locations".to_owned())
    }
}

fn errno_of(error: &io::Error) -> Answer {
    match error.raw_os_error() {
        Some(errno) => Answer::Errno(errno),
        None => Answer::Refused(error.to_string()),
    }
}

fn send(socket: &OwnedFd, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    // One datagram for message and descriptors (SEQPACKET): they cannot be separated.
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message with its descriptors; `None` once the other side has closed.
fn receive<M: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = [0; MOST_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    match received {
        0 => Ok(None),
        // The kernel truncates a longer message, which then fails to parse.
        length => Ok(Some((serde_json::from_slice(&bytes[..length])?, descriptors))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of a compromised job, and the broker's answers.
    #[test]
    fn whatever_is_asked_the_broker_acts_at_its_own_locations_alone() {
        let (root, null) = (tempfile::tempdir().unwrap(), std::fs::File::open("/dev/null").unwrap());
        let (client, broker) = pair(&[root.path().join("models")]).unwrap();
        let serving = std::thread::spawn(|| broker.serve());
        for (request, descriptors, expected) in [
            (Request::Mount(1), 0, "not one of this job's locations"),
            (Request::ClearStale(usize::MAX), 0, "not one of this job's locations"),
            (Request::Unmount(7), 0, "not one of this job's locations"),
            (Request::RaiseReadahead(7), 0, "not one of this job's locations"),
            (Request::OpenBacking, 0, "it takes a FUSE device and a file"),
            (Request::OpenBacking, 2, "it takes a FUSE device and a file"),
            (Request::CloseBacking(1), 0, "it takes a FUSE device"),
            (Request::CloseBacking(1), 1, "it takes a FUSE device"),
        ] {
            let (answer, passed) = client.ask(&request, &vec![null.as_fd(); descriptors]).unwrap();
            assert!(refusal(answer).contains(expected) && passed.is_empty(), "{request:?}");
        }
        // Nothing was mounted there, and nothing is there to be detached.
        let there = root.path().join("models");
        assert!(matches!(client.ask(&Request::Unmount(0), &[]), Ok((Answer::Unmounted(Unmounted::Idle), _))));
        assert_eq!(client.clear_stale(&there), Ok(Cleared::default()));
        assert!(client.mount(Path::new("/etc")).unwrap_err().contains("not one of this job's locations"));
        drop(client);
        serving.join().unwrap();
    }

    #[test]
    fn a_message_that_is_none_ends_the_service() {
        let (client, broker) = pair(&[]).unwrap();
        let serving = std::thread::spawn(|| broker.serve());
        let socket = client.socket.lock();
        send(&socket, &"x".repeat(3 * MOST_BYTES), &[]).unwrap();
        assert!(receive::<Answer>(&socket).unwrap().is_none());
        serving.join().unwrap();
    }
}
