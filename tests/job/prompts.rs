//! Real prompts from outside: what each kind of dataset is answered with, and what is said of input that is none.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{answers_of, job, job_without_model, result, tiny_model};
use crate::support::process::Process;

/// A job on the dataset `text`, whose format is `dataset`.
fn asking(results: &TempDir, dataset: &str, text: &str) -> Process {
    let path = results.path().join("dataset");
    std::fs::write(&path, text).unwrap();
    job(results).args(["--dataset", dataset, "--dataset-path", &path.display().to_string()])
}

/// A file of JSON lines that a run has left, by its name.
pub(super) fn lines(results: &TempDir, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(results.path().join("out").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The answers of a run.
pub(super) fn answers(results: &TempDir) -> Vec<Value> {
    answers_of(results).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `field` of each of `values`.
fn each(values: &[Value], field: &str) -> Vec<Value> {
    values.iter().map(|value| value[field].clone()).collect()
}

fn chat(custom_id: &str, content: &str, more: Value) -> String {
    let mut body = json!({"model": "any", "messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let line = json!({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body});
    format!("{line}\n")
}

fn copy_of_tiny_model(folder: &TempDir) -> PathBuf {
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    model
}

#[test]
fn plain_lines_may_ask_for_their_own_number_of_tokens() {
    let results = TempDir::new().unwrap();
    let text = "{\"prompt\": \"one\", \"max_tokens\": 3, \"topic\": \"mine\"}\n\n{\"prompt\": \"two\"}\n";
    asking(&results, "jsonl", text).args(["--output-len=5", "--ignore-eos"]).run().expect_code(0);
    let outputs = answers(&results);
    assert_eq!(each(&outputs, "line"), [1, 3]);
    assert_eq!(each(&outputs, "request"), [0, 1]);
    assert_eq!(each(&outputs, "output_tokens"), [3, 5]);
    assert_eq!(each(&outputs, "finish_reason"), ["length", "length"]);
    assert_eq!(result(&results)["metrics"]["total_output_tokens"], 8.0);
    assert_eq!(result(&results)["skipped_inputs"], 0);
}

#[test]
fn what_names_a_line_is_in_its_answer() {
    let results = TempDir::new().unwrap();
    let text = [
        r#"{"prompt": "one", "custom_id": "a"}"#,
        r#"{"id": 7, "prompt": "two"}"#,
        r#"{"id": "x", "custom_id": "b", "messages": [{"role": "user", "content": "three"}]}"#,
        r#"{"id": null, "custom_id": {"no": "name"}, "prompt": "four"}"#,
        r#"{"custom_id": "a", "prompt": "names of plain lines may be given twice"}"#,
    ];
    asking(&results, "jsonl", &text.join("\n")).args(["--output-len=2"]).run().expect_code(0);
    let outputs = answers(&results);
    let named = json!({"no": "name"});
    assert_eq!(each(&outputs, "custom_id"), [json!("a"), Value::Null, json!("b"), named, json!("a")]);
    assert_eq!(each(&outputs, "id"), [Value::Null, json!(7), json!("x"), Value::Null, Value::Null]);

    let conversation = json!({"id": "identity_0", "conversations": [
        {"from": "human", "value": "one"}, {"from": "gpt", "value": "two"},
    ]});
    // A byte order mark is no part of the file.
    asking(&results, "sharegpt", &format!("\u{feff}[{conversation}]")).run().expect_code(0);
    assert_eq!(each(&lines(&results, "outputs.jsonl"), "id"), ["identity_0"]);
}

#[test]
fn an_openai_batch_is_answered_in_its_own_format_and_order() {
    let results = TempDir::new().unwrap();
    let completion = json!({
        "custom_id": "third", "method": "POST", "url": "/v1/completions",
        "body": {"model": "any", "prompt": "one two", "max_tokens": 4, "ignore_eos": true},
    });
    let text = [
        chat("first", "a long question that is answered last", json!({"max_tokens": 9, "ignore_eos": true})),
        chat("second", "short", json!({"max_completion_tokens": 2, "temperature": 0.7, "seed": 5, "ignore_eos": true})),
        completion.to_string(),
    ];
    asking(&results, "jsonl", &text.concat()).run().expect_code(0);
    let outputs = answers(&results);
    assert_eq!(each(&outputs, "custom_id"), ["first", "second", "third"]);
    assert_eq!(each(&outputs, "error"), [Value::Null, Value::Null, Value::Null]);
    for (output, tokens) in outputs.iter().zip([9, 2, 4]) {
        let response = &output["response"];
        assert_eq!(
            (&response["status_code"], &response["body"]["choices"][0]["finish_reason"]),
            (&200.into(), &"length".into())
        );
        assert_eq!(response["body"]["usage"]["completion_tokens"], tokens);
        let usage = &response["body"]["usage"];
        let sum = usage["prompt_tokens"].as_u64().unwrap() + tokens;
        assert_eq!(usage["total_tokens"], sum);
        assert_eq!(response["body"]["model"].as_str().unwrap(), tiny_model().display().to_string());
    }
    let bodies: Vec<&Value> = outputs.iter().map(|output| &output["response"]["body"]).collect();
    assert_eq!(bodies[0]["object"], "chat.completion");
    assert_eq!(bodies[0]["choices"][0]["message"]["role"], "assistant");
    assert!(bodies[0]["choices"][0]["message"]["content"].is_string());
    assert_eq!(bodies[2]["object"], "text_completion");
    assert!(bodies[2]["choices"][0]["text"].is_string());
}

/// The tiny model's template and tokenizer: `<|im_start|>`, role, line break, content, `<|im_end|>`, line break, and the
/// assistant's beginning.
#[test]
fn a_conversation_goes_through_the_chat_template_and_a_bare_prompt_only_on_request() {
    let conversation = "{\"messages\": [{\"role\": \"user\", \"content\": \"one\"}]}\n";
    let written_out = "{\"prompt\": \"<|im_start|>user\\none<|im_end|>\\n<|im_start|>assistant\\n\"}\n";
    let bare = "{\"prompt\": \"one\"}\n";
    let asked = |text: &str, when: &str| {
        let results = TempDir::new().unwrap();
        asking(&results, "jsonl", text)
            .args(["--output-len=6", "--ignore-eos", "--apply-chat-template", when])
            .run()
            .expect_code(0);
        let prompt_tokens = lines(&results, "requests.jsonl")[0]["prompt_tokens"].clone();
        (prompt_tokens, answers(&results)[0]["output"].clone())
    };
    let templated = asked(conversation, "auto");
    assert_eq!(templated, asked(written_out, "auto"));
    assert_eq!(templated, asked(bare, "always"));
    assert_ne!(templated.0, asked(bare, "auto").0);
}

#[test]
fn sharegpt_is_answered_at_the_length_of_its_replies_unless_one_is_given() {
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let dataset = json!([
        {"id": "a", "conversations": [turn("human", "only one turn")]},
        {"id": "b", "conversations": [turn("human", "one"), turn("gpt", "1 2 3")]},
        {"id": "c", "conversations": [turn("human", "two"), turn("gpt", "")]},
        {"id": "d", "conversations": [turn("human", "three"), turn("gpt", "7")]},
    ])
    .to_string();
    let results = TempDir::new().unwrap();
    asking(&results, "sharegpt", &dataset).args(["--num-prompts=2"]).run().expect_code(0);
    let outputs = answers(&results);
    assert_eq!(each(&outputs, "entry"), [2, 3]);
    // Digits and spaces are tokens of their own, and every reply has at least one.
    assert_eq!(each(&outputs, "output_tokens"), [5, 1]);

    let results = TempDir::new().unwrap();
    asking(&results, "sharegpt", &dataset).args(["--output-len=7"]).run().expect_code(0);
    assert_eq!(each(&answers(&results), "output_tokens"), [7, 7, 7]);
}

#[test]
fn bad_input_ends_the_job_with_2_and_its_place() {
    let long = format!("{{\"prompt\": \"{}\"}}", "9".repeat(600));
    for (text, sentence) in [
        ("{\"prompt\": \"x\"}\n\nnot JSON\n", "dataset, line 3: it is not JSON: expected ident at column 2 "),
        ("[1]", "dataset, line 1: it is not a JSON object but [1] "),
        ("{\"text\": \"x\"}", "dataset, line 1: it has neither `prompt` nor `messages` "),
        ("{\"prompt\": \"\"}", "dataset, line 1: its prompt is empty "),
        ("{\"prompt\": \"x\", \"suffix\": \"y\"}", "dataset, line 1: `suffix` = \"y\" is not supported; leave it out "),
        (
            &long,
            "dataset, line 1: its prompt has 600 tokens, and with 128 output tokens it exceeds max-model-len=512; shorten \
             it or ask for less ",
        ),
        (
            &format!("{}{}", chat("a", "x", json!({})), chat("a", "y", json!({}))),
            "dataset, line 2: its `custom_id` is that of line 1 too; give each line one of its own ",
        ),
    ] {
        let results = TempDir::new().unwrap();
        let finished = asking(&results, "jsonl", text).args(["--on-bad-input=fail"]).run().expect_code(2);
        let error = result(&results)["error"].as_str().unwrap().to_owned();
        let expected = format!("{sentence}(on-bad-input=skip reports such input and goes on)");
        assert!(error.ends_with(&expected), "{error}\nis not\n{expected}");
        let at = results.path().join("dataset").display().to_string();
        assert!(error.starts_with(&at), "{error}");
        assert!(finished.stderr.contains("line "), "{}", finished.stderr);
    }
    let results = TempDir::new().unwrap();
    asking(&results, "sharegpt", "{}").run().expect_code(2);
    let error = result(&results)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("dataset is not a JSON array of conversations: "), "{error}");
    let results = TempDir::new().unwrap();
    asking(&results, "sharegpt", "[{\"id\": 1}]").run().expect_code(2);
    let error = result(&results)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("dataset, entry 1: it has no list `conversations`: {\"id\":1} ("), "{error}");
}

/// Weights that no run could begin with: the dataset's mistake is the one that is named.
#[test]
fn a_mistake_in_the_dataset_ends_the_job_whatever_becomes_of_the_weights() {
    let folder = TempDir::new().unwrap();
    let model = copy_of_tiny_model(&folder);
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let not_a_number = bytes.len() - 4..;
    bytes[not_a_number].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    let template = json!({"chat_template": "{{ raise_exception('roles must alternate') }}"});
    std::fs::write(model.join("tokenizer_config.json"), template.to_string()).unwrap();
    for (text, exit, sentence) in [
        ("{\"prompt\": \"x\"}\n".to_owned(), 4, "model.safetensors"),
        ("{\"prompt\": \"x\"}\nnot JSON\n".to_owned(), 2, "dataset, line 2: it is not JSON"),
        (chat("a", "x", json!({})), 2, "dataset, line 1: "),
    ] {
        let results = TempDir::new().unwrap();
        let dataset = results.path().join("dataset");
        std::fs::write(&dataset, text).unwrap();
        let finished = job_without_model(&results)
            .args(["--model".into(), model.as_os_str().to_owned()])
            .args(["--dataset=jsonl".into(), "--dataset-path".into(), dataset.into_os_string()])
            .args(["--validate-weights", "--on-bad-input=fail"])
            .run()
            .expect_code(exit);
        let error = result(&results)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(sentence), "{error}");
        assert!(!finished.stderr.contains("model is loaded"), "{}", finished.stderr);
    }
}

#[test]
fn a_warm_up_ends_after_8_tokens_and_answers_have_none() {
    let text = "{\"prompt\": \"one two\"}\n";
    for (dataset, more, expected) in [("jsonl", &[][..], 0), ("jsonl", &["--warmup=2"][..], 16), ("random", &[][..], 8)]
    {
        let results = TempDir::new().unwrap();
        let asked = if dataset == "random" { job(&results) } else { asking(&results, dataset, text) };
        let finished = asked
            .args(["--output-len=20", "--num-prompts=1", "--ignore-eos", "--input-len=2"])
            .env("FLASHJOB_LOG", "flashjob=debug")
            .args(more.iter().copied())
            .run()
            .expect_code(0);
        let warm_up = finished.stderr.split("\"phase\":\"measure\"").next().unwrap();
        let tokens: Vec<u64> = warm_up
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| line["output_tokens"].as_u64())
            .collect();
        assert_eq!(tokens.iter().sum::<u64>(), expected, "{warm_up}");
        assert_eq!(result(&results)["metrics"]["total_output_tokens"], 20.0);
    }
}

#[test]
fn skipped_input_is_reported_counted_and_answered_with_an_error() {
    let results = TempDir::new().unwrap();
    let mut text = chat("good", "x", json!({"max_tokens": 2}));
    text += &chat("bad", "x", json!({"best_of": 3}));
    text += "{\"prompt\": \"plain\", \"max_tokens\": 2}\n";
    text += &"nonsense\n".repeat(25);
    let skipping = |results: &TempDir, text: &str| asking(results, "jsonl", text).args(["--on-bad-input=skip"]);
    let finished = skipping(&results, &text).run().expect_code(0);
    assert_eq!(result(&results)["skipped_inputs"], 26);
    assert!(finished.stdout.contains("skipped inputs             26"), "{}", finished.stdout);
    let warnings: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("skipped")).collect();
    assert_eq!(warnings.len(), 21, "{warnings:#?}");
    assert!(
        warnings[0].contains("dataset, line 2 is skipped: `best_of` = 3 is not supported; leave it out"),
        "{warnings:?}"
    );
    assert!(warnings[20].contains("6 more are skipped, 26 in all"), "{}", warnings[20]);
    let outputs = answers(&results);
    assert_eq!(outputs.len(), 28);
    let message = "line 2: `best_of` = 3 is not supported; leave it out";
    let error = json!({"code": "unsupported_parameter", "message": message});
    assert_eq!(outputs[1], json!({"id": "batch_req_2", "custom_id": "bad", "response": null, "error": error}));
    assert_eq!((&outputs[0]["custom_id"], &outputs[2]["line"]), (&"good".into(), &3.into()));
    assert_eq!((&outputs[27]["line"], &outputs[27]["error"]["code"]), (&28.into(), &"invalid_request".into()));

    let results = TempDir::new().unwrap();
    skipping(&results, "nonsense\n{}\n").run().expect_code(2);
    let error = result(&results)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("holds no prompt; the first that was skipped is line 1: it is not JSON"), "{error}");
}

