//! Options of a request that concern its text, from a line of a batch to its answer.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::job;
use super::prompts::answers;
use crate::support::process::Process;

/// A job on these lines of a batch.
fn asking(results: &TempDir, lines: &[Value]) -> Process {
    let path = results.path().join("dataset.jsonl");
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&path, text.join("\n")).unwrap();
    job(results).args(["--dataset=jsonl", "--dataset-path", &path.display().to_string()])
}

fn answered(lines: &[Value]) -> Vec<Value> {
    let results = TempDir::new().unwrap();
    asking(&results, lines).run().expect_code(0);
    answers(&results)
}

#[test]
fn an_answer_ends_before_a_stop_text() {
    let plain =
        |id: usize| json!({"prompt": "Some words", "temperature": 5, "seed": id, "max_tokens": 60, "ignore_eos": true});
    let lines: Vec<Value> = (0..6).map(plain).collect();
    let free = answered(&lines);
    let with = |number: usize, more: Value| {
        let mut line = lines[number].clone();
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    // What stands in the middle of each free answer, and ends or begins within a token as it may.
    let text = |number: usize| free[number]["output"].as_str().unwrap();
    // Whole characters: bytes that are none are shown as U+FFFD, which no answer has.
    let is_whole = |character: &char| *character != char::REPLACEMENT_CHARACTER;
    let stop = |number: usize| {
        let rest = text(number).chars().skip(20).skip_while(|character| !is_whole(character));
        rest.take_while(is_whole).take(3).collect()
    };
    let stops: Vec<String> = (0..6).map(stop).collect();
    let one = |number: usize| with(number, json!({"stop": stops[number]}));
    let several = |number: usize| {
        with(number, json!({"stop": ["not this one", stops[number]], "include_stop_str_in_output": true}))
    };
    let ended = answered(&(0..6).map(one).chain((0..6).map(several)).collect::<Vec<_>>());
    for number in 0..6 {
        let (stop, text) = (&stops[number], text(number));
        assert!(!stop.is_empty(), "{text}");
        let at = text.find(stop.as_str()).unwrap();
        let (short, long) = (&ended[number], &ended[6 + number]);
        assert_eq!(short["output"].as_str().unwrap(), &text[..at], "{stop:?}");
        assert_eq!(long["output"].as_str().unwrap(), &text[..at + stop.len()]);
        assert_eq!((&short["finish_reason"], &long["finish_reason"]), (&json!("stop"), &json!("stop")));
        assert!(short["output_tokens"].as_u64().unwrap() < 60);
    }
}

#[test]
fn a_stop_text_that_is_none_is_answered_with_an_error() {
    let long = "x".repeat(10_000);
    let bad = [json!(7), json!([""]), json!(long), json!(vec!["x"; 17])];
    let lines: Vec<Value> = bad.iter().map(|stop| json!({"prompt": "x", "max_tokens": 2, "stop": stop})).collect();
    let answers = answered(&[lines, vec![json!({"prompt": "x", "max_tokens": 2, "stop": []})]].concat());
    for answer in &answers[..bad.len()] {
        assert_eq!(answer["error"]["code"], "invalid_request", "{answer}");
    }
    assert_eq!(answers[bad.len()]["output_tokens"], 2);
}

/// Lines that differ in their seed, with these fields.
fn seeded(count: usize, fields: &Value) -> Vec<Value> {
    let line = |seed| {
        let mut line = json!({"prompt": "Say something", "temperature": 1, "seed": seed, "max_tokens": 200});
        line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        line
    };
    (0..count).map(line).collect()
}

#[test]
fn answers_are_as_their_grammar_says() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["color", "sizes"],
        "properties": {
            "color": {"enum": ["red", "blue"]},
            "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        },
    });
    let is_valid = |text: &str| {
        let Ok(Value::Object(value)) = serde_json::from_str::<Value>(text) else { return false };
        let sizes =
            value["sizes"].as_array().is_some_and(|sizes| sizes.iter().all(|size| size.as_u64().unwrap() < 100));
        value.len() == 2 && (value["color"] == "red" || value["color"] == "blue") && sizes
    };
    let is_date = |text: &str| regex::Regex::new(r"^\d{4}-(0|1)\d$").unwrap().is_match(text);
    let is_choice = |text: &str| ["yes", "no", "perhaps"].contains(&text);
    type Check<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(Value, Check<'_>); 6] = [
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
            &is_valid,
        ),
        (json!({"guided_json": schema}), &is_valid),
        (json!({"guided_regex": r"\d{4}-(0|1)\d"}), &is_date),
        (json!({"guided_choice": ["yes", "no", "perhaps"]}), &is_choice),
        (json!({"structured_outputs": {"choice": ["yes", "no", "perhaps"]}, "ignore_eos": true}), &is_choice),
        (json!({"guided_grammar": "start: \"yes\" | \"no\""}), &is_choice),
    ];
    let lines: Vec<Value> = cases.iter().flat_map(|(fields, _)| seeded(12, fields)).collect();
    for (answers, (fields, check)) in answered(&lines).chunks(12).zip(&cases) {
        let ended: Vec<&str> = answers
            .iter()
            .inspect(|answer| assert!(answer.get("error").is_none(), "{answer}"))
            .filter(|answer| answer["finish_reason"] == "stop")
            .map(|answer| answer["output"].as_str().unwrap())
            .collect();
        assert!(ended.len() > 3, "{fields}: {answers:?}");
        assert!(ended.iter().all(|text| check(text)), "{fields}: {ended:?}");
    }
}

