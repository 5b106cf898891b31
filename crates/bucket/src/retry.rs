//! Retries of failed attempts: one policy for every operation.
//!
//! Exponential backoff with full jitter (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture
//! Blog, 2015); base, cap and deadline are those of the official SDK. The SDK stops after 8 tries; here the
//! deadline alone decides, because a job says how long it is willing to wait, not how often.

use std::time::{Duration, Instant};

use super::answer::{Again, Failure};
use super::error::Error;
use super::transport::Transport;
use flashjob_event::Fact;
use flashjob_retry::Backoff;

/// Attempts after which an answer that Object Storage never gives is taken as final.
const PROTOCOL_TRIES: u32 = 4;

/// Timeouts, retries and concurrency of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Longest time without progress of one operation, counted from its start or its last useful bytes.
    pub deadline: Duration,
    /// Upper bound of the first pause; it doubles with each further failure.
    pub base: Duration,
    /// Upper bound of all pauses, unless the service asks for more (`Retry-After`).
    pub cap: Duration,
    /// Longest time without a byte in either direction before a connection is abandoned.
    pub progress_timeout: Duration,
    /// Timeout for connecting.
    pub connect_timeout: Duration,
    /// Most requests in flight, each on a connection of its own.
    pub connections: usize,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(600),
            base: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            progress_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            connections: 64,
        }
    }
}

impl RetryPolicy {
    /// Full jitter: readers that fail together must not return together.
    fn backoff(&self) -> Backoff {
        Backoff { base: self.base, cap: self.cap, jitter: 0.0..1.0 }
    }
}

/// The attempts of one operation.
pub(super) struct Attempts<'a> {
    transport: &'a Transport,
    attempted: String,
    schedule: Schedule,
}

impl<'a> Attempts<'a> {
    /// Begins an operation that `attempted` describes ("list objects in bucket `b`").
    pub(super) fn new(transport: &'a Transport, attempted: String) -> Self {
        Self { transport, attempted, schedule: Schedule::new(Instant::now()) }
    }

    /// Records useful bytes: the deadline starts anew, and after a failure the rest is requested without a pause.
    pub(super) fn progressed(&mut self) {
        self.schedule.progressed(Instant::now());
    }

    /// Number of attempts before the present one.
    pub(super) fn failed(&self) -> u32 {
        self.schedule.tries
    }

    /// Pauses before the next attempt.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Error> {
        let policy = self.transport.policy();
        // Time and randomness come from outside, so that the schedule is tested without either.
        let pause = self.schedule.pause(policy, &failure, Instant::now(), rand::random());
        match (pause, &failure.again) {
            (Some(pause), Again::AFewTimes(reason) | Again::UntilDeadline(reason)) => {
                self.transport.events().emit(Fact::BucketRetried { reason });
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                Ok(())
            }
            _ => Err(self.fail(failure)),
        }
    }

    /// Ends the operation with an error.
    pub(super) fn fail(&self, failure: Failure) -> Error {
        Error::new(self.transport.par(), &self.attempted, self.schedule.tries.max(1), failure)
    }
}

/// The schedule of pauses, without a clock of its own.
struct Schedule {
    tries: u32,
    /// Failures since the start or the last progress.
    in_a_row: u32,
    /// Consecutive answers that Object Storage never gives, up to the last failure.
    nonsense: u32,
    /// Time of the start or the last progress.
    since: Instant,
    progressed: bool,
}

impl Schedule {
    fn new(now: Instant) -> Self {
        Self { tries: 0, in_a_row: 0, nonsense: 0, since: now, progressed: false }
    }

    fn progressed(&mut self, now: Instant) {
        self.in_a_row = 0;
        self.nonsense = 0;
        self.since = now;
        self.progressed = true;
    }

