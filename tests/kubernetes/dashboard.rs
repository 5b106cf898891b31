//! The dashboard that the ConfigMap holds: every query is answered with data by a real Prometheus that scrapes a real job.

use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{kubectl, kustomized, of_kind};
use crate::support::manifests::{judges, yaml};
use crate::support::process::free_port;
use crate::support::prometheus::Prometheus;

#[tokio::test]
async fn every_query_of_the_dashboard_is_answered_with_data() {
    let (Some(judges), Some(kubectl)) = (judges(), kubectl()) else { return };
    let config_map = of_kind(&yaml(&judges, &kustomized(&kubectl, "monitoring")), "ConfigMap");
    assert_eq!(config_map["metadata"]["labels"]["grafana_dashboard"], "1");
    let dashboard: Value = serde_json::from_str(config_map["data"]["flashjob.json"].as_str().unwrap()).unwrap();
    let mut ids: Vec<u64> = dashboard["panels"].as_array().unwrap().iter().filter_map(|p| p["id"].as_u64()).collect();
    ids.dedup();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<String> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(queries.len() > 15 && ids.len() > 10, "{queries:?}");

    let port = free_port();
    let Some(prometheus) = Prometheus::start(&format!("127.0.0.1:{port}")) else { return };
    let results = TempDir::new().unwrap();
    let running = crate::job::job_at(&results, port).args(crate::job::LONG).start();
    let patience = Instant::now() + Duration::from_secs(50);
    for query in &queries {
        // Grafana puts an interval in that holds some scrapes.
        let asked = query.replace("$__rate_interval", "10s");
        // One series or several: there must be some, and each a number.
        let number = format!("count(({asked}) == ({asked}))");
        while prometheus.ask(&number).await.is_none_or(|count| count < 1.0) {
            assert!(Instant::now() < patience, "{query} has no data\n{}", running.stderr_so_far());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    assert_eq!(prometheus.ask("count(flashjob_no_such_metric == flashjob_no_such_metric)").await, None);
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
}
