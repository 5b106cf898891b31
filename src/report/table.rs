//! The result as a short table: with columns and units on a terminal, in Markdown as the description of the run in MLflow.

use std::fmt::Write;

use flashjob_config::escape_controls;
use flashjob_pages::named as named_figure;

use super::figures::named;
use super::result::JobResult;

/// Figures of the table, by key, in their order. Those that a run does not have are left out.
const SHOWN: [&str; 22] = [
    "output_tokens_per_second",
    "output_tokens_per_second_low",
    "output_tokens_per_second_high",
    "steady_output_tokens_per_second",
    "output_tokens_per_second_per_gpu",
    "total_tokens_per_second",
    "input_tokens_per_second",
    "requests_per_second",
    "elapsed_time",
    "total_input_tokens",
    "total_output_tokens",
    "failed_requests",
    "accuracy",
    "roofline_fraction",
    "roofline_serial_fraction",
    "mfu",
    "mbu",
    "prefix_cache_hit_rate",
    "mean_power_watts",
    "output_tokens_per_second_per_watt",
    "energy_joules_per_output_token",
    "cost_per_million_output_tokens",
];

const LATENCIES: [(&str, &str); 5] = [
    ("ttft", "time to first token"),
    ("tpot", "time per output token"),
    ("itl", "inter-token latency"),
    ("e2e", "end to end"),
    ("queue", "time in the queue"),
];

const PERCENTILES: [&str; 4] = ["mean", "p50", "p90", "p99"];

/// Name, number and unit of a figure.
type Row = [String; 3];

/// The name of a latency, and its mean and percentiles with their units.
type LatencyRow = [String; 5];

/// Separates a number from its unit in [`flashjob_pages`].
const SPACE: char = '\u{a0}';

fn figure_rows(figures: &[(String, f64)]) -> Vec<Row> {
    let of = |key: &str| figures.iter().find(|(known, _)| known == key).map(|(_, value)| *value);
    let row = |key: &&str| {
        let (name, unit) = named_figure(key);
        let text = unit.text(of(key)?);
        let (number, unit) = text.split_once(SPACE).unwrap_or((&text, ""));
        Some([name, number.to_owned(), unit.to_owned()])
    };
    // Failures are worth a line where there are any.
    let is_worth_a_line = |key: &&&str| **key != "failed_requests" || of(key).is_some_and(|failed| failed > 0.0);
    SHOWN.iter().filter(is_worth_a_line).filter_map(row).collect()
}

fn latency_rows(figures: &[(String, f64)]) -> Vec<LatencyRow> {
    let text = |prefix: &str, percentile: &str| {
        let key = format!("{prefix}_seconds_{percentile}");
        let found = figures.iter().find(|(known, _)| *known == key);
        found.map(|(_, value)| named_figure(&key).1.text(*value).replace(SPACE, " "))
    };
    let row = |(prefix, name): &(&str, &str)| {
        text(prefix, "p50")?;
        let [mean, p50, p90, p99] = PERCENTILES.map(|percentile| text(prefix, percentile).unwrap_or_default());
        Some([(*name).to_owned(), mean, p50, p90, p99])
    };
    LATENCIES.iter().filter_map(row).collect()
}

