//! Runs that cannot be compared, each with its sentence, and thresholds that are none.

use flashjob_compare::{Comparison, Error, MOST_RUNS, Threshold};
use serde_json::{Value, json};

use super::{repeated, run};

/// Values by path in a result.
type Changes = Vec<(Vec<&'static str>, Value)>;

#[test]
fn runs_that_measured_something_else_are_refused_or_marked() {
    let advice = "; run both with the same prompts and counts, or pass --allow-different to see it marked";
    let setting = |key: &'static str, value: &str| -> Changes { vec![(vec!["settings", key, "value"], json!(value))] };
    let cases: Vec<(Changes, &str)> = vec![
        (setting("dataset", "sharegpt"), "dataset is `sharegpt` and not `random`"),
        (setting("dataset-path", "a.jsonl"), "dataset-path is `a.jsonl` and not `not set`"),
        (setting("seed", "7"), "seed is `7` and not `0`"),
        (setting("input-len", "256"), "input-len is `256` and not `128`"),
        (setting("output-len", "64"), "output-len is `64` and not `128`"),
        (setting("random-range-ratio", "0.5"), "random-range-ratio is `0.5` and not `0`"),
        (vec![(vec!["num_requests"], json!(15))], "the number of requests is 15 and not 16"),
        (vec![(vec!["metrics", "total_input_tokens"], json!(9.0))], "the number of input tokens is 9 and not 2048"),
        (vec![(vec!["metrics", "total_output_tokens"], json!(9.0))], "the number of output tokens is 9 and not 2048"),
        (vec![(vec!["backend", "engine", "quantization"], json!("fp8"))], "quantisation is fp8 and not none"),
        (vec![(vec!["backend", "engine", "weights_dtype"], json!("q4_0"))], "quantisation is q4_0 and not none"),
        (setting("model", "m/smol.Q4_1.gguf"), "quantisation is that of smol.Q4_1.gguf and not none"),
        (vec![(vec!["backend", "engine", "prefix_caching"], json!(true))], "the prefix cache is on and not off"),
        (
            vec![(vec!["backend", "parameters"], json!(7))],
            "the model is LlamaForCausalLM with 7 parameters and not LlamaForCausalLM with 134515008 parameters",
        ),
        (
            [setting("seed", "7"), setting("input-len", "1")].concat(),
            "seed is `7` and not `0`, input-len is `1` and not `128`",
        ),
        (vec![(vec!["measurement", "complete"], json!(false))], "it has finished without a complete measurement"),
        (vec![(vec!["status"], json!("failed")), (vec!["error"], json!("no memory"))], "it failed (no memory)"),
        (vec![(vec!["status"], json!("killed"))], "it was killed"),
    ];
    for (changes, clause) in cases {
        let changes: Vec<(&[&str], Value)> =
            changes.iter().map(|(path, value)| (path.as_slice(), value.clone())).collect();
        let runs = [run("a", &[]), run("b", &changes)];
        let error = Comparison::new(&runs, false).unwrap_err();
        assert_eq!(error.to_string(), format!("`b` cannot be compared with `a`: {clause}{advice}"));
        let marked = Comparison::new(&runs, true).unwrap().incomparable;
        assert_eq!((marked.len(), marked[0].run, marked[0].reasons.join(", ").as_str()), (1, 1, clause));
    }
}

#[test]
fn a_baseline_that_failed_is_named_alone() {
    let failed =
        run("a", &[(&["status"], json!("failed")), (&["metrics"], json!({})), (&["measurement"], json!(null))]);
    let error = Comparison::new(&[failed, run("b", &[])], false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`a` cannot be compared: it failed; name a run that has finished, or pass --allow-different to see it marked"
    );
}

#[test]
fn what_one_run_does_not_say_is_no_deviation() {
    let changes =
        [(&["backend", "parameters"][..], json!(null)), (&["backend", "engine", "prefix_caching"][..], json!(null))];
    // The setting still says that the prefix cache is off.
    assert!(Comparison::new(&[run("a", &[]), run("b", &changes)], false).is_ok());
}

#[test]
fn a_comparison_takes_two_runs_and_not_too_many() {
    let one = |name: &str| run(name, &[]);
    assert_eq!(Comparison::new(&[], false).unwrap_err(), Error::NoRun);
    assert_eq!(
        Comparison::new(&[one("out/a")], true).unwrap_err().to_string(),
        "a comparison needs two runs, and there is one, `out/a`; name a second results directory"
    );
    let many: Vec<_> = (0..=MOST_RUNS).map(|_| one("a")).collect();
    assert_eq!(
        Comparison::new(&many, false).unwrap_err().to_string(),
        "there are 201 runs, and a comparison takes 200; name fewer of them"
    );
}

#[test]
fn a_threshold_is_a_ratio_above_zero() {
    for text in ["abc", "", "-1", "0", "NaN", "inf", "1e9", "95 %", "0,95"] {
        let error = text.parse::<Threshold>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("--fail-below is `{text}`, but it must be a number above 0 and at most 1000, such as 0.95")
        );
    }
    assert!("0.95".parse::<Threshold>().is_ok() && " 1 ".parse::<Threshold>().is_ok());
}

#[test]
fn a_slower_run_is_named_with_its_significance() {
    let rate = |rate: Value| [(&["metrics", "output_tokens_per_second"][..], rate)];
    let below = |runs: &[_], threshold: &str| -> Vec<String> {
        let comparison = Comparison::new(runs, false).unwrap();
        let below = threshold.parse::<Threshold>().unwrap().below(&comparison);
        below.iter().map(ToString::to_string).collect()
    };
    let runs = [run("a", &rate(json!(100.0))), run("b", &rate(json!(90.0))), run("c", &rate(json!(95.0)))];
    let unknown = "significance is unknown, as it takes two measured regions of both (repeats)";
    assert_eq!(
        below(&runs, "0.95"),
        [format!("`b` has 0.9000 of the output tokens per second of `a`, below 0.95; {unknown}")]
    );
    assert!(below(&runs, "0.9").is_empty());
    assert_eq!(below(&runs, "1.1").len(), 2);
    let repeats = [
        repeated("a", &[104.0, 103.2, 104.9, 103.7]),
        repeated("b", &[100.0, 101.0, 99.5]),
        repeated("c", &[90.0, 117.0]),
    ];
    assert_eq!(
        below(&repeats, "1"),
        [
            "`b` has 0.9636 of the output tokens per second of `a`, below 1; the difference is significant (p = 2.09e-3)",
            "`c` has 0.9957 of the output tokens per second of `a`, below 1; the difference is not significant (p = 0.98)",
        ]
    );
    let runs = [run("a", &[]), run("b", &rate(json!(null)))];
    assert_eq!(below(&runs, "0.5"), ["`b` has no output tokens per second to hold against 0.5 of those of `a`"]);
}
