//! The base and its overlays, as `kubectl kustomize` makes them.

use std::process::Command;

use serde_json::{Value, json};

use super::{folder, job, kubectl, kustomized, of_kind};
use crate::support::kubernetes::wrong;
use crate::support::manifests::{judges, yaml};

const OVERLAYS: [&str; 9] =
    ["batch", "copy", "cpu", "cuda", "cuda-fuse-device-plugin", "indexed", "kueue", "leaderworkerset", "machines"];

#[test]
fn everything_that_is_applied_is_valid() {
    let (Some(judges), Some(kubectl)) = (judges(), kubectl()) else { return };
    let place = tempfile::tempdir().unwrap();
    let mut files = vec![folder().join("secret.example.yaml")];
    for name in OVERLAYS {
        let documents = yaml(&judges, &kustomized(&kubectl, &format!("overlays/{name}")));
        let documents: Vec<Value> = documents.into_iter().map(known_to_kubernetes).collect();
        assert_eq!(wrong(&documents), Vec::<String>::new(), "{name}");
        files.push(place.path().join(format!("{name}.yaml")));
        let texts: Vec<String> = documents.iter().map(Value::to_string).collect();
        std::fs::write(files.last().unwrap(), texts.join("\n---\n")).unwrap();
    }
    let program = judges.join("bin/kubernetes-validate");
    let output = Command::new(&program).arg("--strict").args(&files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    // The checker itself finds what is wrong.
    let wrong = place.path().join("wrong.yaml");
    let text = std::fs::read_to_string(place.path().join("copy.yaml")).unwrap();
    assert!(text.contains(r#""backoffLimit":3"#), "{text}");
    std::fs::write(&wrong, text.replace("backoffLimit", "backoffLimits")).unwrap();
    assert!(!Command::new(&program).arg("--strict").arg(wrong).status().unwrap().success());
    // And no folder is forgotten.
    let mut there: Vec<String> = std::fs::read_dir(folder().join("overlays"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    assert_eq!(there, OVERLAYS);
}

/// The schemas know no LeaderWorkerSet: its pod template is judged as a Pod.
fn known_to_kubernetes(document: Value) -> Value {
    if document["kind"] != "LeaderWorkerSet" {
        return document;
    }
    assert_eq!(document["apiVersion"], "leaderworkerset.x-k8s.io/v1");
    let mut pod = document["spec"]["leaderWorkerTemplate"]["workerTemplate"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = document["metadata"]["name"].clone();
    pod
}

/// SECURITY.md: an operator pins the job's image on top of any overlay.
#[test]
fn a_digest_replaces_the_tag_of_every_overlay() {
    let Some(kubectl) = kubectl() else { return };
    let place = tempfile::tempdir().unwrap();
    let here = place.path().canonicalize().unwrap();
    // A resource has a relative path.
    let root = "../".repeat(here.components().count() - 1);
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    for name in OVERLAYS {
        let overlay = folder().canonicalize().unwrap().join("overlays").join(name);
        let overlay = format!("{root}{}", overlay.strip_prefix("/").unwrap().display());
        let images = json!([{"name": "flashjob", "newName": "registry.example.com/flashjob", "digest": digest}]);
        let pinned = json!({"resources": [overlay], "images": images});
        std::fs::write(here.join("kustomization.yaml"), pinned.to_string()).unwrap();
        let output = Command::new(&kubectl).arg("kustomize").arg(&here).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let images: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(images, [format!("registry.example.com/flashjob@{digest}")], "{name}: {said}");
    }
}

/// The Job says to its pods what LeaderWorkerSet says to its own, who are otherwise the same.
#[test]
fn machines_of_a_group_find_each_other() {
    let (Some(judges), Some(kubectl)) = (judges(), kubectl()) else { return };
    let documents = |name: &str| yaml(&judges, &kustomized(&kubectl, &format!("overlays/{name}")));
    let of_job = documents("machines");
    let (job, service) = (of_kind(&of_job, "Job"), of_kind(&of_job, "Service"));
    let mut pods = job["spec"]["template"].clone();
    let name = format!("{}-0", job["metadata"]["name"].as_str().unwrap());
    let subdomain = pods["spec"]["subdomain"].as_str().unwrap();
    assert_eq!((&service["metadata"]["name"], &service["spec"]["clusterIP"]), (&json!(subdomain), &json!("None")));
    assert_eq!(service["spec"]["selector"], pods["metadata"]["labels"]);
    let leader = format!("{name}.{subdomain}");
    let container = &mut pods["spec"]["containers"][0];
    let port = container["ports"].as_array().unwrap().iter().find(|port| port["name"] == "group").unwrap();
    assert_eq!(port["containerPort"], 29500, "the default of group-port");
    let variables = container["env"].as_array().unwrap();
    let given = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap()["value"].clone();
    assert_eq!(given("LWS_LEADER_ADDRESS"), json!(leader));
    for size in [&job["spec"]["completions"], &job["spec"]["parallelism"]] {
        assert_eq!(given("LWS_GROUP_SIZE"), json!(size.to_string()));
    }

    let of_set = documents("leaderworkerset");
    let set = of_kind(&of_set, "LeaderWorkerSet");
    let template = &set["spec"]["leaderWorkerTemplate"];
    assert_eq!(given("LWS_GROUP_SIZE"), json!(template["size"].to_string()));
    assert_eq!(template["restartPolicy"], "RecreateGroupOnPodRestart");
    let kept = |variable: &Value| !variable["name"].as_str().unwrap().starts_with("LWS_");
    let variables: Vec<Value> = variables.iter().filter(|variable| kept(variable)).cloned().collect();
    container["env"] = json!(variables);
    pods["spec"].as_object_mut().unwrap().remove("subdomain");
    pods["spec"]["restartPolicy"] = json!("Always");
    assert_eq!(template["workerTemplate"], pods);
    assert!(!of_set.iter().any(|document| ["Job", "Service"].contains(&document["kind"].as_str().unwrap())));

    // What machines say to each other is for them alone.
    for documents in [&of_job, &of_set] {
        let policy = of_kind(documents, "NetworkPolicy");
        let peers = json!([{"podSelector": {"matchLabels": pods["metadata"]["labels"]}}]);
        assert_eq!(policy["spec"]["ingress"][1], json!({"from": peers}));
        let open = policy["spec"]["ingress"].as_array().unwrap().iter().filter(|rule| rule["from"].is_null()).count();
        assert_eq!(open, 0);
    }
}

#[test]
fn each_overlay_changes_what_it_is_for() {
    let (Some(judges), Some(kubectl)) = (judges(), kubectl()) else { return };
    let pod = "/spec/template/spec";
    let container = "/spec/template/spec/containers/0";
    for (overlay, pointer, expected) in [
        ("copy", "@/securityContext/capabilities/drop", json!(["ALL"])),
        ("copy", "@/securityContext/readOnlyRootFilesystem", json!(true)),
        ("copy", "@/securityContext/privileged", Value::Null),
        ("copy", "^/securityContext/runAsNonRoot", json!(true)),
        ("copy", "^/securityContext/seccompProfile/type", json!("RuntimeDefault")),
        ("cpu", "@/securityContext/privileged", json!(true)),
        ("cpu", "@/resources/limits/nvidia.com~1gpu", Value::Null),
        ("cuda", "@/image", json!("flashjob:cuda")),
        ("cuda", "@/resources/limits/nvidia.com~1gpu", json!("1")),
        ("cuda", "@/securityContext/privileged", Value::Null),
        ("cuda", "^/securityContext/runAsNonRoot", json!(true)),
        ("cuda-fuse-device-plugin", "@/securityContext/capabilities", json!({"add": ["SYS_ADMIN"], "drop": ["ALL"]})),
        ("cuda-fuse-device-plugin", "@/securityContext/privileged", Value::Null),
        ("cuda-fuse-device-plugin", "@/resources/limits/smarter-devices~1fuse", json!("1")),
        ("cuda-fuse-device-plugin", "@/resources/limits/nvidia.com~1gpu", json!("1")),
        ("indexed", "/spec/completionMode", json!("Indexed")),
        ("kueue", "/metadata/labels/kueue.x-k8s.io~1queue-name", json!("flashjob")),
        ("kueue", "/spec/suspend", json!(true)),
        ("kueue", "@/resources/limits/nvidia.com~1gpu", json!("1")),
        ("machines", "/spec/completionMode", json!("Indexed")),
        ("machines", "@/resources/limits/nvidia.com~1gpu", json!("1")),
        ("machines", "^/volumes/0/emptyDir/medium", json!("Memory")),
        ("batch", "/metadata/labels/kueue.x-k8s.io~1queue-name", json!("flashjob")),
        ("batch", "/spec/suspend", json!(true)),
        ("batch", "/spec/completionMode", json!("Indexed")),
        ("batch", "/spec/completions", json!(12)),
        ("batch", "/spec/parallelism", json!(3)),
        ("batch", "/spec/backoffLimit", Value::Null),
        ("batch", "/spec/backoffLimitPerIndex", json!(5)),
        ("batch", "/spec/podReplacementPolicy", json!("Failed")),
        ("batch", "/spec/activeDeadlineSeconds", Value::Null),
        ("batch", "@/resources/limits/nvidia.com~1gpu", json!("1")),
        ("batch", "@/resources/limits/smarter-devices~1fuse", json!("1")),
        ("batch", "@/securityContext/privileged", Value::Null),
        ("indexed", "/spec/backoffLimit", Value::Null),
        ("indexed", "/spec/backoffLimitPerIndex", json!(3)),
    ] {
        let documents = yaml(&judges, &kustomized(&kubectl, &format!("overlays/{overlay}")));
        let job = of_kind(&documents, "Job");
        let found = job.pointer(&pointer.replace('@', container).replace('^', pod)).cloned().unwrap_or_default();
        assert_eq!(found, expected, "{overlay} {pointer}");
    }
    let indexed = of_kind(&yaml(&judges, &kustomized(&kubectl, "overlays/indexed")), "Job");
    let variables = indexed.pointer(&format!("{container}/env")).unwrap().as_array().unwrap();
    let count = variables.iter().find(|variable| variable["name"] == "replica_count").unwrap();
    assert_eq!(count["value"].as_str().unwrap(), indexed["spec"]["completions"].to_string(), "as many as the Job has");
    assert!(variables.iter().any(|variable| variable["name"] == "JOB_UID"));
}

/// Each index has a place of its own in the bucket, and meets its own answers there.
#[test]
fn indices_of_a_batch_go_on_by_themselves() {
    let (Some(judges), Some(kubectl)) = (judges(), kubectl()) else { return };
    let job = of_kind(&yaml(&judges, &kustomized(&kubectl, "overlays/batch")), "Job");
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_array().unwrap();
    let place = |name: &str| variables.iter().position(|variable| variable["name"] == name);
    let value = |name: &str| variables[place(name).unwrap()]["value"].as_str().unwrap();
    assert_eq!(value("replica_count"), job["spec"]["completions"].to_string(), "as many as the Job has");
    assert!(job["spec"]["parallelism"].as_u64() < job["spec"]["completions"].as_u64());
    assert_eq!(value("output_prefix"), "batch/$(JOB_INDEX)/");
    // A variable is put into those that come behind it.
    assert!(place("JOB_INDEX") < place("output_prefix"));
    let index = &variables[place("JOB_INDEX").unwrap()]["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(index, "metadata.annotations['batch.kubernetes.io/job-completion-index']");
    assert!(place("JOB_UID").is_some() && place("output_par").is_some());
    assert!(place("num_prompts").is_none() && place("input_len").is_none(), "they are for prompts that measure");
    // Every exit code has one meaning, and what another attempt goes on with is tried again.
    let rules = job["spec"]["podFailurePolicy"]["rules"].as_array().unwrap();
    let codes = |action: &str| -> Vec<u64> {
        let of = rules.iter().filter(|rule| rule["action"] == action);
        of.flat_map(|rule| rule["onExitCodes"]["values"].as_array().into_iter().flatten())
            .filter_map(Value::as_u64)
            .collect()
    };
    assert_eq!((codes("Count"), codes("FailJob")), (vec![1, 3, 5, 6, 130, 143], vec![2, 4, 7]));
}

#[test]
fn exit_codes_in_the_failure_policy_are_ours() {
    let Some(judges) = judges() else { return };
    let job = job(&judges);
    let rules = job["spec"]["podFailurePolicy"]["rules"].as_array().unwrap();
    let mut codes: Vec<u64> = rules
        .iter()
        .flat_map(|rule| rule["onExitCodes"]["values"].as_array().into_iter().flatten())
        .filter_map(Value::as_u64)
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 130, 143]);
}

/// A job's port has one name, by which probes, the PodMonitor and the NetworkPolicy know it.
#[test]
fn the_metrics_port_has_one_name() {
    let (Some(judges), Some(kubectl)) = (judges(), kubectl()) else { return };
    let documents = yaml(&judges, &kustomized(&kubectl, "overlays/copy"));
    let job = of_kind(&documents, "Job");
    let policy = of_kind(&documents, "NetworkPolicy");
    let monitor = of_kind(&yaml(&judges, &kustomized(&kubectl, "monitoring")), "PodMonitor");
    let port = &job["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"];
    assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["port"], *port);
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], *port);
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(policy["spec"]["podSelector"]["matchLabels"], *labels);
    // A pod of any namespace may call itself Prometheus.
    let caller = &policy["spec"]["ingress"][0]["from"][0];
    assert_eq!(caller["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "monitoring");
}
