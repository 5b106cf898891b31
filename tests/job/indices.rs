//! An Indexed Job with more indices than pods that run at a time, as `k8s/overlays/batch` has it: pods are killed, and each index goes on
//! from its prefix in the bucket with a disk that is empty.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;

use super::batch::{answering, batch};
use crate::support::bucket_server::BucketServer;
use crate::support::mlflow_server::{self, MlflowServer, Run};

const COMPLETIONS: usize = 12;
const PARALLELISM: usize = 3;
const LINES: usize = 1500;

/// Kills of each third index.
const KILLS: usize = 3;

/// The controller of an Indexed Job: indices in order, a few pods at a time, each index again until a pod of it ends well.
struct Controller<'a> {
    dataset: &'a Path,
    bucket: &'a Path,
    par: &'a str,
    prefix: &'a str,
    mlflow: &'a MlflowServer,
    uid: &'a str,
}

impl Controller<'_> {
    /// Runs the job; gives the pods that were killed.
    fn run(&self, kills: bool) -> usize {
        let (indices, killed) = (Mutex::new(0..COMPLETIONS), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..PARALLELISM {
                scope.spawn(|| {
                    while let Some(index) = { indices.lock().unwrap().next() } {
                        let kills = if kills && index % 3 == 1 { KILLS } else { 0 };
                        killed.fetch_add(self.complete(index, kills), Ordering::Relaxed);
                    }
                });
            }
        });
        killed.into_inner()
    }

    fn outputs_of(&self, index: usize) -> PathBuf {
        self.bucket.join(format!("{}{index}/outputs", self.prefix))
    }

    fn shards_of(&self, index: usize) -> usize {
        std::fs::read_dir(self.outputs_of(index)).map_or(0, |files| {
            files.filter(|file| is_shard(file.as_ref().unwrap().file_name().to_str().unwrap())).count()
        })
    }

    /// Answers in the bucket by line: those of all indices, each of which has a prefix of its own.
    fn answers(&self) -> BTreeMap<u64, Value> {
        let mut answers = BTreeMap::new();
        for file in (0..COMPLETIONS).flat_map(|index| std::fs::read_dir(self.outputs_of(index)).unwrap()) {
            let path = file.unwrap().path();
            if !is_shard(path.file_name().unwrap().to_str().unwrap()) {
                continue;
            }
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                let answer: Value = serde_json::from_str(line).unwrap();
                let number = answer["line"].as_u64().unwrap();
                assert!(answers.insert(number, answer).is_none(), "line {number} is answered twice");
            }
        }
        answers
    }

    /// Runs pods of `index` until one ends well, after up to `kills` of them were killed; gives their number.
    fn complete(&self, index: usize, kills: usize) -> usize {
        let mut random = StdRng::seed_from_u64(index as u64);
        let mut killed = 0;
        loop {
            // The disk of a pod goes with it.
            let results = TempDir::new().unwrap();
            let running = answering(&results, self.dataset, &["--shard-lines=10", "--max-num-seqs=8", "--threads=1"])
                .args(["--replica-count", &COMPLETIONS.to_string(), "--output-par", self.par])
                .args(["--output-prefix", &format!("{}{index}/", self.prefix)])
                .args(["--mlflow-uri", self.mlflow.uri(), "--experiment-name=indices"])
                .env("JOB_COMPLETION_INDEX", index.to_string())
                .env("JOB_UID", self.uid)
                .timeout(Duration::from_secs(300))
                .start();
            if killed == kills {
                running.wait().expect_code(0);
                return killed;
            }
            // By what it has done rather than by the clock, so that a fast pod is killed as often as a slow one.
            let shards = 3 * killed + random.random_range(0..3);
            while self.shards_of(index) < shards && !running.stderr_so_far().contains("flashjob ends") {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(random.random_range(0..100)));
            // The kernel's way, and that of a node that is drained.
            running.signal(if killed % 2 == 0 { libc::SIGKILL } else { libc::SIGTERM });
            let ended = running.wait();
            if ended.code() == Some(0) {
                return killed;
            }
            killed += 1;
        }
    }
}

fn is_shard(name: &str) -> bool {
    name.starts_with("outputs-") && name.ends_with(".jsonl")
}

fn parent(mlflow: &MlflowServer, uid: &str) -> Run {
    let mut runs = mlflow.runs("indices");
    runs.retain(|run| run.tag("flashjob.job_uid") == Some(uid) && run.tag("flashjob.replica").is_none());
    assert_eq!(runs.len(), 1, "one parent");
    runs.remove(0)
}

#[test]
fn twelve_indices_three_at_a_time_answer_each_line_once_whoever_is_killed() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let (folder, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = BucketServer::start(bucket.path());
    let dataset = batch(&folder, LINES, 60);
    let of =
        |prefix, uid| Controller { dataset: &dataset, bucket: bucket.path(), par: server.url(), prefix, mlflow, uid };
    let calm = of("calm/", "00000000-0000-4000-8000-00000000000a");
    let rough = of("rough/", "00000000-0000-4000-8000-00000000000b");
    calm.run(false);
    let killed = rough.run(true);
    assert!(killed >= 4, "{killed} pods were killed");

    let expected = calm.answers();
    assert!(expected.keys().copied().eq(1..=LINES as u64));
    assert!(rough.answers() == expected, "answers differ from those of a job that was left alone");

    // The aggregate is complete, and counts the answers of all attempts.
    let (calm, rough) = (parent(mlflow, calm.uid), parent(mlflow, rough.uid));
    assert_eq!((calm.status(), rough.status()), ("FINISHED", "FINISHED"));
    for figure in [
        "batch_lines_answered",
        "batch_lines_completed",
        "batch_input_tokens",
        "batch_output_tokens",
        "replicas",
        "failed_requests",
    ] {
        assert!(calm.metric(figure).is_some(), "{figure}");
        assert_eq!(rough.metric(figure), calm.metric(figure), "{figure}");
    }
    assert_eq!(calm.metric("batch_lines_answered"), Some(LINES as f64));
    let names = |run: &Run| {
        run.keys("metrics")
            .into_iter()
            .filter(|name| !name.starts_with("common_window"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&rough), names(&calm), "figures of the same names");
    // Its own part is that which was measured.
    assert!(rough.metric("total_output_tokens") <= calm.metric("total_output_tokens"));
}
