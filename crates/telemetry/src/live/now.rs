//! The present phase with its progress, and the present values in large figures.

use std::fmt::Write;
use std::time::Duration;

use flashjob_charts::{Unit, escape};
use flashjob_event::Phase;
use flashjob_results::RecordedTimeline;

use crate::progress::{Expected, share, text};
use crate::registry::Totals;

/// Share of the work that must be done before a remaining time is shown; before it the rate is noise.
const LEAST_SHARE: f64 = 0.01;

/// The phases in order, the sentence of the present one, its bar and its remaining time.
pub(super) fn now(totals: &Totals, expected: &Expected) -> String {
    let phases = Phase::ALL.into_iter().filter(|phase| *phase != Phase::Follow || totals.phase == Some(*phase));
    let names: Vec<String> = phases
        .map(|phase| match totals.phase == Some(phase) {
            true => format!("<strong class=\"status\">{}</strong>", phase.name().replace('_', "-")),
            false => phase.name().replace('_', "-"),
        })
        .collect();
    let mut html = format!("<p class=\"facts\">{}</p>\n", names.join(" → "));
    // The progress bar on a terminal says the same.
    let sentence = escape(&text(totals, expected));
    // Writing to a String cannot fail.
    match share(totals, expected) {
        Some((done, all)) => {
            let percent = 100.0 * done.min(all) as f64 / all.max(1) as f64;
            // The sentence of a batch has it, without what earlier jobs have done.
            let left = remaining(done, all, totals.phase_elapsed)
                .filter(|_| totals.batch.is_none() || totals.phase != Some(Phase::Measure))
                .map_or(String::new(), |left| format!(" · about {} left", Unit::Time.text(left.as_secs_f64().ceil())));
            let _ = writeln!(
                html,
                "<progress max=\"{all}\" value=\"{}\" aria-label=\"progress of the phase\"></progress>\n\
                 <p>{percent:.0} % · {sentence}{left}</p>",
                done.min(all)
            );
        }
        None => {
            let elapsed = Unit::Time.text(totals.phase_elapsed.as_secs_f64().floor());
            let _ = writeln!(html, "<p>{sentence} · for {elapsed}</p>");
        }
    }
    html
}

/// Time that the rest takes at the rate so far.
fn remaining(done: u64, all: u64, elapsed: Duration) -> Option<Duration> {
    let share = done as f64 / all.max(1) as f64;
    let left = elapsed.as_secs_f64() * (1.0 - share) / share;
    (share >= LEAST_SHARE && done < all).then(|| Duration::try_from_secs_f64(left).ok())?
}

/// Values of the measured region, once it has begun.
pub(super) fn tiles(totals: &Totals, expected: &Expected, recorded: Option<&RecordedTimeline>) -> String {
    let Some(recorded) = recorded else { return String::new() };
    let counts = totals.measure;
    let of = |all: u64| {
        if all > 0 { format!(" <small>of {}</small>", Unit::Count("").text(all as f64)) } else { String::new() }
    };
    let count = |value: u64| escape(&Unit::Count("").text(value as f64));
    // By the clock of the region, which starts with the first request and not with the phase.
    let mean = counts.generated_tokens as f64 / recorded.elapsed_seconds.max(f64::MIN_POSITIVE);
    let mut tiles = vec![
        ("output tokens per second", escape(&Unit::Count("").text(mean))),
        ("output tokens", count(counts.generated_tokens) + &of(expected.output_tokens)),
        ("requests finished", count(counts.requests_finished) + &of(expected.requests)),
        ("running", count(totals.running)),
        ("waiting", count(totals.waiting)),
    ];
    if let Some(batch) = &totals.batch {
        tiles.push(("lines answered", count(batch.answered()) + &of(batch.lines().map_or(0, |(lines, _)| lines))));
        let remaining = batch.remaining().map(|left| Unit::Time.text(left.as_secs_f64().ceil()));
        let rate = batch.lines_per_second().map(|rate| Unit::Count("").text(rate));
        let cost = batch.cost().map(|cost| Unit::Count("").text(cost));
        let errors =
            Some(batch.errors()).filter(|&errors| errors > 0).map(|errors| Unit::Count("").text(errors as f64));
        let values =
            [("lines per second", rate), ("remaining", remaining), ("cost", cost), ("lines with errors", errors)];
        tiles.extend(values.into_iter().filter_map(|(name, value)| Some((name, escape(&value?)))));
    }
    if totals.kv_blocks > 0 {
        let used = totals.kv_blocks_used as f64 / totals.kv_blocks as f64;
        tiles.push(("KV cache in use", escape(&Unit::Share.text(used))));
    }
    if let Some(watts) = recorded.slices.iter().rev().find_map(|slice| slice.power_watts) {
        tiles.push(("power of the GPUs", escape(&Unit::Symbol("W").text(watts))));
    }
    // Only where there are any: a zero would be one more number to read.
    if counts.requests_failed > 0 {
        tiles.push(("failed requests", count(counts.requests_failed)));
    }
    let tiles = tiles.iter().map(|(name, value)| format!("<div class=\"tile\"><dt>{name}</dt><dd>{value}</dd></div>"));
    format!("<dl class=\"tiles\">{}</dl>", tiles.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counts;

    #[test]
    fn the_remaining_time_follows_the_rate_so_far() {
        let second = Duration::from_secs(1);
        for (done, all, left) in [
            (0, 100, None),
            (25, 100, Some(second * 30)),
            (100, 100, None),
            (150, 100, None),
            (1, 1000, None),
            (0, 0, None),
        ] {
            assert_eq!(remaining(done, all, second * 10), left, "{done} of {all}");
        }
    }

    #[test]
    fn a_phase_has_its_sentence_and_its_bar() {
        let expected = Expected { requests: 4, output_tokens: 100 };
        let measure = Counts { generated_tokens: 25, ..Counts::default() };
        let phase_elapsed = Duration::from_secs(10);
        let totals = Totals { phase: Some(Phase::Measure), phase_elapsed, measure, ..Totals::default() };
        let html = now(&totals, &expected);
        for part in ["max=\"100\" value=\"25\"", "25 %", "about 30\u{a0}s left", "<strong class=\"status\">measure"] {
            assert!(html.contains(part), "{part}: {html}");
        }
        let html = now(&Totals { phase: Some(Phase::Mount), ..Totals::default() }, &expected);
        assert!(html.contains("mounting · for 0") && !html.contains("<progress"), "{html}");
    }
}
