//! A link between two nodes: one frame at a time each way, from any thread, until it fails once.
//!
//! A peer's last word may stand in the place of any frame. Nothing here is encrypted or proves who sent it. What frames mean is
//! not known here.

use std::io;
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::connection::{CLOSE_TIMEOUT, Connection, MAX_JSON_BYTES};
use super::frame::{Kind, LinkError};
use flashjob_engine::End;

/// A connection to one other node, which several threads use.
pub struct Link {
    connection: Connection,
    /// Held for a frame.
    sending: Mutex<()>,
    /// Held while a frame is read.
    receiving: Mutex<()>,
    timeout: Duration,
    /// The first failure.
    failure: OnceLock<LinkError>,
}

impl Link {
    /// Over `stream`, to what messages call `peer`. No wait for it is longer than `timeout`.
    ///
    /// # Errors
    /// The system's, where it refuses a setting.
    pub fn new(stream: TcpStream, peer: String, timeout: Duration, cancel: CancellationToken) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::new(stream, peer, cancel)?,
            sending: Mutex::default(),
            receiving: Mutex::default(),
            timeout,
            failure: OnceLock::new(),
        })
    }

    /// From now on messages call the other end so.
    pub fn rename(&mut self, peer: String) {
        self.connection.peer = peer;
    }

    /// As messages call whoever is at the other end.
    pub fn peer(&self) -> &str {
        &self.connection.peer
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
    /// [`LinkError`]: the first failure of this link.
    pub fn send(&self, kind: Kind, pieces: &[&[u8]]) -> Result<(), LinkError> {
        let _turn = lock(&self.sending);
        // The first failure stays: what comes after it, such as a broken pipe, is its consequence and explains nothing.
        let sent = match (self.failure.get(), self.connection.cancel.is_cancelled()) {
            (Some(failure), _) => Err(failure.clone()),
            (None, true) => Err(LinkError::Cancelled),
            (None, false) => self.connection.write(kind, pieces, self.deadline()),
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
    /// [`LinkError`]: it does not come, or another one came.
    pub fn receive<'a, T: Pod>(&self, kind: Kind, pieces: impl Iterator<Item = &'a mut [T]>) -> Result<(), LinkError> {
        let mut pieces: Vec<&mut [u8]> = pieces.map(bytemuck::cast_slice_mut).collect();
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let deadline = Some(self.deadline());
        self.reading(|| {
            self.connection.begin(kind, bytes..=bytes, deadline)?;
            pieces.iter_mut().try_for_each(|piece| self.connection.fill(piece, deadline))
        })
    }

    /// Receives at most `longest` words; waits as long as the peer lives.
    ///
    /// # Errors
    /// [`LinkError`]: it does not come, or something else came.
    pub fn receive_u32s(&self, kind: Kind, longest: usize) -> Result<Vec<u32>, LinkError> {
        self.reading(|| {
            let bytes = self.connection.begin(kind, 0..=longest.saturating_mul(size_of::<u32>()), None)?;
            if !bytes.is_multiple_of(size_of::<u32>()) {
                return Err(self.connection.unexpected(&format!("a frame of {bytes} bytes")));
            }
            let mut numbers = vec![0; bytes / size_of::<u32>()];
            self.connection.fill(bytemuck::cast_slice_mut(&mut numbers), Some(self.deadline()))?;
            Ok(numbers)
        })
    }

    /// Receives settings or a sentence before `deadline`.
    ///
    /// # Errors
    /// [`LinkError`]: it does not come, or something else came.
    pub fn receive_json<T: DeserializeOwned>(&self, kind: Kind, deadline: Instant) -> Result<T, LinkError> {
        self.reading(|| {
            let bytes = self.connection.begin(kind, 0..=MAX_JSON_BYTES, Some(deadline))?;
            self.connection.json(bytes, deadline)
        })
    }

    /// True once the peer has ended; takes in its end, which no thread waits for.
    pub fn has_ended(&self) -> bool {
        // Whoever is reading hears it.
        let Ok(_turn) = self.receiving.try_lock() else { return self.failure.get().is_some() };
        let failure = self.connection.unread_failure();
        failure.map(|failure| self.record_failure(failure)).is_some() || self.failure.get().is_some()
    }

    /// Says the last word, and waits a moment for the peer to have heard it. Where a frame is stuck half-way the connection is
    /// cut instead.
    pub fn end(&self, end: &End) {
        let text = serde_json::to_vec(end).unwrap_or_default();
        if !matches!(self.failure.get(), Some(LinkError::Ended { .. }))
            && let Ok(_turn) = self.sending.try_lock()
        {
            // Whoever does not hear it sees the connection end.
            let _unheard = self.connection.write(Kind::End, &[&text], Instant::now() + CLOSE_TIMEOUT);
        }
        self.connection.close();
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
}

fn lock(turn: &Mutex<()>) -> MutexGuard<'_, ()> {
    turn.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
