//! Options of requests, as answers show them.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::prompts::{answers, lines};
use super::{answers_of, job, job_without_model, result};
use crate::model::altered::Altered;
use crate::support::process::Process;
use crate::support::venv::venv;

/// The answers to `requests`, lines of a batch, in their order.
fn answered(results: &TempDir, requests: &[Value]) -> Vec<Value> {
    answered_by(job(results), results, requests)
}

fn answered_by(job: Process, results: &TempDir, requests: &[Value]) -> Vec<Value> {
    let path = results.path().join("dataset");
    std::fs::write(&path, requests.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let batch = ["--dataset=jsonl".into(), format!("--dataset-path={}", path.display()), "--output-len=12".into()];
    job.args(batch).run().expect_code(0);
    let answers = answers(results);
    assert_eq!(answers.len(), requests.len());
    answers
}

/// A plain line that ends at its length alone unless it says otherwise, with `options`.
fn line(options: Value) -> Value {
    let mut line = json!({"prompt": "one two three", "ignore_eos": true});
    line.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    line
}

#[test]
fn biases_stop_tokens_and_min_tokens_decide_where_an_answer_ends() {
    let results = TempDir::new().unwrap();
    let always = json!({"40": 100});
    let answers = answered(
        &results,
        &[
            line(json!({})),
            line(json!({"logit_bias": always})),
            line(json!({"logit_bias": always, "stop_token_ids": [40]})),
            line(json!({"logit_bias": always, "stop_token_ids": [40], "min_tokens": 5})),
            line(json!({"logit_bias": always, "frequency_penalty": 2})),
            line(json!({"logit_bias": {"40": -100, "41": 0.0}, "temperature": 1, "min_p": 1, "seed": 3})),
        ],
    );
    let of = |field: &str| answers.iter().map(|answer| answer[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("output_tokens"), [12, 12, 1, 6, 12, 12]);
    assert_eq!(of("finish_reason"), ["length", "length", "stop", "stop", "length", "length"]);
    let texts = of("output");
    let texts: Vec<&str> = texts.iter().map(|text| text.as_str().unwrap()).collect();
    // The token that ends an answer is no part of it.
    assert_eq!(texts[2], "");
    let token = &texts[1][..texts[1].len() / 12];
    assert_eq!(texts[1], token.repeat(12));
    assert!(!texts[3].is_empty() && !texts[3].contains(token), "{texts:?}");
    assert!(texts[0] != texts[1] && texts[4] == texts[1], "two units an occurrence are less than the bias: {texts:?}");
    // Min-p of 1 leaves the likeliest token alone.
    assert_eq!(texts[5], texts[0]);
}

#[test]
fn penalties_change_what_repeats_and_a_seed_gives_the_same_answer_on_any_line() {
    let results = TempDir::new().unwrap();
    let hot = |seed: u64| line(json!({"temperature": 1.5, "seed": seed, "min_p": 0.01}));
    let answers = answered(
        &results,
        &[
            line(json!({"max_tokens": 200})),
            line(json!({"max_tokens": 200, "repetition_penalty": 100})),
            line(json!({"max_tokens": 200, "presence_penalty": 2, "frequency_penalty": 2})),
            hot(7),
            hot(8),
            hot(7),
        ],
    );
    let texts: Vec<&str> = answers.iter().map(|answer| answer["output"].as_str().unwrap()).collect();
    assert!(texts[0] != texts[1] && texts[0] != texts[2] && texts[1] != texts[2], "{texts:?}");
    assert_eq!((texts[3], texts[3] == texts[4]), (texts[5], false));
}

#[test]
fn a_prompt_may_be_token_ids() {
    let results = TempDir::new().unwrap();
    let completion = json!({
        "custom_id": "a", "method": "POST", "url": "/v1/completions",
        "body": {"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": true},
    });
    let answers = answered(&results, &[json!({"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": true}), completion]);
    let body = &answers[1]["response"]["body"];
    assert_eq!(answers[0]["output"], body["choices"][0]["text"]);
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}));
    assert_eq!(lines(&results, "requests.jsonl")[0]["prompt_tokens"], 3);
}

