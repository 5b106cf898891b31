//! How far a batch is: lines, errors, rate, remaining time and cost, each computed here from counted facts and nowhere else.

use std::time::Duration;

use flashjob_event::AnswerKind;

const KINDS: usize = AnswerKind::ALL.len();

/// Progress of a batch; of a replica's share where there are several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchProgress {
    pub(crate) lines: Option<u64>,
    pub(crate) is_estimate: bool,
    /// Answers by kind, in the order of [`AnswerKind::ALL`].
    pub(crate) earlier: [u64; KINDS],
    pub(crate) own: [u64; KINDS],
    /// Answers of this job that came before the measured region.
    pub(crate) before_measuring: u64,
    pub(crate) price_per_hour: Option<f64>,
    /// Time since the first phase began.
    pub(crate) elapsed: Duration,
    /// Time in the measured region.
    pub(crate) measuring: Duration,
}

impl BatchProgress {
    /// Lines, and whether their number is estimated; `None` while it is unknown.
    pub fn lines(&self) -> Option<(u64, bool)> {
        self.lines.map(|lines| (lines, self.is_estimate))
    }

    /// Lines that have an answer, those of earlier jobs included.
    pub fn answered(&self) -> u64 {
        AnswerKind::ALL.into_iter().map(|kind| self.of(kind)).sum()
    }

    /// Lines that this job has answered.
    pub fn answered_by_this_job(&self) -> u64 {
        self.own.iter().sum()
    }

    /// Answers of `kind`, those of earlier jobs included.
    pub fn of(&self, kind: AnswerKind) -> u64 {
        self.earlier[kind as usize] + self.own[kind as usize]
    }

    /// Lines whose answer is an error.
    pub fn errors(&self) -> u64 {
        AnswerKind::errors().map(|kind| self.of(kind)).sum()
    }

    /// Lines that this job answers in a second of its measured region; `None` before that has taken any time. What earlier jobs
    /// answered, and lines that were refused before anything ran, took none of it.
    pub fn lines_per_second(&self) -> Option<f64> {
        // Over the whole region, and not the last seconds: answers of long lines come in bursts.
        let lines = self.answered_by_this_job() - self.before_measuring;
        (!self.measuring.is_zero()).then(|| lines as f64 / self.measuring.as_secs_f64())
    }

    /// Time that the other lines take at this rate; `None` where their number or the rate is unknown.
    pub fn remaining(&self) -> Option<Duration> {
        // More answers than lines were estimated: nothing is known of the rest.
        let left = self.lines?.checked_sub(self.answered())?;
        // An estimate that is reached says nothing of what is left.
        if left == 0 && self.is_estimate {
            return None;
        }
        let rate = self.lines_per_second().filter(|&rate| rate > 0.0)?;
        Duration::try_from_secs_f64(left as f64 / rate).ok()
    }

    /// Price of all machines since the job began; `None` where none is configured.
    pub fn cost(&self) -> Option<f64> {
        // From the first phase on: machines are paid for while a model loads.
        self.price_per_hour.map(|price| price / 3600.0 * self.elapsed.as_secs_f64())
    }

    /// Time since the job began.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Time in the measured region.
    pub fn measuring(&self) -> Duration {
        self.measuring
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 lines, of which earlier jobs have answered 40 and this one 30 within 10 s, 10 of them before anything ran.
    const PROGRESS: BatchProgress = BatchProgress {
        lines: Some(100),
        is_estimate: false,
        earlier: [39, 1, 0, 0, 0, 0],
        own: [18, 10, 0, 0, 2, 0],
        before_measuring: 10,
        price_per_hour: Some(36.0),
        elapsed: Duration::from_secs(50),
        measuring: Duration::from_secs(10),
    };

    #[test]
    fn earlier_answers_are_done_and_not_in_the_rate() {
        assert_eq!((PROGRESS.answered(), PROGRESS.answered_by_this_job(), PROGRESS.errors()), (70, 30, 13));
        assert_eq!(PROGRESS.of(AnswerKind::Invalid), 11);
        assert_eq!(PROGRESS.lines_per_second(), Some(2.0));
        assert_eq!(PROGRESS.remaining(), Some(Duration::from_secs(15)));
        assert_eq!(PROGRESS.cost(), Some(0.5));
    }

    #[test]
    fn what_is_unknown_is_no_number() {
        let none = BatchProgress::default();
        assert_eq!((none.lines(), none.lines_per_second(), none.remaining(), none.cost()), (None, None, None, None));
        let stalled = BatchProgress { own: [0; KINDS], before_measuring: 0, ..PROGRESS };
        assert_eq!((stalled.lines_per_second(), stalled.remaining()), (Some(0.0), None));
        for (lines, is_estimate, remaining) in [
            (70, false, Some(Duration::ZERO)),
            (70, true, None),
            (60, true, None),
            (72, true, Some(Duration::from_secs(1))),
        ] {
            let progress = BatchProgress { lines: Some(lines), is_estimate, ..PROGRESS };
            assert_eq!(progress.remaining(), remaining, "{lines} {is_estimate}");
        }
    }
}
