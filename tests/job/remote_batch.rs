//! Batches whose answers go to a bucket while they run, and jobs that go on with them from there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::batch::{answering, batch};
use super::{answers_of, result};
use crate::support::Flashjob as _;
use crate::support::bucket_server::BucketServer;
use crate::support::process::{Finished, Process, Running};

const SETTINGS: [&str; 2] = ["--threads=1", "--max-num-seqs=16"];

/// A bucket, its folder on the disk, and a batch of `lines`.
struct Place {
    folder: TempDir,
    server: BucketServer,
    dataset: PathBuf,
    _dataset: TempDir,
    lines_of_a_shard: [&'static str; 1],
}

impl Place {
    fn new(lines: usize, tokens: usize) -> Self {
        let (folder, input) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let server = BucketServer::start(folder.path());
        Self {
            server,
            dataset: batch(&input, lines, tokens),
            folder,
            _dataset: input,
            lines_of_a_shard: ["--shard-lines=100"],
        }
    }

    fn job(&self, results: &TempDir, others: &[&str]) -> Process {
        self.job_with(results, self.server.url(), others)
    }

    fn job_with(&self, results: &TempDir, par: &str, others: &[&str]) -> Process {
        answering(results, &self.dataset, &SETTINGS)
            .args(["--output-par", par, "--output-prefix=run/"])
            .args(self.lines_of_a_shard)
            .args(others)
            .timeout(Duration::from_secs(300))
    }

    fn in_bucket(&self, name: &str) -> PathBuf {
        self.folder.path().join("run/outputs").join(name)
    }

    /// Numbers of the shards that the bucket's manifest names, each of which is there with the size that it says.
    fn shards_in_bucket(&self) -> BTreeSet<u64> {
        let Ok(manifest) = fs::read_to_string(self.in_bucket("manifest.jsonl")) else { return BTreeSet::new() };
        let records = manifest.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
        let shards = records.filter(|record| record.get("shard").is_some());
        shards
            .map(|record| {
                let shard = record["shard"].as_u64().unwrap();
                let file = self.in_bucket(&format!("outputs-{shard:05}.jsonl"));
                let bytes = file.metadata().unwrap_or_else(|error| panic!("{}: {error}", file.display())).len();
                assert_eq!(json!(bytes), record["bytes"], "{}", file.display());
                shard
            })
            .collect()
    }

    /// All answers in the bucket, by the manifest there.
    fn answers(&self) -> String {
        let shards = self.shards_in_bucket();
        let file = |shard| fs::read_to_string(self.in_bucket(&format!("outputs-{shard:05}.jsonl"))).unwrap();
        shards.into_iter().map(file).collect()
    }

    /// The answers of a job that was left alone, without a bucket.
    fn alone(&self) -> String {
        let results = TempDir::new().unwrap();
        answering(&results, &self.dataset, &SETTINGS).args(self.lines_of_a_shard).run().expect_code(0);
        answers_of(&results)
    }

    /// Runs a job until the bucket has `shards`, and ends it by `signal`.
    fn until(&self, results: &TempDir, shards: usize, signal: i32) -> Finished {
        let running = self.job(results, &[]).start();
        self.wait_for(&running, shards);
        running.signal(signal);
        running.wait()
    }

