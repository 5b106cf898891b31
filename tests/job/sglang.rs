//! `backend=sglang`, with the real SGLang from PyPI in an environment of its own, on its own fallbacks for processors.
//!
//! It takes half a minute and more to start, so that a start is asked for much.

use std::path::Path;

use flashjob::backend::{Found, Interpreter, Request, Seed};
use flashjob_config::Sampling;
use flashjob_event::FinishReason;
use tempfile::TempDir;

use super::child_engine::{
    GREEDY, Loaded, children, command_line, configured, driver_of, expect_facts, expect_run_like_ours, hits, is_gone,
    job_on, measuring, request, signal,
};
use super::child_options::expect_options_as_of_our_own;
use super::{result, tiny_model};
use crate::model::altered::Altered;
use crate::model::golden::prompts;
use crate::support::mlflow_server;
use crate::support::process::Process;
use crate::support::venv::venv;

const FIXTURE: &str = "llama-gqa";

/// Arguments of every job here: a small cache, and one thread, as two that get in each other's way are ten times slower.
const SMALL: [&str; 3] = ["--dtype=float32", "--threads=1", "--sglang-args={\"max_total_tokens\": 4096}"];

const DRIVER: &str = "Runs SGLang for flashjob";

/// The fixture without the file of its golden numbers, which SGLang would take for weights.
fn model() -> Altered {
    let model = Altered::of(FIXTURE);
    model.remove("golden.safetensors");
    model
}

fn on_sglang(results: &TempDir, environment: &Path, model: &Path, port: u16) -> Process {
    job_on("sglang", results, environment, port).args(SMALL).args(["--model".into(), model.to_owned()])
}

/// One load; the rest is asked of it in turn, and at last a process of SGLang is killed.
#[test]
fn tokens_are_those_of_transformers_and_facts_those_of_any_engine() {
    let Some(environment) = venv("sglang") else { return };
    let (model, golden) = (model(), prompts(FIXTURE));
    let eos = golden[1].greedy[9];
    model.edit_json("generation_config.json", |json| json["eos_token_id"] = eos.into());
    // Without GPUs SGLang is started without a compiler of grammars, unless asked.
    let arguments = "--sglang-args={\"max_total_tokens\": 4096, \"grammar_backend\": \"xgrammar\"}";
    let job =
        configured(&["--dtype=float32", "--threads=1", arguments, "--backend=sglang", "--enable-prefix-caching=true"]);
    let found = Found::Sglang(Interpreter::at(environment.join("bin/python3")));
    let before = children(std::process::id());
    let mut sglang = Loaded::open(found, &job, model.path());
    let is_driver = |pid: &i32| !before.contains(pid) && command_line(*pid).contains(DRIVER);
    let driver = children(std::process::id()).into_iter().find(is_driver).unwrap();
    let stated = sglang.backend.report().clone();
    assert_eq!((stated.backend, stated.version.as_str()), ("sglang", "0.5.23"));
    assert_eq!((stated.architecture.as_str(), stated.parameters), ("LlamaForCausalLM", Some(98_624)));
    assert_eq!((stated.engine.dtype(), stated.engine.kernels()), (Some("float32"), Some("torch_native")));

    let own = |id: usize, prompt: &[u32], sampling| request(id, prompt, sampling, Seed::Job(7));
    let requests: Vec<Request> =
        golden.iter().enumerate().map(|(id, prompt)| own(id, &prompt.tokens, GREEDY)).collect();
    // Twice: nothing of the first region may be found by the second.
    for _ in 0..2 {
        let (completions, events) = sglang.run(&requests).unwrap();
        for (prompt, completion) in golden.iter().zip(&completions) {
            assert_eq!(completion.tokens, prompt.greedy, "a prompt of {} tokens", prompt.tokens.len());
            assert!(!completion.text.is_empty());
        }
        expect_facts(&events, &[1, 7, 33, 100]);
    }

    let hot = Sampling { temperature: 2.0, ..GREEDY };
    let (drawn, _) = sglang.run(&[own(0, &golden[1].tokens, hot), own(1, &golden[1].tokens, hot)]).unwrap();
    assert_ne!(drawn[0].tokens, drawn[1].tokens);

    // Equal beginnings within one region are found. A request that came before the first had its keys waits for nothing.
    let long: Vec<u32> = golden[3].tokens.iter().cycle().take(300).copied().collect();
    let (_, events) = sglang.run(&[own(0, &long, GREEDY), own(1, &long, GREEDY)]).unwrap();
    assert_eq!(hits(&events)[0], 0, "{:?}", hits(&events));

    // An answer may end before its length where end-of-sequence tokens count.
    let stopping = Request { ignore_eos: false, ..own(0, &golden[1].tokens, GREEDY) };
    let (completions, _) = sglang.run(&[stopping]).unwrap();
    let first = golden[1].greedy.iter().position(|&token| token == eos).unwrap();
    assert_eq!((&completions[0].tokens[..], completions[0].reason), (&golden[1].greedy[..=first], FinishReason::Stop));

    expect_options_as_of_our_own(&mut sglang, model.path(), &golden[1].tokens, &golden[1].greedy, false);

    let killed = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let scheduler = children(driver as u32).into_iter().find(|pid| command_line(*pid).contains("scheduler"));
        signal(scheduler.unwrap(), rustix::process::Signal::KILL);
    });
    let many: Vec<Request> =
        (0..500).map(|id| Request { max_tokens: 400, ..own(id, &golden[1].tokens, GREEDY) }).collect();
    let error = sglang.run(&many).unwrap_err().to_string();
    assert_eq!(error, "SGLang gave up: a process of SGLang has ended; its last lines in the log say why");
    killed.join().unwrap();
    drop(sglang);
    is_gone(driver);
}