#[test]
fn a_model_without_a_chat_template_says_so_to_conversations() {
    let folder = TempDir::new().unwrap();
    let model = copy_of_tiny_model(&folder);
    std::fs::remove_file(model.join("tokenizer_config.json")).unwrap();
    let dataset = folder.path().join("dataset");
    std::fs::write(&dataset, chat("a", "x", json!({}))).unwrap();
    for (arguments, sentence) in [
        (vec![], "line 1: `messages` need a chat template, and the model has none"),
        (
            vec!["--apply-chat-template=never"],
            "line 1: `messages` need the chat template, and apply-chat-template is `never`",
        ),
        (vec!["--apply-chat-template=always"], "apply-chat-template is `always`, but the model has no chat template"),
    ] {
        let results = TempDir::new().unwrap();
        job_without_model(&results)
            .args(["--model".into(), model.as_os_str().to_owned()])
            .args(["--dataset=jsonl".into(), "--dataset-path".into(), dataset.as_os_str().to_owned()])
            .args(arguments)
            .run()
            .expect_code(2);
        let error = result(&results)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(sentence), "{error}");
    }
}

#[test]
fn lengths_spread_as_asked_and_are_counted_exactly() {
    let results = TempDir::new().unwrap();
    let arguments = ["--input-len=20", "--output-len=10", "--num-prompts=60", "--random-range-ratio=0.5"];
    job(&results).args(arguments).run().expect_code(0);
    let requests = lines(&results, "requests.jsonl");
    for (field, lowest, highest) in [("prompt_tokens", 10, 30), ("output_tokens", 5, 15)] {
        let counts: Vec<u64> = each(&requests, field).iter().map(|count| count.as_u64().unwrap()).collect();
        assert!(counts.iter().all(|count| (lowest..=highest).contains(count)), "{field}: {counts:?}");
        let distinct: std::collections::BTreeSet<_> = counts.iter().collect();
        assert!(distinct.len() > 5, "{field}: {counts:?}");
        let total = format!("total_{}", if field == "prompt_tokens" { "input_tokens" } else { "output_tokens" });
        assert_eq!(result(&results)["metrics"][total], counts.iter().sum::<u64>() as f64);
    }
    assert!(!results.path().join("out/outputs.jsonl").exists());
}

