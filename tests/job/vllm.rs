//! `backend=vllm`, with the real vLLM for CPUs in an environment of its own.
//!
//! vLLM's attention on CPUs wants heads of 32 and more, so a fixture's heads are widened with zeros: that changes no logit.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flashjob::backend::{Completion, Found, Interpreter, Request, Seed};
use flashjob::bench::Recorder;
use flashjob_config::Sampling;
use flashjob_event::{Events, Fact, FinishReason, Phase, RequestId};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

use super::child_engine::{
    GREEDY, Loaded, children, configured, driver_of, expect_facts, expect_run_like_ours, hits, is_gone, job_on,
    measuring, request, signal,
};
use super::child_options::expect_options_as_of_our_own;
use super::result;
use crate::model::altered::Altered;
use crate::model::golden::prompts;
use crate::support::mlflow_server;
use crate::support::process::{Process, Running};
use crate::support::venv::venv;

const FIXTURE: &str = "llama-gqa";
const HEAD: usize = 16;
const WIDE_HEAD: usize = 64;
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

/// What every job here asks of vLLM: nothing compiled, a small cache.
const SMALL: [&str; 4] = ["--dtype=float32", "--enforce-eager=true", "--kv-cache-memory=64MiB", "--threads=2"];

/// A job on vLLM, with `environment` first in PATH.
fn on_vllm(results: &TempDir, environment: &Path) -> Process {
    job_on("vllm", results, environment, 0).args(SMALL)
}

/// One load; the rest is asked of it in turn.
#[test]
fn tokens_are_those_of_transformers_and_facts_those_of_any_engine() {
    let Some(environment) = venv("vllm") else { return };
    let (model, golden) = (widened(), prompts(FIXTURE));
    let eos = golden[1].greedy[9];
    model.edit_json("generation_config.json", |json| json["eos_token_id"] = eos.into());
    let job = configured(&[&SMALL[..], &["--backend=vllm", "--enable-prefix-caching=true"]].concat());
    let found = Found::Vllm(Interpreter::at(environment.join("bin/python3")));
    let mut vllm = Loaded::open(found, &job, model.path());
    let stated = vllm.backend.report().clone();
    assert_eq!((stated.backend, stated.version.as_str()), ("vllm", "0.32.0"));
    assert_eq!((stated.architecture.as_str(), stated.max_model_len), ("LlamaForCausalLM", 512));
    assert_eq!((stated.engine.dtype(), stated.engine.kernels()), (Some("float32"), Some("CPU_ATTN")));

    let own = |id: usize, prompt: &[u32], sampling| request(id, prompt, sampling, Seed::Job(7));
    let requests: Vec<Request> =
        golden.iter().enumerate().map(|(id, prompt)| own(id, &prompt.tokens, GREEDY)).collect();
    // Twice: nothing of the first region may be found by the second.
    for _ in 0..2 {
        let (completions, events) = vllm.run(&requests).unwrap();
        for (prompt, completion) in golden.iter().zip(&completions) {
            assert_eq!(completion.tokens, prompt.greedy, "a prompt of {} tokens", prompt.tokens.len());
            assert!(!completion.text.is_empty());
        }
        expect_facts(&events, &[1, 7, 33, 100]);
    }

    // More than are given to the engine at once, added while it runs.
    let many: Vec<Request> = (0..150).map(|id| own(id, &golden[id % golden.len()].tokens, GREEDY)).collect();
    let (completions, events) = vllm.run_stream(&many).unwrap();
    assert_eq!(completions.len(), many.len());
    for completion in &completions {
        assert_eq!(completion.tokens, golden[completion.id.0 as usize % golden.len()].greedy, "{:?}", completion.id);
    }
    let queued = events.iter().filter(|event| matches!(event.fact, Fact::RequestQueued { .. })).count();
    assert_eq!(queued, many.len());

    // Without a seed that a user has set for a request, vLLM draws from its own generator.
    let hot = Sampling { temperature: 2.0, ..GREEDY };
    let twins: Vec<Request> = (0..2).map(|id| own(id, &golden[1].tokens, hot)).collect();
    let (drawn, _) = vllm.run(&twins).unwrap();
    assert_ne!(drawn[0].tokens, drawn[1].tokens);
    let seeded = |id| request(id, &golden[1].tokens, hot, Seed::Request(7));
    let (first, _) = vllm.run(&[seeded(0), own(1, &golden[2].tokens, hot), seeded(2)]).unwrap();
    let (again, _) = vllm.run(&[seeded(0)]).unwrap();
    assert_eq!((&first[0].tokens, &first[2].tokens), (&again[0].tokens, &again[0].tokens));

    // Equal beginnings within one region are found: 128 tokens are a block.
    let long: Vec<u32> = golden[3].tokens.iter().cycle().take(300).copied().collect();
    let (_, events) = vllm.run(&[own(0, &long, GREEDY), own(1, &long, GREEDY)]).unwrap();
    assert_eq!(hits(&events)[0], 0, "{:?}", hits(&events));

    // An answer may end before its length where end-of-sequence tokens count.
    let stopping = Request { ignore_eos: false, ..own(0, &golden[1].tokens, GREEDY) };
    let (completions, _) = vllm.run(&[stopping]).unwrap();
    let first = golden[1].greedy.iter().position(|&token| token == eos).unwrap();
    assert_eq!(completions[0].tokens, golden[1].greedy[..=first]);
    assert_eq!(completions[0].reason, FinishReason::Stop);

    let narrow = Altered::of(FIXTURE);
    narrow.edit_json("generation_config.json", |json| json["eos_token_id"] = eos.into());
    expect_options_as_of_our_own(&mut vllm, narrow.path(), &golden[1].tokens, &golden[1].greedy, true);
}