#[test]
fn fields_that_are_no_options_are_in_the_answer() {
    let results = TempDir::new().unwrap();
    let notes = json!({"topic": "weather", "tags": ["a", {"b": null}], "output": "expected", "user": "me", "id": 7});
    let mut of_batch = json!({
        "custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 2},
    });
    of_batch.as_object_mut().unwrap().extend(notes.as_object().unwrap().clone());
    let mut refused = line(notes.clone());
    refused["stream"] = json!(true);
    let answers = answered(&results, &[line(notes.clone()), of_batch, refused]);
    for answer in &answers {
        assert_eq!(
            (&answer["topic"], &answer["tags"], &answer["user"]),
            (&notes["topic"], &notes["tags"], &notes["user"])
        );
        assert_eq!(answer["input_output"], "expected");
    }
    assert_eq!(
        (&answers[0]["id"], &answers[1]["id"], &answers[1]["input_id"]),
        (&7.into(), &"batch_req_2".into(), &7.into())
    );
    assert!(answers[0]["output"].is_string() && answers[0].get("min_tokens").is_none());
}

/// Each of them is answered, and no other line suffers.
#[test]
fn a_bad_option_is_answered_with_its_name_and_what_is_allowed() {
    // A million of them are refused as a line of too many values.
    let many: serde_json::Map<String, Value> = (0..100_000).map(|id| (id.to_string(), json!(1))).collect();
    let cases = [
        (json!({"min_p": 1.5}), "`min_p` must be a number from 0 to 1, not 1.5"),
        (json!({"min_p": "x"}), "`min_p` must be a number from 0 to 1, not \"x\""),
        (json!({"min_tokens": -1}), "`min_tokens` must be a whole number of at least 0, not -1"),
        (json!({"min_tokens": 13}), "`min_tokens` must be at most the 12 tokens that it asks for, not 13"),
        (
            json!({"min_tokens": 2, "guided_regex": "a+"}),
            "`min_tokens` and a grammar contradict each other where the text is complete; leave one of them out",
        ),
        (json!({"stop_token_ids": 3}), "`stop_token_ids` must be a list of up to 64 token ids, not 3"),
        (json!({"stop_token_ids": [999_999]}), "`stop_token_ids` has token 999999, and the model's ids end below "),
        (json!({"presence_penalty": 2.5}), "`presence_penalty` must be a number from -2 to 2, not 2.5"),
        (json!({"frequency_penalty": [1]}), "`frequency_penalty` must be a number from -2 to 2, not [1]"),
        (json!({"repetition_penalty": 0}), "`repetition_penalty` must be a number from 0.01 to 100, not 0"),
        (
            json!({"logit_bias": {"1": 1000}}),
            "`logit_bias` must be an object of up to 1024 token ids, each with a number ",
        ),
        (
            json!({"logit_bias": {"one": 1}}),
            "`logit_bias` must be an object of up to 1024 token ids, each with a number ",
        ),
        (json!({"logit_bias": many}), "`logit_bias` must be an object of up to 1024 token ids, each with a number "),
        (json!({"logit_bias": {"4000000000": 1}}), "`logit_bias` has token 4000000000, and the model's ids end below "),
        (json!({"prompt": [1, 999_999]}), "`prompt` has token 999999, and the model's ids end below "),
        (json!({"prompt": []}), "`prompt` must be one text or one list of token ids, not []"),
        (json!({"seed": 1.5}), "`seed` must be a whole number of 64 bits, not 1.5"),
        (
            json!({"note": "x".repeat(70_000)}),
            "its fields that are copied to the answer have 70006 bytes, most of them in `note`",
        ),
    ];
    let results = TempDir::new().unwrap();
    let requests: Vec<Value> =
        cases.iter().map(|(options, _)| line(options.clone())).chain([line(json!({}))]).collect();
    let answers = answered(&results, &requests);
    for (answer, (options, sentence)) in answers.iter().zip(&cases) {
        assert_eq!(answer["error"]["code"], "invalid_request", "{answer}");
        let said = answer["error"]["message"].as_str().unwrap();
        assert!(said.contains(sentence), "{said} is not about {}", options.as_object().unwrap().keys().next().unwrap());
    }
    assert_eq!(
        (&answers[cases.len()]["output_tokens"], &result(&results)["batch"]["invalid"]),
        (&json!(12), &json!(18))
    );
}

