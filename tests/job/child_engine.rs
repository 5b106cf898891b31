//! Parts of the tests of engines in a child process: a backend without a job, a job on one, and the processes of both.

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flashjob::backend::{self, Backend, Completion, Found, Loading, NextRequest, Request, RequestSource, Seed};
use flashjob_config::{JobConfig, Sampling};
use flashjob_config_parser::{self as config_parser, Command};
use flashjob_event::{Event, Events, Fact, Observer, RequestId};
use flashjob_model::{SharedTexts, SystemFiles};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{result, serving_at};
use crate::support::mlflow_server::MlflowServer;
use crate::support::process::{Process, Running, free_port};
use crate::support::prometheus::scrape;

/// Loading takes an engine tens of seconds of imports.
const PATIENCE: Duration = Duration::from_secs(300);

/// Far longer than a test waits. Handing over a request takes a millisecond, so there are not thousands of them.
pub const LONG: [&str; 3] = ["--input-len=8", "--output-len=480", "--num-prompts=1000"];

pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };

/// A job on the engine `backend` at `port`, with `environment` first in PATH.
pub fn job_on(backend: &str, results: &TempDir, environment: &Path, port: u16) -> Process {
    let path = format!("{}:{}", environment.join("bin").display(), std::env::var("PATH").unwrap());
    serving_at(results, port)
        .args([format!("--backend={backend}")])
        .env("PATH", path)
        .env("DEVICE", "auto")
        // Another engine refuses one, and the tests may run with it.
        .env("FLASHJOB_ISA", "")
        .timeout(PATIENCE)
}

pub fn configured(words: &[&str]) -> JobConfig {
    let words = ["--model=unused"].iter().chain(words).map(OsString::from);
    match config_parser::parse(words, std::iter::empty(), &|_| unreachable!()).unwrap() {
        Command::Run(job) => *job,
        other => panic!("{other:?}"),
    }
}

#[derive(Default)]
struct Facts(Mutex<Vec<Event>>);

impl Observer for Facts {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// A loaded engine whose facts are kept.
pub struct Loaded {
    pub backend: Box<dyn Backend>,
    facts: Arc<Facts>,
    events: Events,
}

impl Loaded {
    pub fn open(found: Found, job: &JobConfig, model: &Path) -> Self {
        let facts = Arc::new(Facts::default());
        let events = Events::to(vec![facts.clone()]);
        let texts = SharedTexts::new(model.to_owned(), model.to_owned());
        let loading = Loading {
            config: job,
            rendezvous: None,
            files: &SystemFiles,
            model,
            tokenizer: model,
            texts: &texts,
            events: &events,
            cancel: &CancellationToken::new(),
        };
        let backend = backend::open(found, &loading).unwrap();
        Self { backend, facts, events }
    }

    /// Completions by request, and the facts of the run in the order in which they were stated.
    pub fn run(&mut self, requests: &[Request]) -> Result<(Vec<Completion>, Vec<Event>), backend::Error> {
        self.run_from(&mut Vec::from(requests).into_iter())
    }

    /// The same of requests that are made while they are run.
    pub fn run_stream(&mut self, requests: &[Request]) -> Result<(Vec<Completion>, Vec<Event>), backend::Error> {
        self.run_from(&mut Trickle { requests: Vec::from(requests).into_iter(), is_ready: false })
    }

    fn run_from(&mut self, requests: &mut dyn RequestSource) -> Result<(Vec<Completion>, Vec<Event>), backend::Error> {
        self.facts.0.lock().unwrap().clear();
        let mut completions: Vec<Completion> = Vec::new();
        let mut finished = |completion: Completion| completions.push(completion);
        self.backend.run(requests, &self.events, &CancellationToken::new(), &mut finished)?;
        completions.sort_by_key(|completion| completion.id);
        Ok((completions, std::mem::take(&mut *self.facts.0.lock().unwrap())))
    }
}

/// A source whose every other answer is that the next request is not ready.
struct Trickle {
    requests: std::vec::IntoIter<Request>,
    is_ready: bool,
}

impl RequestSource for Trickle {
    fn next(&mut self, _patience: Duration) -> NextRequest {
        self.is_ready = !self.is_ready;
        match self.is_ready {
            false => NextRequest::Later,
            true => Iterator::next(&mut self.requests).map_or(NextRequest::End, NextRequest::Request),
        }
    }

