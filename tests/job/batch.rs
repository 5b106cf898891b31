//! Batches: answers in shards as they come, and jobs that go on with those of earlier ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{answers_of, job, result};
use crate::support::process::Process;

/// A batch of `lines`, of which each tenth is no request.
pub(crate) fn batch(folder: &TempDir, lines: usize, tokens: usize) -> std::path::PathBuf {
    let path = folder.path().join("batch.jsonl");
    let mut text = String::new();
    for line in 0..lines {
        match line % 10 {
            9 => text.push_str("{\"id\": 7, \"prompt\": \"x\", \"best_of\": 3}\n"),
            _ => writeln!(
                text,
                "{{\"id\": \"line {line}\", \"prompt\": \"Word {line} of\", \"max_tokens\": {}}}",
                tokens + line % 5
            )
            .unwrap(),
        }
    }
    std::fs::write(&path, text).unwrap();
    path
}

pub(crate) fn answering(results: &TempDir, dataset: &Path, others: &[&str]) -> Process {
    job(results)
        .args(["--dataset=jsonl", "--log-format=text", "--dataset-path", &dataset.display().to_string()])
        .args(others)
}

fn answers(results: &TempDir) -> Vec<Value> {
    answers_of(results).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn shards(results: &TempDir) -> Vec<String> {
    let files = std::fs::read_dir(results.path().join("out/outputs")).unwrap();
    let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn each_line_is_answered_in_its_shard_in_the_order_of_the_input() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = batch(&folder, 25, 4);
    answering(&results, &dataset, &["--shard-lines=10", "--max-num-seqs=4"]).run().expect_code(0);
    assert_eq!(
        shards(&results),
        ["manifest.jsonl", "outputs-00000.jsonl", "outputs-00001.jsonl", "outputs-00002.jsonl"]
    );
    let answers = answers(&results);
    let lines: Vec<u64> = answers.iter().map(|answer| answer["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, (1..=25).collect::<Vec<_>>());
    assert_eq!((&answers[3]["id"], &answers[3]["output_tokens"]), (&json!("line 3"), &json!(7)));
    assert_eq!(
        answers[9],
        json!({"request": 9, "line": 10, "id": 7, "error": {"code": "unsupported_parameter",
            "message": "line 10: `best_of` = 3 is not supported; leave it out"}})
    );
    let counts = &result(&results)["batch"];
    assert_eq!(
        (&counts["is_complete"], &counts["completed"], &counts["unsupported"], &counts["failed"]),
        (&json!(true), &json!(23), &json!(2), &json!(0))
    );
}

#[test]
fn a_batch_that_is_answered_is_not_run_again() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = batch(&folder, 12, 4);
    answering(&results, &dataset, &[]).run().expect_code(0);
    let before = answers_of(&results);
    let again = answering(&results, &dataset, &[]).run().expect_code(0);
    assert!(again.stderr.contains("earlier attempts have answered all of the batch"), "{again}");
    assert!(!again.stderr.contains("model is loaded"), "{again}");
    assert_eq!(answers_of(&results), before);
    assert_eq!(result(&results)["batch"]["completed"], 11);
}

/// Killed at any moment, the same job goes on: each line has one answer in the end, and it is that of a job that was left alone.
#[test]
fn fifty_kills_lose_no_answer_and_give_none_twice() {
    let (folder, alone, results) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    // More than fifty attempts answer on any machine, at some 1,600 lines a second.
    let dataset = batch(&folder, 12_000, 160);
    let settings = ["--shard-lines=700", "--max-num-seqs=16", "--threads=1"];
    answering(&alone, &dataset, &settings).run().expect_code(0);
    let mut random = StdRng::seed_from_u64(1);
    let mut killed = 0;
    while killed < 50 {
        let running = answering(&results, &dataset, &settings).start();
        std::thread::sleep(Duration::from_millis(random.random_range(1..300)));
        running.signal(libc::SIGKILL);
        // A job that had ended before is none that was killed.
        if running.wait().signal() != Some(libc::SIGKILL) {
            break;
        }
        killed += 1;
    }
    assert!(killed >= 20, "the batch was done after {killed} kills");
    let last = answering(&results, &dataset, &settings).run().expect_code(0);
    assert_eq!(answers(&results).len(), 12_000, "{last}");
    assert!(answers_of(&results) == answers_of(&alone), "answers differ from those of a job that was left alone");
    assert!(shards(&results).iter().all(|name| name.ends_with(".jsonl")), "{:?}", shards(&results));
    let counts = |results| {
        let mut batch = result(results)["batch"].clone();
        batch.as_object_mut().unwrap().remove("found");
        batch
    };
    assert_eq!(counts(&results), counts(&alone));
}

#[test]
fn a_signal_keeps_the_answers_that_there_are() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = batch(&folder, 20_000, 200);
    let settings = ["--shard-lines=100", "--max-num-seqs=8"];
    let running = answering(&results, &dataset, &settings).start();
    let manifest = results.path().join("out/outputs/manifest.jsonl");
    while std::fs::read_to_string(&manifest).map_or(0, |text| text.lines().count()) < 3 {
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let counts = result(&results)["batch"].clone();
    assert_eq!(counts["is_complete"], false);
    let kept: u64 = ["completed", "unsupported"].iter().map(|kind| counts[kind].as_u64().unwrap()).sum();
    assert!(kept >= 200, "{counts}");
}

#[test]
fn replicas_answer_shards_of_their_own_in_one_place_or_several() {
    let (folder, alone) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = batch(&folder, 60, 4);
    answering(&alone, &dataset, &[]).run().expect_code(0);
    let mut all = BTreeMap::new();
    for index in 0..3 {
        let results = TempDir::new().unwrap();
        answering(&results, &dataset, &["--replica-count=3"])
            .env("JOB_COMPLETION_INDEX", index.to_string())
            .run()
            .expect_code(0);
        let answers = answers(&results);
        assert!(answers.len() >= 15, "replica {index} has {} of 60 lines", answers.len());
        all.extend(answers.into_iter().map(|answer| (answer["line"].as_u64().unwrap(), answer)));
    }
    let expected: Vec<Value> = answers(&alone);
    assert!(all.into_values().eq(expected), "replicas answer otherwise than one job alone");
}

/// What a batch of any length needs: requests under way are few, and of requests that have ended there are sums.
#[test]
fn what_is_kept_of_a_batch_does_not_grow_with_its_length() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let lines = 12_000;
    let dataset = batch(&folder, lines, 1);
    let finished = answering(&results, &dataset, &["--max-num-seqs=4"]).run().expect_code(0);
    let (_, most) = finished.stderr.split_once("most_underway=").unwrap();
    let most: usize = most.split_whitespace().next().unwrap().parse().unwrap();
    // Sequences that run, as many that wait, and outputs that wait for their texts.
    assert!((8..=4 + 4 + 4096 + 64 + 2).contains(&most), "{most}");
    let result = result(&results);
    let answered = lines * 9 / 10;
    assert_eq!(result["batch"]["completed"], answered);
    let (totals, latencies) = (&result["measurement"]["totals"], &result["measurement"]["latencies"]);
    assert_eq!((&totals["finished"], &totals["requests"]), (&json!(answered), &json!(answered)));
    assert_eq!(result["metrics"]["total_output_tokens"], totals["output_tokens"].as_f64().unwrap());
    assert_eq!(latencies["end_to_end_seconds"]["count"], answered);
    assert_eq!(result["measurement"]["percentiles_of"], "bins");
    let timings = std::fs::read_to_string(results.path().join("out/requests.jsonl")).unwrap();
    assert_eq!(timings.lines().count(), 10_000);
}

/// Lines before the place where a file is damaged have their answers; the job says why there are no more.
#[test]
fn a_file_that_breaks_off_ends_the_batch_after_what_could_be_read() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let text = std::fs::read(batch(&folder, 40_000, 1)).unwrap();
    let path = folder.path().join("broken.jsonl.gz");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text).unwrap();
    let whole = gzip.finish().unwrap();
    std::fs::write(&path, &whole[..whole.len() * 9 / 10]).unwrap();
    answering(&results, &path, &["--max-num-seqs=16"]).run().expect_code(2);
    let result = result(&results);
    let error = result["error"].as_str().unwrap();
    assert!(error.contains("broken.jsonl.gz cannot be read: "), "{error}");
    assert_eq!(result["batch"]["is_complete"], false);
    let kept = result["batch"]["completed"].as_u64().unwrap();
    assert!((30_000..36_000).contains(&kept), "{kept}");
    assert_eq!(
        shards(&results).iter().filter(|name| name.ends_with(".jsonl") && name.starts_with("outputs")).count(),
        3
    );
}