/// A line of an OpenAI batch.
fn of_batch(custom_id: &str, endpoint: &str, body: Value) -> Value {
    json!({"custom_id": custom_id, "method": "POST", "url": format!("/v1/{endpoint}"), "body": body})
}

#[test]
fn a_line_may_ask_for_several_answers() {
    let results = TempDir::new().unwrap();
    let body = json!({"model": "m", "prompt": "one two three", "n": 3, "max_tokens": 5, "temperature": 1.5, "seed": 3});
    let mut single = body.clone();
    single["n"] = json!(1);
    let answers = answered(
        &results,
        &[
            of_batch("three", "completions", body.clone()),
            of_batch("one", "completions", single),
            line(json!({"n": 2, "max_tokens": 4})),
            of_batch("again", "completions", body),
            line(json!({})),
        ],
    );
    let of_three = &answers[0]["response"]["body"];
    let texts: Vec<&str> =
        of_three["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] || texts[1] != texts[2], "{texts:?}");
    assert_eq!(answers[3]["response"]["body"]["choices"], of_three["choices"], "seeds follow from the line's");
    assert_eq!(answers[1]["response"]["body"]["choices"][0], of_three["choices"][0]);
    let (one, three) = (&answers[1]["response"]["body"]["usage"], &of_three["usage"]);
    assert_eq!(one["prompt_tokens"], three["prompt_tokens"], "a prompt counts once");
    assert!(three["completion_tokens"].as_u64() > one["completion_tokens"].as_u64());
    let plain = answers[2]["choices"].as_array().unwrap();
    assert_eq!(plain.iter().map(|choice| &choice["output_tokens"]).collect::<Vec<_>>(), [4, 4]);
    assert_eq!((&plain[0]["output"], &plain[1]["index"]), (&plain[1]["output"], &json!(1)), "both are greedy");
    let counts = &result(&results)["batch"];
    assert_eq!(counts["completed"], 5);
    assert_eq!(lines(&results, "requests.jsonl").len(), 3 + 1 + 2 + 3 + 1);
}

#[test]
fn an_answer_may_begin_with_its_prompt() {
    let results = TempDir::new().unwrap();
    let answers = answered(
        &results,
        &[
            line(json!({"max_tokens": 3})),
            line(json!({"max_tokens": 3, "echo": true})),
            json!({"messages": [{"role": "user", "content": "x"}], "echo": true}),
            line(json!({"echo": true, "logprobs": 1})),
        ],
    );
    let bare = answers[0]["output"].as_str().unwrap();
    assert_eq!(answers[1]["output"].as_str().unwrap(), format!("one two three{bare}"));
    assert_eq!(
        answers[2]["error"]["message"],
        "line 3: `echo` repeats a `prompt`, and it has `messages`; leave it out"
    );
    assert_eq!(answers[3]["error"]["code"], "unsupported_parameter");
}

#[test]
fn log_probabilities_are_in_the_answer() {
    let results = TempDir::new().unwrap();
    let asked = line(
        json!({"logprobs": true, "top_logprobs": 2, "logit_bias": {"40": 100}, "stop_token_ids": [40], "min_tokens": 3}),
    );
    let answers = answered(&results, &[line(json!({"logprobs": 1})), asked]);
    for (answer, (tokens, likeliest)) in answers.iter().zip([(12, 1), (3, 2)]) {
        let content = answer["logprobs"]["content"].as_array().unwrap();
        // Without the token that ended it, which is no part of the text.
        assert_eq!(content.len(), tokens);
        for token in content {
            assert!(token["logprob"].as_f64().unwrap() < 0.0);
            assert_eq!(token["top_logprobs"].as_array().unwrap().len(), likeliest);
        }
        let joined: String = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
        if !joined.contains('\u{fffd}') {
            assert_eq!(joined, answer["output"].as_str().unwrap());
        }
    }
}

/// Batches in and out as the `openai` package has them: `scripts/validate_batch.py`.
#[test]
fn batches_are_those_of_the_openai_package() {
    let Some(python) = venv("openai") else { return };
    let results = TempDir::new().unwrap();
    let chat = |body: Value| {
        let mut whole =
            json!({"model": "m", "messages": [{"role": "user", "content": "Say it."}], "max_completion_tokens": 6});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        whole
    };
    let completion = |body: Value| {
        let mut whole = json!({"model": "m", "prompt": "one two", "max_tokens": 6});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        whole
    };
    let bodies = [
        ("chat/completions", chat(json!({}))),
        ("chat/completions", chat(json!({"n": 3, "temperature": 1.2, "seed": 1, "presence_penalty": 0.5}))),
        ("chat/completions", chat(json!({"logprobs": true, "top_logprobs": 4, "n": 2, "frequency_penalty": -1}))),
        ("chat/completions", chat(json!({"logprobs": true, "logit_bias": {"7": -100}}))),
        ("chat/completions", chat(json!({"top_logprobs": 20, "logprobs": true, "user": "me", "metadata": {"a": "b"}}))),
        ("completions", completion(json!({"logprobs": 3, "n": 2, "temperature": 1}))),
        ("completions", completion(json!({"logprobs": 0, "prompt": [3, 4, 5]}))),
        ("completions", completion(json!({"echo": true, "prompt": [[3, 4, 5]]}))),
        (
            "completions",
            completion(json!({"echo": true, "n": 2, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2})),
        ),
        // Answered with errors.
        ("chat/completions", chat(json!({"n": 0}))),
        ("chat/completions", chat(json!({"top_logprobs": 21, "logprobs": true}))),
        ("completions", completion(json!({"suffix": "x"}))),
    ];
    let batch: Vec<Value> = (0..).zip(bodies).map(|(id, (url, body))| of_batch(&format!("r{id}"), url, body)).collect();
    answered(&results, &batch);
    let (dataset, answers) = (results.path().join("dataset"), results.path().join("answers"));
    std::fs::write(&answers, answers_of(&results)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/validate_batch.py");
    let checked = Process::new(python.join("bin/python")).args([script, dataset, answers]).run().expect_code(0);
    let found: Value = serde_json::from_str(&checked.stdout).unwrap();
    let expected =
        json!({"chat.completion": 5, "text_completion": 4, "invalid_request": 2, "unsupported_parameter": 1});
    assert_eq!(found, expected, "{checked}");
}

/// The batch of vLLM's own documentation (`examples/features/openai_batch/openai_example_batch.jsonl`), as it is.
#[test]
fn a_batch_for_vllm_run_batch_runs_unchanged() {
    let results = TempDir::new().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vllm_run_batch.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let requests: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Tokens for both, in a model that was made for 512.
    let model = Altered::of("llama-gqa");
    model.edit_json("config.json", |config| config["max_position_embeddings"] = 2048.into());
    let run = job_without_model(&results).args(["--model".into(), model.path().to_owned()]);
    for answer in answered_by(run, &results, &requests) {
        assert_eq!(
            (&answer["error"], &answer["response"]["body"]["object"]),
            (&Value::Null, &json!("chat.completion"))
        );
    }
}
