//! The compose file, run whole: bucket, MLflow, Prometheus, and the job through FUSE.
//!
//! Nothing can be pulled here, so MLflow and Prometheus are put on a Debian that `scripts/base-image` makes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{Docker, base_image, docker};
use crate::support::process::{free_port, installed};

/// Images of the compose file under names of these tests.
const IMAGES: [(&str, &str); 5] = [
    ("FLASHJOB_IMAGE", "flashjob:test"),
    ("BUCKET_IMAGE", "flashjob:compose-bucket-test"),
    ("MLFLOW_IMAGE", "flashjob:compose-mlflow-test"),
    ("MLFLOW_BASE", "flashjob:compose-mlflow-base-test"),
    ("PROMETHEUS_IMAGE", "flashjob:compose-prometheus-test"),
];

fn image(variable: &str) -> &'static str {
    IMAGES.iter().find(|(known, _)| *known == variable).expect("an image of the table").1
}

/// A project of compose in a checkout of its own; taken down when dropped.
struct Project<'a> {
    docker: &'a Docker,
    program: PathBuf,
    checkout: TempDir,
    name: String,
    ports: [(&'static str, u16); 2],
}

impl<'a> Project<'a> {
    fn new(docker: &'a Docker, program: PathBuf) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let checkout = TempDir::new().unwrap();
        // What is in git, or about to be: nothing that a build or an earlier run has left.
        let files = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "--"])
            .args(["docker-compose.yml", ".env", "compose", "k8s/monitoring", "tests/golden/llama-gqa"])
            .current_dir(root)
            .output()
            .unwrap();
        for file in String::from_utf8_lossy(&files.stdout).lines() {
            let copy = checkout.path().join(file);
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            std::fs::copy(root.join(file), copy).unwrap();
        }
        // Compose reads it beside the other one: a Docker of these tests has no network of its own that leads to PyPI.
        let network = "services: {mlflow: {build: {network: host}}}\n";
        std::fs::write(checkout.path().join("docker-compose.override.yml"), network).unwrap();
        let name = format!("flashjob-test-{:08x}", rand::random::<u32>());
        let ports = [("MLFLOW_PORT", free_port()), ("PROMETHEUS_PORT", free_port())];
        Self { docker, program, checkout, name, ports }
    }

    fn compose(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(["--project-name", &self.name]).args(arguments).current_dir(self.checkout.path());
        command.envs(IMAGES).envs(variables.iter().copied()).env_remove("COMPOSE_PROFILES");
        command.envs(self.ports.map(|(name, port)| (name, port.to_string())));
        command.envs(self.docker.host.as_ref().map(|host| ("DOCKER_HOST", host)));
        command.output().unwrap()
    }

    fn port(&self, of: &str) -> u16 {
        self.ports.iter().find(|(name, _)| *name == of).expect("a port").1
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        self.compose(&["down", "--volumes", "--timeout", "1"], &[]);
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Images for what could be pulled elsewhere; false where they cannot be made (and the test says so).
fn bases(docker: &Docker) -> bool {
    let Some(base) = base_image() else { return false };
    let base = base.display().to_string();
    let start = r#"ENTRYPOINT ["/usr/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data"]"#;
    for import in
        [&["import", "--change", start, &base, image("PROMETHEUS_IMAGE")][..], &["import", &base, image("MLFLOW_BASE")]]
    {
        let imported = docker.output(import);
        assert!(imported.status.success(), "{}", said(&imported));
    }
    docker.build("development", image("BUCKET_IMAGE"), &super::development_bucket())
}

async fn answer(url: &str, body: Option<Value>) -> Option<Value> {
    let client = reqwest::Client::new();
    let request = match body {
        Some(body) => client.post(url).json(&body),
        None => client.get(url),
    };
    request.send().await.ok()?.error_for_status().ok()?.json().await.ok()
}

/// Asks until `found` says what it looked for.
async fn eventually<T>(what: &str, url: &str, body: Option<Value>, found: impl Fn(&Value) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let said = answer(url, body.clone()).await;
        if let Some(found) = said.as_ref().and_then(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: {said:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compose_runs_the_whole_house_and_exits_as_the_job_does() {
    let Some(docker) = docker() else { return };
    let Some(program) = installed("docker-compose", "docker-compose") else { return };
    if !bases(docker) {
        return;
    }
    let project = Project::new(docker, program);
    let built = project.compose(&["build", "mlflow"], &[]);
    assert!(built.status.success(), "{}", said(&built));

    let up = project.compose(&["up", "--exit-code-from", "job"], &[]);
    assert_eq!(up.status.code(), Some(0), "{}", said(&up));
    let log = said(&up);
    assert!(log.contains("\"method\":\"fuse\""), "{log}");
    assert!(!log.contains("job-cuda"), "the other profile's job stays away: {log}");

    // They were stopped with the job; what they keep is there.
    let started = project.compose(&["start", "mlflow", "prometheus"], &[]);
    assert!(started.status.success(), "{}", said(&started));
    let mlflow = format!("http://127.0.0.1:{}/api/2.0/mlflow", project.port("MLFLOW_PORT"));
    let by_name = format!("{mlflow}/experiments/get-by-name?experiment_name=compose");
    let experiment = eventually("the experiment", &by_name, None, |said| {
        said["experiment"]["experiment_id"].as_str().map(str::to_owned)
    })
    .await;
    let search = serde_json::json!({"experiment_ids": [experiment]});
    let runs =
        eventually("the run", &format!("{mlflow}/runs/search"), Some(search), |said| said["runs"].as_array().cloned())
            .await;
    let [run] = runs.as_slice() else { panic!("{} runs", runs.len()) };
    assert_eq!(run["info"]["status"], "FINISHED");
    let metrics = run["data"]["metrics"].as_array().unwrap();
    let tokens = metrics.iter().find(|metric| metric["key"] == "total_output_tokens").unwrap();
    assert_eq!(tokens["value"].as_f64(), Some(64.0 * 32.0));

    let query = "last_over_time(flashjob_generated_tokens_total{phase=\"measure\",job=\"flashjob\"}[1h])";
    let url = format!("http://127.0.0.1:{}/api/v1/query", project.port("PROMETHEUS_PORT"));
    let url = reqwest::Url::parse_with_params(&url, [("query", query)]).unwrap();
    let scraped = eventually("what Prometheus scraped", url.as_str(), None, |said| {
        said["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    })
    .await;
    assert_eq!(scraped, "2048");

    // The job fails, and compose says so with its number.
    let up = project.compose(&["up", "--exit-code-from", "job"], &[("MODEL", "no-such-model")]);
    assert_eq!(up.status.code(), Some(4), "{}", said(&up));
}

/// None of the services asks who calls.
#[test]
fn ports_are_published_on_loopback_alone() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-compose.yml");
    let text = std::fs::read_to_string(file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let published = lines.windows(2).filter(|pair| pair[0].trim() == "ports:").map(|pair| pair[1].trim());
    let published: Vec<&str> = published.collect();
    assert_eq!(published.len(), 3);
    assert!(published.iter().all(|port| port.starts_with("- \"127.0.0.1:")), "{published:?}");
}

#[test]
fn the_compose_file_is_valid() {
    let Some(program) = installed("docker-compose", "docker-compose") else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-compose.yml");
    let config = Command::new(program).arg("--file").arg(file).args(["config", "--services"]).output().unwrap();
    let said = String::from_utf8_lossy(&config.stderr).into_owned();
    let mut services: Vec<String> = String::from_utf8_lossy(&config.stdout).lines().map(str::to_owned).collect();
    services.sort();
    assert_eq!(services, ["bucket", "grafana", "job", "job-cuda", "mlflow", "prometheus"], "{said}");
}