    fn take_all(&mut self) -> Option<Vec<Request>> {
        None
    }
}

/// A request for 64 tokens.
pub fn request(id: usize, prompt: &[u32], sampling: Sampling, seed: Seed) -> Request {
    Request {
        id: RequestId(id as u32),
        prompt: prompt.to_vec(),
        max_tokens: 64,
        ignore_eos: true,
        sampling,
        options: None,
        choice: 0,
        seed,
        text: None,
    }
}

/// Holds that `events` of a run of requests for 64 tokens each say what they say of our own engine.
pub fn expect_facts(events: &[Event], prompts: &[usize]) {
    // Places in a step are stated afterwards, and texts are made while the next step is computed.
    let in_order = |event: &&Event| !matches!(event.fact, Fact::RequestScheduled { .. } | Fact::RequestFinished { .. });
    let moments: Vec<Instant> = events.iter().filter(in_order).map(|event| event.at).collect();
    assert!(moments.is_sorted(), "{events:?}");
    let count = |is: fn(&Fact) -> bool| events.iter().filter(|event| is(&event.fact)).count();
    assert_eq!(count(|fact| matches!(fact, Fact::RequestQueued { .. })), prompts.len());
    assert_eq!(count(|fact| matches!(fact, Fact::RequestScheduled { .. })), prompts.len());
    assert_eq!(count(|fact| matches!(fact, Fact::TokenGenerated { .. })), prompts.len() * 64);
    assert_eq!(count(|fact| matches!(fact, Fact::RequestFinished { output_tokens: 64, .. })), prompts.len());
    assert_eq!(count(|fact| matches!(fact, Fact::PrefixSearched { hit_tokens: 0, .. })), prompts.len());
    assert_eq!(count(|fact| matches!(fact, Fact::StepNeeded { .. })), 0, "engines do not say what their steps need");
    let (mut prefill, mut decode, mut steps, mut most_running) = (0, 0, 0, 0);
    for event in events {
        if let Fact::StepFinished { prefill_tokens, decode_tokens, duration, running, .. } = event.fact {
            (prefill, decode, steps) = (prefill + prefill_tokens, decode + decode_tokens, steps + 1);
            most_running = most_running.max(running);
            assert!(duration > Duration::ZERO);
        }
    }
    assert_eq!((prefill, decode), (prompts.iter().sum(), prompts.len() * 63));
    assert!(steps >= 64 && most_running == prompts.len(), "{steps} steps, {most_running} at once");
}

/// Prompt tokens that each request found in the prefix cache.
pub fn hits(events: &[Event]) -> Vec<u32> {
    let hit = |event: &Event| match event.fact {
        Fact::PrefixSearched { hit_tokens, .. } => Some(hit_tokens),
        _ => None,
    };
    events.iter().filter_map(hit).collect()
}

/// Runs `job` with 8 requests and MLflow, holds its result against one of our own engine's, and returns it.
pub fn expect_run_like_ours(job: Process, results: &TempDir, mlflow: &MlflowServer, experiment: &str) -> Value {
    let short = ["--input-len=12", "--output-len=20", "--num-prompts=8"];
    let ours = TempDir::new().unwrap();
    job.args(short)
        .args(["--mlflow-uri", mlflow.uri(), "--experiment-name", experiment, "--run-name", "of another engine"])
        .run()
        .expect_code(0);
    super::job(&ours).args(short).run().expect_code(0);
    let (result, ours) = (result(results), result(&ours));
    assert_eq!((&result["status"], &result["num_requests"]), (&"finished".into(), &8.into()));
    assert_eq!(result["metrics"]["total_output_tokens"], 160.0);
    assert_eq!(result["measurement"]["complete"], true);
    let names = |result: &Value| -> Vec<String> {
        let metrics = result["metrics"].as_object().unwrap();
        // What each step needs is not known: no rates of operations.
        metrics.keys().filter(|name| !name.contains("flops") && !name.contains("memory_bytes")).cloned().collect()
    };
    assert_eq!(names(&result), names(&ours));
    result
}

/// A job that measures for longer than any test lasts, and the child that runs its driver.
pub fn measuring(job: impl FnOnce(u16) -> Process, driver: &str) -> (Running, i32) {
    let port = free_port();
    let mut running = job(port).args(LONG).args(["--mlflow-uri=http://127.0.0.1:1"]).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let child = driver_of(&running, driver);
    // Some tokens, so that there is something to keep.
    while !scrape(port).unwrap().lines().any(|line| line.starts_with(MEASURED_TOKENS) && !line.ends_with(" 0")) {
        std::thread::sleep(Duration::from_millis(50));
    }
    (running, child)
}

const MEASURED_TOKENS: &str = "flashjob_generated_tokens_total{phase=\"measure\"}";

/// The child whose driver says that it `does` something, once there is one.
pub fn driver_of(running: &Running, does: &str) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    let is_driver = |pid: &i32| command_line(*pid).contains(does);
    loop {
        match children(running.job() as u32).into_iter().find(is_driver) {
            Some(child) => return child,
            None => assert!(Instant::now() < deadline, "no child: {}", running.stderr_so_far()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn children(pid: u32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_thread =
        |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let all: String = threads.flatten().map(of_thread).collect();
    all.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// Waits until nobody is left in the group of `leader`, as a zombie or otherwise.
pub fn is_gone(leader: i32) {
    let group = rustix::process::Pid::from_raw(leader).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while rustix::process::test_kill_process_group(group).is_ok() {
        assert!(Instant::now() < deadline, "somebody is left: {}", command_line(leader));
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}
