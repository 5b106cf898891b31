//! Blueprints: one file, and the three ways in which its values arrive.

use std::path::Path;

use flashjob_config::{BackendKind, DtypeChoice, JobConfig};
use serde_json::Value;

use super::{errors, job, job_with, setting};

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(flashjob_test_support::project().join("samples").join(name)).unwrap()
}

/// The values of the sample, whichever way they came.
fn assert_is_the_sample(job: &JobConfig) {
    assert_eq!(job.backend, BackendKind::Candle);
    assert_eq!(job.model.0, Path::new("HuggingFaceTB/SmolLM2-135M-Instruct"));
    assert_eq!(job.tokenizer, job.model);
    assert_eq!((job.workload.input_len.get(), job.workload.output_len.get()), (256, 32));
    assert_eq!(job.workload.num_prompts.map(usize::from), Some(16));
    assert_eq!(job.engine.tensor_parallel_size.map(usize::from), Some(1));
    assert_eq!(job.engine.max_model_len.map(usize::from), Some(1024));
    assert_eq!(job.engine.dtype, DtypeChoice::Bfloat16);
    let tracking = job.tracking.as_ref().unwrap();
    assert_eq!(tracking.uri.as_str(), "https://mlflow.example.com/");
    assert_eq!((tracking.experiment.as_str(), tracking.run_name.as_deref()), ("smollm2", Some("one-a10")));
}

/// The variables that the sample's container gets.
fn variables() -> Vec<(String, String)> {
    let blueprint: Value = serde_json::from_slice(&sample("offline-benchmark.json")).unwrap();
    let entries = blueprint["recipe_container_env"].as_array().unwrap();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let variables: Vec<(String, String)> =
        entries.iter().map(|entry| (text(&entry["key"]), text(&entry["value"]))).collect();
    let model = variables.iter().find(|(key, _)| key == "model").unwrap().1.clone();
    variables.into_iter().map(|(key, value)| (key, value.replace("$(model)", &model))).collect()
}

#[test]
fn a_whole_file_is_read() {
    let job = job_with(&["--blueprint=b.json"], &[], &[("b.json", &sample("offline-benchmark.json"))]);
    assert_is_the_sample(&job);
    let [input] = job.inputs.as_slice() else { panic!("{:?}", job.inputs) };
    assert_eq!(input.location, Path::new("/weights"));
    assert_eq!(input.volume_bytes, Some(50_000_000_000));
    assert_eq!(input.include, ["HuggingFaceTB/SmolLM2-135M-Instruct"]);
    assert_eq!(input.par.as_ref().map(|par| par.bucket()), Some("weights"));
    assert_eq!(job.telemetry.metrics_address.port(), 9100);
    assert_eq!(setting(&job, "metrics-port"), "metrics-port = 9100 (blueprint recipe_container_port)");
    assert_eq!(setting(&job, "mount-location"), "mount-location = /weights (blueprint input_object_storage)");
}

#[test]
fn its_values_arrive_as_variables() {
    let variables = variables();
    let borrowed: Vec<(&str, &str)> = variables.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_is_the_sample(&job(&[], &borrowed));
}

#[test]
fn its_values_arrive_as_arguments_that_kubernetes_filled_in() {
    let variables = variables();
    let words: Vec<String> = variables.iter().flat_map(|(key, value)| [format!("--{key}"), value.clone()]).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_is_the_sample(&job(&words, &[]));
    let borrowed: Vec<(&str, &str)> = variables.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_is_the_sample(&job(&words, &borrowed));
}

#[test]
fn a_part_of_it_can_be_overridden() {
    let words = ["--blueprint=b", "--mlflow-uri=none", "--tensor-parallel-size=1", "--device=cpu"];
    let job = job_with(&words, &[("num_prompts", "3")], &[("b", &sample("offline-benchmark.json"))]);
    assert!(job.tracking.is_none());
    assert_eq!(job.engine.tensor_parallel_size.map(usize::from), Some(1));
    assert_eq!(job.workload.num_prompts.map(usize::from), Some(3));
}

