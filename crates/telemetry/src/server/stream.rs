//! The live page and its stream of server-sent events.
//!
//! A stream keeps its connection for as long as somebody looks, so that there are few of them, and each is closed when its client
//! takes nothing for ten seconds ([`super::activity`]).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use rand::Rng;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Shared;
use crate::live::document;

/// Streams at once.
pub(super) const MOST_STREAMS: usize = 8;

/// Interval of updates.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

/// The page; each answer has a nonce of its own.
pub(super) async fn page(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    // Not to be guessed, and not to be used again: a value that was injected could not know it.
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    let (document, policy) = document(shared.pieces.name(), &nonce);
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (headers, document)
}

/// Position of a stream between its updates.
enum Turn {
    Update(Interval),
    End,
    Over,
}

/// Updates of the page, one a second, to the end of the server.
pub(super) async fn events(State(shared): State<Arc<Shared>>) -> Response {
    // The place goes into the stream, and is free again when that is dropped, however it ends.
    let Ok(place) = shared.streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    let mut ticks = interval(UPDATE_INTERVAL);
    // A client that was slow gets the present state, and not all that it has missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let updates = unfold((Turn::Update(ticks), shared, place), |(turn, shared, place)| async move {
        let update = |shared: &Shared| Event::default().event("update").data(&*shared.pieces.text());
        let (event, next) = match turn {
            Turn::Update(mut ticks) => tokio::select! {
                () = shared.stop.cancelled() => (update(&shared), Turn::End),
                _ = ticks.tick() => (update(&shared), Turn::Update(ticks)),
            },
            Turn::End => (Event::default().event("end").data("the job ends"), Turn::Over),
            Turn::Over => return None,
        };
        Some((Ok::<_, Infallible>(event), (next, shared, place)))
    });
    ([(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Sse::new(updates))
        .into_response()
}
