//! Connections that can be broken on purpose.
//!
//! HTTP libraries close connections in good order; a reset has to be done below them, on the socket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::requests::Requests;

/// Bytes in flight per connection. The system's default of some MiB each would leave the processor's cache before
/// readers on the same machine read them.
const SEND_BUFFER_BYTES: u32 = 128 << 10;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on `address`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that restarts on the same port must not wait for connections in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit the size.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections.
pub struct Listener {
    pub listener: TcpListener,
    pub requests: Arc<Requests>,
}

/// Actions of a request on its connection.
#[derive(Clone, Debug)]
pub struct Line(Arc<AtomicBool>);

impl Line {
    /// When the connection ends, it ends with a reset.
    pub fn reset_at_end(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = Line;

    async fn accept(&mut self) -> (Connection, Line) {
        let (stream, _): (TcpStream, SocketAddr) = axum::serve::Listener::accept(&mut self.listener).await;
        // Nagle's algorithm would delay small answers until the previous one is acknowledged.
        let _ = stream.set_nodelay(true);
        self.requests.connected();
        let line = Line(Arc::default());
        (Connection { stream, line: line.clone(), requests: Arc::clone(&self.requests) }, line)
    }

    fn local_addr(&self) -> io::Result<Line> {
        Ok(Line(Arc::default()))
    }
}

impl Connected<IncomingStream<'_, Listener>> for Line {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A TCP stream that resets instead of closing when told so.
pub struct Connection {
    stream: TcpStream,
    line: Line,
    requests: Arc<Requests>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.line.0.load(Ordering::Acquire) {
            // A linger of zero makes close send RST instead of FIN.
            let _ = self.stream.set_zero_linger();
        }
        self.requests.disconnected();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A FIN before the reset would look like an orderly end to the client.
        if self.line.0.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