    fn wait_for(&self, running: &Running, shards: usize) {
        while self.shards_in_bucket().len() < shards {
            let so_far = running.stderr_so_far();
            assert!(!so_far.contains("flashjob ends"), "it ended before {shards} shards were in the bucket: {so_far}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn found(results: &TempDir) -> (u64, u64) {
    let found = &result(results)["batch"]["found"];
    (found["on_disk"].as_u64().unwrap(), found["in_bucket"].as_u64().unwrap())
}

fn said(finished: &Finished, sentence: &str) -> usize {
    finished.stderr.matches(sentence).count()
}

#[test]
fn shards_go_to_the_bucket_while_the_batch_runs_and_journals_after_a_signal() {
    let place = Place::new(20_000, 200);
    let results = TempDir::new().unwrap();
    place.until(&results, 2, libc::SIGTERM).expect_code(143);
    let on_disk = results.path().join("out/outputs");
    let mut journals = 0;
    for file in fs::read_dir(&on_disk).unwrap().map(|file| file.unwrap()) {
        let name = file.file_name().into_string().unwrap();
        if name.starts_with('.') {
            continue;
        }
        journals += usize::from(name.ends_with(".journal"));
        assert!(fs::read(file.path()).unwrap() == fs::read(place.in_bucket(&name)).unwrap(), "{name}");
    }
    assert!(journals > 0);
    // And another machine has all that this one had.
    let elsewhere = TempDir::new().unwrap();
    let answered = result(&results)["batch"]["completed"].as_u64().unwrap();
    let running = place.job(&elsewhere, &[]).start();
    place.wait_for(&running, place.shards_in_bucket().len() + 1);
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let (on_disk, in_bucket) = found(&elsewhere);
    assert!(on_disk == 0 && in_bucket >= answered, "{in_bucket} of {answered}");
}

#[test]
fn a_batch_goes_on_from_the_bucket_with_the_answers_of_a_job_that_was_left_alone() {
    let place = Place::new(3000, 40);
    let [first, second, third, fourth] = [(); 4].map(|()| TempDir::new().unwrap());
    place.until(&first, 3, libc::SIGKILL);
    place.until(&second, 8, libc::SIGTERM).expect_code(143);
    assert!(found(&second).1 >= 300, "{:?}", found(&second));
    // The disk of the first attempt, and what the bucket has besides.
    let last = place.job(&first, &[]).run().expect_code(0);
    let (on_disk, in_bucket) = found(&first);
    assert!(on_disk >= 300 && in_bucket >= 400, "{on_disk} on the disk, {in_bucket} in the bucket");
    assert_eq!(said(&last, "it goes on with the rest"), 1, "{last}");
    let alone = place.alone();
    assert!(answers_of(&first) == alone && place.answers() == alone);
    assert_eq!(result(&first)["batch"]["is_complete"], true);

    // All of it is there: a third machine fetches it and has nothing to do.
    let again = place.job(&third, &[]).run().expect_code(0);
    assert!(again.stderr.contains("nothing is left to do") && !again.stderr.contains("model is loaded"), "{again}");
    assert!(answers_of(&third) == alone);

    // Damage in the bucket is found by size or checksum, and those lines are answered again.
    let cut = place.in_bucket("outputs-00002.jsonl");
    fs::write(&cut, &fs::read(&cut).unwrap()[..100]).unwrap();
    let changed = place.in_bucket("outputs-00004.jsonl");
    fs::write(&changed, fs::read_to_string(&changed).unwrap().replace("Word", "Sword").replace("\"line\"", "\"lime\""))
        .unwrap();
    fs::remove_file(place.in_bucket("outputs-00005.jsonl")).unwrap();
    let last = place.job(&fourth, &[]).run().expect_code(0);
    assert!(last.stderr.contains("damaged=3"), "{last}");
    // Of the damaged ones a journal of an earlier attempt may be there, too.
    assert!(found(&fourth).0 == 0 && found(&fourth).1 >= 2700, "{:?}", found(&fourth));
    assert!(answers_of(&fourth) == alone && place.answers() == alone);
}

#[test]
fn a_manifest_of_another_job_in_the_bucket_is_refused_with_the_difference() {
    let place = Place::new(120, 4);
    let results = TempDir::new().unwrap();
    place.job(&results, &[]).run().expect_code(0);
    let before = fs::read(place.in_bucket("manifest.jsonl")).unwrap();
    for (others, difference) in [
        ("--seed=9", "seed was `0` and is `9` now"),
        ("--output-len=9", "output-len was `128` and is `9` now"),
        ("--output-order=any", "the order of its answers was another one"),
    ] {
        let elsewhere = TempDir::new().unwrap();
        let refused = place.job(&elsewhere, &[others]).run().expect_code(2);
        let error = result(&elsewhere)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(difference) && error.contains("name another output-prefix"), "{error}");
        assert!(!error.contains(&token(&place)), "{refused}");
        assert!(!elsewhere.path().join("out/outputs/manifest.jsonl").exists(), "it would refuse the right job");
    }
    assert_eq!(fs::read(place.in_bucket("manifest.jsonl")).unwrap(), before);
    fs::write(place.in_bucket("manifest.jsonl"), "nonsense\n").unwrap();
    let elsewhere = TempDir::new().unwrap();
    let refused = place.job(&elsewhere, &[]).run().expect_code(2);
    assert!(refused.stderr.contains("is no manifest of flashjob"), "{refused}");
}

fn token(place: &Place) -> String {
    place.server.url().split("/p/").nth(1).unwrap().split('/').next().unwrap().to_owned()
}

#[test]
fn a_par_that_may_only_write_is_said_and_the_disk_is_enough() {
    let place = Place::new(300, 8);
    for grant in [
        json!({"access": "AnyObjectWrite", "listing": false}),
        json!({"access": "AnyObjectWrite", "listing": true}),
        json!({"access": "AnyObjectReadWrite", "listing": false}),
    ] {
        let results = TempDir::new().unwrap();
        let par = place.server.par(grant.clone());
        let finished = place.job_with(&results, &par, &[]).run().expect_code(0);
        // A bucket without a manifest is not read.
        let is_said = said(&finished, "the batch goes on with what results-dir has") == 1;
        assert!(is_said || grant["listing"] == true, "{grant}: {finished}");
        assert!(place.answers() == answers_of(&results));
        let again = place.job_with(&results, &par, &[]).run().expect_code(0);
        assert_eq!(said(&again, "the batch goes on with what results-dir has"), 1, "{grant}: {again}");
        assert!(again.stderr.contains("nothing is left to do"), "{again}");
        fs::remove_dir_all(place.folder.path().join("run")).unwrap();
    }
}

/// It is said once, the batch is answered to its end, and whoever sends the answers later completes the bucket.
#[test]
fn a_bucket_that_becomes_read_only_ends_no_batch() {
    let place = Place::new(1000, 20);
    let results = TempDir::new().unwrap();
    place
        .server
        .fault(json!({"kind": "status", "status": 404, "code": "BucketNotFound", "operation": "put", "after": 4}));
    let finished = place.job(&results, &[]).run().expect_code(6);
    assert_eq!(said(&finished, "the bucket does not take answers of the batch"), 1, "{finished}");
    assert_eq!(said(&finished, "the bucket could not take all answers of the batch"), 1, "{finished}");
    assert!(finished.stderr.contains("without permission to write") || finished.stderr.contains("AnyObjectReadWrite"));
    let alone = place.alone();
    assert!(answers_of(&results) == alone);
    let shards = place.shards_in_bucket().len();
    assert!(shards < 10, "{shards}");
    place.server.no_faults();
    let out = results.path().join("out").display().to_string();
    Process::flashjob()
        .args(["publish", &out, "--output-par", place.server.url(), "--output-prefix=run/"])
        .run()
        .expect_code(0);
    assert!(place.answers() == alone);
}

/// Without its manifest, earlier answers would be written over.
#[test]
fn a_bucket_that_does_not_answer_is_not_begun_anew() {
    let place = Place::new(120, 4);
    let first = TempDir::new().unwrap();
    place.job(&first, &[]).run().expect_code(0);
    let before = fs::read(place.in_bucket("manifest.jsonl")).unwrap();
    place.server.fault(json!({"kind": "status", "status": 503, "operation": "list"}));
    let second = TempDir::new().unwrap();
    let finished = place.job(&second, &["--storage-timeout=1"]).run().expect_code(3);
    assert!(finished.stderr.contains("could not list objects"), "{finished}");
    assert_eq!(fs::read(place.in_bucket("manifest.jsonl")).unwrap(), before);
}

#[test]
fn a_large_shard_is_sent_in_parts_and_each_of_them_is_verified() {
    let place = Place { lines_of_a_shard: ["--shard-lines=18000"], ..Place::new(0, 0) };
    let label = "x".repeat(1000);
    let line = |number| format!("{{\"id\": \"{number} {label}\", \"prompt\": \"a\", \"max_tokens\": 1}}\n");
    fs::write(&place.dataset, (0..18_000).map(line).collect::<String>()).unwrap();
    let results = TempDir::new().unwrap();
    place.server.fault(json!({"kind": "wrong_md5", "operation": "put_part", "count": 1}));
    place.job(&results, &[]).run().expect_code(0);
    assert!(place.server.count("open_upload") >= 1 && place.server.count("commit_upload") >= 1);
    assert_eq!(place.server.open_uploads(), json!([]));
    assert!(place.answers() == answers_of(&results));
    let again = TempDir::new().unwrap();
    place.job(&again, &[]).run().expect_code(0);
    assert_eq!(found(&again), (0, 18_000));
    assert!(answers_of(&again) == answers_of(&results));
    assert!(hidden_files(&again).is_empty() && hidden_files(&results).is_empty());
}

/// Files in the folder of answers that are no answers.
fn hidden_files(results: &TempDir) -> Vec<String> {
    let files = fs::read_dir(results.path().join("out/outputs")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| !(name == "manifest.jsonl" || name.starts_with("outputs-") && name.ends_with(".jsonl")))
        .collect()
}

/// Lines with an answer in a folder of answers: in shards, or whole in a journal.
fn answered_lines(folder: &Path) -> BTreeSet<u64> {
    let mut lines = BTreeSet::new();
    let Ok(files) = fs::read_dir(folder) else { return lines };
    for path in files.map(|file| file.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        if name.starts_with("outputs-") && name.ends_with(".jsonl") {
            lines.extend(
                whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].as_u64().unwrap() - 1),
            );
        } else if name.ends_with(".journal") {
            lines.extend(whole.lines().map(|line| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()));
        }
    }
    lines
}

/// Killed at any moment, with a bucket that fails now and then, and from time to time on a machine whose disk is empty: each line has one
/// answer in the end, and no answer is lost that was on the disk, or in the bucket where there is no disk.
#[test]
fn fifty_kills_on_a_bucket_with_faults_lose_no_answer_and_give_none_twice() {
    let place = Place::new(4000, 160);
    let alone = place.alone();
    let retried = json!({"kind": "status", "status": 503, "retry_after": "0", "probability": 0.1});
    let lost = json!({"kind": "lost_answer", "operation": "put", "probability": 0.1});
    let cut = json!({"kind": "short_body", "after_bytes": 700, "operation": "get", "probability": 0.1});
    place.server.fault(json!([retried, lost, cut]));
    let mut random = StdRng::seed_from_u64(2);
    let mut results = TempDir::new().unwrap();
    let (mut killed, mut emptied) = (0, 0);
    while killed < 50 {
        let outputs = results.path().join("out/outputs");
        let (on_disk, in_bucket) = (answered_lines(&outputs), place.shards_in_bucket());
        let running = place.job(&results, &[]).start();
        std::thread::sleep(Duration::from_millis(random.random_range(1..600)));
        running.signal(libc::SIGKILL);
        let ended = running.wait();
        // A job that had ended before is none that was killed.
        if ended.signal() != Some(libc::SIGKILL) {
            // The job follows its supervisor in a moment.
            if ended.stderr.contains("is in use by another job") {
                continue;
            }
            ended.expect_code(0);
            if killed >= 20 && emptied >= 3 {
                break;
            }
            // A fast machine was done with the batch before that, and does it again.
            results = TempDir::new().unwrap();
            fs::remove_dir_all(place.folder.path().join("run")).unwrap();
            continue;
        }
        killed += 1;
        assert!(answered_lines(&outputs).is_superset(&on_disk), "kill {killed} lost answers on the disk");
        assert!(place.shards_in_bucket().is_superset(&in_bucket), "kill {killed} lost answers in the bucket");
        if random.random_bool(0.2) {
            results = TempDir::new().unwrap();
            emptied += 1;
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let last = place.job(&results, &[]).run().expect_code(0);
    assert!(answers_of(&results) == alone, "answers differ from those of a job that was left alone: {last}");
    assert!(place.answers() == alone, "answers in the bucket differ from those of a job that was left alone: {last}");
}