/// Bad input that is to end the job ends it before anything is computed, also where it stands behind more than is read ahead.
#[test]
fn a_bad_line_at_the_end_is_found_before_the_first_is_answered() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = folder.path().join("batch.jsonl");
    std::fs::write(&path, "{\"prompt\": \"x\", \"max_tokens\": 1}\n".repeat(30_000) + "no JSON\n").unwrap();
    answering(&results, &path, &["--on-bad-input=fail"]).run().expect_code(2);
    let result = result(&results);
    assert!(result["error"].as_str().unwrap().contains("line 30001: it is not JSON"), "{result}");
    assert_eq!(result["batch"]["completed"], 0);
}

/// Requests in several files of several kinds, under names of their own.
#[test]
fn files_of_a_folder_are_one_batch_whatever_their_format() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let at = |name: &str| folder.path().join(name);
    let line = |text: &str| format!("{{\"question\": \"{text}\", \"row\": \"{text}\", \"max_tokens\": 3}}\n");
    let mut gzip = flate2::write::GzEncoder::new(std::fs::File::create(at("a.jsonl.gz")).unwrap(), Default::default());
    gzip.write_all((line("one") + &line("two")).as_bytes()).unwrap();
    gzip.finish().unwrap();
    std::fs::write(at("b.jsonl.zst"), zstd::encode_all(line("three").as_bytes(), 3).unwrap()).unwrap();
    std::fs::write(at("c.ndjson"), line("four") + "no JSON\n").unwrap();
    std::fs::write(at("notes.txt"), "no dataset").unwrap();
    let columns = "--dataset-columns=prompt=question id=row";
    answering(&results, folder.path(), &[columns, "--shard-lines=2"]).run().expect_code(0);
    let answers = answers(&results);
    let found: Vec<String> = answers
        .iter()
        .map(|answer| format!("{} {} {}", answer["file"].as_str().unwrap(), answer["line"], answer["id"]))
        .collect();
    assert_eq!(
        found,
        [
            "a.jsonl.gz 1 \"one\"",
            "a.jsonl.gz 2 \"two\"",
            "b.jsonl.zst 1 \"three\"",
            "c.ndjson 1 \"four\"",
            "c.ndjson 2 null"
        ]
    );
    assert_eq!(answers[2]["output_tokens"], 3);
    let message = answers[4]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("c.ndjson, line 2: it is not JSON"), "{message}");

    let pattern = at("*.jsonl.*");
    let results = TempDir::new().unwrap();
    answering(&results, &pattern, &[columns]).run().expect_code(0);
    assert_eq!(super::answers_of(&results).lines().count(), 3);
}

