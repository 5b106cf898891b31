//! A real Prometheus that scrapes once a second sees a short job's final counts exactly.

use std::time::Duration;

use flashjob_event::Phase;
use flashjob_telemetry::{LingerEnd, Live, Server};
use tokio_util::sync::CancellationToken;

use super::job_story::Story;
use crate::support::prometheus::Prometheus;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_sees_the_final_counts() {
    let story = Story::new();
    let server = Server::start(([127, 0, 0, 1], 0).into(), story.registry.clone(), Live::default()).await.unwrap();

    let Some(prometheus) = Prometheus::start(&server.address().to_string()) else { return };
    prometheus.eventually("up{job='flashjob'}", 1.0).await;

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
        prometheus.eventually(&format!("last_over_time({series}[5m])"), expected).await;
    }
}
