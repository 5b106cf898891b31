//! One model on two machines: real processes in network namespaces that a pair of virtual cables joins. What they compute is what
//! one process computes, and whatever happens to one of them ends both.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::{job_without_model, result, tiny_model};
use crate::model::golden::directory;
use crate::support::Flashjob as _;
use crate::support::process::{Finished, Process, Running, installed, skip};

/// For documentation (RFC 5737): nobody's.
const LEADER: &str = "192.0.2.1";
const WORKER: &str = "192.0.2.2";

/// Two network namespaces with a cable between them; gone when dropped.
struct TwoMachines {
    names: [String; 2],
}

impl TwoMachines {
    /// `None` where this process may not make any (and the test says so).
    fn connect() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        installed("ip", "iproute2")?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|end| format!("fj{}-{number}{end}", std::process::id()));
        let ip = |words: &str| Process::new("ip").args(words.split(' ')).run();
        let tried = ip(&format!("netns add {}", names[0]));
        if tried.code() != Some(0) {
            skip(&format!("no network namespace can be made here: {}", tried.stderr));
            return None;
        }
        // From here on they are taken down again.
        let machines = Self { names };
        let [a, b] = &machines.names;
        ip(&format!("netns add {b}")).expect_code(0);
        ip(&format!("link add {a} netns {a} type veth peer name {b} netns {b}")).expect_code(0);
        for (name, address) in [(a, LEADER), (b, WORKER)] {
            ip(&format!("-n {name} address add {address}/30 dev {name}")).expect_code(0);
            ip(&format!("-n {name} link set {name} up")).expect_code(0);
            ip(&format!("-n {name} link set lo up")).expect_code(0);
        }
        Some(machines)
    }

    /// A job on one of them, which leads where `index` is 0.
    fn job(&self, index: usize, model: &Path, results: &TempDir, words: &[impl AsRef<OsStr>]) -> Process {
        job_without_model(results)
            .args(["--model".into(), model.to_owned()])
            .args(words)
            .env("LWS_LEADER_ADDRESS", LEADER)
            .env("LWS_GROUP_SIZE", "2")
            .env("LWS_WORKER_INDEX", index.to_string())
            .through(["ip", "netns", "exec", &self.names[index]])
    }

    /// Both, the worker on `model`.
    fn start(&self, model: &Path, results: &[TempDir; 2], words: &[impl AsRef<OsStr>]) -> [Running; 2] {
        // The worker first: it calls until somebody answers.
        let worker = self.job(1, model, &results[1], words).start();
        [self.job(0, &tiny_model(), &results[0], words).start(), worker]
    }
}

impl Drop for TwoMachines {
    fn drop(&mut self) {
        for name in &self.names {
            Process::new("ip").args(["netns", "delete", name]).run();
        }
    }
}

fn two_places() -> [TempDir; 2] {
    [TempDir::new().unwrap(), TempDir::new().unwrap()]
}

fn outputs(results: &TempDir) -> String {
    super::answers_of(results)
}

