//! `backend=vllm`, with the real vLLM for CPUs in an environment of its own.
//!
//! vLLM's attention on CPUs wants heads of 32 and more, so a fixture's heads are widened with zeros: that changes no logit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flashjob::backend::{self, Backend, Completion, Found, Interpreter, Loading, Request};
use flashjob::bench::Recorder;
use flashjob_config::{JobConfig, Sampling};
use flashjob_config_parser::{self as config_parser, Command};
use flashjob_event::{Event, Events, Fact, FinishReason, Observer, Phase, RequestId};
use flashjob_model::{SharedTexts, SystemFiles};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{result, serving_at};
use crate::model::altered::Altered;
use crate::model::golden::prompts;
use crate::support::mlflow_server;
use crate::support::process::{Process, Running, free_port};
use crate::support::prometheus::scrape;
use crate::support::venv::venv;

const FIXTURE: &str = "llama-gqa";
const HEAD: usize = 16;
const WIDE_HEAD: usize = 64;
/// Loading takes vLLM 10 to 20 seconds of imports.
const PATIENCE: Duration = Duration::from_secs(300);
const BYTES_OF_BFLOAT16: usize = 2;

/// The fixture with heads of 64: what is added is zeros, which are rotated by nothing.
fn widened() -> Altered {
    let model = Altered::of(FIXTURE);
    // vLLM takes every file of this kind for weights.
    model.remove("golden.safetensors");
    let file = model.read("model.safetensors");
    let narrow = SafeTensors::deserialize(&file).unwrap();
    let wide: BTreeMap<String, (Vec<usize>, Vec<u8>)> =
        narrow.iter().map(|(name, tensor)| (name.to_owned(), widen(name, &tensor))).collect();
    let views = wide
        .iter()
        .map(|(name, (shape, bytes))| (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    model.write("model.safetensors", safetensors::serialize(views, None).unwrap());
    model.edit_json("config.json", |json| {
        json["head_dim"] = WIDE_HEAD.into();
        json["rope_parameters"]["partial_rotary_factor"] = (HEAD as f64 / WIDE_HEAD as f64).into();
    });
    model
}

fn widen(name: &str, tensor: &TensorView<'_>) -> (Vec<usize>, Vec<u8>) {
    let (shape, data) = (tensor.shape().to_vec(), tensor.data());
    let padded = |data: &[u8], head_bytes: usize| -> Vec<u8> {
        let wide_bytes = head_bytes / HEAD * WIDE_HEAD;
        data.chunks(head_bytes)
            .flat_map(|head| head.iter().copied().chain(std::iter::repeat_n(0, wide_bytes - head_bytes)))
            .collect()
    };
    if name.ends_with("o_proj.weight") {
        return (vec![shape[0], shape[1] / HEAD * WIDE_HEAD], padded(data, HEAD * BYTES_OF_BFLOAT16));
    }
    if !["q_proj.weight", "k_proj.weight", "v_proj.weight"].iter().any(|end| name.ends_with(end)) {
        return (shape, data.to_vec());
    }
    let rows = padded(data, HEAD * shape[1] * BYTES_OF_BFLOAT16);
    // Scores are divided by the root of the width, which has doubled: queries are, too.
    let doubled = |pair: &[u8]| {
        let number = half::bf16::from_le_bytes([pair[0], pair[1]]);
        half::bf16::from_f32(number.to_f32() * 2.0).to_le_bytes()
    };
    let rows = if name.ends_with("q_proj.weight") { rows.chunks(2).flat_map(doubled).collect() } else { rows };
    (vec![shape[0] / HEAD * WIDE_HEAD, shape[1]], rows)
}

/// Far longer than a test waits. Handing over a request takes vLLM a millisecond, so there are not thousands of them.
const LONG: [&str; 3] = ["--input-len=8", "--output-len=480", "--num-prompts=1000"];

/// What every job here asks of vLLM: nothing compiled, a small cache.
const SMALL: [&str; 4] = ["--dtype=float32", "--enforce-eager=true", "--kv-cache-memory=64MiB", "--threads=2"];

/// A job on vLLM, with `environment` first in PATH.
fn on_vllm(results: &TempDir, environment: &Path) -> Process {
    on_vllm_at(results, environment, 0)
}

/// The same with its metrics at `port`.
fn on_vllm_at(results: &TempDir, environment: &Path, port: u16) -> Process {
    let path = format!("{}:{}", environment.join("bin").display(), std::env::var("PATH").unwrap());
    serving_at(results, port)
        .args(["--backend=vllm"])
        .args(SMALL)
        .env("PATH", path)
        .env("DEVICE", "auto")
        // vLLM refuses one, and the tests may run with it.
        .env("FLASHJOB_ISA", "")
        .timeout(PATIENCE)
}

fn configured(words: &[&str]) -> JobConfig {
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

fn open(found: Found, job: &JobConfig, model: &Path, events: &Events) -> Box<dyn Backend> {
    let texts = SharedTexts::new(model.to_owned(), model.to_owned());
    let loading = Loading {
        config: job,
        rendezvous: None,
        files: &SystemFiles,
        model,
        tokenizer: model,
        texts: &texts,
        events,
        cancel: &CancellationToken::new(),
    };
    backend::open(found, &loading).unwrap()
}

/// One load; the rest is asked of it in turn.
#[test]
fn tokens_are_those_of_transformers_and_facts_those_of_any_engine() {
    let Some(environment) = venv("vllm") else { return };
    let model = widened();
    let job = configured(&[&SMALL[..], &["--backend=vllm", "--enable-prefix-caching=true"]].concat());
    let facts = Arc::new(Facts::default());
    let (events, cancel) = (Events::to(vec![facts.clone()]), CancellationToken::new());
    let found = Found::Vllm(Interpreter::at(environment.join("bin/python3")));
    let mut backend = open(found, &job, model.path(), &events);
    let stated = backend.report().clone();
    assert_eq!((stated.backend, stated.version.as_str()), ("vllm", "0.32.0"));
    assert_eq!((stated.architecture.as_str(), stated.max_model_len), ("LlamaForCausalLM", 512));
    assert_eq!((stated.engine.dtype(), stated.engine.kernels()), (Some("float32"), Some("CPU_ATTN")));
    let mut run = |requests: &[Request]| {
        facts.0.lock().unwrap().clear();
        let mut completions: Vec<Completion> = Vec::new();
        backend.run(requests.to_vec(), &events, &cancel, &mut |completion| completions.push(completion)).unwrap();
        completions.sort_by_key(|completion| completion.id);
        (completions, std::mem::take(&mut *facts.0.lock().unwrap()))
    };

    let golden = prompts(FIXTURE);
    let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
    let request = |id: usize, prompt: &[u32], sampling| Request {
        id: RequestId(id as u32),
        prompt: prompt.to_vec(),
        max_tokens: 64,
        ignore_eos: true,
        sampling,
        seed: 7,
    };
    let requests: Vec<Request> =
        golden.iter().enumerate().map(|(id, prompt)| request(id, &prompt.tokens, greedy)).collect();
    // Twice: nothing of the first region may be found by the second.
    for _ in 0..2 {
        let (completions, events) = run(&requests);
        for (prompt, completion) in golden.iter().zip(&completions) {
            assert_eq!(completion.tokens, prompt.greedy, "a prompt of {} tokens", prompt.tokens.len());
            assert!(!completion.text.is_empty());
        }
        assert!(
            events
                .windows(2)
                .all(|pair| { pair[0].at <= pair[1].at || matches!(pair[1].fact, Fact::RequestScheduled { .. }) })
        );
        let count = |is: fn(&Fact) -> bool| events.iter().filter(|event| is(&event.fact)).count();
        assert_eq!(count(|fact| matches!(fact, Fact::RequestQueued { .. })), 4);
        assert_eq!(count(|fact| matches!(fact, Fact::RequestScheduled { .. })), 4);
        assert_eq!(count(|fact| matches!(fact, Fact::TokenGenerated { .. })), 4 * 64);
        assert_eq!(count(|fact| matches!(fact, Fact::RequestFinished { output_tokens: 64, .. })), 4);
        assert_eq!(count(|fact| matches!(fact, Fact::PrefixSearched { hit_tokens: 0, .. })), 4);
        assert_eq!(count(|fact| matches!(fact, Fact::StepNeeded { .. })), 0, "vLLM does not say what its steps need");
        let (mut prefill, mut decode, mut steps) = (0, 0, 0);
        for event in &events {
            if let Fact::StepFinished { prefill_tokens, decode_tokens, kv_blocks_used, duration, .. } = event.fact {
                (prefill, decode, steps) = (prefill + prefill_tokens, decode + decode_tokens, steps + 1);
                assert!(duration > Duration::ZERO && kv_blocks_used <= 5, "{kv_blocks_used} blocks");
            }
        }
        assert_eq!((prefill, decode), (1 + 7 + 33 + 100, 4 * 63));
        assert!(steps >= 64, "{steps} steps");
    }

    // Chance is the seed's and the request's number's: the same again, and not the same for two requests.
    let hot = Sampling { temperature: 2.0, ..greedy };
    let twins: Vec<Request> = (0..2).map(|id| request(id, &golden[1].tokens, hot)).collect();
    let ((first, _), (again, _)) = (run(&twins), run(&twins));
    assert_eq!((&first[0].tokens, &first[1].tokens), (&again[0].tokens, &again[1].tokens));
    assert_ne!(first[0].tokens, first[1].tokens);

    // Equal beginnings within one region are found: 128 tokens are a block.
    let long: Vec<u32> = golden[3].tokens.iter().cycle().take(300).copied().collect();
    let pair: Vec<Request> = (0..2).map(|id| request(id, &long, greedy)).collect();
    let (_, events) = run(&pair);
    let hits: Vec<u32> = events
        .iter()
        .filter_map(|event| match event.fact {
            Fact::PrefixSearched { hit_tokens, .. } => Some(hit_tokens),
            _ => None,
        })
        .collect();
    assert!(hits.len() == 2 && hits[0] == 0, "{hits:?}");

    // An answer may end before its length where end-of-sequence tokens count.
    let eos = golden[1].greedy[9];
    model.edit_json("generation_config.json", |json| json["eos_token_id"] = eos.into());
    drop(backend);
    let found = Found::Vllm(Interpreter::at(environment.join("bin/python3")));
    let mut backend = open(found, &job, model.path(), &Events::default());
    let stopping = Request { ignore_eos: false, ..request(0, &golden[1].tokens, greedy) };
    let mut tokens = Vec::new();
    let mut keep = |completion: Completion| tokens = completion.tokens;
    backend.run(vec![stopping], &Events::default(), &cancel, &mut keep).unwrap();
    let first = golden[1].greedy.iter().position(|&token| token == eos).unwrap();
    assert_eq!(tokens, golden[1].greedy[..=first]);
}

/// Half of the driver's talk, of an engine that has an answer for one of two requests.
const ENDS_WITH_AN_ERROR: &str = r#"#!/bin/sh
read -r settings
echo '{"loaded": {"version": "0", "parameters": null, "max_model_len": 512, "gpus": 0, "kv_blocks": 8, "block_tokens": 16, "engine": {}}}'
read -r take
echo '{"taken": 2}'
read -r run
echo '{"step": {"at": 1, "took": 1, "running": 1, "waiting": 0, "kv_blocks_used": 1, "requests": [
    {"id": 0, "new": [5], "end": ["error", "half"]}, {"id": 1, "new": [6], "end": ["length", "whole"]}]}}' | tr -d '\n'