#[test]
fn more_ranks_than_gpus_are_refused_except_on_the_cpu() {
    let sample = sample("offline-benchmark.json");
    let words = ["--blueprint=b", "--tensor-parallel-size=4"];
    assert_eq!(
        errors(&words, &[], &[("b", &sample)]),
        ["tensor-parallel-size is 4, above recipe-nvidia-gpu-count, which is 1; each rank needs a GPU of its own"]
    );
    job_with(&["--blueprint=b", "--tensor-parallel-size=4", "--device=cpu"], &[], &[("b", &sample)]);
}

#[test]
fn a_node_pool_is_recognised() {
    let said = errors(&["--blueprint=pool.json", "--model=m"], &[], &[("pool.json", &sample("shared-node-pool.json"))]);
    assert_eq!(
        said,
        [
            "the blueprint `pool.json` creates a shared node pool and runs nothing (recipe_mode `shared_node_pool`); deploy \
          it in the portal, then give the blueprint of the job that is to run on that pool"
        ]
    );
}

/// Each row: the file, and the only sentence.
#[test]
fn what_is_no_job_is_refused() {
    let job = |fields: &str| format!(r#"{{"recipe_mode": "job", {fields}}}"#).into_bytes();
    let table: Vec<(Vec<u8>, &str)> = vec![
        (b"nope".to_vec(), "is not JSON: expected ident at line 1 column 2"),
        (b"".to_vec(), "is not JSON: EOF while parsing a value at line 1 column 0"),
        (b"{\"\xff\"".to_vec(), "is not UTF-8 text; give the JSON file itself"),
        (b"[]".to_vec(), "is not a JSON object; give the JSON that the recipe is deployed with"),
        (b"{}".to_vec(), "has no recipe_mode; one that flashjob can run has `\"recipe_mode\": \"job\"`"),
        (
            br#"{"recipe_mode": "service"}"#.to_vec(),
            "has recipe_mode `service`, but flashjob runs blueprints of mode `job`",
        ),
        (br#"{"deployment_group": {}}"#.to_vec(), "holds several recipes; give a file with one of them"),
        (
            job(r#""recipe_container_env": [{"key": "seed"}]"#),
            "does not have the shape of an AI Blueprints file: missing field `value`",
        ),
        (
            job(r#""recipe_container_env": "seed""#),
            "does not have the shape of an AI Blueprints file: invalid type: string \"seed\", expected a sequence",
        ),
        (
            job(r#""recipe_container_command_args": ["--modell", "x"]"#),
            "has a wrong recipe_container_command_args: --modell is not a flag of flashjob; did you mean --model?",
        ),
        (
            job(r#""recipe_container_command_args": ["--blueprint", "x"]"#),
            "has a wrong recipe_container_command_args: its command must be a run without another blueprint",
        ),
    ];
    for (file, problem) in table {
        let said = errors(&["--blueprint=b", "--model=m"], &[], &[("b", &file)]);
        assert_eq!(said, [format!("the blueprint `b` {problem}")], "{}", String::from_utf8_lossy(&file));
    }
}

#[test]
fn wrong_values_name_their_place_in_the_file() {
    let file = br#"{"recipe_mode": "job", "recipe_nvidia_gpu_count": "two", "recipe_container_env": [
        {"key": "seed", "value": 1}, {"key": "SEED", "value": 2}, {"key": "warmup", "value": "x"}],
        "recipe_container_command_args": ["run", "--model", "$(model)", "--input-len", "$(warmup)"]}"#;
    let said = errors(&["--blueprint=b"], &[], &[("b", file)]);
    assert_eq!(
        said,
        [
            "seed is given twice with different values: `1` (blueprint recipe_container_env seed) and `2` (blueprint \
             recipe_container_env SEED); keep one of them",
            "model is the unresolved reference `$(model)` (blueprint recipe_container_command_args): recipe_container_env \
             has no `model`; add it there, or write the value itself",
            "input-len is `x` (blueprint recipe_container_command_args), but it must be a whole number from 1 to \
             2147483647",
            "warmup is `x` (blueprint recipe_container_env warmup), but it must be a whole number from 0 to 2147483647, or auto",
            "recipe-nvidia-gpu-count is `two` (blueprint recipe_nvidia_gpu_count), but it must be a whole number from 0 to \
             2147483647",
        ]
    );
}
