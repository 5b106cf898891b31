//! The Job's pod template, lifted into a Pod and run for real by `podman play kube`: without privileges and through FUSE,
//! with its memory limit, its termination message and its exit code.
//!
//! What a Pod of podman's cannot have is put in its place: values of the cluster's Secret and of the downward API, a
//! directory of this machine for results, and the file that a kubelet would make for the termination message.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{kubectl, kustomized, of_kind};
use crate::support::bucket_server::BucketServer;
use crate::support::manifests::{judges, yaml};
use crate::support::mlflow_server;
use crate::support::process::{installed, skip};
use crate::support::workplace::Workplace;

/// A podman with a store of its own, and the image in it.
struct Podman {
    workplace: Workplace,
}

/// The store, made once; `None` where there is no podman that works (and the test says so).
fn podman() -> Option<&'static Podman> {
    static PODMAN: OnceLock<Option<Podman>> = OnceLock::new();
    PODMAN.get_or_init(Podman::prepare).as_ref()
}

impl Podman {
    fn prepare() -> Option<Self> {
        installed("podman", "podman")?;
        installed("runc", "runc")?;
        installed("catatonit", "catatonit")?;
        let workplace =
            Workplace::ended_by(r#"podman --root "$1/root" --runroot "$1/runroot" pod rm --all --force --time 0"#);
        let place = workplace.path();
        // A runtime that takes every kind of control groups, and limits that need no privilege to be set.
        std::fs::write(
            place.join("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\npids_limit = 0\n[engine]\n\
             runtime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
        )
        .unwrap();
        let context = place.join("context");
        std::fs::create_dir(&context).unwrap();
        let stripped = Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(context.join("flashjob"))
            .arg(env!("CARGO_BIN_EXE_flashjob"))
            .status()
            .unwrap();
        assert!(stripped.success());
        let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile");
        let podman = Self { workplace };
        let mut build =
            podman.command(&["build", "--quiet", "--isolation=chroot", "--target=cpu", "--tag=flashjob:play"]);
        let built = build.arg("--file").arg(dockerfile).arg(&context).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        // Containers need more rights than images do.
        let tried = podman.output(&["run", "--rm", "--network=host", "localhost/flashjob:play", "--version"]);
        if !tried.status.success() {
            skip(&format!("podman cannot run a container here: {}", String::from_utf8_lossy(&tried.stderr)));
            return None;
        }
        Some(podman)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        let place = self.workplace.path();
        command.arg("--root").arg(place.join("root")).arg("--runroot").arg(place.join("runroot"));
        command.args(arguments).env("CONTAINERS_CONF", place.join("containers.conf"));
        // An image's name must not be taken for a directory of the project.
        command.current_dir(place);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

/// How a pod ended.
struct Ended {
    code: i64,
    message: Value,
    result: Value,
    log: String,
}

/// A pod of an overlay with its own results, which may be run more than once.
struct Pod<'a> {
    name: String,
    overlay: &'a str,
    results: TempDir,
    values: Vec<(&'a str, String)>,
    memory: &'a str,
}

impl<'a> Pod<'a> {
    fn of(overlay: &'a str, values: &[(&'a str, &str)]) -> Self {
        let results = TempDir::new().unwrap();
        std::fs::set_permissions(results.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let values = values.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { name: format!("play-{:08x}", rand::random::<u32>()), overlay, results, values, memory: "1Gi" }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.values.iter_mut().filter(|(known, _)| *known == name).for_each(|(_, old)| *old = value.to_owned());
    }

    /// The pod template, with what this machine has in the place of what a cluster has.
    fn template(&self, judges: &Path, kubectl: &Path, message: &Path) -> Value {
        let documents = yaml(judges, &kustomized(kubectl, &format!("overlays/{}", self.overlay)));
        let mut spec = of_kind(&documents, "Job")["spec"]["template"]["spec"].clone();
        let container = &mut spec["containers"][0];
        container["image"] = json!("localhost/flashjob:play");
        container["imagePullPolicy"] = json!("Never");
        let given = |name: &str| self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        let mut variables: Vec<Value> = Vec::new();
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let value = given(name).or_else(|| variable["value"].as_str().map(str::to_owned));
            variables.extend(value.filter(|value| value != "none").map(|value| json!({"name": name, "value": value})));
        }
        for (name, value) in [("metrics_linger_seconds", "0"), ("threads", "1"), ("metrics_port", "0")] {
            variables.push(json!({"name": name, "value": value}));
        }
        container["env"] = json!(variables);
        container["resources"] = json!({"limits": {"memory": self.memory}});
        let container = container.as_object_mut().unwrap();
        // They are the host's: this pod shares its network to reach loopback.
        for field in ["ports", "livenessProbe", "readinessProbe"] {
            container.remove(field);
        }
        let mounts = container["volumeMounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["name"] != "shared-memory");
        mounts.push(json!({"name": "message", "mountPath": "/dev/termination-log"}));
        // podman makes a volume of this name for all pods: each gets its own.
        let models = format!("{}-models", self.name);
        mounts.iter_mut().filter(|mount| mount["name"] == "models").for_each(|mount| mount["name"] = json!(models));
        let volumes = spec["volumes"].as_array_mut().unwrap();
        volumes.retain(|volume| volume["name"] == "fuse");
        volumes.push(json!({"name": models, "emptyDir": {}}));
        volumes.push(json!({"name": "results", "hostPath": {"path": self.results.path()}}));
        volumes.push(json!({"name": "message", "hostPath": {"path": message}}));
        spec["hostNetwork"] = json!(true);
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec})
    }

    fn run(&self, podman: &Podman, judges: &Path, kubectl: &Path) -> Ended {
        let place = TempDir::new().unwrap();
        let message = place.path().join("message");
        std::fs::write(&message, "").unwrap();
        std::fs::set_permissions(&message, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let file = place.path().join("pod.yaml");
        std::fs::write(&file, self.template(judges, kubectl, &message).to_string()).unwrap();
        let played = podman.command(&["play", "kube", "--network=host"]).arg(&file).output().unwrap();
        let container = format!("{}-flashjob", self.name);
        let waited = podman.output(&["wait", &container]);
        let log = podman.output(&["logs", &container]);
        podman.output(&["pod", "rm", "--force", &self.name]);
        let said = format!("{}{}", String::from_utf8_lossy(&played.stderr), String::from_utf8_lossy(&log.stderr));
        let code = String::from_utf8_lossy(&waited.stdout).trim().parse();
        let read = |path: &Path| {
            std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
        };
        Ended {
            code: code.unwrap_or_else(|_| panic!("{said}")),
            message: read(&message),
            result: read(&self.results.path().join("result.json")),
            log: format!("{said}{}", String::from_utf8_lossy(&log.stdout)),
        }
    }
}

fn bucket() -> BucketServer {
    BucketServer::start(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"))
}

#[test]
fn overlays_run_as_they_are_meant_to() {
    let (Some(judges), Some(kubectl), Some(podman)) = (judges(), kubectl(), podman()) else { return };
    let server = bucket();
    let short = [("input_len", "4"), ("output_len", "2"), ("num_prompts", "2"), ("mlflow_uri", "none")];
    for (overlay, model, code, method) in
        [("copy", "llama-gqa", 0, "copy"), ("cpu", "llama-gqa", 0, "fuse"), ("copy", "not-there", 4, "copy")]
    {
        let values = [&short[..], &[("par", server.url()), ("model", model)]].concat();
        let ended = Pod::of(overlay, &values).run(podman, &judges, &kubectl);
        assert_eq!(ended.code, code, "{overlay}: {}", ended.log);
        assert_eq!(ended.result["inputs"][0]["method"], method, "{overlay}: {}", ended.log);
        assert_eq!(ended.message["exit_code"], code, "{overlay}: {}", ended.message);
        if code == 0 {
            assert_eq!(ended.message["metrics"]["total_output_tokens"], 4.0, "{overlay}");
        } else {
            assert!(ended.message["error"].as_str().unwrap().contains("not-there"), "{}", ended.message);
        }
        let token = server.url().split("/p/").nth(1).unwrap().split('/').next().unwrap();
        assert!(!ended.log.contains(token) && !ended.message.to_string().contains(token), "{overlay}");
    }
}

/// The kernel's kill leaves no time to say anything. The next attempt in the same directory says it.
#[test]
fn a_pod_that_ran_out_of_memory_is_a_killed_run_once_the_next_one_starts() {
    let (Some(judges), Some(kubectl), Some(podman)) = (judges(), kubectl(), podman()) else { return };
    let Some(mlflow) = mlflow_server::shared() else { return };
    let server = bucket();
    let experiment = format!("out of memory {:08x}", rand::random::<u32>());
    let values = [
        ("par", server.url()),
        ("model", "llama-gqa"),
        ("input_len", "4"),
        ("output_len", "2"),
        ("num_prompts", "2"),
        ("mlflow_uri", mlflow.uri()),
        ("experiment_name", &experiment),
    ];
    let mut pod = Pod::of("cpu", &values);
    // Less than so many prompts take.
    pod.memory = "128Mi";
    pod.set("num_prompts", "5000000");
    let killed = pod.run(podman, &judges, &kubectl);
    // 128 + SIGKILL, as the first process in the container says of its child.
    assert_eq!(killed.code, 137, "{}", killed.log);
    assert_eq!(killed.result, Value::Null, "it had no time to write one");
    pod.memory = "1Gi";
    pod.set("num_prompts", "2");
    let next = pod.run(podman, &judges, &kubectl);
    assert_eq!(next.code, 0, "{}", next.log);
    let mut found: Vec<String> = mlflow.runs(&experiment).iter().map(|run| run.status().to_owned()).collect();
    found.sort();
    assert_eq!(found, ["FINISHED", "KILLED"], "{}", next.log);
}