echo
echo '"done"'
read -r nothing
"#;

#[test]
fn a_request_that_vllm_ends_with_an_error_ends_by_itself() {
    let folder = TempDir::new().unwrap();
    let interpreter = folder.path().join("python3");
    std::fs::write(&interpreter, ENDS_WITH_AN_ERROR).unwrap();
    std::fs::set_permissions(&interpreter, std::fs::Permissions::from_mode(0o755)).unwrap();
    let model = Altered::of(FIXTURE);
    let (job, cancel) = (configured(&["--backend=vllm"]), CancellationToken::new());
    let found = Found::Vllm(Interpreter::at(interpreter));
    let mut backend = open(found, &job, model.path(), &Events::default());
    let request = |id| Request {
        id: RequestId(id),
        prompt: vec![1],
        max_tokens: 1 + id as usize,
        ignore_eos: false,
        sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: None },
        seed: 7,
    };
    let mut ends = Vec::new();
    let mut finished = |completion: Completion| ends.push((completion.text, completion.reason, completion.error));
    backend.run(vec![request(0), request(1)], &Events::default(), &cancel, &mut finished).unwrap();
    let sentence = "vLLM ended request 0 with an error after 1 tokens; its own lines in the log say which";
    assert_eq!(ends[0], ("half".to_owned(), FinishReason::Error, Some(sentence.to_owned())));
    assert_eq!(ends[1], ("whole".to_owned(), FinishReason::Length, None));
}

