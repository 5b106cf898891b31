//! Retries: everything that is sent to MLflow is idempotent, so one policy suits all requests.

use std::time::Duration;

use flashjob_retry::Backoff;
use tokio::time::Instant;

use super::Error;

/// Exponential backoff: half a second, doubled as in MLflow's own client, and jitter of a quarter, since jobs that start
/// together must not return together.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30), jitter: 0.75..1.25 };

/// The pauses between attempts that fail.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    failures: u32,
}

impl Pauses {
    /// The pause after one more failure; at least as long as the server asks for. After an error that only a person can
    /// resolve, it is the longest one.
    pub(super) fn pause(&mut self, error: &Error) -> Duration {
        let random = rand::random();
        let planned = match error.is_transient() {
            true => BACKOFF.pause(self.failures, random),
            false => BACKOFF.longest_pause(random),
        };
        self.failures = self.failures.saturating_add(1);
        planned.max(error.retry_after().unwrap_or_default())
    }

    /// Time of the next attempt; `None` if it could not succeed or would come after `deadline`.
    fn next_attempt(&mut self, error: &Error, now: Instant, deadline: Instant) -> Option<Instant> {
        let next = now.checked_add(self.pause(error))?;
        (error.is_transient() && next < deadline).then_some(next)
    }
}

/// Repeats `attempt` until it succeeds, fails permanently, or the next one would come after `deadline`. `server` is named in
/// the error of a timeout.
///
/// # Errors
/// The last attempt's error, or that the deadline came before any answer.
pub(super) async fn until<T>(
    deadline: Instant,
    server: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let begin = Instant::now();
    let mut pauses = Pauses::default();
    let mut last = None;
    loop {
        let error = match tokio::time::timeout_at(deadline, attempt()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(_) => {
                let seconds = deadline.duration_since(begin).as_secs_f64();
                return Err(last.unwrap_or(Error::OutOfTime { server: server.to_owned(), seconds }));
            }
        };
        let Some(next) = pauses.next_attempt(&error, Instant::now(), deadline) else { return Err(error) };
        // Kept for a later attempt that times out: the server's own answer says more than the deadline.
        last = Some(error);
        tokio::time::sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;

    fn answered(status: u16, retry_after: Option<u64>) -> Error {
        let retry_after = retry_after.map(Duration::from_secs);
        let failure = Failure::Answer { status, code: None, message: String::new(), retry_after };
        Error::Request { attempt: String::new(), server: String::new(), failure }
    }

    #[test]
    fn pauses_grow_to_a_limit_and_heed_the_server() {
        let mut pauses = Pauses::default();
        let pauses: Vec<f64> = (0..40).map(|_| pauses.pause(&answered(503, None)).as_secs_f64()).collect();
        assert!((0.3..0.7).contains(&pauses[0]) && (3.0..5.1).contains(&pauses[3]), "{pauses:?}");
        assert!(pauses[10..].iter().all(|pause| (22.0..38.0).contains(pause)), "{pauses:?}");
        assert_eq!(Pauses::default().pause(&answered(429, Some(90))), Duration::from_secs(90));
        assert!(Pauses::default().pause(&answered(429, Some(0))).as_secs_f64() > 0.3);
    }

    #[test]
    fn there_is_no_next_attempt_where_it_is_no_use_or_comes_too_late() {
        let now = Instant::now();
        let soon = now + Duration::from_secs(20);
        let next = |error| Pauses::default().next_attempt(&error, now, soon);
        assert!(next(answered(502, None)).is_some_and(|next| next > now && next < soon));
        assert!(next(answered(429, Some(5))).is_some_and(|next| next >= now + Duration::from_secs(5)));
        assert_eq!(next(answered(429, Some(3600))), None);
        assert_eq!(next(answered(429, Some(u64::MAX))), None);
        assert_eq!(next(answered(403, None)), None);
        let mut pauses = Pauses::default();
        assert!((0..8).map(|_| pauses.next_attempt(&answered(502, None), now, soon)).any(|next| next.is_none()));
    }

    #[tokio::test]
    async fn transient_failures_are_outlasted_and_others_are_not() {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut count = 0;
        let outlasted = until(deadline, "s", async || {
            count += 1;
            if count < 2 { Err(answered(502, None)) } else { Ok(count) }
        });
        assert_eq!(outlasted.await.unwrap(), 2);
        let mut count = 0;
        let refused = until::<()>(deadline, "s", async || {
            count += 1;
            Err(answered(403, None))
        });
        assert!(refused.await.unwrap_err().to_string().contains("403"));
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_left_at_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = until::<()>(deadline, "http://s", std::future::pending).await.unwrap_err();
        assert!(error.to_string().starts_with("MLflow http://s did not take it within"), "{error}");
    }
}
