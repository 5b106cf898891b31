//! A profile as text: a block for each size of step, with a line for each operation.

use std::fmt::Write;

use super::{Bound, Profiled, SkippedStep, TimedStep};

const COLUMNS: [&str; 7] = ["operation", "calls", "ms", "share", "limit ms", "bound by", "of limit"];

/// The profile in aligned columns.
pub(super) fn table(profiled: &Profiled) -> String {
    let Profiled { engine, steps, skipped, .. } = profiled;
    let mut text = format!(
        "{} on {}, {}, {} ranks",
        profiled.architecture, engine.kernels, engine.dtype, engine.tensor_parallel_size
    );
    text += &match engine.limits {
        Some(limits) => {
            let (flops, bytes) = (limits.flops_per_second / 1e12, limits.bytes_per_second / 1e9);
            format!("; limits {flops:.2} TFLOP/s, {bytes:.1} GB/s\n")
        }
        None => "; limits were not measured\n".to_owned(),
    };
    steps.iter().for_each(|step| text += &block(step));
    for SkippedStep { size, reason } in skipped {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\nleft out: {} sequences of {} new tokens: {reason}", size.sequences, size.new_tokens);
    }
    text
}

fn block(step: &TimedStep) -> String {
    let size = step.size;
    let kind = if size.new_tokens == 1 { "decode" } else { "prefill" };
    let how = if step.replayed { ", replayed" } else { "" };
    let mut text = format!(
        "\n{kind}, {} sequences, {} new tokens after {} each{how}: {} ms, {:.0} tokens/s",
        size.sequences,
        size.new_tokens,
        size.context,
        milliseconds(step.seconds),
        step.tokens_per_second,
    );
    if let Some((limit, serial)) = step.limit_seconds.zip(step.serial_limit_seconds) {
        let (of_limit, of_serial) = (limit / step.seconds, serial / step.seconds);
        let _ = write!(
            text,
            "; limit {} ms ({of_limit:.2}), serial limit {} ms ({of_serial:.2})",
            milliseconds(limit),
            milliseconds(serial)
        );
    }
    text.push('\n');
    let share = |seconds: f64| format!("{:.1} %", seconds / step.seconds * 100.0);
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    for operation in &step.operations {
        let none = || "-".to_owned();
        let bound = |bound| match bound {
            Bound::Compute => "compute".to_owned(),
            Bound::Memory => "memory".to_owned(),
        };
        rows.push([
            operation.operation.to_owned(),
            operation.calls.to_string(),
            milliseconds(operation.seconds),
            share(operation.seconds),
            operation.limit_seconds.map_or_else(none, milliseconds),
            operation.bound_by.map_or_else(none, bound),
            operation.limit_fraction.map_or_else(none, |fraction| format!("{fraction:.2}")),
        ]);
    }
    let gaps = [milliseconds(step.gaps_seconds), share(step.gaps_seconds)];
    let [ms, percent] = gaps;
    rows.push(["gaps".to_owned(), String::new(), ms, percent, String::new(), String::new(), String::new()]);
    text + &aligned(&rows)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3}", seconds * 1e3)
}

/// The first column to the left, all others to the right.
fn aligned(rows: &[[String; COLUMNS.len()]]) -> String {
    let widths: [usize; COLUMNS.len()] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = format!("  {:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            let _ = write!(line, "  {cell:>width$}");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
