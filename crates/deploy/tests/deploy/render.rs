//! `flashjob render`: every key is used or listed, and real tools take what comes out.

use std::process::Command;

use flashjob_deploy::{Format, RenderError, Rendered, render};
use serde_json::{Value, json};

use super::{SCHEMA, everything, judges, seed, yaml};
use crate::support::kubernetes as semantics;
use crate::support::process::{Process, installed};

fn rendered(text: &str, format: Format) -> Rendered {
    render(text, format).unwrap_or_else(|error| panic!("{error:?}"))
}

/// Counterparts of the keys of `everything`: in a Job, in a compose file, in a `docker run`. `-` stands for those
/// listed as left out.
const COUNTERPARTS: [(&str, &str, &str, &str); 31] = [
    (
        "recipe_id",
        "flashjob/recipe-id: \"offline-benchmark-vllm\"",
        "flashjob.recipe-id",
        "flashjob.recipe-id=offline-benchmark-vllm",
    ),
    ("recipe_mode", "kind: \"Job\"", "services:", "docker run"),
    ("deployment_name", "name: \"offline-benchmark-vllm\"", "offline-benchmark-vllm:", "--name offline-benchmark-vllm"),
    (
        "recipe_image_uri",
        "image: \"registry.example.com/team/benchmark:llm-bm-offline-082025-v1\"",
        "image: \"registry",
        "registry.example.com/team/benchmark:llm",
    ),
    ("recipe_node_shape", "node.kubernetes.io/instance-type: \"VM.GPU.A10.2\"", "-", "-"),
    ("recipe_node_selector_arch", "kubernetes.io/arch: \"amd64\"", "-", "-"),
    ("recipe_node_name", "kubernetes.io/hostname: \"x1\"", "-", "-"),
    ("recipe_container_env", "name: \"input-len\"", "input-len: \"12\"", "--env input-len=12"),
    ("recipe_container_command", "- \"/flashjob\"", "entrypoint:", "--entrypoint /flashjob"),
    (
        "recipe_container_command_args",
        "- \"$(tensor-parallel-size)\"",
        "- \"--tensor-parallel-size\"\n      - \"2\"",
        "--tensor-parallel-size 2",
    ),
    ("recipe_container_command_use_shell", "- \"/flashjob\"", "entrypoint:", "--entrypoint /flashjob"),
    ("recipe_container_port", "containerPort: 8000", "8080:8000", "--publish 8080:8000"),
    ("recipe_host_port", "-", "8080:8000", "--publish 8080:8000"),
    ("recipe_nvidia_gpu_count", "nvidia.com/gpu: \"2\"", "driver: \"nvidia\"", "--gpus 2"),
    ("recipe_amd_gpu_count", "amd.com/gpu: \"2\"", "-", "-"),
    ("mig_resource_request", "nvidia.com/mig-1g.10gb: \"1\"", "-", "-"),
    (
        "recipe_shared_memory_volume_size_limit_in_mb",
        "sizeLimit: \"32000M\"",
        "shm_size: 32000000000",
        "--shm-size 32000000000",
    ),
    ("recipe_ephemeral_storage_size", "ephemeral-storage: \"100G\"", "-", "-"),
    ("recipe_container_memory_size", "memory: \"2G\"", "mem_limit: 2000000000", "--memory 2000000000"),
    ("recipe_container_cpu_count", "cpu: \"2\"", "cpus: 2", "--cpus 2"),
    ("recipe_replica_count", "completions: 3", "replica_count: \"1\"", "replica_count=1"),
    ("input_object_storage", "mountPath: \"/models\"", "input_object_storage:", "--env 'input_object_storage="),
    ("output_object_storage", "mountPath: \"/results-bucket\"", ":/results-bucket", ":/results-bucket"),
    ("local_filesystem", "path: \"/mnt/nvme\"", "/mnt/nvme:/nvme", "--volume /mnt/nvme:/nvme"),
    (
        "recipe_environment_secrets",
        "key: \"password\"",
        "${MLFLOW_TRACKING_PASSWORD:?",
        "--env MLFLOW_TRACKING_PASSWORD",
    ),
    ("recipe_container_secret_name", "imagePullSecrets:", "-", "-"),
    ("recipe_liveness_probe_params", "livenessProbe:", "-", "-"),
    ("recipe_readiness_probe_params", "readinessProbe:", "-", "-"),
    ("recipe_startup_probe_params", "startupProbe:", "-", "-"),
    ("recipe_prometheus_enabled", "prometheus.io/scrape: \"true\"", "-", "-"),
    ("recipe_node_pool_size", "-", "-", "-"),
];

#[test]
fn every_key_of_the_schema_is_used_or_listed() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let recipe = everything().to_string();
    for format in [Format::Job, Format::Compose, Format::Docker] {
        let Rendered { text, left_out } = rendered(&recipe, format);
        for key in schema["$defs"]["recipe_payload"]["properties"].as_object().unwrap().keys() {
            let listed = left_out.iter().any(|left_out| left_out.key == *key);
            let counterpart =
                COUNTERPARTS.iter().find(|(known, ..)| known == key).map(|(_, job, compose, docker)| match format {
                    Format::Job => *job,
                    Format::Compose => *compose,
                    Format::Docker => *docker,
                });
            match counterpart {
                None | Some("-") => {
                    assert!(listed, "{format:?}: {key} is neither used nor listed");
                    assert!(text.contains(&format!("#   {key} (line 1) = ")), "{format:?}: {key}\n{text}");
                }
                Some(snippet) => {
                    assert!(text.contains(snippet), "{format:?}: {key} does not show as {snippet}\n{text}")
                }
            }
        }
        assert!(!left_out.iter().any(|left_out| left_out.key == "recipe_mode"), "the mode is what is made");
        // What is used in part is listed for the rest.
        for (key, word) in
            [("input_object_storage", "the bucket ours"), ("output_object_storage", "to the bucket results")]
        {
            assert!(
                left_out.iter().any(|left_out| left_out.key == key && left_out.reason.contains(word)),
                "{left_out:?}"
            );
        }
        let comments: String = text.lines().filter(|line| line.starts_with('#')).collect();
        assert!(!comments.contains("EXAMPLE-TOKEN") && !comments.contains("s3cr3t"), "{comments}");
    }
}