/// Half of a driver's talk, of an engine that has an answer for one of two requests.
const ENDS_WITH_AN_ERROR: &str = r#"#!/bin/sh
read -r settings
echo '{"loaded": {"version": "0", "parameters": null, "max_model_len": 512, "gpus": 0, "kv_blocks": 8, "block_tokens": 16, "engine": {}}}'
read -r take
echo '{"taken": 2}'
read -r run
echo '{"running": 1}'
echo '{"step": {"at": 2, "took": 1, "running": 1, "waiting": 0, "kv_blocks_used": 1, "preempted": [], "first": [], "tokens": [[0, [5]], [1, [6]]]}}'
echo '{"end": {"id": 0, "at": 3, "reason": "error", "text": "half"}}'
END_OF_THE_OTHER
echo '"done"'
read -r nothing
"#;

/// Outcome of two requests whose driver is this script.
fn driven_by(script: &str) -> Result<Vec<Completion>, String> {
    let folder = TempDir::new().unwrap();
    let interpreter = folder.path().join("python3");
    std::fs::write(&interpreter, script).unwrap();
    std::fs::set_permissions(&interpreter, std::fs::Permissions::from_mode(0o755)).unwrap();
    let model = Altered::of(FIXTURE);
    let mut engine =
        Loaded::open(Found::Vllm(Interpreter::at(interpreter)), &configured(&["--backend=vllm"]), model.path());
    let requests = [0, 1].map(|id| request(id, &[1], GREEDY, Seed::Job(7)));
    engine.run(&requests).map(|(completions, _)| completions).map_err(|error| error.to_string())
}

#[test]
fn a_request_that_vllm_ends_with_an_error_ends_by_itself() {
    let end = r#"echo '{"end": {"id": 1, "at": 4, "reason": "length", "text": "whole"}}'"#;
    let completions = driven_by(&ENDS_WITH_AN_ERROR.replace("END_OF_THE_OTHER", end)).unwrap();
    let sentence = "vLLM ended request 0 with an error after 1 tokens; its own lines in the log say which";
    let [half, whole] = completions.as_slice() else { panic!("{completions:?}") };
    let error = half.error.as_ref().map(ToString::to_string);
    assert_eq!((half.text.as_str(), half.reason, error.as_deref()), ("half", FinishReason::Error, Some(sentence)));
    assert_eq!((whole.text.as_str(), whole.reason, &whole.error), ("whole", FinishReason::Length, &None));
}

