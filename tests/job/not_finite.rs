//! A request that the model has no number for: answered with an error where answers are wanted, the end of a run that measures.

use std::time::Duration;

use flashjob_event::Events;
use flashjob_model::{Model, Texts};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{job_without_model, result, tiny_model};
use crate::engine::{config, request, serve};
use crate::model::altered::Altered;
use crate::support::Flashjob as _;
use crate::support::mlflow_server;
use crate::support::process::{Process, free_port};
use crate::support::prometheus::scrape;

/// A character that is a token of its own, and that the model never writes here.
const BAD: &str = "~";

/// The tiny model, to which `token` is no number.
fn spoilt(token: &str) -> Altered {
    let model = Altered::of("llama-gqa");
    let token = Texts::open(&tiny_model(), &tiny_model()).unwrap().tokenizer.token_id(token).unwrap();
    model.spoil_embedding(token);
    model
}

fn asking(results: &TempDir, model: &Altered, dataset: &str, text: &str) -> Process {
    about(job_without_model(results), results, model, dataset, text)
}

fn about(job: Process, results: &TempDir, model: &Altered, dataset: &str, text: &str) -> Process {
    let path = results.path().join("dataset");
    std::fs::write(&path, text).unwrap();
    job.args(["--model".into(), model.path().to_owned()])
        .args(["--dataset", dataset, "--dataset-path", &path.display().to_string()])
        .args(["--dtype=float32", "--output-len=6"])
}

/// The lines of `outputs.jsonl`.
fn outputs(results: &TempDir) -> Vec<Value> {
    let text = super::answers_of(results);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Sentence on a request whose prompt has `position` tokens and that has none of its own.
fn sentence(request: usize, position: usize) -> String {
    format!(
        "the logits of request {request} at position {position} are not finite: the weights are damaged, or too large for this \
         dtype; try --validate-weights, or dtype float32"
    )
}

fn conversation(custom_id: &str, content: &str) -> Value {
    let body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 6});
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})
}

#[test]
fn it_is_answered_with_an_error_and_counted_and_others_are_answered_as_without_it() {
    let model = spoilt(BAD);
    let lines = ["{\"prompt\": \"one\"}", "{\"prompt\": \"1~2\", \"id\": 7}", "{\"prompt\": \"three\"}"];
    let (results, without) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let port = free_port();
    let job = Process::flashjob()
        .args(["--metrics-linger-seconds=600", "--measure-limits=false", &format!("--metrics-port={port}")])
        .args(["--results-dir".into(), results.path().join("out")])
        .env("DEVICE", "cpu");
    let mut running = about(job, &results, &model, "jsonl", &lines.join("\n")).start();
    running.wait_for_stderr("\"phase\":\"linger\"");
    let metrics = scrape(port).unwrap();
    for line in [
        "flashjob_requests_finished_total{phase=\"measure\",reason=\"error\"} 1",
        "flashjob_end_to_end_latency_seconds_count{phase=\"measure\"} 2",
        "flashjob_batch_lines 3",
        "flashjob_batch_lines_estimated 0",
        "flashjob_batch_answers_total{kind=\"completed\"} 2",
        "flashjob_batch_answers_total{kind=\"non_finite\"} 1",
        "flashjob_batch_earlier_answers{kind=\"completed\"} 0",
        "flashjob_batch_remaining_seconds 0",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line} in\n{metrics}");
    }
    // The first one may have come before values were final.
    while scrape(port).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let finished = running.wait().expect_code(0);
    let text = [lines[0], lines[2]].join("\n");
    asking(&without, &model, "jsonl", &text).run().expect_code(0);

    let (outputs, without) = (outputs(&results), outputs(&without));
    assert_eq!((&outputs[0]["output"], &outputs[2]["output"]), (&without[0]["output"], &without[1]["output"]));
    let error = json!({"code": "server_error", "message": format!("line 2: {}", sentence(1, 3))});
    let failed = json!({"request": 1, "line": 2, "id": 7, "output": "", "output_tokens": 0, "finish_reason": "error", "error": error});
    assert_eq!(outputs[1], failed);
    assert!(outputs[0].get("error").is_none());

    let result = result(&results);
    assert_eq!((&result["status"], &result["failed_requests"]), (&"finished".into(), &1.into()));
    let batch = &result["batch"];
    assert_eq!((&batch["completed"], &batch["non_finite"], &batch["failed"]), (&2.into(), &1.into(), &0.into()));
    assert_eq!((&result["num_requests"], &result["metrics"]["failed_requests"]), (&2.into(), &1.0.into()));
    assert!(finished.stdout.contains("failed requests            1\n"), "{}", finished.stdout);
    let warnings: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("no whole answer")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains(&format!("line 2 has no whole answer: {}", sentence(1, 3))), "{warnings:?}");
}

