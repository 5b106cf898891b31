//! Faults of answers: heads that lie, bodies that are slow, stop, or break off.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::faults::Kind;
use crate::line::Line;

/// Pause of a body before it breaks, so that earlier bytes get out.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// Early ends of a body.
#[derive(Clone, Copy)]
enum End {
    Reset,
    Close,
    Stall,
    /// As if it were the whole.
    Silent,
}

/// Applies those of `kinds` that are about bodies and their length.
pub fn spoil(mut response: Response<Body>, kinds: &[Kind], line: &Line, wire: &Wire) -> Response<Body> {
    for kind in kinds {
        response = match *kind {
            Kind::Bandwidth { bytes_per_second } if bytes_per_second > 0.0 => {
                response.map(|body| paced(body, bytes_per_second))
            }
            Kind::SharedBandwidth { bytes_per_second } if bytes_per_second > 0.0 => {
                response.map(|body| on_one_wire(body, bytes_per_second, wire))
            }
            Kind::Reset { after_bytes } => cut(response, after_bytes, End::Reset, line),
            Kind::ShortBody { after_bytes } => cut(response, after_bytes, End::Close, line),
            Kind::Stall { after_bytes } => cut(response, after_bytes, End::Stall, line),
            Kind::WrongLength => shortened(response, 1, line),
            Kind::WrongMd5 => with_another_md5(response),
            Kind::HalfListing => {
                let length = length(&response).unwrap_or(0);
                shortened(response, length.div_ceil(2), line)
            }
            _ => response,
        };
    }
    response
}

fn length(response: &Response<Body>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn with_another_md5(mut response: Response<Body>) -> Response<Body> {
    for name in ["opc-content-md5", "opc-multipart-md5"] {
        if response.headers().contains_key(name) {
            response.headers_mut().insert(name, HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="));
        }
    }
    response
}

/// Takes `bytes` off the end of the body, and off `Content-Length`.
fn shortened(mut response: Response<Body>, bytes: u64, line: &Line) -> Response<Body> {
    let Some(length) = length(&response).and_then(|length| length.checked_sub(bytes)) else { return response };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    cut(response, length, End::Silent, line)
}

/// Sends `after` bytes of the body and ends it as `end` says.
fn cut(response: Response<Body>, after: u64, end: End, line: &Line) -> Response<Body> {
    let line = line.clone();
    response.map(|body| {
        let pieces = body.into_data_stream().boxed();
        Body::from_stream(stream::unfold(Some((pieces, after)), move |state| {
            let line = line.clone();
            async move {
                let (mut pieces, left) = state?;
                let piece: Option<Bytes> = if left == 0 { None } else { pieces.next().await?.ok() };
                if let Some(mut piece) = piece {
                    piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - piece.len() as u64;
                    return Some((Ok(piece), Some((pieces, left))));
                }
                match end {
                    End::Silent => return None,
                    End::Stall => std::future::pending().await,
                    End::Reset => line.reset_at_end(),
                    End::Close => {}
                }
                // Without the pause, the reset could overtake bytes that are still buffered.
                tokio::time::sleep(LAST_WORDS).await;
                Some((Err(std::io::Error::other("a fault was asked for")), None))
            }
        }))
    })
}

/// Lets no more than `bytes_per_second` through: each piece leaves when all before it and itself are due.
fn paced(body: Body, bytes_per_second: f64) -> Body {
    let pieces = body.into_data_stream().boxed();
    Body::from_stream(stream::unfold((pieces, Instant::now()), move |(mut pieces, due)| async move {
        let piece = pieces.next().await?;
        let length = piece.as_ref().map_or(0, Bytes::len);
        // Relative to the start, not to the last piece: delays do not add up.
        let due = due + Duration::try_from_secs_f64(length as f64 / bytes_per_second).unwrap_or_default();
        tokio::time::sleep_until(due).await;
        Some((piece, (pieces, due)))
    }))
}

/// The wire that all connections of a server share: when it is free again.
pub type Wire = Arc<Mutex<Option<Instant>>>;

/// Sends each piece when those of all other bodies before it are through.
fn on_one_wire(body: Body, bytes_per_second: f64, wire: &Wire) -> Body {
    let wire = Arc::clone(wire);
    Body::from_stream(body.into_data_stream().then(move |piece| {
        let wire = Arc::clone(&wire);
        async move {
            let length = piece.as_ref().map_or(0, Bytes::len);
            let takes = Duration::try_from_secs_f64(length as f64 / bytes_per_second).unwrap_or_default();
            let due = {
                let mut free = wire.lock();
                let now = Instant::now();
                // Reserved under the lock, waited for without it.
                let due = free.map_or(now, |free| free.max(now)) + takes;
                *free.insert(due)
            };
            tokio::time::sleep_until(due).await;
            piece
        }
    }))
}
