//! `timeline.json`: what is read, and what is refused.

use flashjob_results::{RecordedTimeline, StepKind};
use serde_json::{Value, json};
use tempfile::TempDir;

fn timeline() -> Value {
    let slice = json!({
        "output_tokens": 5, "prefill_tokens": 8, "decode_tokens": 4, "finished_requests": 1, "steps": 2, "step_seconds": 0.5,
        "running": 1.5, "waiting": null, "kv_blocks_used": 3.0, "power_watts": null
    });
    json!({
        "schema_version": 1, "elapsed_seconds": 1.5, "slice_seconds": 1.0, "slices": [slice.clone(), slice], "kv_blocks": 16,
        "limits": {"flops_per_second": 1e12, "bytes_per_second": 1e11},
        "steps": [{"kind": "mixed", "steps": 2, "flops": 1e9, "bytes": 1e8, "seconds": 0.5}]
    })
}

/// The outcome of a directory whose `timeline.json` is `text`.
fn read(text: &str) -> Result<RecordedTimeline, String> {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("timeline.json"), text).unwrap();
    let read = RecordedTimeline::read(directory.path()).map_err(|error| error.to_string());
    read.map(|timeline| timeline.expect("it is there"))
}

#[test]
fn a_timeline_is_read_and_written_in_one_form() {
    let read = read(&timeline().to_string()).unwrap();
    assert_eq!((read.slices.len(), read.slices[0].running, read.steps[0].kind), (2, Some(1.5), StepKind::Mixed));
    assert_eq!(serde_json::to_value(&read).unwrap(), timeline());
    assert_eq!(RecordedTimeline::read(TempDir::new().unwrap().path()).unwrap(), None);
}

#[test]
fn timelines_that_are_none_are_refused_in_words() {
    let mut other = timeline();
    other["schema_version"] = 2.into();
    let mut endless = timeline();
    endless["slices"] = Value::Array(vec![timeline()["slices"][0].clone(); 10_001]);
    let mut wrong = timeline();
    wrong["slices"][0]["output_tokens"] = (-1).into();
    for (text, words) in [
        ("", "cannot be parsed as JSON"),
        ("{}", "has no `schema_version`"),
        (&*other.to_string(), "timeline.json"),
        (&endless.to_string(), "more than 10000 elements"),
        (&wrong.to_string(), "timeline.json"),
        (&format!("{}{}", " ".repeat(5 << 20), timeline()), "the limit for such a file"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
    }
}