#[test]
fn what_it_had_before_is_in_its_answer() {
    let (prompt, clean) = ("12345", Model::open(&tiny_model()).unwrap());
    let tokenizer = Texts::open(&tiny_model(), &tiny_model()).unwrap().tokenizer;
    let tokens = tokenizer.encode(prompt, true).unwrap();
    let mut engine =
        flashjob_engine::Engine::load(&clean, &config(), &Events::default(), &CancellationToken::new()).unwrap();
    let whole = serve(&mut engine, vec![request(0, &tokens, 40)]).unwrap().0.remove(0).tokens;
    let first = |token: u32| whole.iter().position(|&other| other == token).unwrap();
    let place = (3..39).find(|&place| first(whole[place]) == place && !tokens.contains(&whole[place])).unwrap();
    let model = Altered::of("llama-gqa");
    model.spoil_embedding(whole[place]);

    let results = TempDir::new().unwrap();
    let text =
        format!("{}\n{}\n", json!({"prompt": prompt, "max_tokens": 40}), json!({"prompt": "x", "max_tokens": 1}));
    asking(&results, &model, "jsonl", &text).run().expect_code(0);
    let output = &outputs(&results)[0];
    assert_eq!((&output["output_tokens"], &output["finish_reason"]), (&(place + 1).into(), &"error".into()));
    assert_eq!(output["output"].as_str().unwrap(), tokenizer.decode(&whole[..=place]).unwrap());
    let message = output["error"]["message"].as_str().unwrap();
    assert_eq!(message, format!("line 1: {}", sentence(0, tokens.len() + place + 1)));
}

#[test]
fn a_line_of_a_batch_has_its_error_in_openais_format() {
    let (model, results) = (spoilt(BAD), TempDir::new().unwrap());
    let text: Vec<String> =
        [("a", "one"), ("b", "~"), ("c", "two")].map(|(id, content)| conversation(id, content).to_string()).to_vec();
    asking(&results, &model, "jsonl", &text.join("\n")).run().expect_code(0);
    let outputs = outputs(&results);
    assert_eq!(outputs.len(), 3);
    let error = &outputs[1]["error"];
    assert_eq!(outputs[1], json!({"id": "batch_req_2", "custom_id": "b", "response": null, "error": error}));
    assert_eq!(error["code"], "server_error");
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("line 2: the logits of request 1 at position "), "{message}");
    for answered in [&outputs[0], &outputs[2]] {
        assert_eq!((&answered["response"]["status_code"], &answered["error"]), (&200.into(), &Value::Null));
    }
}

#[test]
fn many_are_counted_rather_than_listed() {
    let (model, results) = (spoilt(BAD), TempDir::new().unwrap());
    let text = "{\"prompt\": \"~\"}\n".repeat(25) + "{\"prompt\": \"one\"}\n";
    let finished = asking(&results, &model, "jsonl", &text).run().expect_code(0);
    let warnings: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("no whole answer")).collect();
    assert_eq!(warnings.len(), 21, "{warnings:#?}");
    assert!(warnings[20].contains("5 more have no whole answer, 25 in all"), "{}", warnings[20]);
    assert_eq!(result(&results)["failed_requests"], 25);
}