    /// Pause after `failure`; `None` gives up. `jitter` is in `[0, 1)`.
    fn pause(&mut self, policy: &RetryPolicy, failure: &Failure, now: Instant, jitter: f64) -> Option<Duration> {
        self.tries += 1;
        self.in_a_row += 1;
        // A connection that broke after useful bytes is resumed at once: backoff is for a service that does not work at
        // all.
        let resume = std::mem::take(&mut self.progressed) && failure.retry_after.is_none();
        match failure.again {
            Again::Never => return None,
            Again::AFewTimes(_) => {
                self.nonsense += 1;
                if self.nonsense >= PROTOCOL_TRIES {
                    return None;
                }
            }
            // A throttling answer is valid: one damaged answer after it is the first, not the last of many.
            Again::UntilDeadline(_) => self.nonsense = 0,
        }
        let planned = if resume {
            Duration::ZERO
        } else {
            // A service that asks for a wait asks all readers for the same one; the jittered base spreads them
            // afterwards.
            let failures = if failure.retry_after.is_some() { 0 } else { self.in_a_row - 1 };
            policy.backoff().pause(failures, jitter)
        };
        let pause = failure.retry_after.unwrap_or_default().saturating_add(planned);
        let end = self.since.checked_add(policy.deadline);
        let next = now.checked_add(pause)?;
        // A pause that would end after the deadline is not begun: the caller learns of the failure now.
        end.is_none_or(|end| next <= end).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn throttled(retry_after: Option<u64>) -> Failure {
        let again = Again::UntilDeadline("throttled");
        let retry_after = retry_after.map(Duration::from_secs);
        Failure { again, retry_after, ..Failure::new(ErrorKind::Throttled, String::new()) }
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let (policy, now) = (RetryPolicy::default(), Instant::now());
        let mut schedule = Schedule::new(now);
        let half: Vec<f64> =
            (0..7).map(|_| schedule.pause(&policy, &throttled(None), now, 0.5).unwrap().as_secs_f64()).collect();
        assert_eq!(half, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]);
        for _ in 0..100 {
            assert_eq!(schedule.pause(&policy, &throttled(None), now, 0.0), Some(Duration::ZERO));
        }
    }

    #[test]
    fn the_service_is_obeyed_and_readers_are_spread() {
        let (policy, now) = (RetryPolicy::default(), Instant::now());
        let mut schedule = Schedule::new(now);
        for _ in 0..6 {
            assert_eq!(schedule.pause(&policy, &throttled(Some(40)), now, 0.25).unwrap(), 40 * SECOND + SECOND / 4);
        }
    }

    #[test]
    fn nothing_is_waited_for_beyond_the_deadline() {
        let (policy, now) = (RetryPolicy::default(), Instant::now());
        assert_eq!(Schedule::new(now).pause(&policy, &throttled(Some(601)), now, 0.0), None);
        assert_eq!(Schedule::new(now).pause(&policy, &throttled(Some(u64::MAX)), now, 0.5), None);
        let mut schedule = Schedule::new(now);
        assert!(schedule.pause(&policy, &throttled(None), now + 599 * SECOND, 0.5).is_some());
        assert_eq!(schedule.pause(&policy, &throttled(None), now + 601 * SECOND, 0.5), None);
        schedule.progressed(now + 602 * SECOND);
        assert_eq!(schedule.pause(&policy, &throttled(None), now + 603 * SECOND, 0.5), Some(Duration::ZERO));
        assert_eq!(schedule.pause(&policy, &throttled(None), now + 604 * SECOND, 0.5), Some(SECOND));
    }

    #[test]
    fn nonsense_is_believed_in_the_end() {
        let (policy, now) = (RetryPolicy::default(), Instant::now());
        let mut schedule = Schedule::new(now);
        let given_up = (1..).find(|_| schedule.pause(&policy, &Failure::protocol("?"), now, 0.0).is_none());
        assert_eq!(given_up, Some(PROTOCOL_TRIES));
        // Not because others failed for other reasons before.
        let mut schedule = Schedule::new(now);
        for _ in 0..PROTOCOL_TRIES {
            assert!(schedule.pause(&policy, &throttled(None), now, 0.0).is_some());
        }
        assert!(schedule.pause(&policy, &Failure::protocol("?"), now, 0.0).is_some());
        assert_eq!(
            Schedule::new(now).pause(&policy, &Failure::new(ErrorKind::NotFound, String::new()), now, 0.0),
            None
        );
    }
}