#[test]
fn a_driver_that_breaks_the_protocol_ends_the_run() {
    for (says, sentence) in [
        ("", "vLLM says that all is done, and has not answered request 1"),
        (
            r#"echo '{"end": {"id": 7, "at": 4, "reason": "length", "text": ""}}'"#,
            "vLLM answers request 7, which nobody made",
        ),
        (
            r#"echo '{"step": {"at": 3, "took": 1, "running": 1, "waiting": 0, "kv_blocks_used": 1, "preempted": [], "first": [], "tokens": [[1, [7]]], "logprobs": [{"id": 1, "tokens": [[7]], "logprobs": [[-1]]}]}}'"#,
            "vLLM gives log-probabilities of request 1, which wants none",
        ),
        (r#"echo '{"taken": 2}'"#, "the driver of vLLM says Taken(2) out of turn; this is a bug, please report it"),
        ("echo nonsense", "vLLM says what is no answer"),
        (r#"echo '{"failed": "OutOfMemory: 3 GiB"}'"#, "vLLM gave up: OutOfMemory: 3 GiB"),
        ("exit 3", "vLLM ended (exit status: 3) without a word"),
    ] {
        let error = driven_by(&ENDS_WITH_AN_ERROR.replace("END_OF_THE_OTHER", says)).unwrap_err();
        assert!(error.starts_with(sentence), "{says}: {error}");
    }
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
    let (results, model) = (TempDir::new().unwrap(), widened());
    let job = on_vllm(&results, &environment)
        .args(["--vllm-args=--served-model-name=tiny --no-async-scheduling"])
        .args(["--model".into(), model.path().to_owned()]);
    let result = expect_run_like_ours(job, &results, mlflow, "vllm");
    assert_eq!((&result["backend"]["backend"], &result["backend"]["version"]), (&"vllm".into(), &"0.32.0".into()));
    let given = serde_json::json!({"served_model_name": "tiny", "async_scheduling": false});
    assert_eq!(result["backend"]["engine"]["arguments"], given);
    let runs = mlflow.runs("vllm");
    let [run] = runs.as_slice() else { panic!("{} runs", runs.len()) };
    assert_eq!((run.status(), run.tag("backend"), run.tag("kernels")), ("FINISHED", Some("vllm"), Some("CPU_ATTN")));
    assert_eq!(run.metric("total_output_tokens"), Some(160.0));
}

const DRIVER: &str = "Runs vLLM for flashjob";

/// A job that measures for longer than any test lasts, and its child.
fn measuring_on_vllm(results: &TempDir, environment: &Path, model: &Path) -> (Running, i32) {
    let job = |port| {
        job_on("vllm", results, environment, port)
            .args(SMALL)
            .args(["--model".into(), model.to_owned()])
            // A secret that vLLM has no need of, and one variable that holds it.
            .env("MLFLOW_TRACKING_TOKEN", "s3cr3t-token")
            .env("ANOTHER", "with s3cr3t-token in it")
            .env("VLLM_LOGGING_LEVEL", "INFO")
    };
    measuring(job, DRIVER)
}

#[test]
fn a_child_that_is_killed_ends_the_job_with_5_and_what_it_did_is_kept() {
    let Some(environment) = venv("vllm") else { return };
    let (results, model) = (TempDir::new().unwrap(), widened());
    let (running, child) = measuring_on_vllm(&results, &environment, model.path());
    let variables = std::fs::read(format!("/proc/{child}/environ")).unwrap();
    let variables = String::from_utf8_lossy(&variables);
    assert!(!variables.contains("s3cr3t-token") && variables.contains("VLLM_LOGGING_LEVEL=INFO"), "{variables}");
    for set in ["HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"] {
        assert!(variables.contains(set), "{set}");
    }
    let temporary = variables.split('\0').find_map(|variable| variable.strip_prefix("TMPDIR=")).unwrap();
    assert!(Path::new(temporary).is_dir(), "{temporary}");
    assert!(!children(child as u32).is_empty(), "the engine core has a process of its own, as by default");
    signal(child, rustix::process::Signal::KILL);
    let finished = running.wait().expect_code(5);
    is_gone(child);
    assert!(!Path::new(temporary).exists(), "what vLLM leaves behind goes with it");
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
    let (running, child) = measuring_on_vllm(&results, &environment, model.path());
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
    let child = driver_of(&running, DRIVER);
    running.signal(libc::SIGINT);
    running.wait().expect_code(130);
    is_gone(child);
}

#[test]
fn a_child_does_not_outlive_a_job_that_is_killed() {
    let Some(environment) = venv("vllm") else { return };
    let (results, model) = (TempDir::new().unwrap(), widened());
    let (running, child) = measuring_on_vllm(&results, &environment, model.path());
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
        ("--vllm-args=--max-num-seqs=4", "vllm-args holds `max_num_seqs`, which flashjob decides: set max-num-seqs"),
        ("--vllm-args={\"model\": \"x\"}", "vllm-args holds `model`, which flashjob decides: set model"),
        (
            "--vllm-args=--skip-tokenizer-init",
            "vllm-args holds `skip_tokenizer_init`, which flashjob decides: leave it out",
        ),
        (
            "--vllm-args=--logprobs-mode=raw_logits",
            "vllm-args holds `logprobs_mode`, which flashjob decides: leave it out",
        ),
        ("--vllm-args=--max-lora=4", "vllm-args: vLLM has no argument `max_lora`; did you mean `max_loras`?"),
        ("--vllm-args=--max-loras=many", "vllm-args: vLLM refuses it: argument --max-loras: "),
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

/// With packages that are nothing but a version, for the system's own Python.
#[test]
fn versions_that_are_not_driven_are_refused_by_name() {
    let packages = TempDir::new().unwrap();
    for (backend, module, version, sentence) in [
        (
            "vllm",
            "__init__.py",
            "0.24.1",
            "this image has vLLM 0.24.1, and this version of flashjob drives vLLM 0.25 to 0.33",
        ),
        ("vllm", "__init__.py", "0.34.0rc1", "this image has vLLM 0.34.0rc1, and"),
        ("vllm", "__init__.py", "dev", "this image has vLLM dev, and"),
        (
            "sglang",
            "version.py",
            "0.5.22",
            "this image has SGLang 0.5.22, and this version of flashjob drives SGLang 0.5.23;",
        ),
    ] {
        let package = packages.path().join(backend);
        std::fs::create_dir_all(&package).unwrap();
        std::fs::write(package.join("__init__.py"), "").unwrap();
        std::fs::write(package.join(module), format!("__version__ = \"{version}\"\n")).unwrap();
        let results = TempDir::new().unwrap();
        let finished = job_on(backend, &results, Path::new("/nonexistent"), 0)
            .args(["--model".into(), super::tiny_model()])
            .env("PYTHONPATH", packages.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .run()
            .expect_code(2);
        assert!(finished.stderr.contains(sentence), "{version}: {finished}");
    }
}
