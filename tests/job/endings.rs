//! Exit codes other than 0, each with the sentence that explains it.

use tempfile::TempDir;

use super::{job, job_without_model, result, tiny_model};
use crate::support::Flashjob as _;
use crate::support::process::Process;

#[test]
fn configuration_errors_end_with_2_before_anything_is_made() {
    let results = TempDir::new().unwrap();
    for (arguments, sentence) in [
        (vec!["--input-len=0"], "input-len"),
        (vec!["--no-such-flag=1"], "no-such-flag"),
        (vec!["--dtype=int3"], "int3"),
    ] {
        let finished = job(&results).args(arguments).run().expect_code(2);
        assert!(finished.stderr.contains(sentence), "{}", finished.stderr);
        assert!(!results.path().join("out").exists());
    }
}

#[test]
fn an_engine_that_is_not_there_ends_with_2_and_is_never_replaced() {
    for (backend, name) in [("vllm", "vLLM"), ("sglang", "SGLang")] {
        let results = TempDir::new().unwrap();
        let finished = job(&results).args(["--backend", backend]).env("PATH", "/nonexistent").run().expect_code(2);
        assert!(finished.stderr.contains(&format!("this image has no {name}")), "{}", finished.stderr);
        let result = result(&results);
        assert_eq!((&result["status"], &result["exit_code"]), (&"failed".into(), &2.into()));
        assert!(result["backend"].is_null());
    }
}

#[test]
fn more_ranks_than_the_machine_has_end_with_2_naming_both_numbers() {
    let results = TempDir::new().unwrap();
    let finished = job(&results).args(["--tensor-parallel-size=300"]).run().expect_code(2);
    let most = std::thread::available_parallelism().unwrap().get().max(16);
    let expected = format!("tensor-parallel-size=300 is above the {most} ranks");
    assert!(finished.stderr.contains(&expected), "{}", finished.stderr);
}

/// On the CPU too: what hangs there is another rank or the machine.
#[test]
fn a_step_that_takes_longer_than_its_limit_ends_with_5_and_is_described() {
    let results = TempDir::new().unwrap();
    let long = ["--input-len=400", "--output-len=4", "--num-prompts=64", "--max-num-batched-tokens=25600"];
    let finished = job(&results).args(long).args(["--warmup=0", "--step-timeout-seconds=0.001"]).run().expect_code(5);
    for part in ["a step of the engine did not end within 0.001 s", "phase measure", "25600 prompt tokens"] {
        assert!(finished.stderr.contains(part), "no {part}: {}", finished.stderr);
    }
    let result = result(&results);
    assert_eq!((&result["status"], &result["exit_code"]), (&"failed".into(), &5.into()));
}

/// A build without GPU support, in a container that was given a GPU, does not compute on the CPU as if nothing were wrong.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_gpu_support_that_was_given_a_gpu_ends_with_2_unless_the_cpu_is_asked_for() {
    let results = TempDir::new().unwrap();
    let finished = job(&results).env("DEVICE", "auto").env("NVIDIA_VISIBLE_DEVICES", "all").run().expect_code(2);
    for part in ["NVIDIA_VISIBLE_DEVICES is all", "built without GPU support", "the image `cuda`", "device=cpu"] {
        assert!(finished.stderr.contains(part), "no {part}: {}", finished.stderr);
    }
    let results = TempDir::new().unwrap();
    job(&results).args(["--output-len=2"]).env("NVIDIA_VISIBLE_DEVICES", "all").run().expect_code(0);
}

