//! A TCP connection that is read and written within deadlines, frame by frame.
//!
//! A frame is a kind, a length and so many bytes. The reader says which kind it must be and how long it may be: what a peer claims
//! is never allocated. Whose turn it is to read or write is not known here, nor what frames mean.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::frame::{Kind, LinkError};

// Numbers travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "frames are little-endian");

/// A kind, then how many bytes follow.
const HEADER_BYTES: usize = 12;

/// Longest frame that holds a few settings or a sentence.
pub const MAX_JSON_BYTES: usize = 16 << 10;

/// Time after which a wait looks whether it was cancelled.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A node that vanished without a word is missed after this long: asked three times, or nothing of what was sent arrived.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for a peer to notice the end.
pub const CLOSE_TIMEOUT: Duration = Duration::from_millis(1000);

/// A connection to one other node.
pub struct Connection {
    /// Name of the peer in messages.
    pub peer: String,
    stream: TcpStream,
    /// Ends every wait.
    pub cancel: CancellationToken,
}

impl Connection {
    /// Over `stream`, to what messages call `peer`.
    ///
    /// # Errors
    /// The system's, where it refuses a setting.
    pub fn new(stream: TcpStream, peer: String, cancel: CancellationToken) -> io::Result<Self> {
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
        Ok(Self { peer, stream, cancel })
    }

    /// Writes a frame of `pieces`, one behind the other.
    pub fn write(&self, kind: Kind, pieces: &[&[u8]], deadline: Instant) -> Result<(), LinkError> {
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

    /// Reads the beginning of a frame of this `kind`, of so many `bytes`; returns how many follow. Waits for ever without a `deadline`.
    pub fn begin(
        &self,
        kind: Kind,
        bytes: RangeInclusive<usize>,
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

    /// Reads the rest of a frame, `bytes` bytes of JSON.
    pub fn json<T: DeserializeOwned>(&self, bytes: usize, deadline: Instant) -> Result<T, LinkError> {
        let mut text = vec![0; bytes];
        self.fill(&mut text, Some(deadline))?;
        serde_json::from_slice(&text).map_err(|error| self.unexpected(&format!("JSON that is none of ours ({error})")))
    }

    /// Reads as many bytes as `rest` has.
    pub fn fill(&self, mut rest: &mut [u8], deadline: Option<Instant>) -> Result<(), LinkError> {
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

    /// The peer closed the connection.
    pub fn closed(&self) -> LinkError {
        LinkError::Broken(format!(
            "{} closed its connection without a last word, as a process does that was killed; see how it ended",
            self.peer
        ))
    }

    /// The system's error of the connection.
    pub fn broke(&self, error: &io::Error) -> LinkError {
        LinkError::Broken(format!("the connection to {} broke: {error}; see whether that machine is well", self.peer))
    }

    /// The peer sent something else than a frame that belongs there.
    pub fn unexpected(&self, what: &str) -> LinkError {
        LinkError::Broken(format!(
            "{} sent {what}; see whether it is a flashjob of this version, and whether anybody else can reach group-port",
            self.peer
        ))
    }

    /// The failure that has arrived and that nobody has read: a peer's end, or that of the connection.
    pub fn unread_failure(&self) -> Option<LinkError> {
        let mut header = [0; HEADER_BYTES];
        match self.stream.peek(&mut header) {
            Ok(0) => Some(self.closed()),
            Ok(HEADER_BYTES) if header[..4] == Kind::End.tag() => {
                self.begin(Kind::End, 0..=0, Some(Instant::now() + CLOSE_TIMEOUT)).err()
            }
            Err(error) if !is_timeout(&error) => Some(self.broke(&error)),
            Ok(_) | Err(_) => None,
        }
    }

    /// Ends the stream to the peer, and waits a moment for the peer to have read it.
    pub fn close(&self) {
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
}

/// Nothing happened yet. What TCP calls timed out is a node that vanished.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
