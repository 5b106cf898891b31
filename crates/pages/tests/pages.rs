//! Pages of runs and sweeps, made of the files of directories.

use std::path::Path;

use flashjob_compare::Comparison;
use flashjob_pages::{MARK, Run, SweptRuns, comparison_page, run_page, sweep_page};
use flashjob_results::{LatencyBins, RecordedTimeline, Sweep};
use flashjob_test_support::browser::{look, screenshots};
use flashjob_test_support::result_files::{finished, set, write};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A timeline of a minute: a ramp, a stall and a tail.
fn timeline() -> Value {
    let slice = |place: u64| {
        let share = if place < 10 { place as f64 / 10.0 } else { 1.0 };
        let tokens = if (60..63).contains(&place) { 0 } else { (700.0 * share) as u64 + place * 37 % 90 };
        json!({
            "output_tokens": tokens, "prefill_tokens": if place < 20 { 4000 - place * 200 } else { 0 },
            "decode_tokens": tokens, "finished_requests": u64::from(place > 40), "steps": 10, "step_seconds": 0.4,
            "running": 256.0 * share - if place > 90 { (place - 90) as f64 * 8.0 } else { 0.0 },
            "waiting": 900.0 - place as f64 * 8.0, "kv_blocks_used": 3800.0 * share, "power_watts": 300.0 + 90.0 * share
        })
    };
    let step = |kind: &str, intensity: f64, share: f64| {
        let roof = (9.9e14f64).min(intensity * 3.3e12);
        json!({"kind": kind, "steps": 400, "flops": roof * share * 3.0, "bytes": roof * share * 3.0 / intensity, "seconds": 3.0})
    };
    let steps: Vec<Value> = (0..24)
        .map(|place| {
            let intensity = 1.5f64.powi(place) * 0.5;
            let kind = if intensity < 60.0 {
                "decode"
            } else if intensity < 400.0 {
                "mixed"
            } else {
                "prefill"
            };
            step(kind, intensity, 0.4 + 0.02 * f64::from(place))
        })
        .collect();
    json!({
        "schema_version": 1, "elapsed_seconds": 60.0, "slice_seconds": 0.512,
        "slices": (0..118).map(slice).collect::<Vec<_>>(), "kv_blocks": 4096,
        "limits": {"flops_per_second": 9.9e14, "bytes_per_second": 3.3e12}, "steps": steps
    })
}

fn requests() -> String {
    let line = |request: u32| {
        let first = 0.08 + f64::from(request % 97) * 0.011;
        let last = first + 127.0 * (0.011 + f64::from(request % 13) * 0.0004);
        json!({
            "request": request, "prompt_tokens": 128, "output_tokens": 128, "queue_seconds": first / 3.0,
            "time_to_first_token_seconds": first, "last_token_seconds": last, "end_to_end_seconds": last + 0.002,
            "preemptions": 0, "finish_reason": "length"
        })
        .to_string()
            + "\n"
    };
    (0..400).map(line).collect()
}

/// A directory as a run leaves it.
fn directory(document: &Value) -> TempDir {
    let directory = TempDir::new().unwrap();
    write(directory.path(), document);
    std::fs::write(directory.path().join("timeline.json"), timeline().to_string()).unwrap();
    std::fs::write(directory.path().join("requests.jsonl"), requests()).unwrap();
    directory
}

fn page(directory: &Path) -> String {
    run_page(&Run::read(directory).unwrap())
}

/// Opens `html` in Chromium, checks what holds for every page, and gives what is on it.
#[track_caller]
fn looked_at(html: &str, name: &str) -> Option<Value> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, html).unwrap();
    let shot = |kind: &str| screenshots().join(format!("{name}-{kind}.png"));
    let seen = look(json!({
        "url": format!("file://{}", path.display()),
        "shots": [
            {"path": shot("light"), "scheme": "light"},
            {"path": shot("dark"), "scheme": "dark"},
            {"path": shot("print"), "print": true},
        ],
    }))?;
    assert_eq!((&seen["console"], &seen["requests"]), (&json!([]), &json!([])), "{name}");
    assert_eq!(seen["overflow"], false, "{name} is wider than its window");
    Some(seen)
}

