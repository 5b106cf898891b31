//! Ratios, intervals, significance and the best value.

use flashjob_compare::{Comparison, Significance, Subject};
use serde_json::json;

use super::{repeated, run};

#[test]
fn each_run_is_held_against_the_first_one() {
    let runs = [
        run("a", &[]),
        run(
            "b",
            &[(&["metrics", "output_tokens_per_second"], json!(610.496)), (&["metrics", "elapsed_time"], json!(3.0))],
        ),
        run("c", &[(&["metrics", "output_tokens_per_second"], json!(null))]),
    ];
    let comparison = Comparison::new(&runs, false).unwrap();
    assert_eq!(comparison.figures[0].key, "output_tokens_per_second", "the most important figure is the first one");
    let cells = &comparison.figures[0].cells;
    assert_eq!(cells[1].unwrap().ratio, Some(2.0));
    assert_eq!(
        cells.iter().map(|cell| cell.is_some_and(|cell| cell.is_best)).collect::<Vec<_>>(),
        [false, true, false]
    );
    assert!(cells[2].is_none());
    // Less time is better; an amount of work is neither better nor worse; equal values have no best.
    let best =
        |key: &str| comparison.row(key).unwrap().cells.iter().position(|cell| cell.is_some_and(|cell| cell.is_best));
    assert_eq!((best("elapsed_time"), best("steps"), best("ttft_seconds_p50")), (Some(1), None, None));
    assert_eq!(cells[1].unwrap().significance, Significance::Unknown);
    assert!(
        comparison.notes[0].starts_with("no significance is claimed: one measured region"),
        "{:?}",
        comparison.notes
    );
}

#[test]
fn a_run_that_measured_something_else_is_never_the_best() {
    let fast =
        [(&["metrics", "output_tokens_per_second"][..], json!(900.0)), (&["settings", "seed", "value"], json!("7"))];
    let faster = [(&["metrics", "output_tokens_per_second"][..], json!(400.0))];
    let comparison = Comparison::new(&[run("a", &[]), run("b", &fast), run("c", &faster)], true).unwrap();
    let cells = &comparison.row("output_tokens_per_second").unwrap().cells;
    let best: Vec<bool> = cells.iter().map(|cell| cell.unwrap().is_best).collect();
    assert_eq!(best, [false, false, true]);
}

#[test]
fn significance_takes_repeats_of_both_runs() {
    let runs = [
        repeated("a", &[100.0, 101.0, 99.5]),
        repeated("b", &[104.0, 103.2, 104.9, 103.7]),
        repeated("c", &[100.2, 101.9]),
        run("d", &[(&["metrics", "output_tokens_per_second"], json!(200.0))]),
    ];
    let comparison = Comparison::new(&runs, false).unwrap();
    let cells = &comparison.row("output_tokens_per_second").unwrap().cells;
    let significant = |place: usize| cells[place].unwrap().significance.is_significant();
    assert_eq!([0, 1, 2, 3].map(significant), [None, Some(true), Some(false), None]);
    let interval = cells[0].unwrap().interval.unwrap();
    assert!((interval.low - 98.269).abs() < 0.001 && (interval.high - 102.064).abs() < 0.001, "{interval:?}");
    assert_eq!(cells[3].unwrap().interval, None);
    assert!(comparison.notes[0].starts_with("no significance is claimed for `d`: "), "{:?}", comparison.notes);
    assert!(comparison.notes[1].contains("Welch"), "{:?}", comparison.notes);
}

#[test]
fn throughput_is_also_given_by_gpu_watt_and_price() {
    let gpus = [
        (&["backend", "engine", "device"][..], json!("cuda")),
        (&["backend", "engine", "tensor_parallel_size"][..], json!(4)),
    ];
    let figures = [
        (&["metrics", "output_tokens_per_second"][..], json!(1000.0)),
        (&["metrics", "mean_power_watts"][..], json!(500.0)),
        (&["metrics", "cost_per_million_output_tokens"][..], json!(0.25)),
    ];
    let runs = [run("a", &[]), run("b", &[&gpus[..], &figures[..]].concat())];
    let comparison = Comparison::new(&runs, false).unwrap();
    let value = |key: &str, place: usize| comparison.row(key).and_then(|row| row.cells[place]).map(|cell| cell.value);
    assert_eq!(value("output_tokens_per_second_per_gpu", 0), None, "a CPU is no GPU");
    assert_eq!(value("output_tokens_per_second_per_gpu", 1), Some(250.0));
    assert_eq!(value("output_tokens_per_second_per_watt", 1), Some(2.0));
    assert_eq!(value("output_tokens_per_currency_unit", 1), Some(4e6));
}

#[test]
fn differences_of_settings_come_before_those_of_the_machine() {
    let changes = [
        (&["environment", "host"][..], json!("node-2")),
        (&["environment", "memory_bytes"][..], json!(25276502016u64 + 4096)),
        (&["settings", "max-num-seqs", "value"][..], json!("64")),
        (&["settings", "results-dir", "value"][..], json!("/elsewhere")),
        (&["settings", "max-new", "value"][..], json!("1")),
        (&["settings", "max-new", "origin"][..], json!("flag")),
        (&["backend", "version"][..], json!("0.33")),
        (&["backend", "engine", "max_num_seqs"][..], json!(64)),
        (&["backend", "engine", "limits", "flops_per_second"][..], json!(1.0)),
    ];
    let comparison = Comparison::new(&[run("a", &[]), run("b", &changes)], false).unwrap();
    let found: Vec<_> = comparison.differences.iter().map(|found| (found.subject, found.key.as_str())).collect();
    let expected = [
        (Subject::Settings, "max-num-seqs"),
        (Subject::Settings, "max-new"),
        (Subject::Engine, "version"),
        (Subject::Engine, "max_num_seqs"),
        (Subject::Machine, "host"),
    ];
    assert_eq!(found, expected);
    assert_eq!(comparison.differences[1].values, [None, Some("1".to_owned())]);
}