#[test]
fn an_answer_ends_at_the_end_of_sequence_unless_that_is_ignored() {
    // With a high temperature each token is nearly as likely as any other, so some of many answers end early.
    let text = "{\"prompt\": \"one\"}\n".repeat(40);
    let asked = |ignore_eos: &str| {
        let results = TempDir::new().unwrap();
        asking(&results, "jsonl", &text)
            .args(["--output-len=200", "--temperature=100", "--ignore-eos", ignore_eos])
            .run()
            .expect_code(0);
        answers(&results)
    };
    let outputs = asked("false");
    let ended: Vec<&Value> = outputs.iter().filter(|output| output["finish_reason"] == "stop").collect();
    assert!(ended.len() > 5, "{}", ended.len());
    assert!(ended.iter().any(|output| output["output_tokens"].as_u64().unwrap() < 200));
    assert!(each(&asked("true"), "output_tokens").iter().all(|tokens| *tokens == 200));
}

#[test]
fn a_job_that_is_stopped_keeps_the_answers_that_it_had() {
    let results = TempDir::new().unwrap();
    let text = format!("{}{}", chat("short", "x", json!({"max_tokens": 1})), "{\"prompt\": \"long\"}\n".repeat(20_000));
    let mut running = asking(&results, "jsonl", &text)
        .args(["--output-len=400", "--ignore-eos", "--warmup=0", "--max-num-seqs=1"])
        .env("FLASHJOB_LOG", "debug")
        .start();
    running.wait_for_stderr("a request is complete");
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let outputs = answers(&results);
    assert_eq!(outputs[0]["custom_id"], "short");
    assert!(outputs.len() < 20_000, "{}", outputs.len());
}

#[test]
fn the_sample_of_a_batch_runs() {
    let results = TempDir::new().unwrap();
    let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/batch.jsonl");
    let text = std::fs::read_to_string(sample).unwrap();
    asking(&results, "jsonl", &text).run().expect_code(0);
    let outputs = answers(&results);
    assert_eq!(each(&outputs, "custom_id"), ["capital", "robot", "water"]);
    assert!(outputs.iter().all(|output| output["response"]["status_code"] == 200));
}
