//! A bar on a terminal, a line now and then elsewhere: how far the job is, drawn from [`Totals`].

use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};

use super::logs::Logs;
use super::ticker::Ticker;
use super::{BatchProgress, Registry, Totals};
use flashjob_event::{AnswerKind, Phase};

const FRAME: Duration = Duration::from_millis(100);
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Expected totals of the measured region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Number of requests; 0 if unknown beforehand.
    pub requests: u64,
    /// Number of output tokens, at least approximately; 0 if unknown beforehand.
    pub output_tokens: u64,
}

/// Shows progress until it is dropped.
pub struct Progress {
    // Dropped first, so that no tick draws after the bar is gone.
    _ticker: Ticker,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows what `registry` counts: as a bar where `logs` write to a terminal, as log lines otherwise.
    ///
    /// # Errors
    /// Those of the operating system when it gives no thread.
    pub fn start(registry: Arc<Registry>, logs: &Logs, expected: Expected) -> std::io::Result<Self> {
        if !logs.is_terminal() {
            let mut last = None;
            let ticker = Ticker::start("progress", BETWEEN_LINES, move || {
                let now = text(&registry.totals(), &expected);
                // No line without progress, and none for the first tick, which comes before anything happens.
                if last.as_ref() != Some(&now) && last.is_some() {
                    tracing::info!(target: "flashjob", "{now}");
                }
                last = Some(now);
            })?;
            return Ok(Self { _ticker: ticker, bar: None });
        }
        let bar = logs.screen().add(ProgressBar::new_spinner());
        let drawn = bar.clone();
        let mut has_length = None;
        let ticker = Ticker::start("progress", FRAME, move || {
            let totals = registry.totals();
            let share = share(&totals, &expected);
            // A style is compiled from its template: only when it changes.
            if has_length != Some(share.is_some()) {
                drawn.set_style(style(share.is_some()));
                has_length = Some(share.is_some());
            }
            if let Some((done, all)) = share {
                drawn.set_length(all);
                drawn.set_position(done.min(all));
            }
            drawn.set_message(text(&totals, &expected));
            drawn.tick();
        })?;
        Ok(Self { _ticker: ticker, bar: Some(bar) })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn style(has_length: bool) -> ProgressStyle {
    let template = if has_length { "{bar:30} {percent:>3}% {msg}" } else { "{spinner} {msg}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Done and total amount of the current phase, where the total is known.
pub(crate) fn share(totals: &Totals, expected: &Expected) -> Option<(u64, u64)> {
    match totals.phase? {
        Phase::Load if totals.weights_total_bytes > 0 => Some((totals.weights_read_bytes, totals.weights_total_bytes)),
        Phase::Measure if totals.batch.is_some() => {
            totals.batch.and_then(|batch| Some((batch.answered(), batch.lines()?.0)))
        }
        // By tokens, as requests finish late and together.
        Phase::Measure if expected.output_tokens > 0 => Some((totals.measure.generated_tokens, expected.output_tokens)),
        _ => None,
    }
}

/// One sentence about the current phase.
pub(crate) fn text(totals: &Totals, expected: &Expected) -> String {
    let bytes = HumanBytes;
    match totals.phase {
        None => "starting".to_owned(),
        Some(Phase::Mount) if totals.bucket_read_bytes > 0 => {
            format!("mounting: {} read from the bucket", bytes(totals.bucket_read_bytes))
        }
        Some(Phase::Mount) => "mounting".to_owned(),
        Some(Phase::Load) if totals.weights_total_bytes > 0 => {
            format!("loading: {} of {} of weights", bytes(totals.weights_read_bytes), bytes(totals.weights_total_bytes))
        }
        Some(Phase::Load) => "loading".to_owned(),
        Some(Phase::Follow) => "computing what another machine says".to_owned(),
        Some(Phase::WarmUp) => format!("warming up: {} tokens", totals.warm_up.generated_tokens),
        Some(Phase::Measure) => {
            let counts = totals.measure;
            // At least a millisecond: the first frame may come with the phase itself.
            let rate = counts.generated_tokens as f64 / totals.phase_elapsed.as_secs_f64().max(1e-3);
            if let Some(batch) = &totals.batch {
                let Totals { running, waiting, .. } = totals;
                let lines = batch_text(batch);
                return format!("{lines}, {rate:.1} tokens/s, {running} running, {waiting} waiting");
            }
            let failed = if counts.requests_failed > 0 {
                format!(" ({} failed)", counts.requests_failed)
            } else {
                String::new()
            };
            let of = |all: u64| if all > 0 { format!(" of {all}") } else { String::new() };
            format!(
                "measuring: {}{} requests{failed}, {}{} tokens, {rate:.1} tokens/s, {} running, {} waiting",
                counts.requests_finished,
                of(expected.requests),
                counts.generated_tokens,
                of(expected.output_tokens),
                totals.running,
                totals.waiting
            )
        }
        Some(Phase::Publish) => "publishing results".to_owned(),
        Some(Phase::Linger) => "metrics stay up for a last scrape".to_owned(),
    }
}

/// Lines, errors by kind, rate, remaining time and cost of a batch.
fn batch_text(batch: &BatchProgress) -> String {
    let of = batch.lines().map_or(String::new(), |(lines, is_estimate)| {
        format!(" of {}{lines}", if is_estimate { "about " } else { "" })
    });
    let mut text = format!("answering: {}{of} lines", batch.answered());
    let errors = AnswerKind::errors().filter(|&kind| batch.of(kind) > 0);
    let errors: Vec<String> = errors.map(|kind| format!("{} {}", batch.of(kind), kind.name())).collect();
    if !errors.is_empty() {
        text += &format!(" (errors: {})", errors.join(", "));
    }
    if let Some(rate) = batch.lines_per_second() {
        text += &format!(", {rate:.1} lines/s");
    }
    if let Some(remaining) = batch.remaining() {
        text += &format!(", {} left", HumanDuration(remaining));
    }
    if let Some(cost) = batch.cost() {
        text += &format!(", cost {cost:.2}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use indicatif::{InMemoryTerm, MultiProgress, ProgressDrawTarget};

    use super::*;
    use crate::Counts;
    use flashjob_event::{Event, Fact, Observer, RequestId};

    const EXPECTED: Expected = Expected { requests: 4, output_tokens: 40 };

    #[test]
    fn each_phase_says_what_moves() {
        let loading = Totals {
            phase: Some(Phase::Load),
            weights_read_bytes: 1 << 20,
            weights_total_bytes: 4 << 20,
            ..Totals::default()
        };
        assert_eq!(text(&loading, &EXPECTED), "loading: 1.00 MiB of 4.00 MiB of weights");
        assert_eq!(share(&loading, &EXPECTED), Some((1 << 20, 4 << 20)));

        let counts = Counts { requests_finished: 1, generated_tokens: 25, ..Counts::default() };
        let measuring = Totals {
            phase: Some(Phase::Measure),
            phase_elapsed: Duration::from_secs(2),
            measure: counts,
            running: 3,
            ..Totals::default()
        };
        assert_eq!(
            text(&measuring, &EXPECTED),
            "measuring: 1 of 4 requests, 25 of 40 tokens, 12.5 tokens/s, 3 running, 0 waiting"
        );
        assert_eq!(share(&measuring, &EXPECTED), Some((25, 40)));
        let failing = Totals { measure: Counts { requests_failed: 1, ..counts }, ..measuring };
        assert!(text(&failing, &EXPECTED).starts_with("measuring: 1 of 4 requests (1 failed), 25 of 40 tokens, "));
    }

    #[test]
    fn a_batch_is_counted_in_lines() {
        let batch = BatchProgress {
            lines: Some(2000),
            is_estimate: true,
            earlier: [1000, 0, 0, 0, 0, 0],
            own: [90, 7, 0, 0, 3, 0],
            before_measuring: 0,
            price_per_hour: Some(7.2),
            elapsed: Duration::from_secs(100),
            measuring: Duration::from_secs(50),
        };
        let totals = Totals { phase: Some(Phase::Measure), batch: Some(batch), running: 3, ..Totals::default() };
        assert_eq!(share(&totals, &Expected::default()), Some((1100, 2000)));
        assert_eq!(
            text(&totals, &Expected::default()),
            "answering: 1100 of about 2000 lines (errors: 7 invalid, 3 non_finite), 2.0 lines/s, 8 minutes left, cost 0.20, \
             0.0 tokens/s, 3 running, 0 waiting"
        );
        let unknown = Totals { batch: Some(BatchProgress { lines: None, price_per_hour: None, ..batch }), ..totals };
        assert_eq!(share(&unknown, &Expected::default()), None);
        assert!(text(&unknown, &Expected::default()).starts_with("answering: 1100 lines (errors: "));
    }

    #[test]
    fn nothing_known_is_no_share_and_no_division() {
        let none = Expected { requests: 0, output_tokens: 0 };
        for phase in [None].into_iter().chain(Phase::ALL.map(Some)) {
            let totals = Totals { phase, ..Totals::default() };
            assert_eq!(share(&totals, &none), None);
            assert!(!text(&totals, &none).contains("NaN"));
        }
    }

    #[test]
    fn a_terminal_shows_a_bar_until_progress_ends() {
        let terminal = InMemoryTerm::new(10, 120);
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
        let registry = Arc::new(Registry::new());
        let progress = Progress::start(registry.clone(), &Logs::on_terminal(screen), EXPECTED).unwrap();
        let request = RequestId(0);
        for fact in [Fact::PhaseStarted(Phase::Measure), Fact::TokenGenerated { request, token: 0 }] {
            registry.observe(&Event { at: Instant::now(), fact });
        }
        let patience = Instant::now() + Duration::from_secs(20);
        while !terminal.contents().contains("2% measuring: 0 of 4 requests, 1 of 40 tokens") {
            assert!(Instant::now() < patience, "{}", terminal.contents());
            std::thread::sleep(FRAME);
        }
        drop(progress);
        assert_eq!(terminal.contents(), "");
    }
}