#[test]
fn what_is_no_grammar_is_answered_with_an_error_and_the_batch_goes_on() {
    let large = json!({"enum": (0..200_000).collect::<Vec<u32>>()});
    let bad = [
        json!({"guided_json": large}),
        json!({"guided_json": {"enum": []}}),
        json!({"guided_json": {"$ref": "#/$defs/missing"}}),
        json!({"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}}),
        json!({"guided_json": "{"}),
        json!({"guided_regex": "("}),
        json!({"guided_regex": "(".repeat(10_000)}),
        json!({"guided_choice": []}),
        json!({"guided_grammar": "start: missing"}),
        json!({"guided_regex": "a", "guided_choice": ["a"]}),
        json!({"response_format": {"type": "json_schema"}}),
    ];
    let mut lines: Vec<Value> = bad.iter().flat_map(|fields| seeded(1, fields)).collect();
    lines.extend(seeded(1, &json!({"guided_choice": ["good"]})));
    let answers = answered(&lines);
    for answer in &answers[..bad.len()] {
        assert_eq!(answer["error"]["code"], "invalid_request", "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().len() < 600, "{answer}");
    }
    assert_eq!(answers[bad.len()]["output"], "good");
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "weather", "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

/// A line of a batch in OpenAI's format that asks for a call.
fn calling(name: &str, seed: usize, choice: &Value) -> Value {
    json!({"custom_id": format!("{name}-{seed}"), "method": "POST", "url": "/v1/chat/completions", "body": {
        "messages": [{"role": "user", "content": "What is the weather?"}], "tools": tools(), "tool_choice": choice,
        "temperature": 1, "seed": seed, "max_tokens": 300}})
}

#[test]
fn calls_that_must_come_are_in_the_answer() {
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let mut lines: Vec<Value> = (0..8).map(|seed| calling("named", seed, &named)).collect();
    lines.extend((0..8).map(|seed| calling("required", seed, &json!("required"))));
    // The tiny model's template has no tools.
    lines.push(calling("auto", 0, &json!("auto")));
    let answers = answered(&lines);
    let mut calls = 0;
    for answer in &answers[..16] {
        assert_eq!(answer["error"], Value::Null, "{answer}");
        let choice = &answer["response"]["body"]["choices"][0];
        let message = &choice["message"];
        if choice["finish_reason"] == "length" {
            continue;
        }
        assert_eq!((&choice["finish_reason"], &message["content"]), (&json!("tool_calls"), &Value::Null), "{answer}");
        for call in message["tool_calls"].as_array().unwrap() {
            calls += 1;
            assert!(call["id"].is_string() && call["type"] == "function");
            let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            match call["function"]["name"].as_str().unwrap() {
                "weather" => assert!(arguments["city"] == "Oslo" || arguments["city"] == "Rome", "{arguments}"),
                name => assert_eq!((name, arguments), ("now", json!({}))),
            }
        }
    }
    assert!(calls > 4, "{answers:?}");
    assert_eq!(answers[16]["error"]["code"], "unsupported_parameter", "{}", answers[16]);
}