#[test]
fn where_none_is_answered_the_job_has_failed_and_each_has_its_error() {
    let (model, results) = (spoilt(BAD), TempDir::new().unwrap());
    let finished = asking(&results, &model, "jsonl", &"{\"prompt\": \"a~\"}\n".repeat(3)).run().expect_code(5);
    let result = result(&results);
    let expected = format!("none of the 3 requests could be answered; the first ended so: {}", sentence(0, 2));
    assert_eq!((&result["status"], result["error"].as_str()), (&"failed".into(), Some(expected.as_str())));
    assert_eq!(result["failed_requests"], 3);
    assert!(finished.stderr.contains(&expected), "{}", finished.stderr);
    assert_eq!(outputs(&results).iter().filter(|output| output["finish_reason"] == "error").count(), 3);
}

/// Random prompts, recorded conversations as they are, and lines that are to be as long as they are asked to be.
#[test]
fn a_run_that_measures_ends_with_5_and_names_request_and_position() {
    let model = spoilt(BAD);
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let entry = |content: &str| json!({"conversations": [turn("human", content), turn("gpt", "1 2 3")]});
    let conversations = json!([entry("one"), entry("~")]).to_string();
    let lines = "{\"prompt\": \"one\"}\n{\"prompt\": \"~~\"}\n";
    let random = |results: &TempDir| {
        job_without_model(results).args(["--model".into(), model.path().to_owned()]).args([
            "--input-len=400",
            "--output-len=6",
            "--num-prompts=8",
        ])
    };
    for (how, run, request) in [
        ("random", &random as &dyn Fn(&TempDir) -> Process, "request "),
        ("sharegpt", &|results| asking(results, &model, "sharegpt", &conversations), "request 1 "),
        (
            "ignore-eos",
            &|results| asking(results, &model, "jsonl", lines).args(["--ignore-eos"]),
            "request 1 at position 2 ",
        ),
    ] {
        let results = TempDir::new().unwrap();
        let finished = run(&results).run().expect_code(5);
        let result = result(&results);
        let error = result["error"].as_str().unwrap();
        assert!(error.starts_with(&format!("the logits of {request}")), "{how}: {error}");
        assert!(error.contains("at position ") && finished.stderr.contains(error), "{how}: {error}");
        assert_eq!(result["status"], "failed", "{how}");
    }
    // The same conversations, where answers are wanted.
    let results = TempDir::new().unwrap();
    asking(&results, &model, "sharegpt", &conversations).args(["--ignore-eos=false"]).run().expect_code(0);
    assert_eq!(result(&results)["failed_requests"], 1);
}

#[test]
fn a_warm_up_with_it_does_not_end_a_job_that_answers() {
    let (model, results) = (spoilt(BAD), TempDir::new().unwrap());
    let text = "{\"prompt\": \"~\"}\n{\"prompt\": \"one\"}\n";
    asking(&results, &model, "jsonl", text).args(["--warmup=1"]).run().expect_code(0);
    assert_eq!(result(&results)["failed_requests"], 1);
}

#[test]
fn mlflow_has_the_count() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let (model, results) = (spoilt(BAD), TempDir::new().unwrap());
    asking(&results, &model, "jsonl", "{\"prompt\": \"~\"}\n{\"prompt\": \"one\"}\n")
        .args(["--mlflow-uri", mlflow.uri(), "--experiment-name", "not finite"])
        .run()
        .expect_code(0);
    let run = &mlflow.runs("not finite")[0];
    assert_eq!((run.status(), run.metric("failed_requests")), ("FINISHED", Some(1.0)));
    assert_eq!((run.metric("batch_lines_answered"), run.metric("batch_errors_non_finite")), (Some(2.0), Some(1.0)));
}