#[test]
fn a_run_looks_as_with_our_own_engine_and_names_the_one_that_ran() {
    let (Some(environment), Some(mlflow)) = (venv("sglang"), mlflow_server::shared()) else { return };
    let (results, model) = (TempDir::new().unwrap(), model());
    let result = expect_run_like_ours(on_sglang(&results, &environment, model.path(), 0), &results, mlflow, "sglang");
    assert_eq!((&result["backend"]["backend"], &result["backend"]["version"]), (&"sglang".into(), &"0.5.23".into()));
    assert_eq!(result["backend"]["engine"]["arguments"], serde_json::json!({"max_total_tokens": 4096}));
    let runs = mlflow.runs("sglang");
    let [run] = runs.as_slice() else { panic!("{} runs", runs.len()) };
    assert_eq!((run.status(), run.tag("backend")), ("FINISHED", Some("sglang")));
    assert_eq!(run.metric("total_output_tokens"), Some(160.0));
}

#[test]
fn sigterm_ends_the_job_with_143_and_all_processes_of_sglang() {
    let Some(environment) = venv("sglang") else { return };
    let (results, model) = (TempDir::new().unwrap(), model());
    let (running, child) = measuring(|port| on_sglang(&results, &environment, model.path(), port), DRIVER);
    let variables = std::fs::read(format!("/proc/{child}/environ")).unwrap();
    let variables = String::from_utf8_lossy(&variables).into_owned();
    let temporary = variables.split('\0').find_map(|variable| variable.strip_prefix("TMPDIR=")).unwrap();
    assert!(children(child as u32).len() >= 2, "a scheduler and a detokeniser");
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    is_gone(child);
    assert!(!Path::new(temporary).exists(), "what SGLang leaves behind goes with it");
    let result = result(&results);
    assert_eq!((&result["status"], &result["measurement"]["complete"]), (&"killed".into(), &false.into()));
    assert!(result["metrics"]["total_output_tokens"].as_f64().unwrap() > 0.0, "{result}");
}

#[test]
fn sglang_does_not_outlive_a_job_that_is_killed_while_it_loads() {
    let Some(environment) = venv("sglang") else { return };
    let (results, model) = (TempDir::new().unwrap(), model());
    let running = on_sglang(&results, &environment, model.path(), 0).start();
    let child = driver_of(&running, DRIVER);
    running.signal_job(libc::SIGKILL);
    running.wait().expect_code(137);
    is_gone(child);
}

#[test]
fn what_sglang_cannot_do_is_refused_by_name() {
    let Some(environment) = venv("sglang") else { return };
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-gguf/model.gguf");
    let folder = TempDir::new().unwrap();
    let empty = folder.path().to_owned();
    for (model, word, code, sentence) in [
        (tiny_model(), "--validate-weights=true", 2, "validate-weights has no counterpart in SGLang"),
        (tiny_model(), "--measure-limits=true", 2, "measure-limits has no counterpart in SGLang"),
        (tiny_model(), "--kv-cache-memory=1GiB", 2, "set max_total_tokens in sglang-args"),
        (
            tiny_model(),
            "--sglang-args=--tp-size=2",
            2,
            "sglang-args holds `tp_size`, which flashjob decides: set tensor-parallel-size",
        ),
        (tiny_model(), "--sglang-args={", 2, "it must be a JSON object"),
        (
            tiny_model(),
            "--sglang-args=--max-total-token=1",
            2,
            "SGLang has no argument `max_total_token`; did you mean `max_total_tokens`?",
        ),
        (tiny_model(), "--device=cuda", 2, "SGLang 0.5.23 computes on cpu here"),
        (gguf, "--threads=1", 4, "SGLang takes a directory in Hugging Face layout"),
        (empty, "--threads=1", 4, "config.json"),
    ] {
        let results = TempDir::new().unwrap();
        let finished = job_on("sglang", &results, &environment, 0)
            .args([word.into(), "--model".into(), model])
            .run()
            .expect_code(code);
        assert!(finished.stderr.contains(sentence), "{word}: {finished}");
    }
}