#[test]
fn a_page_shows_the_figures_of_the_result() {
    let document = finished();
    let directory = directory(&document);
    let html = page(directory.path());
    assert!(html.starts_with(MARK));
    for absent in ["<script", "http:", "https:", "javascript:", " src="] {
        assert!(!html.contains(absent), "{absent}");
    }
    let Some(seen) = looked_at(&html, "run") else { return };
    for (key, figure) in document["metrics"].as_object().unwrap() {
        let shown: f64 = seen["data"][key].as_str().unwrap_or_else(|| panic!("{key}")).parse().unwrap();
        assert_eq!(Some(shown), figure.as_f64(), "{key}");
    }
    let ids = ["throughput", "requests", "kv-cache", "power", "latencies", "roofline", "phases"];
    assert_eq!(seen["ids"], json!(ids));
    for (key, setting) in document["settings"].as_object().unwrap() {
        let text = seen["text"].as_str().unwrap();
        assert!(text.contains(key.as_str()) && text.contains(setting["value"].as_str().unwrap().trim()), "{key}");
    }
}

#[test]
fn latencies_of_a_batch_are_drawn_from_its_bins() {
    let mut bins = LatencyBins::default();
    for line in requests().lines() {
        bins.add(&serde_json::from_str(line).unwrap());
    }
    let mut document = finished();
    set(&mut document, &["measurement", "latency_bins"], serde_json::to_value(&bins).unwrap());
    let directory = directory(&document);
    // Of a batch the list has the beginning only.
    std::fs::write(directory.path().join("requests.jsonl"), "").unwrap();
    let html = page(directory.path());
    assert!(html.contains("Of a batch, values are known from their bins to 0.5 %."), "{html}");
    for name in ["TTFT", "TPOT", "E2E", "queue"] {
        assert!(html.contains(&format!(">{name}<")), "{name}");
    }
    set(&mut document, &["measurement", "latency_bins"], Value::Null);
    write(directory.path(), &document);
    assert!(!page(directory.path()).contains("Of a batch"));
}

#[test]
fn a_narrow_window_holds_the_page() {
    let directory = directory(&finished());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, page(directory.path())).unwrap();
    let shot = screenshots().join("run-narrow.png");
    let order = json!({"url": format!("file://{}", path.display()), "width": 420, "shots": [{"path": shot}]});
    let Some(seen) = look(order) else { return };
    assert_eq!(seen["overflow"], false);
}

#[test]
fn a_failed_run_has_a_page_with_its_reason() {
    let mut document = finished();
    for key in ["measurement", "backend"] {
        set(&mut document, &[key], Value::Null);
    }
    set(&mut document, &["metrics"], json!({}));
    set(&mut document, &["status"], "failed");
    set(&mut document, &["exit_code"], 4);
    set(&mut document, &["error"], "the model `x` cannot be read: <b>no such file</b>");
    let directory = TempDir::new().unwrap();
    write(directory.path(), &document);
    let html = page(directory.path());
    assert!(html.contains("cannot be read: &lt;b&gt;no such file&lt;/b&gt;") && html.contains("exit code 4"));
    assert!(!html.contains("<figure class=\"plot\" id=\"throughput\""));
}

#[test]
fn texts_of_others_stay_texts() {
    let mut document = finished();
    let hostile = "</style></main><script>document.title='taken'</script><img src=//x onerror=alert(1)>\u{202e}";
    set(&mut document, &["settings", "model", "value"], hostile);
    set(&mut document, &["disturbances"], json!([hostile]));
    set(&mut document, &["environment", "host"], hostile);
    set(&mut document, &["backend", "engine", "kernels"], hostile);
    set(
        &mut document,
        &["inputs"],
        json!([{"location": hostile, "method": hostile, "reason": hostile, "source": hostile}]),
    );
    set(&mut document, &["metrics", hostile], 1.0);
    let directory = directory(&document);
    let html = page(directory.path());
    assert!(!html.contains("<script") && !html.contains("<img") && !html.contains('\u{202e}'), "{html}");
    let Some(seen) = looked_at(&html, "hostile") else { return };
    assert_ne!(seen["title"], "taken");
}

#[test]
fn damaged_files_beside_the_result_leave_a_note() {
    let directory = directory(&finished());
    std::fs::write(directory.path().join("timeline.json"), "{").unwrap();
    std::fs::write(directory.path().join("requests.jsonl"), "no json\n").unwrap();
    let html = page(directory.path());
    assert!(html.contains("timeline.json") && html.contains("requests.jsonl:1"), "{html}");
    assert!(RecordedTimeline::read(directory.path()).is_err());
    std::fs::remove_file(directory.path().join("result.json")).unwrap();
    assert!(Run::read(directory.path()).is_err());
}

