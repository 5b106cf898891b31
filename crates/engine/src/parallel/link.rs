//! A connection between two nodes: frames of a kind and a length, one after the other, waited for within bounds.
//!
//! The reader of a frame says which kind it must be and how long it may be: what a peer claims is never allocated. A peer's last
//! word may stand in the place of any frame. Nothing here is encrypted or proves who sent it. What frames mean is not known here.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::frame::{End, Kind, LinkError};

// Numbers travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "frames are little-endian");

/// A kind, then how many bytes follow.
const HEADER_BYTES: usize = 12;

/// Longest frame that holds a few settings or a sentence.
const MAX_JSON_BYTES: usize = 16 << 10;

/// Time after which a wait looks whether it was cancelled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A node that vanished without a word is missed after this long: asked three times, or nothing of what was sent arrived.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for a peer to notice the end.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1000);

/// A connection to one other node.
pub struct Link {
    peer: String,
    stream: TcpStream,
    /// Held for a frame.
    sending: Mutex<()>,
    /// Held while a frame is read.
    receiving: Mutex<()>,
    cancel: CancellationToken,
    timeout: Duration,
    /// The first failure.
    failure: OnceLock<LinkError>,
}

impl Link {
    /// Over `stream`, to what messages call `peer`. No wait for it is longer than `timeout`.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn new(stream: TcpStream, peer: String, timeout: Duration, cancel: CancellationToken) -> io::Result<Self> {
        use rustix::net::sockopt;
        stream.set_nonblocking(false)?;
        // Frames are small and waited for: Nagle's algorithm would hold each back until the one before is acknowledged.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(POLL_INTERVAL))?;
        stream.set_write_timeout(Some(POLL_INTERVAL))?;
        // A node that loses its power says nothing: without probes a link would wait for it for hours.
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_TIMEOUT / 4)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_TIMEOUT / 4)?;
        sockopt::set_tcp_keepcnt(&stream, 3)?;
        sockopt::set_tcp_user_timeout(&stream, KEEPALIVE_TIMEOUT.as_millis() as u32)?;
        Ok(Self {
            peer,
            stream,
            sending: Mutex::default(),
            receiving: Mutex::default(),
            cancel,
            timeout,
            failure: OnceLock::new(),
        })
    }

    /// From now on messages call the other end so.
    pub fn rename(&mut self, peer: String) {
        self.peer = peer;
    }

    /// As messages call whoever is at the other end.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Until when a wait that begins now may last.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<&LinkError> {
        self.failure.get()
    }

    /// Sends a frame of `pieces`, one behind the other.
    ///
    /// # Errors
    /// Why the peer cannot be told.
    pub fn send(&self, kind: Kind, pieces: &[&[u8]]) -> Result<(), LinkError> {
        let turn = lock(&self.sending);
        // The first failure stays: what comes after it, such as a broken pipe, is its consequence and explains nothing.
        let sent = match (self.failure.get(), self.cancel.is_cancelled()) {
            (Some(failure), _) => Err(failure.clone()),
            (None, true) => Err(LinkError::Cancelled),
            (None, false) => self.write(&turn, kind, pieces, self.deadline()),
        };
        sent.map_err(|failure| self.record_failure(failure))
    }

    /// Sends settings or a sentence.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_json(&self, kind: Kind, value: &impl Serialize) -> Result<(), LinkError> {
        let text = serde_json::to_vec(value).map_err(|error| LinkError::Broken(error.to_string()))?;
        self.send(kind, &[&text])
    }

    /// Receives a frame of exactly the numbers of `pieces`.
    ///
    /// # Errors
    /// Why it does not come, or that another one came.
    pub fn receive<'a, T: Pod>(&self, kind: Kind, pieces: impl Iterator<Item = &'a mut [T]>) -> Result<(), LinkError> {
        let mut pieces: Vec<&mut [u8]> = pieces.map(bytemuck::cast_slice_mut).collect();
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let deadline = Some(self.deadline());
        self.reading(|| {
            self.begin(kind, bytes..=bytes, deadline)?;
            pieces.iter_mut().try_for_each(|piece| self.fill(piece, deadline))
        })
    }

    /// Receives at most `longest` words; waits as long as the peer lives.
    ///
    /// # Errors
    /// Why they do not come, or that something else came.
    pub fn receive_u32s(&self, kind: Kind, longest: usize) -> Result<Vec<u32>, LinkError> {
        self.reading(|| {
            let bytes = self.begin(kind, 0..=longest.saturating_mul(size_of::<u32>()), None)?;
            if !bytes.is_multiple_of(size_of::<u32>()) {
                return Err(self.unexpected(&format!("a frame of {bytes} bytes")));
            }
            let mut numbers = vec![0; bytes / size_of::<u32>()];
            self.fill(bytemuck::cast_slice_mut(&mut numbers), Some(self.deadline()))?;
            Ok(numbers)
        })
    }

    /// Receives settings or a sentence before `deadline`.
    ///
    /// # Errors
    /// Why they do not come, or that something else came.
    pub fn receive_json<T: DeserializeOwned>(&self, kind: Kind, deadline: Instant) -> Result<T, LinkError> {
        self.reading(|| {
            let bytes = self.begin(kind, 0..=MAX_JSON_BYTES, Some(deadline))?;
            self.json(bytes, deadline)
        })
    }

    /// True once the peer has ended; takes in its end, which no thread waits for.
    #[cfg(feature = "cuda")]
    pub fn has_ended(&self) -> bool {
        let mut header = [0; HEADER_BYTES];
        // Whoever is reading hears it.
        let Ok(_turn) = self.receiving.try_lock() else { return self.failure.get().is_some() };
        let failure = match self.stream.peek(&mut header) {
            Ok(0) => Some(self.closed()),
            Ok(HEADER_BYTES) if header[..4] == Kind::End.tag() => {
                self.begin(Kind::End, 0..=0, Some(Instant::now() + CLOSE_TIMEOUT)).err()
            }
            Err(error) if !is_timeout(&error) => Some(self.broke(&error)),
            Ok(_) | Err(_) => None,
        };
        failure.map(|failure| self.record_failure(failure)).is_some() || self.failure.get().is_some()
    }

    /// Says the last word, and waits a moment for the peer to have heard it. Where a frame is stuck half-way the connection is
    /// cut instead.
    pub fn end(&self, end: &End) {
        let text = serde_json::to_vec(end).unwrap_or_default();
        if !matches!(self.failure.get(), Some(LinkError::Ended { .. }))
            && let Ok(turn) = self.sending.try_lock()
        {
            // Whoever does not hear it sees the connection end.
            let _unheard = self.write(&turn, Kind::End, &[&text], Instant::now() + CLOSE_TIMEOUT);
        }
        // Half a close: the peer sees the end of our stream, and what it still sends can arrive.
        let _gone = self.stream.shutdown(Shutdown::Write);
        // Closed with something unread in it, a connection is reset, and what was said last may be lost with it.
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut rest = [0; 4096];
        while Instant::now() < deadline {
            match (&self.stream).read(&mut rest) {
                Ok(0) => break,
                Err(error) if !is_timeout(&error) => break,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Notes why it fell silent; gives the first reason there was.
    fn record_failure(&self, failure: LinkError) -> LinkError {
        self.failure.get_or_init(|| failure).clone()
    }

    /// Runs `read` while no other thread reads from this link.
    fn reading<T>(&self, read: impl FnOnce() -> Result<T, LinkError>) -> Result<T, LinkError> {
        let _turn = lock(&self.receiving);
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        read().map_err(|failure| self.record_failure(failure))
    }

    fn write(
        &self,
        _turn: &MutexGuard<'_, ()>,
        kind: Kind,
        pieces: &[&[u8]],
        deadline: Instant,
    ) -> Result<(), LinkError> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&kind.tag());
        header[4..].copy_from_slice(&(bytes as u64).to_le_bytes());
        // One system call for header and pieces: no copy of a sum into a buffer of its own, and no packet with a header alone.
        let mut slices: Vec<IoSlice<'_>> =
            std::iter::once(&header[..]).chain(pieces.iter().copied()).map(IoSlice::new).collect();
        let mut rest = &mut slices[..];
        // None of them is left where all are empty.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match (&self.stream).write_vectored(rest) {
                Ok(0) => return Err(self.closed()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if is_timeout(&error) => self.check_deadline(Some(deadline))?,
                Err(error) => return Err(self.broke(&error)),
            }
        }
        Ok(())
    }

    /// The beginning of a frame: how many bytes follow.
    fn begin(
        &self,
        kind: Kind,
        bytes: std::ops::RangeInclusive<usize>,
        deadline: Option<Instant>,
    ) -> Result<usize, LinkError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, deadline)?;
        let [a, b, c, d, length @ ..] = header;
        let (tag, length) = ([a, b, c, d], usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX));
        if tag == Kind::End.tag() && length <= MAX_JSON_BYTES {
            let end = self.json(length, Instant::now() + CLOSE_TIMEOUT)?;
            return Err(LinkError::Ended { peer: self.peer.clone(), end });
        }
        if tag != kind.tag() {
            return Err(self.unexpected(&format!("`{}` where {kind:?} belongs", tag.escape_ascii())));
        }
        // Checked before anything is allocated: a length is a claim of the peer, or of a stranger that found the port.
        if !bytes.contains(&length) {
            let (least, most) = (bytes.start(), bytes.end());
            return Err(self.unexpected(&format!("{kind:?} of {length} bytes, not from {least} to {most}")));
        }
        Ok(length)
    }

    fn json<T: DeserializeOwned>(&self, bytes: usize, deadline: Instant) -> Result<T, LinkError> {
        let mut text = vec![0; bytes];
        self.fill(&mut text, Some(deadline))?;
        serde_json::from_slice(&text).map_err(|error| self.unexpected(&format!("JSON that is none of ours ({error})")))
    }

    fn fill(&self, mut rest: &mut [u8], deadline: Option<Instant>) -> Result<(), LinkError> {
        while !rest.is_empty() {
            // Reads wake up every 100 ms, so that a cancelled job does not wait for a peer that says nothing.
            if self.cancel.is_cancelled() {
                return Err(LinkError::Cancelled);
            }
            match (&self.stream).read(rest) {
                Ok(0) => return Err(self.closed()),
                Ok(read) => rest = &mut rest[read..],
                Err(error) if is_timeout(&error) => self.check_deadline(deadline)?,
                Err(error) => return Err(self.broke(&error)),
            }
        }
        Ok(())
    }

    fn check_deadline(&self, deadline: Option<Instant>) -> Result<(), LinkError> {
        if self.cancel.is_cancelled() {
            return Err(LinkError::Cancelled);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(LinkError::Broken(format!(
                "{} has not said or taken anything for group-timeout; see whether its process hangs, or raise group-timeout",
                self.peer
            )));
        }
        Ok(())
    }

    fn closed(&self) -> LinkError {
        LinkError::Broken(format!(
            "{} closed its connection without a last word, as a process does that was killed; see how it ended",
            self.peer
        ))
    }

    fn broke(&self, error: &io::Error) -> LinkError {
        LinkError::Broken(format!("the connection to {} broke: {error}; see whether that machine is well", self.peer))
    }

    fn unexpected(&self, what: &str) -> LinkError {
        LinkError::Broken(format!(
            "{} sent {what}; see whether it is a flashjob of this version, and whether anybody else can reach group-port",
            self.peer
        ))
    }
}

fn lock(turn: &Mutex<()>) -> MutexGuard<'_, ()> {
    turn.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing happened yet. What TCP calls timed out is a node that vanished.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