/// Each mistake with its exit code and what is said of it.
#[test]
fn what_cannot_go_on_says_why() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = batch(&folder, 30, 4);
    let out = results.path().join("out/outputs");
    answering(&results, &dataset, &["--max-errors=1"]).run().expect_code(5);
    let error = result(&results)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("lines of the batch have no answer (2 unsupported), and max-errors is 1"), "{error}");
    answering(&results, &dataset, &["--max-errors=3"]).run().expect_code(0);

    let others = |others: &[&str], code: i32, sentence: &str| {
        let finished = answering(&results, &dataset, others).run().expect_code(code);
        assert!(finished.stderr.contains(sentence), "{others:?}: {sentence}\n{finished}");
    };
    others(&["--output-len=9"], 2, "output-len was `128` and is `9` now");
    others(&["--seed=9"], 2, "seed was `0` and is `9` now");
    others(&["--shard-lines=9"], 2, "its shards had 10000 entries and would have 9 now");
    others(&["--output-order=any"], 2, "the order of its answers was another one");
    others(&["--output-order=random"], 2, "output-order");
    others(&["--shard-lines=0"], 2, "shard-lines");
    others(&["--shard-lines=1000001"], 2, "shard-lines");
    others(&["--max-errors=-1"], 2, "max-errors");
    for key in ["--shard-lines=5", "--output-order=any", "--max-errors=0"] {
        let sentence = "is given, but this job answers no batch; set dataset=jsonl without ignore-eos and repeats, or leave it out";
        others(&[key, "--ignore-eos=true"], 2, sentence);
    }
    others(
        &["--dataset-columns=prompt"],
        2,
        "it must be words FIELD=COLUMN, such as prompt=question, with fields of a request",
    );
    others(&["--dataset-columns=id=a id=b"], 2, "it names the column of `id` twice");
    others(&["--dataset-columns=id=a"], 2, "dataset-columns was");
    let nothing = folder.path().join("*.parquet").display().to_string();
    let finished = job(&results).args(["--dataset=jsonl", "--dataset-path", &nothing]).run().expect_code(2);
    assert!(finished.stderr.contains("is not there: looked for"), "{finished}");
    std::fs::write(&dataset, "{\"prompt\": \"another batch\"}\n").unwrap();
    others(&[], 2, "`batch.jsonl` had");
    std::fs::write(out.join("manifest.jsonl"), "nonsense\n").unwrap();
    others(&[], 2, "is no manifest of flashjob");
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::write(&out, "a file in the place of the folder").unwrap();
    others(&[], 2, "outputs` cannot be made");
}
