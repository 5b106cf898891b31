//! Counts of a batch. Its families are there in jobs that answer one.

use std::time::Duration;

use flashjob_event::AnswerKind;
use parking_lot::Mutex;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec};

use super::gauge_value;
use super::registrar::Registrar;
use crate::batch_progress::BatchProgress;

/// Progress of the batch, and its families. Those without labels are vectors as well, because a value that is unknown is left out.
pub(super) struct Batch {
    progress: Mutex<BatchProgress>,
    lines: IntGaugeVec,
    is_estimate: IntGaugeVec,
    answers: IntCounterVec,
    earlier: IntGaugeVec,
    rate: GaugeVec,
    remaining: GaugeVec,
    cost: GaugeVec,
}

impl Batch {
    pub(super) fn register(registrar: &Registrar, price_per_hour: Option<f64>) -> Self {
        let answers = registrar.counters(
            "flashjob_batch_answers_total",
            "Lines of the batch that this job has answered, by kind of answer.",
            &["kind"],
        );
        let earlier = registrar.gauges(
            "flashjob_batch_earlier_answers",
            "Lines of the batch that earlier jobs have answered, by kind of answer.",
            &["kind"],
        );
        for kind in AnswerKind::ALL {
            answers.with_label_values(&[kind.name()]);
            earlier.with_label_values(&[kind.name()]);
        }
        Self {
            progress: Mutex::new(BatchProgress { price_per_hour, ..BatchProgress::default() }),
            lines: registrar.gauges("flashjob_batch_lines", "Lines of the batch, in this replica's share.", &[]),
            is_estimate: registrar.gauges(
                "flashjob_batch_lines_estimated",
                "1 while that number is estimated from bytes, 0 once lines are counted.",
                &[],
            ),
            answers,
            earlier,
            rate: registrar.fractional_gauges(
                "flashjob_batch_lines_per_second",
                "Lines that this job has answered, by the time in which requests ran.",
                &[],
            ),
            remaining: registrar.fractional_gauges(
                "flashjob_batch_remaining_seconds",
                "Time that lines without an answer take at that rate.",
                &[],
            ),
            cost: registrar.fractional_gauges(
                "flashjob_batch_cost",
                "Price of all machines since the job began, in the unit of price-per-hour.",
                &[],
            ),
        }
    }

    pub(super) fn sized(&self, lines: u64, is_estimate: bool) {
        let mut progress = self.progress.lock();
        (progress.lines, progress.is_estimate) = (Some(lines), is_estimate);
        self.lines.with_label_values(&NONE).set(gauge_value(lines));
        self.is_estimate.with_label_values(&NONE).set(is_estimate.into());
    }

    pub(super) fn answered(&self, kind: AnswerKind, lines: u64, is_measuring: bool) {
        let mut progress = self.progress.lock();
        progress.own[kind as usize] += lines;
        if !is_measuring && progress.measuring.is_zero() {
            progress.before_measuring += lines;
        }
        self.answers.with_label_values(&[kind.name()]).inc_by(lines);
    }

    pub(super) fn answered_earlier(&self, kind: AnswerKind, lines: u64) {
        let mut progress = self.progress.lock();
        progress.earlier[kind as usize] += lines;
        self.earlier.with_label_values(&[kind.name()]).set(gauge_value(progress.earlier[kind as usize]));
    }

    /// The progress once the job has run for `elapsed`, of which requests ran for `measuring`; gauges show it, too.
    pub(super) fn refresh(&self, elapsed: Duration, measuring: Duration) -> BatchProgress {
        let mut progress = self.progress.lock();
        (progress.elapsed, progress.measuring) = (elapsed, measuring);
        let remaining = progress.remaining().map(|remaining| remaining.as_secs_f64());
        for (gauge, value) in
            [(&self.rate, progress.lines_per_second()), (&self.remaining, remaining), (&self.cost, progress.cost())]
        {
            match value {
                Some(value) => gauge.with_label_values(&NONE).set(value),
                None => gauge.reset(),
            }
        }
        *progress
    }
}

/// Label values of a family without labels.
const NONE: [&str; 0] = [];
