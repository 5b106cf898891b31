//! The page that a run leaves, and the one that it shows while it goes on, in a real browser.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{job, job_at, job_that_measures_limits, result, tiny_model};
use crate::support::Flashjob as _;
use crate::support::browser::{look, screenshots};
use crate::support::process::{Process, free_port};

fn page(results: &TempDir) -> std::path::PathBuf {
    results.path().join("out/report.html")
}

#[test]
fn a_run_leaves_a_page_whose_figures_are_those_of_its_result() {
    let results = TempDir::new().unwrap();
    job_that_measures_limits(&results)
        .args(["--model".into(), tiny_model()])
        .args(["--input-len=64", "--output-len=200", "--num-prompts=48", "--max-num-seqs=16"])
        .run()
        .expect_code(0);
    let result = result(&results);
    let timeline: Value =
        serde_json::from_slice(&std::fs::read(results.path().join("out/timeline.json")).unwrap()).unwrap();
    let slices = timeline["slices"].as_array().unwrap();
    let sum = |key: &str| slices.iter().map(|slice| slice[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("output_tokens") as f64, result["metrics"]["total_output_tokens"].as_f64().unwrap());
    assert_eq!(sum("steps") as f64, result["metrics"]["steps"].as_f64().unwrap());
    assert_eq!(sum("finished_requests"), 48);
    let elapsed = timeline["elapsed_seconds"].as_f64().unwrap() / result["metrics"]["elapsed_time"].as_f64().unwrap();
    assert!((elapsed - 1.0).abs() < 1e-3, "{elapsed}");
    let shot = |kind: &str| screenshots().join(format!("job-{kind}.png"));
    let Some(seen) = look(json!({
        "url": format!("file://{}", page(&results).display()),
        "shots": [{"path": shot("light")}, {"path": shot("dark"), "scheme": "dark"}, {"path": shot("print"), "print": true}],
    })) else {
        return;
    };
    assert_eq!((&seen["console"], &seen["requests"]), (&json!([]), &json!([])));
    for (key, figure) in result["metrics"].as_object().unwrap() {
        let shown: f64 = seen["data"][key].as_str().unwrap_or_else(|| panic!("{key}")).parse().unwrap();
        assert_eq!(Some(shown), figure.as_f64(), "{key}");
    }
    assert_eq!(seen["ids"], json!(["throughput", "requests", "kv-cache", "latencies", "roofline", "phases"]));
}

#[test]
fn a_run_that_failed_or_was_stopped_has_a_page() {
    let results = TempDir::new().unwrap();
    super::job_without_model(&results).args(["--model=/nowhere"]).run();
    let failed = std::fs::read_to_string(page(&results)).unwrap();
    assert!(failed.contains("status failed") && failed.contains("/nowhere"), "{failed}");

    let (results, port) = (TempDir::new().unwrap(), free_port());
    let mut running = job_at(&results, port).args(super::LONG).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    // Tokens are there when the live page has a plot of them.
    wait_for_event(SocketAddr::from(([127, 0, 0, 1], port)), r#"id=\"throughput\""#);
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let stopped = std::fs::read_to_string(page(&results)).unwrap();
    assert!(stopped.contains("status killed") && stopped.contains("id=\"throughput\""), "{stopped}");
}

/// Reads the events of the live page at `address` until one holds `text`.
fn wait_for_event(address: SocketAddr, text: &str) {
    use std::io::{BufRead as _, BufReader, Write as _};
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let found = BufReader::new(stream).lines().any(|line| line.unwrap().contains(text));
    assert!(found, "the stream ended without `{text}`");
}

#[test]
fn the_live_page_follows_the_run_and_shows_no_secret() {
    let (results, port) = (TempDir::new().unwrap(), free_port());
    let mut running =
        job_at(&results, port).args(super::LONG).env("MLFLOW_TRACKING_TOKEN", "very-secret-token").start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for_event(address, "Distribution of latencies");
    let shot = |kind: &str| screenshots().join(format!("live-{kind}.png"));
    let seen = look(json!({
        "url": format!("http://{address}/"),
        "wait_until": "domcontentloaded",
        "wait_for": "#plots #latencies",
        "shots": [{"path": shot("light")}, {"path": shot("dark"), "scheme": "dark"}],
    }));
    running.signal(libc::SIGTERM);
    let log = running.wait().expect_code(143);
    let Some(seen) = seen else { return };
    assert_eq!(seen["console"], json!([]));
    assert_eq!(seen["requests"], json!([format!("http://{address}/events")]));
    assert_eq!(seen["ids"], json!(["throughput", "requests", "kv-cache", "roofline", "latencies"]), "{seen}");
    let text = seen["text"].as_str().unwrap();
    for shown in ["llama-gqa", "measure", "output tokens per second", "requests finished", "phase started"] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert!(!text.contains("very-secret-token") && !log.stderr.contains("very-secret-token"), "{text}");
}

#[test]
fn a_job_ends_while_people_look_at_it() {
    let (results, port) = (TempDir::new().unwrap(), free_port());
    let mut running = job_at(&results, port).args(["--num-prompts=400", "--output-len=200"]).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    // It reads to the event that says so.
    wait_for_event(address, "event: end");
    running.wait().expect_code(0);
    assert_eq!(result(&results)["disturbances"], json!([]));
}

#[test]
fn a_page_is_rendered_again_from_the_files() {
    let results = TempDir::new().unwrap();
    job(&results).args(["--num-prompts=4", "--output-len=8"]).run().expect_code(0);
    let render = |directory: &Path| Process::flashjob().args(["report".as_ref(), directory.as_os_str()]).run();
    let directory = results.path().join("out");
    let first = std::fs::read_to_string(page(&results)).unwrap();
    let finished = render(&directory).expect_code(0);
    assert!(finished.stdout.contains("report.html"), "{finished}");
    assert_eq!(std::fs::read_to_string(page(&results)).unwrap(), first);
    // The next run knows the page as an earlier run's, and makes room for its own.
    job(&results).args(["--num-prompts=2", "--output-len=4"]).run().expect_code(0);

    let empty = TempDir::new().unwrap();
    let refused = render(empty.path()).expect_code(2);
    assert!(refused.stderr.contains("holds neither a result.json nor a sweep.json"), "{refused}");
    std::fs::write(page(&results), "<!DOCTYPE html>my own").unwrap();
    let refused = render(&directory).expect_code(2);
    assert!(refused.stderr.contains("is no report of flashjob and stays as it is"), "{refused}");
    assert_eq!(std::fs::read_to_string(page(&results)).unwrap(), "<!DOCTYPE html>my own");
}
