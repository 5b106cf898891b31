//! Jobs on a stand-in GPU that goes wrong: each ends within seconds, with the right code and a sentence.

use tempfile::TempDir;

use crate::job::{fractions_of_the_limit, result};
use crate::model::golden::directory;
use crate::support::Flashjob as _;
use crate::support::process::Process;
use crate::support::prometheus::scrape;

fn gpu_job(results: &TempDir) -> Process {
    job_on("cuda", results)
}

fn job_on(device: &str, results: &TempDir) -> Process {
    unhurried(device, results).args(["--metrics-linger-seconds=0", "--measure-limits=false"])
}

/// It measures limits, and lingers as long as a job does.
fn unhurried(device: &str, results: &TempDir) -> Process {
    of_any_length(device, results).args(["--max-model-len=64", "--max-num-seqs=8"])
}

/// On the tiny model and one device, with little to do.
fn of_any_length(device: &str, results: &TempDir) -> Process {
    job_of(2, device, results)
}

fn job_of(requests: usize, device: &str, results: &TempDir) -> Process {
    let driver = std::env::var("LD_LIBRARY_PATH").expect("scripts/test-cuda sets LD_LIBRARY_PATH");
    Process::flashjob()
        .args(["--metrics-port=0", "--results-dir"])
        .args([results.path().join("out")])
        .args(["--model".into(), directory("llama-gqa")])
        .args(["--dtype=bfloat16", "--input-len=8", "--output-len=4", "--max-num-batched-tokens=64"])
        .args([format!("--num-prompts={requests}")])
        .env("DEVICE", device)
        .env("LD_LIBRARY_PATH", &driver)
        .env("STAND_IN_DEVICES", "1")
}

#[test]
fn a_job_runs_and_says_where() {
    let results = TempDir::new().unwrap();
    gpu_job(&results).run().expect_code(0);
    let result = result(&results);
    let engine = &result["backend"]["engine"];
    assert_eq!((&engine["device"], &engine["dtype"]), (&"cuda".into(), &"bfloat16".into()));
    assert!(engine["kernels"].as_str().unwrap().contains("compute capability 8.0"), "{engine}");
}