#[test]
fn a_job_is_taken_by_kubernetes_and_keeps_its_secret_apart() {
    let Some(judges) = judges() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (name, recipe) in [("seed", seed("offline-benchmark-blueprint.json")), ("everything", everything().to_string())]
    {
        let text = rendered(&recipe, Format::Job).text;
        let file = folder.path().join(format!("{name}.yaml"));
        std::fs::write(&file, &text).unwrap();
        let output = Command::new(judges.join("bin/kubernetes-validate")).arg("--strict").arg(&file).output().unwrap();
        assert!(
            output.status.success(),
            "{}{}\n{text}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let documents = yaml(&judges, &text);
        assert_eq!(semantics::wrong(&documents), Vec::<String>::new(), "{text}");
        let kinds: Vec<&str> = documents.iter().filter_map(|document| document["kind"].as_str()).collect();
        assert_eq!(kinds, ["Secret", "Job"]);
        assert!(documents[0]["stringData"]["input_object_storage"].as_str().unwrap().contains("/p/EXAMPLE-TOKEN/"));
        assert!(!documents[1].to_string().contains("EXAMPLE-TOKEN"), "{}", documents[1]);
    }
}

#[test]
fn a_compose_file_is_taken_by_docker_compose() {
    let Some(program) = installed("docker-compose", "docker-compose") else { return };
    let folder = tempfile::tempdir().unwrap();
    for recipe in [seed("offline-benchmark-blueprint.json"), everything().to_string()] {
        let file = folder.path().join("docker-compose.yml");
        std::fs::write(&file, rendered(&recipe, Format::Compose).text).unwrap();
        let config = Process::new(&program)
            .args(["--file".into(), file.display().to_string(), "config".into()])
            .env("MLFLOW_TRACKING_PASSWORD", "p$ss")
            .env("HOME", folder.path())
            .run()
            .expect_code(0);
        assert!(config.stdout.contains("tensor-parallel-size"), "{config}");
    }
}

/// The words that a container would be started with, seen by a program in docker's place that writes them down.
#[test]
fn a_docker_script_says_exactly_what_the_blueprint_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = everything();
    let awkward = "it's \"a $HOME\" `x` \\ $(nothing) ü";
    recipe["recipe_container_env"].as_array_mut().unwrap().push(json!({"key": "awkward", "value": awkward}));
    let script = folder.path().join("run.sh");
    std::fs::write(&script, rendered(&recipe.to_string(), Format::Docker).text).unwrap();
    let docker = folder.path().join("docker");
    std::fs::write(&docker, "#!/bin/sh\nprintf '%s\\0' \"$@\"\n").unwrap();
    std::fs::set_permissions(&docker, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let finished = Process::new("/bin/sh").args([&script]).env("PATH", path).run().expect_code(0);
    let words: Vec<&str> = finished.stdout.split('\0').collect();
    assert!(words.contains(&format!("awkward={awkward}").as_str()), "{words:?}");
    let image = words.iter().position(|word| word.starts_with("registry.example.com/")).unwrap();
    let last: Vec<&str> = words[image + 1..].iter().copied().filter(|word| !word.is_empty()).collect();
    assert_eq!(last[..4], ["--backend", "vllm", "--model", "NousResearch/Meta-Llama-3.1-8B"]);
    assert_eq!(last.len(), 24);
}

#[test]
fn what_is_no_job_is_explained() {
    for (text, expected) in [
        (
            seed("shared_node_pool_a10.json"),
            "makes a shared node pool (1 of \"VM.GPU.A10.2\", selected as \"shared_pool\") and runs nothing",
        ),
        (json!({"recipe_mode": "service", "deployment_name": "d"}).to_string(), "has the mode `service`"),
        (
            json!({"blueprint_category": "other", "deployment_group": {"name": "g", "deployments": []}}).to_string(),
            "holds several recipes",
        ),
    ] {
        match render(&text, Format::Job) {
            Err(RenderError::NothingToRun(sentence)) => assert!(sentence.contains(expected), "{sentence}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(render("{", Format::Job), Err(RenderError::Unsound(_))));
}

#[test]
fn names_are_made_fit() {
    let judges = judges();
    for (given, expected) in [
        ("VM A10 / test", "vm-a10---test"),
        ("8 GPUs", "job-8-gpus"),
        ("__", "job"),
        (&"x".repeat(80), &"x".repeat(50)),
    ] {
        let recipe = json!({"recipe_mode": "job", "deployment_name": given, "recipe_image_uri": "i"}).to_string();
        let Some(judges) = &judges else { return };
        let documents = yaml(judges, &rendered(&recipe, Format::Job).text);
        assert_eq!(documents[0]["metadata"]["name"], expected);
    }
}