/// What it takes to hand prompts to a child, before any of them is handed to the engine, is not the engine's time.
#[test]
fn the_measured_region_begins_with_the_first_request() {
    let recorder = Arc::new(Recorder::default());
    let events = Events::to(vec![recorder.clone()]);
    let (start, request) = (Instant::now(), RequestId(0));
    for (second, fact) in [
        (0, Fact::PhaseStarted(Phase::Measure)),
        (5, Fact::RequestQueued { request, prompt_tokens: 1 }),
        (6, Fact::TokenGenerated { request, token: 1 }),
        (7, Fact::RequestFinished { request, output_tokens: 1, reason: FinishReason::Length }),
    ] {
        events.emit_at(start + Duration::from_secs(second), fact);
    }
    assert_eq!(recorder.measurement().elapsed_seconds, 2.0);
}

#[test]
fn a_run_looks_as_with_our_own_engine_and_names_the_one_that_ran() {
    let (Some(environment), Some(mlflow)) = (venv("vllm"), mlflow_server::shared()) else { return };
    let (results, ours, model) = (TempDir::new().unwrap(), TempDir::new().unwrap(), widened());
    let short = ["--input-len=12", "--output-len=20", "--num-prompts=8"];
    let tracked = ["--mlflow-uri", mlflow.uri(), "--experiment-name", "vllm", "--run-name", "on vLLM"];
    on_vllm(&results, &environment)
        .args(short)
        .args(tracked)
        .args(["--model".into(), model.path().to_owned()])
        .run()
        .expect_code(0);
    super::job(&ours).args(short).run().expect_code(0);
    let (result, ours) = (result(&results), super::result(&ours));
    assert_eq!((&result["status"], &result["num_requests"]), (&"finished".into(), &8.into()));
    assert_eq!((&result["backend"]["backend"], &result["backend"]["version"]), (&"vllm".into(), &"0.32.0".into()));
    assert_eq!(result["metrics"]["total_output_tokens"], 160.0);
    assert_eq!(result["measurement"]["complete"], true);
    let names = |result: &serde_json::Value| -> Vec<String> {
        let metrics = result["metrics"].as_object().unwrap();
        // What each step needs is not known: no rates of operations.
        metrics.keys().filter(|name| !name.contains("flops") && !name.contains("memory_bytes")).cloned().collect()
    };
    assert_eq!(names(&result), names(&ours));
    let runs = mlflow.runs("vllm");
    let [run] = runs.as_slice() else { panic!("{} runs", runs.len()) };
    assert_eq!((run.status(), run.tag("backend"), run.tag("kernels")), ("FINISHED", Some("vllm"), Some("CPU_ATTN")));
    assert_eq!(run.metric("total_output_tokens"), Some(160.0));
}