#[test]
fn models_that_cannot_be_loaded_end_with_4() {
    let folder = TempDir::new().unwrap();
    let broken = |name: &str, spoil: &dyn Fn(&std::path::Path)| {
        let copy = folder.path().join(name);
        std::fs::create_dir(&copy).unwrap();
        for file in std::fs::read_dir(tiny_model()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        spoil(&copy);
        copy.display().to_string()
    };
    let replace = |from: &'static str, to: &'static str| {
        move |copy: &std::path::Path| {
            let path = copy.join("config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(&path, text.replace(from, to)).unwrap();
        }
    };
    for (model, sentence) in [
        ("/nonexistent/model".to_owned(), "looked for /nonexistent/model"),
        (broken("architecture", &replace("LlamaForCausalLM", "MambaForCausalLM")), "MambaForCausalLM"),
        (broken("weights", &|copy| std::fs::remove_file(copy.join("model.safetensors")).unwrap()), "model.safetensors"),
        (broken("json", &|copy| std::fs::write(copy.join("config.json"), "{").unwrap()), "config.json"),
        (
            broken("truncated", &|copy| {
                let file = std::fs::OpenOptions::new().write(true).open(copy.join("model.safetensors")).unwrap();
                file.set_len(1000).unwrap();
            }),
            "model.safetensors",
        ),
    ] {
        let results = TempDir::new().unwrap();
        let finished = job_without_model(&results).args(["--num-prompts=1", "--model", &model]).run().expect_code(4);
        assert!(finished.stderr.contains(sentence), "{model}: {}", finished.stderr);
        assert!(result(&results)["error"].as_str().unwrap().contains(sentence));
    }
}

#[test]
fn results_that_cannot_be_written_end_with_1_and_are_in_the_log() {
    let results = TempDir::new().unwrap();
    let mut running = job(&results).args(["--input-len=8", "--output-len=480", "--num-prompts=300"]).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    std::fs::remove_dir_all(results.path().join("out")).unwrap();
    let finished = running.wait().expect_code(1);
    let line = finished.stderr.lines().find(|line| line.contains("this line has the result")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let result: serde_json::Value = serde_json::from_str(line["result"].as_str().unwrap()).unwrap();
    assert_eq!((&result["exit_code"], &result["num_requests"]), (&1.into(), &300.into()));
}

#[test]
fn a_cache_that_holds_no_sequence_ends_with_4_and_says_how_much_is_needed() {
    let results = TempDir::new().unwrap();
    let finished = job(&results).args(["--kv-cache-memory=1"]).run().expect_code(4);
    assert!(finished.stderr.contains("needs"), "{}", finished.stderr);
}

#[test]
fn weights_that_are_not_numbers_end_with_5_or_with_4_where_they_are_looked_at() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    // The last tensor's last bytes become NaN in any float format.
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 64..].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    for (arguments, code, sentence) in [(vec![], 5, "not finite"), (vec!["--validate-weights=true"], 4, "NaN")] {
        let results = TempDir::new().unwrap();
        let finished = job_without_model(&results)
            .args(["--num-prompts=1".into(), "--model".into(), model.as_os_str().to_owned()])
            .args(arguments)
            .run()
            .expect_code(code);
        assert!(finished.stderr.contains(sentence), "{}", finished.stderr);
        assert_eq!(result(&results)["exit_code"], code);
    }
}

#[test]
fn a_bucket_that_is_not_there_ends_with_3_and_the_token_stays_secret() {
    let results = TempDir::new().unwrap();
    let location = results.path().join("models");
    let port = crate::support::process::free_port();
    let finished = job(&results)
        .args(["--par", &format!("http://127.0.0.1:{port}/p/s3cr3t-token/n/ns/b/bucket/o/")])
        .args(["--mount-location", &location.display().to_string(), "--storage-timeout=1"])
        .run()
        .expect_code(3);
    let leaked = [&finished.stderr, &finished.stdout, &result(&results).to_string()]
        .iter()
        .any(|text| text.contains("s3cr3t-token"));
    assert!(!leaked, "{}", finished.stderr);
    assert!(finished.stderr.contains("could not list objects in bucket `bucket`"), "{}", finished.stderr);
    assert!(result(&results).to_string().contains("/p/<redacted>/n/ns/b/bucket/o/"));
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&location.display().to_string()), "{mounts}");
}

#[test]
fn tracking_that_is_not_there_ends_with_6_and_the_result_is_spooled() {
    let results = TempDir::new().unwrap();
    let port = crate::support::process::free_port();
    let finished = job(&results)
        .args([
            "--input-len=4",
            "--output-len=2",
            "--num-prompts=2",
            "--mlflow-uri",
            &format!("http://127.0.0.1:{port}"),
        ])
        .run()
        .expect_code(6);
    assert!(finished.stderr.contains("flashjob publish"), "{}", finished.stderr);
    let result = result(&results);
    assert_eq!((&result["status"], &result["exit_code"]), (&"finished".into(), &6.into()));
}

#[test]
fn check_shows_the_job_and_everything_that_would_fail_without_doing_any_of_it() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("occupied"), "a file").unwrap();
    let finished = Process::flashjob()
        .args(["check", "--model=tiny", "--backend=vllm", "--metrics-port=0"])
        .args(["--par", "https://objectstorage.example.com/p/s3cr3t-token/n/ns/b/models/o/"])
        .args(["--mount-location", &folder.path().join("occupied").display().to_string()])
        .args(["--results-dir", &folder.path().join("out").display().to_string()])
        .env("PATH", "/nonexistent")
        .run()
        .expect_code(2);
    assert!(finished.stdout.contains("/p/<redacted>/n/ns/b/models/o/") && !finished.stdout.contains("s3cr3t-token"));
    let problems: Vec<&str> = finished.stdout.lines().filter(|line| line.starts_with("would fail: ")).collect();
    assert_eq!(problems.len(), 2, "{}", finished.stdout);
    assert!(problems[0].contains("this image has no vLLM") && problems[1].contains("occupied"), "{problems:?}");
    assert!(!folder.path().join("out").exists());
}