#[test]
fn a_sweep_has_a_front_a_heat_map_and_a_table() {
    let folder = TempDir::new().unwrap();
    let (seqs, dtypes) = (["64", "128", "256", "512", "1024"], ["bfloat16", "float16", "float32"]);
    let mut combinations = Vec::new();
    for (row, dtype) in dtypes.iter().enumerate() {
        for (column, max_num_seqs) in seqs.iter().enumerate() {
            let number = combinations.len() + 1;
            let name = format!("{number:04}");
            let is_refused = number == 15;
            if !is_refused {
                let mut document = finished();
                let throughput = 1200.0 * (column + 1) as f64 / (1.0 + row as f64 * 0.4) - column as f64 * 90.0;
                set(&mut document, &["metrics", "output_tokens_per_second"], throughput);
                set(
                    &mut document,
                    &["metrics", "tpot_seconds_p50"],
                    0.008 * (1.6f64).powi(column as i32) + 0.004 * row as f64,
                );
                write(&folder.path().join(&name), &document);
            }
            let error = is_refused.then_some("float32 does not fit <into memory>");
            let status = if is_refused { "refused" } else { "finished" };
            combinations.push(json!({
                "number": number, "directory": name, "settings": {"max-num-seqs": max_num_seqs, "dtype": dtype},
                "status": status, "exit_code": if is_refused { 2 } else { 0 }, "error": error
            }));
        }
    }
    let document = json!({"schema_version": 1, "combinations": combinations});
    std::fs::write(folder.path().join("sweep.json"), document.to_string()).unwrap();
    let html = sweep_page("a sweep", &SweptRuns::read(&Sweep::read(folder.path()).unwrap()));
    for text in
        ["href=\"0001/report.html\"", "float32 does not fit &lt;into memory&gt;", "sweep of 15 combinations · 14 with"]
    {
        assert!(html.contains(text), "{text}");
    }
    let Some(seen) = looked_at(&html, "sweep") else { return };
    assert_eq!(seen["ids"], json!(["pareto", "heat-map"]));
}

/// Two runs that differ in a setting, a machine and their figures.
fn compared(changes: &[(&[&str], Value)]) -> (Comparison, Vec<Run>) {
    let mut other = finished();
    changes.iter().for_each(|(path, value)| set(&mut other, path, value.clone()));
    let directories = [directory(&finished()), directory(&other)];
    let runs: Vec<Run> = directories.iter().map(|directory| Run::read(directory.path()).unwrap()).collect();
    let named = |(name, run): (&str, &Run)| flashjob_compare::Run::new(name.to_owned(), run.result.clone());
    let comparison = Comparison::new(&["out/a", "out/b"].into_iter().zip(&runs).map(named).collect::<Vec<_>>(), true);
    (comparison.unwrap(), runs)
}

#[test]
fn runs_stand_side_by_side() {
    let rate = (&["metrics", "output_tokens_per_second"][..], json!(610.496));
    let (comparison, runs) = compared(&[rate, (&["settings", "max-num-seqs", "value"], json!("7"))]);
    let html = comparison_page(&comparison, &runs);
    for part in ["id=\"run-1-throughput\"", "id=\"run-2-throughput\"", "★ 610.5", "<caption>", "scope=\"row\""] {
        assert!(html.contains(part), "{part}");
    }
    assert_eq!(html.matches("id=\"run-2-throughput\"").count(), 1);
    for outside in ["http://", "https://", "<script", "<img", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    let Some(seen) = looked_at(&html, "side-by-side") else { return };
    let text = seen["text"].as_str().unwrap();
    assert!(text.contains("2.000×") && text.contains("max-num-seqs"), "{text}");
}

#[test]
fn a_comparison_acts_on_nothing_that_a_result_holds() {
    let hostile = "</td><script>document.title='taken'</script>\u{1b}[2J";
    let (comparison, runs) =
        compared(&[(&["environment", "host"], json!(hostile)), (&["disturbances"], json!([hostile]))]);
    let html = comparison_page(&comparison, &runs);
    assert!(!html.contains("<script") && html.contains("&lt;script&gt;") && !html.contains('\u{1b}'), "{html}");
}
