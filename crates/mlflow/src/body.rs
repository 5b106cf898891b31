//! Bodies of answers, limited to the length of MLflow's: any server may answer, and the job that waits is measuring.

use reqwest::Response;

use super::Failure;
use super::client::broken;

/// Longest answer in bytes; a page of a thousand runs, each with a few hundred params and tags, is shorter.
pub(super) const LONGEST_ANSWER_BYTES: usize = 32 << 20;

/// Most bytes of an error's body that are read: MLflow's have a few hundred, those with a stack trace a few thousand.
const LONGEST_ERROR_BODY_BYTES: usize = 64 << 10;

/// The whole body, of at most `limit` bytes.
pub(super) async fn whole(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let too_long = || Failure::NotMlflow(format!("its answer is longer than {limit} bytes"));
    // The declared length first: nothing is read of a body that is too long by its own account.
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| broken(&error))? {
        // Compressed or chunked bodies declare no length.
        if piece.len() > limit - body.len() {
            return Err(too_long());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The beginning of an error's body; as much as arrives if it breaks off, since the status alone is enough.
pub(super) async fn beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        let room = LONGEST_ERROR_BODY_BYTES - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        // The rest stays unread, and reqwest closes the connection.
        if body.len() == LONGEST_ERROR_BODY_BYTES {
            break;
        }
    }
    body
}
