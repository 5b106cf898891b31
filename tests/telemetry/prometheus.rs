//! A real Prometheus that scrapes once a second sees a short job's final counts exactly.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flashjob::event::Phase;
use flashjob::telemetry::{LingerEnd, Server};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::job_story::Story;
use crate::support::process::{free_port, installed, spawn};

/// Asks `prometheus` for `query` and returns the one value of the answer, if there is one.
async fn ask(prometheus: &str, query: &str) -> Option<f64> {
    let url = reqwest::Url::parse_with_params(&format!("{prometheus}/api/v1/query"), [("query", query)]).unwrap();
    let answer: Value = reqwest::get(url).await.ok()?.json().await.ok()?;
    let [result] = answer["data"]["result"].as_array()?.as_slice() else { return None };
    result["value"][1].as_str()?.parse().ok()
}

/// Waits until `query` gives `expected`; after a while, the last answer is what it is.
async fn eventually(prometheus: &str, query: &str, expected: f64) {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask(prometheus, query).await;
        if answer == Some(expected) {
            return;
        }
        assert!(Instant::now() < patience, "{query} is {answer:?}, not {expected}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_sees_the_final_counts() {
    let Some(program) = installed("prometheus", "prometheus") else { return };
    let story = Story::new();
    let server = Server::start(([127, 0, 0, 1], 0).into(), story.registry.clone()).await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: flashjob\n  static_configs:\n  - targets: ['{}']\n",
        server.address()
    );
    std::fs::write(&configuration, text).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(program);
    command
        .arg(format!("--config.file={}", configuration.display()))
        .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut prometheus = spawn(command).unwrap();
    let url = format!("http://{address}");
    eventually(&url, "up{job='flashjob'}", 1.0).await;

    story.load();
    story.phase(Phase::WarmUp);
    story.begin(0, 7);
    story.step(&[0]);
    story.finish(0, 1);
    story.phase(Phase::Measure);
    let requests: Vec<u32> = (0..10).collect();
    requests.iter().for_each(|request| story.begin(*request, 12));
    // The job goes on over some scrapes, and its last tokens come after whichever was the last of them.
    for _ in 0..30 {
        story.step(&requests);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    requests.iter().for_each(|request| story.finish(*request, 30));
    story.phase(Phase::Publish);
    story.phase(Phase::Linger);
    let end = server.linger(Duration::from_secs(30), &CancellationToken::new()).await;
    assert_eq!(end, LingerEnd::Scraped);
    server.stop().await;

    // Nothing can be scraped any more: what Prometheus has now is what it will have.
    for (series, expected) in [
        ("flashjob_generated_tokens_total{phase='measure'}", 300.0),
        ("flashjob_generated_tokens_total{phase='warm_up'}", 1.0),
        ("flashjob_prompt_tokens_total{phase='measure'}", 120.0),
        ("flashjob_requests_queued_total{phase='measure'}", 10.0),
        ("flashjob_requests_finished_total{phase='measure',reason='length'}", 10.0),
        ("flashjob_end_to_end_latency_seconds_count{phase='measure'}", 10.0),
        ("flashjob_inter_token_latency_seconds_count{phase='measure'}", 290.0),
        ("flashjob_step_tokens_sum{phase='measure'}", 300.0),
        ("flashjob_bucket_read_bytes_total", 1048576.0),
        ("flashjob_phase{phase='linger'}", 1.0),
    ] {
        eventually(&url, &format!("last_over_time({series}[5m])"), expected).await;
    }
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
}
