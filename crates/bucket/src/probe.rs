//! A probe that tells whether a PAR works at all, which an error leaves open.
//!
//! The service gives the same answer (404 `BucketNotFound`) to a PAR that is gone and to one that does not
//! allow what was asked. Reading one byte tells them apart, at the price of one request after a failure.

use reqwest::header::RANGE;

use super::error::ErrorKind;
use super::transport::Transport;

/// Returns whether the PAR could read the object called `name` if there were one.
pub(super) async fn reads(transport: &Transport, name: &str) -> bool {
    let url = transport.par().object_url(name);
    let Ok(mut reply) = transport.send(transport.client().get(url).header(RANGE, "bytes=0-0")).await else {
        return false;
    };
    // 416, as `Changed`, is an empty object; a name outside of the prefix is refused by a PAR that works.
    reply.status().is_success()
        || matches!(reply.failure().await.kind, ErrorKind::NotFound | ErrorKind::Changed | ErrorKind::OutsidePrefix)
}
