//! A real Prometheus that scrapes one target once a second, and what it would read.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::process::{free_port, installed, spawn};

/// The head and the text that a job at `port` answers with.
pub fn scrape(port: u16) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    Ok(text)
}

/// A running Prometheus; killed when dropped.
pub struct Prometheus {
    child: Child,
    url: String,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `target`; `None` where there is none (and the test says so).
    pub fn start(target: &str) -> Option<Self> {
        Self::start_with_rules(target, &[])
    }

    /// The same with files of rules.
    pub fn start_with_rules(target: &str, rules: &[&Path]) -> Option<Self> {
        let program = installed("prometheus", "prometheus")?;
        let directory = tempfile::tempdir().unwrap();
        let configuration = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nrule_files: {rules:?}\nscrape_configs:\n- job_name: flashjob\n  static_configs:\n  - targets: ['{target}']\n"
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
        let child = spawn(command).unwrap();
        Some(Self { child, url: format!("http://{address}"), _directory: directory })
    }

    /// Asks for `query` and returns the one value of the answer, if there is one.
    pub async fn ask(&self, query: &str) -> Option<f64> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.url), [("query", query)]).unwrap();
        let answer: Value = reqwest::get(url).await.ok()?.json().await.ok()?;
        let [result] = answer["data"]["result"].as_array()?.as_slice() else { return None };
        result["value"][1].as_str()?.parse().ok()
    }

    /// Waits until `query` gives `expected`; after a while, the last answer is what it is.
    pub async fn eventually(&self, query: &str, expected: f64) {
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.ask(query).await;
            if answer == Some(expected) {
                return;
            }
            assert!(Instant::now() < patience, "{query} is {answer:?}, not {expected}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