/// The figures of `result` in columns, and sentences behind them: for a terminal.
pub fn summary_table(result: &JobResult, results_dir: &str, run_url: Option<&str>) -> String {
    let figures = result.figures.as_ref().map(named).unwrap_or_default();
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |line: &str| {
        let _ = writeln!(text, "{}", line.trim_end());
    };
    let rows = figure_rows(&figures);
    let wide = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    // Characters and not bytes: units such as µs have more bytes than places.
    let (names, numbers) = (wide(0).max(22), wide(1));
    for [name, number, unit] in &rows {
        line(&format!("{name:<names$}  {number:>numbers$}  {unit}"));
    }
    let latencies = latency_rows(&figures);
    if !latencies.is_empty() {
        line("");
        let head = PERCENTILES.map(|percentile| format!("{percentile:>12}"));
        line(&format!("{:<names$}{}", "", head.concat()));
        for [name, values @ ..] in &latencies {
            line(&format!("{name:<names$}{}", values.iter().map(|value| format!("{value:>12}")).collect::<String>()));
        }
    }
    if !result.phases.is_empty() {
        line("");
        let phases = result.phases.iter().map(|phase| format!("{} {:.2} s", phase.phase.name(), phase.seconds));
        line(&format!("{:<names$}  {}", "phases", phases.collect::<Vec<_>>().join(" · ")));
    }
    let failed = result.error.iter().map(|error| ("error", error.as_str()));
    let notes = result.disturbances.iter().map(|sentence| ("disturbed", sentence.as_str()));
    let notes = notes.chain(result.warnings.iter().map(|sentence| ("warning", sentence.as_str())));
    let places = [("results", results_dir)].into_iter().chain(run_url.map(|url| ("MLflow run", url)));
    for (name, value) in [("status", result.status.name())].into_iter().chain(failed).chain(notes).chain(places) {
        // A file's name or a server's words start no line of their own.
        line(&format!("{name:<names$}  {}", escape_controls(value)));
    }
    text
}

/// The figures of `result` as tables of Markdown.
pub fn markdown_table(result: &JobResult) -> String {
    let figures = result.figures.as_ref().map(named).unwrap_or_default();
    let mut text = String::new();
    let rows = figure_rows(&figures);
    // A run without figures has its reason as description.
    if rows.is_empty() {
        let error = result.error.as_deref().unwrap_or("Nothing was measured.");
        return plain(error);
    }
    text.push_str("| figure | value | unit |\n|:--|--:|:--|\n");
    for [name, number, unit] in rows {
        let _ = writeln!(text, "| {name} | {number} | {unit} |");
    }
    let latencies = latency_rows(&figures);
    if !latencies.is_empty() {
        text.push_str("\n| latency | mean | p50 | p90 | p99 |\n|:--|--:|--:|--:|--:|\n");
        for row in latencies {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    let sentences = result.error.iter().chain(&result.disturbances).chain(&result.warnings);
    for sentence in sentences {
        let _ = writeln!(text, "\n{}", plain(sentence));
    }
    text
}

/// `text` of others without a meaning in Markdown.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in escape_controls(text).chars() {
        if character.is_ascii_punctuation() && !".,;:-'\"/()=%".contains(character) {
            plain.push('\\');
        }
        plain.push(character);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Vec<(String, f64)> {
        let figures = [
            ("output_tokens_per_second", 12_345.678),
            ("elapsed_time", 90.5),
            ("failed_requests", 0.0),
            ("mfu", 0.4567),
            ("ttft_seconds_p50", 0.0123),
            ("ttft_seconds_p99", 1.5),
        ];
        figures.map(|(key, value)| (key.to_owned(), value)).to_vec()
    }

    #[test]
    fn rows_have_numbers_and_units() {
        let rows = figure_rows(&figures());
        let expected = [["output tokens per second", "12\u{202f}346", "tokens/s"], ["elapsed time", "90.5", "s"]];
        assert_eq!(rows[..2], expected.map(|row| row.map(str::to_owned)));
        assert_eq!(rows[2][1..], ["45.67".to_owned(), "%".to_owned()]);
        assert_eq!(rows.len(), 3);
        assert_eq!(latency_rows(&figures()), [["time to first token", "", "12.3 ms", "", "1.5 s"].map(str::to_owned)]);
    }

    #[test]
    fn words_of_others_are_no_markdown() {
        assert_eq!(
            plain("a | b [c](d) <e> `f`\n# g"),
            "a \\| b \\[c\\](d) \\<e\\> \\`f\\`\\n\\# g".replace("\\n", "\\\\n")
        );
    }
}
