//! Results that a job has written, read back.

use flashjob_event::Phase;
use flashjob_results::{Better, Requests, RunResult, Status, StoppedBy, Stored, figure, open};
use serde_json::json;

use crate::result_files::{finished, set, write};

#[test]
fn a_directory_and_its_file_are_the_same_run() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &finished());
    let file = directory.path().join("result.json");
    for path in [directory.path(), &file] {
        let Stored::Run(at, run) = open(path).unwrap() else { panic!("one run") };
        assert_eq!(at, file);
        assert_eq!((run.status, run.exit_code, run.error.as_deref()), (Status::Finished, 0, None));
        assert_eq!(run.metrics.output_tokens_per_second(), Some(305.248));
        assert_eq!(run.metrics.total_output_tokens(), Some(2048.0));
        assert_eq!(run.finished_requests(), Some(16));
        assert_eq!(run.settings.get("max-num-seqs"), Some("best for the device"));
        assert!(run.settings.iter().any(|setting| setting.key == "model" && setting.origin == "flag"));
        assert_eq!(run.environment.host.as_deref(), Some("node-1"));
        assert_eq!(run.phases[0].phase, Phase::Mount);
        let backend = run.backend.unwrap();
        assert_eq!((backend.backend.as_str(), backend.device(), backend.gpus()), ("candle", Some("cpu"), 0));
        assert_eq!(backend.prefix_caching(), Some(false));
        assert_eq!(backend.engine.number::<u64>("block_tokens"), Some(32));
        assert!(backend.engine.get("cost.flops_per_token").is_some());
        let measurement = run.measurement.unwrap();
        assert_eq!(measurement.latencies.time_to_first_token_seconds.unwrap().count, 16);
        assert!(measurement.roofline.unwrap().limits.is_some());
        assert!(measurement.token_clock.unwrap().output_tokens_by_second.len() > 5);
        assert!(run.repeats.is_none());
    }
}

#[test]
fn a_figure_without_a_number_is_not_there() {
    let mut document = finished();
    set(&mut document, &["metrics", "mfu"], json!(null));
    let run = RunResult::parse(document.to_string().as_bytes(), "r").unwrap();
    assert_eq!(run.metrics.get("mfu"), None);
    assert!(run.metrics.get("mbu").is_some());
}

#[test]
fn a_run_without_a_measurement_is_read() {
    let mut document = finished();
    let object = document.as_object_mut().unwrap();
    for key in ["elapsed_time", "num_requests", "repeats"] {
        object.remove(key);
    }
    for key in ["measurement", "backend", "failed_requests"] {
        object.insert(key.to_owned(), json!(null));
    }
    set(&mut document, &["metrics"], json!({}));
    set(&mut document, &["status"], "failed");
    set(&mut document, &["exit_code"], 4);
    let run = RunResult::parse(document.to_string().as_bytes(), "r").unwrap();
    assert_eq!((run.status, run.finished_requests(), run.metrics.is_empty()), (Status::Failed, None, true));
}

#[test]
fn regions_have_their_values_and_their_spread() {
    let mut document = finished();
    let region = |seed, rate| json!({"seed": seed, "metrics": {"output_tokens_per_second": rate, "mfu": null}});
    let spread = json!({"mean": 11.0, "standard_deviation": 1.4, "half_width": 12.7, "low": -1.7, "high": 23.7});
    let repeats = json!({"confidence": 0.95, "stopped_by": "interval", "regions": [region(0, 10.0), region(1, 12.0)],
        "summary": {"output_tokens_per_second": spread}});
    set(&mut document, &["repeats"], repeats);
    let repeats = RunResult::parse(document.to_string().as_bytes(), "r").unwrap().repeats.unwrap();
    assert_eq!((repeats.stopped_by, repeats.regions[1].seed), (Some(StoppedBy::Interval), 1));
    assert_eq!(repeats.values("output_tokens_per_second"), [10.0, 12.0]);
    assert_eq!(repeats.summary("output_tokens_per_second").unwrap().high, 23.7);
    assert!(repeats.summary("mfu").is_none() && repeats.values("mfu").is_empty());
}

#[test]
fn requests_come_one_by_one_up_to_the_first_fault() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests.jsonl");
    let line = |request: u32| {
        json!({"request": request, "prompt_tokens": 3, "output_tokens": 5, "queue_seconds": 0.0,
            "time_to_first_token_seconds": 1.0, "last_token_seconds": 3.0, "end_to_end_seconds": 3.5,
            "preemptions": 0, "finish_reason": "length"})
        .to_string()
    };
    std::fs::write(&path, format!("{}\n{}", line(0), line(1))).unwrap();
    let requests: Vec<_> = Requests::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(requests.iter().map(|request| request.request).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(requests[0].time_per_output_token_seconds(), Some(0.5));
    for (text, sentence) in [
        (format!("{}\nnothing\n{}\n", line(0), line(1)), "requests.jsonl:2` cannot be parsed as JSON: expected ident"),
        (
            format!("{}\n{{}}\n", line(0)),
            "requests.jsonl:2` cannot be read as a result of flashjob: missing field `request`",
        ),
        (format!("{}\n{}\n", line(0), " ".repeat(70_000)), "requests.jsonl:2` has more than 65536 bytes"),
    ] {
        std::fs::write(&path, text).unwrap();
        let all: Vec<_> = Requests::open(&path).unwrap().collect();
        assert_eq!(all.len(), 2, "one request and one error");
        let error = all[1].as_ref().unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn figures_have_names_units_and_directions() {
    for (key, label, unit, better) in [
        ("output_tokens_per_second", "output tokens per second", "tokens/s", Some(Better::Higher)),
        ("ttft_seconds_p99", "time to first token, p99", "s", Some(Better::Lower)),
        ("phase_warm_up_seconds", "phase warm up", "s", Some(Better::Lower)),
        ("total_input_tokens", "input tokens", "tokens", None),
        ("something_new", "something new", "", None),
    ] {
        let found = figure(key);
        assert_eq!((found.label.as_str(), found.unit, found.better), (label, unit, better));
    }
}