/// What a job on two GPUs shows to Prometheus when it is done.
fn scraped() -> String {
    let results = TempDir::new().unwrap();
    let mut running = unhurried("cuda", &results)
        .env("STAND_IN_DEVICES", "2")
        .args(["--tensor-parallel-size=2", "--metrics-linger-seconds=60"])
        .start();
    running.wait_for_stderr(r#""phase":"linger""#);
    let stderr = running.stderr_so_far();
    let (_, after) = stderr.split_once(r#""address":"0.0.0.0:"#).expect("the log says where metrics are served");
    let port: u16 = after.split_once('"').unwrap().0.parse().unwrap();
    // A scrape that begins before the final values stand does not end the linger: the last one that is answered counts.
    let mut text = String::new();
    while let Ok(answer) = scrape(port) {
        text = answer;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    running.wait().expect_code(0);
    text
}

/// The stand-in takes a joule each time that it is asked: at least once before the measured region and once after it.
#[test]
fn the_result_and_prometheus_say_what_gpus_took() {
    let results = TempDir::new().unwrap();
    gpu_job(&results).env("STAND_IN_DEVICES", "2").args(["--tensor-parallel-size=2"]).run().expect_code(0);
    let metrics = &result(&results)["metrics"];
    let figure = |name: &str| metrics[name].as_f64().unwrap_or_else(|| panic!("no {name}: {metrics}"));
    assert!(figure("energy_joules") >= 2.0);
    // Two requests of four tokens.
    assert_eq!(figure("energy_joules_per_output_token"), figure("energy_joules") / 8.0);
    assert!(figure("mean_power_watts") > 0.0);
    let prometheus = scraped();
    for line in [
        r#"flashjob_gpu_utilization_ratio{gpu="1",name="Stand-in",uuid="GPU-00000000-0000-0000-0000-000000000002"} 0.75"#,
        r#"flashjob_gpu_power_watts{gpu="0",name="Stand-in",uuid="GPU-00000000-0000-0000-0000-000000000001"} 100"#,
        r#"flashjob_gpu_sm_clock_hertz{gpu="0",name="Stand-in",uuid="GPU-00000000-0000-0000-0000-000000000001"} 1400000000"#,
    ] {
        assert!(prometheus.contains(line), "no {line}: {prometheus}");
    }
    for (reason, value) in [("software_power_cap", 1), ("software_thermal_slowdown", 1), ("sync_boost", 0)] {
        let found = prometheus.lines().any(|line| {
            line.starts_with("flashjob_gpu_throttled") && line.contains(reason) && line.ends_with(&format!(" {value}"))
        });
        assert!(found, "{reason} is not {value}: {prometheus}");
    }
}

#[test]
fn without_nvml_a_job_says_so_and_goes_on() {
    let results = TempDir::new().unwrap();
    // NVML_ERROR_DRIVER_NOT_LOADED.
    let finished = gpu_job(&results).env("STAND_IN_FAIL", "nvmlInit_v2:1:9").run().expect_code(0);
    assert!(finished.stderr.contains("GPUs are not watched"), "{}", finished.stderr);
    let result = result(&results);
    assert_eq!(result["measurement"]["energy_joules"], serde_json::Value::Null);
    assert!(result["metrics"].get("energy_joules").is_none(), "{}", result["metrics"]);
}

#[test]
fn limits_are_measured_on_the_gpus_that_are_used() {
    let results = TempDir::new().unwrap();
    unhurried("cuda", &results).args(["--metrics-linger-seconds=0"]).run().expect_code(0);
    let result = result(&results);
    for name in ["limit_flops_per_second", "limit_memory_bytes_per_second"] {
        let metrics = &result["metrics"];
        assert!(metrics[name].as_f64().is_some_and(|value| value > 0.0), "{name}: {metrics}");
    }
    let clock = &result["backend"]["engine"]["limits"]["sm_clock_hertz"];
    assert_eq!((&clock["before"], &clock["after"]), (&1.4e9.into(), &1.4e9.into()), "{}", result["backend"]);
    assert!(fractions_of_the_limit(&result).is_none_or(|fractions| fractions.iter().all(|fraction| *fraction > 0.0)));
}

#[test]
fn with_auto_the_gpu_is_taken_where_there_is_one_and_the_cpu_where_there_is_none() {
    for (devices, expected) in [("1", "cuda"), ("0", "cpu")] {
        let results = TempDir::new().unwrap();
        job_on("auto", &results).env("STAND_IN_DEVICES", devices).run().expect_code(0);
        assert_eq!(result(&results)["backend"]["engine"]["device"], expected);
    }
}

#[test]
fn what_goes_wrong_ends_with_its_code_and_says_what() {
    for (variable, value, code, sentences) in [
        // While the largest step is computed to see what it takes.
        ("STAND_IN_FAIL", "gated_bf16:3", 4, &["compute a step"][..]),
        ("STAND_IN_FAIL", "cublasSetWorkspace_v2:1:3", 4, &["open a GPU"]),
        ("STAND_IN_FAIL", "cublasSetMathMode:1:3", 4, &["open a GPU"]),
        // A build without code for this GPU (cudaErrorNoKernelImageForDevice), at the start and in a step.
        ("STAND_IN_FAIL", "run_mha:1:209", 4, &["attention", "no kernel image", "error 209"]),
        ("STAND_IN_FAIL", "run_mha:14:98", 5, &["flash attention could not be launched", "invalid device function"]),
        // Attention that answers, and wrongly.
        (
            "STAND_IN_WRONG",
            "attention",
            4,
            &["heads of 16 in bfloat16 on GPU 0 (Stand-in", "prompts are off by", "does not fit"],
        ),
        // What is queued and does not become part of a recording.
        ("STAND_IN_LOSE", "attention", 5, &["attention was queued, and 0 nodes of it are in the CUDA graph"]),
        ("STAND_IN_LOSE", "gated_bf16", 5, &["gated was queued, and 0 nodes of it"]),
        ("STAND_IN_LOSE", "gemm", 5, &["a product was queued, and 0 nodes of it"]),
        // Drivers and GPUs that are too old.
        ("STAND_IN_CUDA", "12040", 2, &["made for CUDA 12.4", "needs CUDA 13.0", "driver 580 or later", "device=cpu"]),
        ("STAND_IN_CAPABILITY", "75", 2, &["GPU 0 (Stand-in) has compute capability 7.5", "needs 8.0", "device=cpu"]),
        // Recording and replaying.
        ("STAND_IN_FAIL", "cuStreamBeginCapture_v2:1", 5, &["record a step as a CUDA graph", "enforce-eager"]),
        ("STAND_IN_FAIL", "cuStreamEndCapture:1", 5, &["record a step as a CUDA graph", "enforce-eager"]),
        ("STAND_IN_FAIL", "cuGraphInstantiateWithFlags:1", 5, &["record a step as a CUDA graph", "enforce-eager"]),
        ("STAND_IN_FAIL", "cuGraphLaunch:2", 5, &["replay a step", "enforce-eager"]),
        ("STAND_IN_DEVICES", "0", 2, &["no CUDA driver", "device=cpu"]),
        ("LD_LIBRARY_PATH", "/nonexistent", 2, &["no CUDA driver"]),
        ("STAND_IN_FAIL", "cuInit:0:803", 2, &["CUDA driver"]),
        // Too little for the model, and too little all of a sudden.
        ("STAND_IN_MEMORY", "33754432", 4, &["needs", "max-model-len"]),
        ("STAND_IN_FAIL", "cuMemAllocAsync:3:2", 4, &["OUT_OF_MEMORY"]),
        ("STAND_IN_FAIL", "cuMemcpyHtoDAsync_v2:5", 4, &["trust a GPU's attention"]),
        ("STAND_IN_FAIL", "cuMemcpyHtoDAsync_v2:21", 4, &["place weights"]),
        ("STAND_IN_FAIL", "gated_bf16:7", 5, &["compute a step"]),
        ("STAND_IN_FAIL", "gated_bf16:9", 5, &["replay a step"]),
        ("STAND_IN_FAIL", "cublasGemmEx:29:13", 5, &["compute a step"]),
        ("STAND_IN_FAIL", "cuMemcpyDtoHAsync_v2:5", 5, &["choose tokens"]),
    ] {
        let results = TempDir::new().unwrap();
        let finished = gpu_job(&results).env(variable, value).run();
        assert_eq!(finished.code(), Some(code), "{variable}={value}: {finished}");
        for sentence in sentences {
            assert!(finished.stderr.contains(sentence), "{variable}={value}: {}", finished.stderr);
        }
    }
}

#[test]
fn more_ranks_than_gpus_end_with_2_naming_both_numbers() {
    let results = TempDir::new().unwrap();
    let finished =
        gpu_job(&results).args(["--tensor-parallel-size=3"]).env("STAND_IN_DEVICES", "2").run().expect_code(2);
    assert!(finished.stderr.contains("tensor-parallel-size=3 is above the 2 GPUs"), "{}", finished.stderr);
}

/// Whatever happens to one rank, the others do not wait for it: not for a sum, a part of the logits, or a kernel.
#[test]
fn a_rank_that_dies_takes_nobody_with_it_into_a_wait() {
    for (failure, code, sentence) in [
        ("ncclCommInitAll:1:2", 2, "needs NCCL"),
        // One of each rank is of known numbers.
        ("ncclAllReduce:1:1", 4, "tried on known numbers: NCCL could not sum"),
        // The sums of the first steps are those of the profile: 5 a step and rank.
        ("ncclAllReduce:9:1", 4, "NCCL could not sum"),
        ("ncclAllReduce:29:1", 5, "NCCL could not sum"),
        ("ncclSend:4:1", 5, "NCCL could not send"),
        ("ncclRecv:4:1", 5, "NCCL could not receive"),
        ("rope_and_cache_bf16:11", 5, "compute a step"),
        ("cuStreamSynchronize:9", 5, ""),
        ("cuMemcpyDtoHAsync_v2:11", 5, "choose tokens"),
        ("cuGraphLaunch:2", 5, "replay a step"),
    ] {
        let results = TempDir::new().unwrap();
        let finished = gpu_job(&results)
            .args(["--tensor-parallel-size=2"])
            .env("STAND_IN_DEVICES", "2")
            .env("STAND_IN_FAIL", failure)
            .run();
        assert_eq!(finished.code(), Some(code), "{failure}: {finished}");
        assert!(finished.stderr.contains(sentence), "{failure}: {}", finished.stderr);
    }
}

#[test]
fn gpus_of_two_kinds_do_not_share_a_model() {
    let results = TempDir::new().unwrap();
    let finished = gpu_job(&results)
        .args(["--tensor-parallel-size=2"])
        .env("STAND_IN_DEVICES", "2")
        .env("STAND_IN_NAMES", "NVIDIA A10,NVIDIA A100")
        .run()
        .expect_code(2);
    for word in ["2 ranks on a machine (tensor-parallel-size", "NVIDIA A10,", "NVIDIA A100,", "CUDA_VISIBLE_DEVICES"] {
        assert!(finished.stderr.contains(word), "no {word}: {}", finished.stderr);
    }
}

/// Unless told otherwise each GPU has an engine with all of a model that fits one. With one engine the model is split over as many GPUs as it
/// can be: its two heads of keys and values allow two or four.
#[test]
fn gpus_are_divided_among_engines_and_ranks() {
    for (devices, words, expected) in [
        ("1", &[][..], (1, 1)),
        ("2", &[], (2, 1)),
        ("3", &[], (3, 1)),
        ("4", &["--tensor-parallel-size=2"], (2, 2)),
        ("3", &["--tensor-parallel-size=2"], (1, 2)),
        ("3", &["--data-parallel-size=1"], (1, 2)),
        ("4", &["--data-parallel-size=1"], (1, 4)),
        ("4", &["--data-parallel-size=2"], (2, 2)),
        ("4", &["--data-parallel-size=3", "--tensor-parallel-size=1"], (3, 1)),
    ] {
        let results = TempDir::new().unwrap();
        let finished = gpu_job(&results).args(words).env("STAND_IN_DEVICES", devices).run().expect_code(0);
        let engine = &result(&results)["backend"]["engine"];
        let sizes = ["data_parallel_size", "tensor_parallel_size"].map(|size| engine[size].as_u64().unwrap());
        assert_eq!((sizes[0], sizes[1]), expected, "{devices} devices, {words:?}");
        assert!(finished.stderr.contains(&format!(r#""engines":{}"#, expected.0)), "{}", finished.stderr);
    }
}

#[test]
fn a_model_that_leaves_one_gpu_too_little_for_a_useful_cache_is_split() {
    // Keys and values of 64 sequences of 512 tokens take 8 MiB, and a job may have 6 of each GPU.
    let results = TempDir::new().unwrap();
    of_any_length("cuda", &results)
        .args(["--metrics-linger-seconds=0", "--measure-limits=false", "--max-model-len=512", "--max-num-seqs=64"])
        .args(["--gpu-memory-utilization=0.006"])
        .env("STAND_IN_DEVICES", "2")
        .run()
        .expect_code(0);
    let engine = &result(&results)["backend"]["engine"];
    assert_eq!((&engine["data_parallel_size"], &engine["tensor_parallel_size"]), (&1.into(), &2.into()), "{engine}");
}

#[test]
fn more_engines_and_ranks_than_gpus_end_with_2() {
    for (words, sentence) in [
        (&["--data-parallel-size=3"][..], "data-parallel-size=3 is above the 2 GPUs that this process sees"),
        (
            &["--data-parallel-size=2", "--tensor-parallel-size=2"],
            "data-parallel-size=2 times tensor-parallel-size=2 is above the 2 GPUs that this process sees: give it more, or lower \
             them, so that their product is 2 or less",
        ),
    ] {
        let results = TempDir::new().unwrap();
        let finished = gpu_job(&results).args(words).env("STAND_IN_DEVICES", "2").run().expect_code(2);
        assert!(finished.stderr.contains(sentence), "{}", finished.stderr);
    }
}

/// A GPU that is lost while others go on ends the job, and what was answered before is written, whoever answered it.
#[test]
fn a_lost_gpu_ends_the_job_of_all_engines_with_partial_results() {
    let results = TempDir::new().unwrap();
    let finished = job_of(64, "cuda", &results)
        .args([
            "--max-model-len=64",
            "--max-num-seqs=8",
            "--metrics-linger-seconds=0",
            "--measure-limits=false",
            "--warmup=0",
        ])
        .env("STAND_IN_DEVICES", "2")
        .env("STAND_IN_FAIL", "cuGraphLaunch:12")
        .run();
    assert_eq!(finished.code(), Some(5), "{finished}");
    assert!(finished.stderr.contains("replay a step"), "{}", finished.stderr);
    let result = result(&results);
    assert_eq!(result["status"], "failed", "{result}");
    let measurement = &result["measurement"];
    assert_eq!(measurement["complete"], false);
    let requests = std::fs::read_to_string(results.path().join("out/requests.jsonl")).unwrap();
    assert_eq!(requests.lines().count(), 64);
    let answered = requests.lines().filter(|line| line.contains(r#""finish_reason":"length""#)).count();
    assert!((8..56).contains(&answered), "{answered} of 64 were answered");
}

/// Where the system refuses the cache that was planned, a smaller one does.
#[test]
fn a_cache_that_is_refused_is_asked_for_in_a_smaller_size() {
    let results = TempDir::new().unwrap();
    // The job writes to its own directories alone.
    let trace = results.path().join("out/trace");
    gpu_job(&results).env("STAND_IN_TRACE", &trace).run().expect_code(0);
    let blocks = |results: &TempDir| result(results)["backend"]["engine"]["kv_blocks"].as_u64().unwrap();
    let planned = blocks(&results);
    let text = std::fs::read_to_string(&trace).unwrap();
    let allocations: Vec<&str> = text.lines().filter(|line| line.starts_with("allocate ")).collect();
    // Keys and values of two layers, in a cache of nothing but the spare block and then in the one that is planned.
    let of_cache = allocations.len() - 3;
    let again = TempDir::new().unwrap();
    let failure = format!("cuMemAllocAsync:{of_cache}:2");
    gpu_job(&again).env("STAND_IN_FAIL", &failure).run().expect_code(0);
    assert_eq!(blocks(&again), planned - planned.div_ceil(16), "{failure}: {allocations:?}");
}

/// The cache gets what is left once everything has been used once: of a process of its own, as the stand-in's memory is.
#[test]
fn the_cache_is_sized_by_what_computing_was_seen_to_take() {
    let engine = |share: &str| {
        let results = TempDir::new().unwrap();
        of_any_length("cuda", &results)
            .args(["--metrics-linger-seconds=0", "--measure-limits=false", "--max-model-len=512", "--max-num-seqs=64"])
            .args(["--gpu-memory-utilization", share])
            .run()
            .expect_code(0);
        result(&results)["backend"]["engine"].clone()
    };
    let (more, less) = (engine("0.006"), engine("0.005"));
    let cache = |engine: &serde_json::Value| engine["kv_cache_bytes"].as_u64().unwrap();
    // What the stand-in has, but for the memory that cuBLAS computes in; and rounded down to blocks.
    let free_bytes = (1u64 << 30) - (32 << 20);
    let difference = cache(&more) - cache(&less);
    assert!(difference.abs_diff(free_bytes / 1000) < 1 << 15, "{difference} of {free_bytes}: {more}");
    assert!(cache(&more) + more["cost"]["weight_bytes"].as_u64().unwrap() < free_bytes * 6 / 1000, "{more}");
}

#[test]
fn check_says_that_a_driver_or_a_gpu_is_too_old() {
    for (variable, value, sentence) in
        [("STAND_IN_CUDA", "12080", "made for CUDA 12.8"), ("STAND_IN_CAPABILITY", "75", "compute capability 7.5")]
    {
        for device in ["cuda", "auto"] {
            let results = TempDir::new().unwrap();
            let job = Process::flashjob().args(["check", "--model=any", "--metrics-port=0", "--device", device]);
            let finished = job
                .args(["--results-dir".into(), results.path().join("out")])
                .env("LD_LIBRARY_PATH", std::env::var("LD_LIBRARY_PATH").unwrap())
                .env(variable, value)
                .run()
                .expect_code(2);
            assert!(finished.stdout.contains(sentence), "{variable}={value} device={device}: {}", finished.stdout);
        }
    }
}

/// A container that was given a GPU is not to compute on its CPU unless told to.
#[test]
fn a_gpu_that_was_given_and_cannot_be_used_is_refused_unless_the_cpu_is_asked_for() {
    let given = |device: &str, results: &TempDir| {
        job_on(device, results).env("STAND_IN_DEVICES", "0").env("NVIDIA_VISIBLE_DEVICES", "GPU-5ad4")
    };
    let results = TempDir::new().unwrap();
    let finished = given("auto", &results).run().expect_code(2);
    for part in ["device=auto takes no CPU", "NVIDIA_VISIBLE_DEVICES is GPU-5ad4", "no CUDA driver", "device=cpu"] {
        assert!(finished.stderr.contains(part), "no {part}: {}", finished.stderr);
    }
    let results = TempDir::new().unwrap();
    given("cpu", &results).run().expect_code(0);
}

/// Sums of ranks that are wrong, or that never come: nothing is computed with them.
#[test]
fn sums_over_gpus_are_tried_on_known_numbers_before_they_are_used() {
    for (variable, value, sentence) in [
        ("STAND_IN_WRONG", "all-reduce", "got 16 at place 131072, where 15 is right"),
        ("STAND_IN_FAIL", "all-reduce:1:hang", "not all GPUs had the sum after 10 s"),
    ] {
        let results = TempDir::new().unwrap();
        let finished = gpu_job(&results)
            .args(["--tensor-parallel-size=2"])
            .env("STAND_IN_DEVICES", "2")
            .env(variable, value)
            .run()
            .expect_code(4);
        for part in ["sums over GPUs (NCCL)", sentence] {
            assert!(finished.stderr.contains(part), "{variable}={value}, no {part}: {}", finished.stderr);
        }
    }
}

/// A wait for the GPU that never ends: the step that hangs is named, and what was measured before is kept.
#[test]
fn a_step_that_never_ends_ends_the_job_and_the_result_has_what_was_there() {
    let results = TempDir::new().unwrap();
    let finished = gpu_job(&results)
        .args(["--step-timeout-seconds=1", "--warmup=0"])
        .env("STAND_IN_FAIL", "cuGraphLaunch:2:hang")
        .run()
        .expect_code(5);
    for part in ["a step of the engine did not end within 1 s", "phase measure", "2 decoding sequences", "NVML reports"]
    {
        assert!(finished.stderr.contains(part), "no {part}: {}", finished.stderr);
    }
    let result = result(&results);
    assert_eq!((&result["status"], &result["exit_code"]), (&"failed".into(), &5.into()), "{result}");
    // A step for the prompts and one that decodes. The next one's tokens were not read yet when the one after it hung.
    let measurement = &result["measurement"];
    assert_eq!((&measurement["complete"], &measurement["steps"]), (&false.into(), &2.into()), "{result}");
}

/// A retry may land on the same GPU: its faults stand in the message.
#[test]
fn after_a_failure_nvml_is_asked_and_the_gpu_is_named() {
    let gpu = "GPU 0 (GPU-00000000-0000-0000-0000-000000000001, Stand-in)";
    for (variables, expected) in [
        (&[][..], format!("NVML reports no fault of {gpu}")),
        (
            &[("STAND_IN_XID", "79"), ("STAND_IN_ECC", "2"), ("STAND_IN_REMAPPING", "1")],
            format!(
                "NVML reports {gpu}: Xid 79: the GPU has fallen off the bus, 2 uncorrected ECC errors, broken rows of its \
                 memory are replaced at the next reset"
            ),
        ),
    ] {
        let results = TempDir::new().unwrap();
        let job = gpu_job(&results).env("STAND_IN_FAIL", "cuGraphLaunch:2");
        let finished = variables.iter().fold(job, |job, (name, value)| job.env(name, value)).run().expect_code(5);
        assert!(finished.stderr.contains(&expected), "no {expected}: {}", finished.stderr);
        assert!(result(&results)["error"].as_str().unwrap().contains(gpu));
    }
}