/// A machine that was led has a log, the record of it, and nothing that looks like a result.
fn expect_no_result(results: &TempDir) {
    let mut files: Vec<String> = std::fs::read_dir(results.path().join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    assert_eq!(files, [".flashjob-run.jsonl", "flashjob.log"]);
}

/// Enough for the longest sequence, and not for the eight that run at a time.
const CACHE_BLOCKS: u64 = 7;

const LONG: [&str; 4] = ["--tensor-parallel-size=2", "--input-len=8", "--output-len=480", "--num-prompts=20000"];

/// One rank on each machine, and two: then heads of keys and values are there twice.
#[test]
fn two_machines_answer_exactly_as_one_process() {
    let Some(machines) = TwoMachines::connect() else { return };
    let dataset = TempDir::new().unwrap();
    let path = dataset.path().join("prompts.jsonl");
    let line = |number: usize| {
        format!("{{\"prompt\": \"{}\", \"max_tokens\": {}}}\n", "many words ".repeat(number), 90 - number)
    };
    std::fs::write(&path, (1..12).map(line).collect::<String>()).unwrap();
    let dataset = format!("--dataset-path={}", path.display());
    for ranks in [2, 4] {
        // Prompts in chunks, and less cache than all of them want.
        let words = |cache_bytes: u64| {
            let cache = format!("--kv-cache-memory={cache_bytes}");
            let words = [
                dataset.as_str(),
                cache.as_str(),
                "--dataset=jsonl",
                "--max-num-batched-tokens=64",
                "--max-num-seqs=8",
                "--threads=2",
            ];
            words.map(str::to_owned).into_iter().chain([format!("--tensor-parallel-size={ranks}")]).collect::<Vec<_>>()
        };
        let places = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let answer_alone = |alone: &TempDir, cache_bytes| {
            let job = job_without_model(alone).args(["--model".into(), tiny_model()]).args(words(cache_bytes));
            job.run().expect_code(0);
            result(alone)["backend"]["engine"].clone()
        };
        // How many bytes a block takes depends on the panels of the instruction set.
        let engine = answer_alone(&places[0], 64 << 20);
        let block_bytes = engine["kv_cache_bytes"].as_u64().unwrap() / engine["kv_blocks"].as_u64().unwrap();
        let cache_bytes = CACHE_BLOCKS * block_bytes;
        assert_eq!(answer_alone(&places[1], cache_bytes)["kv_blocks"], CACHE_BLOCKS);
        let [_, alone] = places;
        let places = two_places();
        let [leader, worker] = machines.start(&tiny_model(), &places, &words(cache_bytes / 2));
        let (leader, worker) = (leader.wait().expect_code(0), worker.wait().expect_code(0));
        assert_eq!(outputs(&places[0]), outputs(&alone), "{ranks} ranks");
        assert!(worker.stderr.contains("the leader says that the job is done"), "{worker}");
        expect_no_result(&places[1]);
        let (together, alone) = (result(&places[0]), result(&alone));
        let engine = &together["backend"]["engine"];
        assert_eq!((&engine["machines"], &engine["threads"]), (&2.into(), &4.into()), "{leader}");
        for fact in ["tensor_parallel_size", "kv_blocks", "max_model_len", "cost"] {
            assert_eq!(engine[fact], alone["backend"]["engine"][fact], "{fact}");
        }
        let preemptions = &together["metrics"]["preemptions"];
        assert!(
            preemptions.as_f64() > Some(0.0) && *preemptions == alone["metrics"]["preemptions"],
            "the same steps: {preemptions}"
        );
    }
}

#[test]
fn a_worker_that_is_killed_ends_the_job_with_5() {
    let Some(machines) = TwoMachines::connect() else { return };
    let places = two_places();
    let [mut leader, worker] = machines.start(&tiny_model(), &places, &LONG);
    leader.wait_for_stderr("\"phase\":\"measure\"");
    worker.signal_job(libc::SIGKILL);
    let leader = leader.wait().expect_code(5);
    assert!(leader.stderr.contains(&format!("machine 1 ({WORKER}:")), "{leader}");
    assert!(leader.stderr.contains("closed its connection without a last word"), "{leader}");
    let result = result(&places[0]);
    assert_eq!((&result["status"], &result["measurement"]["complete"]), (&"failed".into(), &false.into()));
}

#[test]
fn a_leader_that_is_killed_ends_its_workers_with_5() {
    let Some(machines) = TwoMachines::connect() else { return };
    let places = two_places();
    let [mut leader, worker] = machines.start(&tiny_model(), &places, &LONG);
    leader.wait_for_stderr("\"phase\":\"measure\"");
    leader.signal_job(libc::SIGKILL);
    let worker = worker.wait().expect_code(5);
    assert!(worker.stderr.contains(&format!("the leader ({LEADER}, port 29500) closed its connection")), "{worker}");
    expect_no_result(&places[1]);
}

#[test]
fn a_signal_at_either_machine_ends_both() {
    let Some(machines) = TwoMachines::connect() else { return };
    for (signalled, codes, sentence) in
        [(0, [143, 143], "the leader ended the job: stopped by SIGTERM"), (1, [5, 143], ") ended: stopped by SIGTERM")]
    {
        let places = two_places();
        let mut both = machines.start(&tiny_model(), &places, &LONG);
        both[0].wait_for_stderr("\"phase\":\"measure\"");
        both[signalled].signal(libc::SIGTERM);
        let both: [Finished; 2] = both.map(Running::wait);
        assert_eq!([both[0].code(), both[1].code()], codes.map(Some), "{}\n{}", both[0], both[1]);
        assert!(both[1 - signalled].stderr.contains(sentence), "{}", both[1 - signalled]);
    }
}

#[test]
fn a_cable_that_is_cut_ends_both() {
    let Some(machines) = TwoMachines::connect() else { return };
    let places = two_places();
    let both = machines.start(&tiny_model(), &places, &LONG);
    let [mut leader, worker] = both;
    leader.wait_for_stderr("\"phase\":\"measure\"");
    let name = &machines.names[1];
    Process::new("ip").args(["-n", name, "link", "set", name, "down"]).run().expect_code(0);
    for finished in [leader.wait().expect_code(5), worker.wait().expect_code(5)] {
        assert!(finished.stderr.contains("see whether that machine is well"), "{finished}");
    }
}

/// Another model, other settings, another group: both end with 2, and each says why.
#[test]
fn machines_that_do_not_mean_the_same_job_end_with_2() {
    let Some(machines) = TwoMachines::connect() else { return };
    let worker_with = |model: &Path, words: &[&str], size: &str| {
        let places = two_places();
        let words: Vec<&str> = ["--num-prompts=2", "--output-len=4"].iter().chain(words).copied().collect();
        let worker = machines.job(1, model, &places[1], &words).env("LWS_GROUP_SIZE", size).start();
        let leader = machines.job(0, &tiny_model(), &places[0], &["--num-prompts=2", "--output-len=4"]).start();
        [leader.wait().expect_code(2), worker.wait().expect_code(2)]
    };
    let tiny = tiny_model();
    for (model, words, size, expected) in [
        (directory("mistral-window"), &[] as &[&str], "2", "model is `MistralForCausalLM "),
        (tiny.clone(), &["--dtype=float32"], "2", "dtype is `float32` there and `bfloat16` here"),
        (tiny.clone(), &["--tensor-parallel-size=4"], "2", "tensor-parallel-size is `4` there and `2` here"),
        (tiny.clone(), &["--max-model-len=256"], "2", "max-model-len is `256` there and `the model's` here"),
        (tiny.clone(), &["--block-size=64"], "2", "block-size is `64` there and `32` here"),
        (tiny, &["--tensor-parallel-size=4"], "4", "LWS_GROUP_SIZE is 4 there and 2 here"),
    ] {
        for finished in worker_with(&model, words, size) {
            assert!(finished.stderr.contains(expected), "{expected}: {finished}");
            assert!(finished.stderr.contains("does not mean the same job"), "{finished}");
        }
    }
}

#[test]
fn verify_looks_at_one_machine() {
    let results = TempDir::new().unwrap();
    let verify = Process::flashjob().args(["verify".into(), "--model".into(), tiny_model()]);
    let group = [("LWS_LEADER_ADDRESS", LEADER), ("LWS_GROUP_SIZE", "2"), ("LWS_WORKER_INDEX", "0")];
    let verify = group.iter().fold(verify, |process, (name, value)| process.env(name, value));
    let finished = verify.directory(results.path()).run().expect_code(2);
    assert!(finished.stderr.contains("leave the LWS variables out"), "{finished}");
}

#[test]
fn nobody_waits_for_ever() {
    let Some(machines) = TwoMachines::connect() else { return };
    for (index, expected) in [
        (0, "of 2 machines 1 did not call at port 29500 within group-timeout (0.5 s)"),
        (1, "the leader at 192.0.2.1, port 29500, was not there within group-timeout (0.5 s)"),
    ] {
        let results = TempDir::new().unwrap();
        let finished = machines.job(index, &tiny_model(), &results, &["--group-timeout=500ms"]).run().expect_code(5);
        assert!(finished.stderr.contains(expected), "{finished}");
    }
}

/// Whoever finds the port says something else than a machine would, or claims lengths that nobody has memory for: the leader hangs
/// up, and goes on waiting for its worker.
#[test]
fn strangers_at_the_port_are_hung_up_on() {
    let Some(machines) = TwoMachines::connect() else { return };
    let places = two_places();
    let words = ["--num-prompts=2", "--output-len=4"];
    let leader = machines.job(0, &tiny_model(), &places[0], &words).start();
    let strangers = r#"
import socket, time
def call():
    for _ in range(600):
        try:
            return socket.create_connection(("192.0.2.1", 29500))
        except OSError:
            time.sleep(0.05)
    raise SystemExit("nobody listens")
silent = call()
for said in [
    b"GET / HTTP/1.1\r\n\r\n",
    bytes(64),
    b"\xff" * 64,
    b"HELO" + b"\xff" * 8,
    b"HELO" + (1 << 40).to_bytes(8, "little") + b"{",
    b"HELO" + (16 << 10).to_bytes(8, "little") + b"[" * (16 << 10),
    b"HELO" + (2).to_bytes(8, "little") + b"{}",
    b"END " + (4).to_bytes(8, "little") + b"\xff\xfe{}",
    b"END " + b"\xff" * 8,
    b"PART" + (1 << 32).to_bytes(8, "little"),
]:
    stranger = call()
    stranger.sendall(said)
    stranger.settimeout(20)
    try:
        heard = stranger.recv(1)
    except ConnectionResetError:
        heard = b""
    assert heard == b"", (said, heard)
"#;
    Process::new("python3")
        .args(["-c", strangers])
        .through(["ip", "netns", "exec", &machines.names[1]])
        .run()
        .expect_code(0);
    let worker = machines.job(1, &tiny_model(), &places[1], &words).run().expect_code(0);
    let leader = leader.wait().expect_code(0);
    assert_eq!(result(&places[0])["backend"]["engine"]["machines"], 2, "{leader}\n{worker}");
}
