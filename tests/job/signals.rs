//! SIGTERM and SIGINT in the phases that last.

use tempfile::TempDir;

use super::{LONG, job, result};
use crate::support::Flashjob as _;

#[test]
fn signals_while_measuring_keep_what_was_measured() {
    for (signal, code, name) in [(libc::SIGTERM, 143, "SIGTERM"), (libc::SIGINT, 130, "SIGINT")] {
        let results = TempDir::new().unwrap();
        let mut running = job(&results).args(LONG).start();
        running.wait_for_stderr("\"phase\":\"measure\"");
        running.signal(signal);
        let finished = running.wait().expect_code(code);
        let result = result(&results);
        assert_eq!((&result["status"], &result["exit_code"]), (&"killed".into(), &code.into()), "{}", finished.stderr);
        assert!(result["error"].as_str().unwrap().contains(name));
        assert!(result.get("elapsed_time").is_none(), "a partial run has no throughput by vLLM's names");
        assert_eq!(result["measurement"]["complete"], false);
    }
}

#[test]
fn a_signal_while_warming_up_ends_a_run_that_has_measured_nothing() {
    let results = TempDir::new().unwrap();
    let mut running = job(&results).args(["--input-len=8", "--warmup=200000"]).start();
    running.wait_for_stderr("\"phase\":\"warm_up\"");
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let result = result(&results);
    assert_eq!(result["status"], "killed");
    assert!(result["measurement"].is_null());
}

#[test]
fn a_signal_while_publishing_ends_the_wait_for_a_server_that_does_not_answer() {
    // Takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", silent.local_addr().unwrap());
    let results = TempDir::new().unwrap();
    let mut running =
        job(&results).args(["--input-len=4", "--output-len=2", "--num-prompts=2", "--mlflow-uri", &uri]).start();
    running.wait_for_stderr("\"phase\":\"publish\"");
    running.signal(libc::SIGINT);
    running.wait().expect_code(130);
    let result = result(&results);
    assert_eq!((&result["status"], &result["exit_code"]), (&"finished".into(), &130.into()));
}

#[test]
fn a_signal_in_the_linger_ends_it() {
    let results = TempDir::new().unwrap();
    let port = crate::support::process::free_port().to_string();
    let mut running = crate::support::process::Process::flashjob()
        .args(["--metrics-port", &port, "--metrics-linger-seconds=600", "--input-len=4", "--output-len=2"])
        .args(["--num-prompts=2", "--model", &super::tiny_model().display().to_string()])
        .args(["--results-dir", &results.path().join("out").display().to_string()])
        .start();
    running.wait_for_stderr("\"phase\":\"linger\"");
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    assert_eq!(result(&results)["status"], "finished");
}
