//! vLLM's metric names for flashjob's: the rules are valid, the same for an operator and for compose, and a real Prometheus
//! answers with them what dashboards for vLLM ask.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::folder;
use crate::support::Flashjob as _;
use crate::support::process::{Process, free_port, installed};
use crate::support::prometheus::Prometheus;

/// Histograms that the dashboard of the blueprint platform asks for, and those that vLLM has today.
const HISTOGRAMS: [&str; 11] = [
    "time_to_first_token_seconds",
    "time_per_output_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "iteration_tokens_total",
];

const COUNTERS: [&str; 3] = ["prompt_tokens_total", "generation_tokens_total", "num_preemptions_total"];

/// Levels, of which `swapped` and the cache of the CPU are always zero.
const GAUGES: [&str; 6] = [
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_swapped",
    "kv_cache_usage_perc",
    "gpu_cache_usage_perc",
    "cpu_cache_usage_perc",
];

fn compose_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("compose/vllm-names.yml")
}

/// The groups of the operator's rules as a file of rules, evaluated as often as compose's Prometheus scrapes.
fn from_the_operators_rules() -> String {
    let text = std::fs::read_to_string(folder().join("monitoring/vllm-names.yaml")).unwrap();
    let (_, groups) = text.split_once("spec:\n").unwrap();
    let lines = groups.lines().map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned() + "\n");
    let heading = "# vLLM's metric names from those of flashjob: the groups of k8s/monitoring/vllm-names.yaml, written by \
                   tests/kubernetes/vllm_names.rs.\n";
    heading.to_owned() + &lines.collect::<String>().replace("interval: 5s", "interval: 1s")
}

#[test]
fn compose_has_the_rules_of_the_operator() {
    let written = from_the_operators_rules();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(compose_file(), &written).unwrap();
    }
    let there = std::fs::read_to_string(compose_file()).unwrap();
    assert_eq!(there, written, "BLESS=1 writes compose/vllm-names.yml again");
}

#[test]
fn promtool_takes_the_rules() {
    let Some(program) = installed("promtool", "prometheus") else { return };
    let check = |path: &Path| Command::new(&program).args(["check", "rules"]).arg(path).output().unwrap();
    let checked = check(&compose_file());
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.contains("rules found"), "{said}");
    // The checker itself finds what is wrong.
    let place = tempfile::tempdir().unwrap();
    let wrong = place.path().join("wrong.yml");
    let text = std::fs::read_to_string(compose_file()).unwrap();
    std::fs::write(&wrong, text.replace("sum without (phase)", "sum without phase")).unwrap();
    assert!(!check(&wrong).status.success());
}

/// Queries of a dashboard for vLLM that give a number while requests run.
fn queries() -> Vec<String> {
    let of_histograms = HISTOGRAMS.iter().flat_map(|name| {
        let rate = |part: &str| format!("rate(vllm:{name}_{part}{{model_name=\"flashjob\"}}[20s])");
        let quantile = format!("histogram_quantile(0.99, sum by (le) ({}))", rate("bucket"));
        [quantile, format!("{} / {}", rate("sum"), rate("count"))]
    });
    let of_counters = COUNTERS.iter().map(|name| format!("rate(vllm:{name}{{model_name=\"flashjob\"}}[20s])"));
    let finished = "sum by (finished_reason) (increase(vllm:request_success_total{model_name=\"flashjob\"}[20s]))";
    let of_gauges = GAUGES.iter().map(|name| format!("vllm:{name}{{model_name=\"flashjob\", engine=\"0\"}}"));
    of_histograms.chain(of_counters).chain([finished.to_owned()]).chain(of_gauges).collect()
}

#[tokio::test]
async fn every_query_of_a_dashboard_for_vllm_is_answered_with_data() {
    let port = free_port();
    let target = format!("127.0.0.1:{port}");
    let Some(prometheus) = Prometheus::start_with_rules(&target, &[&compose_file()]) else { return };
    let results = TempDir::new().unwrap();
    let running = crate::job::job_at(&results, port).args(crate::job::LONG).start();
    let patience = Instant::now() + Duration::from_secs(55);
    for query in queries() {
        // A number: a quantile of no requests is none.
        let number = format!("count(({query}) == ({query}))");
        while prometheus.ask(&number).await.is_none_or(|count| count < 1.0) {
            assert!(Instant::now() < patience, "{query} has no data\n{}", running.stderr_so_far());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    // Each series of the dashboard is one of this job, whatever phases it has.
    assert_eq!(prometheus.ask("count(vllm:generation_tokens_total)").await, Some(1.0));
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
}

#[tokio::test]
async fn values_under_vllms_names_are_those_of_the_job() {
    let port = free_port();
    let target = format!("127.0.0.1:{port}");
    let Some(prometheus) = Prometheus::start_with_rules(&target, &[&compose_file()]) else { return };
    let results = TempDir::new().unwrap();
    let work = ["--num-prompts=6", "--input-len=8", "--output-len=5", "--warmup=0", "--enable-prefix-caching=true"];
    Process::flashjob()
        .args([
            &format!("--metrics-port={port}"),
            "--metrics-linger-seconds=40",
            "--device=cpu",
            "--measure-limits=false",
        ])
        .args(work)
        .args(["--model".into(), crate::job::tiny_model(), "--results-dir".into(), results.path().join("out")])
        .run()
        .expect_code(0);
    for (query, expected) in [
        ("vllm:generation_tokens_total", 30.0),
        ("vllm:prompt_tokens_total", 48.0),
        ("vllm:request_success_total{finished_reason=\"length\"}", 6.0),
        ("vllm:request_max_num_generation_tokens_sum", 30.0),
        ("vllm:request_prompt_tokens_bucket{le=\"+Inf\"}", 6.0),
        ("vllm:time_per_output_token_seconds_count", 24.0),
        ("vllm:num_requests_swapped", 0.0),
        ("vllm:cpu_cache_usage_perc", 0.0),
        ("vllm:gpu_prefix_cache_queries_total", 48.0),
        ("vllm:gpu_prefix_cache_hits_total", 0.0),
    ] {
        // The job is over: what was its last value is asked for.
        prometheus.eventually(&format!("last_over_time({query}[5m])"), expected).await;
    }
    assert_eq!(prometheus.ask("count(last_over_time(vllm:request_success_total{reason!=\"\"}[5m]))").await, None);
}
