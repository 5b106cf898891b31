//! A tracking server whose answers have no end: the job measures on, and its result is there.

use std::io::Write as _;
use std::net::TcpStream;

use tempfile::TempDir;

use super::memory::{LIMIT_BYTES, Watch};
use super::stranger;
use crate::job::{LONG, job_at, result};

const EXPERIMENT: &str = r#"{"experiment":{"experiment_id":"1","lifecycle_stage":"active"}}"#;

/// A run as a search finds it, with one tag of `bytes` bytes and an id of as many bytes as `id_bytes` says.
fn run(bytes: usize, id_bytes: usize) -> String {
    let id = "1".repeat(id_bytes);
    format!(
        r#"{{"info":{{"run_id":"{id}","experiment_id":"1","artifact_uri":"mlflow-artifacts:/1","lifecycle_stage":"active",
        "status":"RUNNING"}},"data":{{"tags":[{{"key":"a","value":"{}"}}]}}}}"#,
        "x".repeat(bytes)
    )
}

/// Answers a search with `runs` and the promise of more.
fn page(stream: &mut TcpStream, runs: &str) -> std::io::Result<()> {
    stranger::whole(stream, 200, "", format!(r#"{{"runs":[{runs}],"next_page_token":"more"}}"#).as_bytes())
}

type Case = (&'static str, fn(&str, &mut TcpStream) -> std::io::Result<()>, &'static str);

#[test]
fn answers_without_an_end_are_refused_while_the_job_measures() {
    let cases: [Case; 8] = [
        ("200 without an end", |_, stream| stranger::endless(stream, 200, "{", " "), "longer than"),
        (
            "200 of a promised size",
            |_, stream| write!(stream, "HTTP/1.1 200 X\r\nContent-Length: 9999999999999\r\n\r\n"),
            "longer than",
        ),
        ("numbers without an end", |_, stream| stranger::endless(stream, 200, "{\"a\":[0", ",0"), "longer than"),
        (
            "500 without an end",
            |_, stream| stranger::endless(stream, 500, "<html>", "<p>out of order</p>"),
            "it answered 500",
        ),
        (
            "nested without an end",
            |_, stream| stranger::whole(stream, 200, "", "[".repeat(1 << 20).as_bytes()),
            "not what MLflow's API gives",
        ),
        (
            "empty pages without an end",
            |line, stream| {
                if line.contains("get-by-name") {
                    stranger::whole(stream, 200, "", EXPERIMENT.as_bytes())
                } else {
                    page(stream, "")
                }
            },
            "goes on after 100 pages",
        ),
        (
            "full pages without an end",
            |line, stream| {
                if line.contains("get-by-name") {
                    stranger::whole(stream, 200, "", EXPERIMENT.as_bytes())
                } else {
                    page(stream, &run(16 << 20, 32))
                }
            },
            "longer than",
        ),
        (
            "a run with an id of a megabyte",
            |line, stream| {
                if line.contains("get-by-name") {
                    stranger::whole(stream, 200, "", EXPERIMENT.as_bytes())
                } else {
                    page(stream, &run(1, 1 << 20))
                }
            },
            "an id or an address that is too long",
        ),
    ];
    for (case, answer, message) in cases {
        let address = stranger::start(move |line, _, stream| answer(line, stream));
        let results = TempDir::new().unwrap();
        let mut running = job_at(&results, 0).args(LONG).args([format!("--mlflow-uri=http://{address}")]).start();
        let watch = Watch::of(running.id());
        running.wait_for_stderr(message);
        running.wait_for_stderr("\"phase\":\"measure\"");
        running.signal(libc::SIGTERM);
        let finished = running.wait();
        let greatest = watch.greatest_bytes();
        assert_eq!(finished.code(), Some(143), "{case}: {finished}");
        assert!(greatest < LIMIT_BYTES, "{case} took {} MiB", greatest >> 20);
        let longest = finished.stderr.lines().map(str::len).max().unwrap_or(0);
        assert!(longest < 4096, "{case}: a line of {longest} bytes");
        assert!(result(&results)["measurement"].is_object(), "{case}");
    }
}
