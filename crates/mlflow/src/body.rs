//! Bodies of answers, of which no more is kept than an answer of MLflow's can hold: whoever answers may be anybody, and the job
//! that waits for it is measuring.

use reqwest::Response;

use super::Failure;
use super::client::broken;

/// A page of a thousand runs, each with a few hundred params and tags, is less.
pub(super) const LONGEST_ANSWER_BYTES: usize = 32 << 20;

/// Bytes of an error's body that are read: MLflow's are a few hundred bytes, those with a stack a few thousand.
const LONGEST_ERROR_BODY_BYTES: usize = 64 << 10;

/// The whole body, of at most `limit` bytes.
pub(super) async fn whole(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let too_long = || Failure::NotMlflow(format!("its answer is longer than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| broken(&error))? {
        if piece.len() > limit - body.len() {
            return Err(too_long());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The beginning of an error's body; as much as arrives where it breaks off, for the status alone says enough.
pub(super) async fn beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        let room = LONGEST_ERROR_BODY_BYTES - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if body.len() == LONGEST_ERROR_BODY_BYTES {
            break;
        }
    }
    body
}
