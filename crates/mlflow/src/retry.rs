//! The one retry policy: everything sent to MLflow is made so that it can be sent again.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::Error;

/// The first pause.
const FIRST_SECONDS: f64 = 0.5;
/// Each pause is this much longer than the one before, as in MLflow's own client.
const FACTOR: f64 = 2.0;
/// The longest pause that is not the server's wish.
const LONGEST_SECONDS: f64 = 30.0;

/// Growing pauses with jitter.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure: what the server asks for, if that is longer. A failure that only a person
    /// can end is asked about again at the longest pause.
    pub(super) fn pause(&mut self, error: &Error) -> Duration {
        let planned = if error.is_transient() {
            (FIRST_SECONDS * FACTOR.powi(self.failures.min(16) as i32)).min(LONGEST_SECONDS)
        } else {
            LONGEST_SECONDS
        };
        self.failures += 1;
        // Jobs that start together must not come back together.
        let planned = Duration::from_secs_f64(planned * rand::rng().random_range(0.75..1.25));
        planned.max(error.retry_after().unwrap_or_default())
    }

    /// The moment of the next attempt; `None` when another attempt is no use or would come after `deadline`.
    fn next_attempt(&mut self, error: &Error, now: Instant, deadline: Instant) -> Option<Instant> {
        let next = now.checked_add(self.pause(error))?;
        (error.is_transient() && next < deadline).then_some(next)
    }
}

/// Makes `attempt` until it succeeds, fails in a way that waiting does not mend, or `deadline` is near. `server`
/// is named in the error that says so.
///
/// # Errors
/// The last attempt's error, or that the deadline came before any answer.
pub(super) async fn until<T>(
    deadline: Instant,
    server: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let begin = Instant::now();
    let mut backoff = Backoff::default();
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
        let Some(next) = backoff.next_attempt(&error, Instant::now(), deadline) else { return Err(error) };
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
        let mut backoff = Backoff::default();
        let pauses: Vec<f64> = (0..40).map(|_| backoff.pause(&answered(503, None)).as_secs_f64()).collect();
        assert!((0.3..0.7).contains(&pauses[0]) && (3.0..5.1).contains(&pauses[3]), "{pauses:?}");
        assert!(pauses[10..].iter().all(|pause| (22.0..38.0).contains(pause)), "{pauses:?}");
        assert_eq!(Backoff::default().pause(&answered(429, Some(90))), Duration::from_secs(90));
        assert!(Backoff::default().pause(&answered(429, Some(0))).as_secs_f64() > 0.3);
    }

    #[test]
    fn there_is_no_next_attempt_where_it_is_no_use_or_comes_too_late() {
        let now = Instant::now();
        let soon = now + Duration::from_secs(20);
        let next = |error| Backoff::default().next_attempt(&error, now, soon);
        assert!(next(answered(502, None)).is_some_and(|next| next > now && next < soon));
        assert!(next(answered(429, Some(5))).is_some_and(|next| next >= now + Duration::from_secs(5)));
        assert_eq!(next(answered(429, Some(3600))), None);
        assert_eq!(next(answered(429, Some(u64::MAX))), None);
        assert_eq!(next(answered(403, None)), None);
        let mut backoff = Backoff::default();
        assert!((0..8).map(|_| backoff.next_attempt(&answered(502, None), now, soon)).any(|next| next.is_none()));
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