/// A job that measures for longer than any test lasts, and its child.
fn measuring(results: &TempDir, environment: &Path, model: &Path) -> (Running, i32) {
    let port = free_port();
    let mut running = on_vllm_at(results, environment, port)
        .args(LONG)
        .args(["--model".into(), model.to_owned()])
        .args(["--mlflow-uri=http://127.0.0.1:1"])
        // A secret that vLLM has no need of, and one variable that holds it.
        .env("MLFLOW_TRACKING_TOKEN", "s3cr3t-token")
        .env("ANOTHER", "with s3cr3t-token in it")
        .env("VLLM_LOGGING_LEVEL", "INFO")
        .start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let child = driver_of(&running);
    // Some tokens, so that there is something to keep.
    while !scrape(port).unwrap().lines().any(|line| line.starts_with(MEASURED_TOKENS) && !line.ends_with(" 0")) {
        std::thread::sleep(Duration::from_millis(50));
    }
    (running, child)
}

/// The child that runs the driver, once there is one.
fn driver_of(running: &Running) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    let is_driver = |pid: &i32| command_line(*pid).contains("Runs vLLM for flashjob");
    loop {
        match children(running.job() as u32).into_iter().find(is_driver) {
            Some(child) => return child,
            None => assert!(Instant::now() < deadline, "no child: {}", running.stderr_so_far()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

const MEASURED_TOKENS: &str = "flashjob_generated_tokens_total{phase=\"measure\"}";

fn children(pid: u32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_thread =
        |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let all: String = threads.flatten().map(of_thread).collect();
    all.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn command_line(pid: i32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// Waits until nobody is left in the group of `leader`, as a zombie or otherwise.
fn is_gone(leader: i32) {
    let group = rustix::process::Pid::from_raw(leader).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while rustix::process::test_kill_process_group(group).is_ok() {
        assert!(Instant::now() < deadline, "somebody is left: {}", command_line(leader));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn a_child_that_is_killed_ends_the_job_with_5_and_what_it_did_is_kept() {
    let Some(environment) = venv("vllm") else { return };
    let (results, model) = (TempDir::new().unwrap(), widened());
    let (running, child) = measuring(&results, &environment, model.path());
    let variables = std::fs::read(format!("/proc/{child}/environ")).unwrap();
    let variables = String::from_utf8_lossy(&variables);
    assert!(!variables.contains("s3cr3t-token") && variables.contains("VLLM_LOGGING_LEVEL=INFO"), "{variables}");
    for set in ["HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"] {
        assert!(variables.contains(set), "{set}");
    }
    signal(child, rustix::process::Signal::KILL);
    let finished = running.wait().expect_code(5);
    is_gone(child);
    assert!(finished.stderr.contains("vLLM ended (signal: 9 (SIGKILL))"), "{finished}");
    assert!(!finished.stderr.contains("s3cr3t-token"), "{finished}");
    let result = result(&results);
    assert_eq!((&result["status"], &result["measurement"]["complete"]), (&"failed".into(), &false.into()));
    assert!(result["metrics"]["total_output_tokens"].as_f64().unwrap() > 0.0, "{result}");
    assert_eq!(result["backend"]["backend"], "vllm");
}

#[test]
fn a_child_that_does_not_hear_sigterm_is_ended_all_the_same() {
    let Some(environment) = venv("vllm") else { return };
    let (results, model) = (TempDir::new().unwrap(), widened());
    let (running, child) = measuring(&results, &environment, model.path());
    // A stopped process takes no signal but the one that nobody can refuse.
    signal(child, rustix::process::Signal::STOP);
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    is_gone(child);
    let result = result(&results);
    assert_eq!((&result["status"], &result["exit_code"]), (&"killed".into(), &143.into()));
}

#[test]
fn a_signal_while_vllm_loads_ends_both() {
    let Some(environment) = venv("vllm") else { return };
    let (results, model) = (TempDir::new().unwrap(), widened());
    let running = on_vllm(&results, &environment).args(["--model".into(), model.path().to_owned()]).start();
    let child = driver_of(&running);
    running.signal(libc::SIGINT);
    running.wait().expect_code(130);
    is_gone(child);
}

#[test]
fn a_child_does_not_outlive_a_job_that_is_killed() {
    let Some(environment) = venv("vllm") else { return };
    let (results, model) = (TempDir::new().unwrap(), widened());
    let (running, child) = measuring(&results, &environment, model.path());
    running.signal_job(libc::SIGKILL);
    running.wait().expect_code(137);
    is_gone(child);
}

#[test]
fn what_vllm_cannot_load_ends_with_4_and_its_last_sentence() {
    let Some(environment) = venv("vllm") else { return };
    let unknown = widened();
    unknown.edit_json("config.json", |json| json["architectures"] = serde_json::json!(["NobodysForCausalLM"]));
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-gguf/model.gguf");
    for (model, sentence) in
        [(unknown.path().to_owned(), "NobodysForCausalLM"), (gguf, "takes a directory in Hugging Face layout")]
    {
        let results = TempDir::new().unwrap();
        let finished =
            on_vllm(&results, &environment).args(["--model".into(), PathBuf::from(&model)]).run().expect_code(4);
        assert!(finished.stderr.contains(sentence), "{finished}");
        assert!(result(&results)["error"].as_str().unwrap().contains(sentence), "{}", result(&results)["error"]);
    }
}

#[test]
fn what_vllm_has_no_word_for_is_refused_by_name() {
    let Some(environment) = venv("vllm") else { return };
    let model = widened();
    for (word, sentence) in [
        ("--validate-weights=true", "validate-weights has no counterpart in vLLM"),
        ("--measure-limits=true", "measure-limits has no counterpart in vLLM"),
        ("--device=cuda", "this image's vLLM 0.32.0 computes on cpu here"),
    ] {
        let results = TempDir::new().unwrap();
        let finished = on_vllm(&results, &environment)
            .args([word.into(), "--model".into(), model.path().to_owned()])
            .run()
            .expect_code(2);
        assert!(finished.stderr.contains(sentence), "{word}: {finished}");
        assert!(result(&results)["backend"].is_null());
    }
    let results = TempDir::new().unwrap();
    let lowered = on_vllm(&results, &environment).args(["--model".into(), model.path().to_owned()]);
    let finished = lowered.env("FLASHJOB_ISA", "portable").run().expect_code(2);
    assert!(finished.stderr.contains("FLASHJOB_ISA has no counterpart in vLLM"), "{finished}");
}
