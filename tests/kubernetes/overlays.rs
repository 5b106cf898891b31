//! The base and its overlays, as `kubectl kustomize` makes them.

use std::process::Command;

use serde_json::{Value, json};

use super::{folder, job, kubectl, kustomized, of_kind, semantics};
use crate::deploy::{judges, yaml};

const OVERLAYS: [&str; 6] = ["copy", "cpu", "cuda", "cuda-fuse-device-plugin", "indexed", "kueue"];

#[test]
fn everything_that_is_applied_is_valid() {
    let (Some(judges), Some(kubectl)) = (judges(), kubectl()) else { return };
    let place = tempfile::tempdir().unwrap();
    let mut files = vec![folder().join("secret.example.yaml")];
    for name in OVERLAYS {
        let text = kustomized(&kubectl, &format!("overlays/{name}"));
        assert_eq!(semantics::wrong(&yaml(&judges, &text)), Vec::<String>::new(), "{name}");
        files.push(place.path().join(format!("{name}.yaml")));
        std::fs::write(files.last().unwrap(), text).unwrap();
    }
    let program = judges.join("bin/kubernetes-validate");
    let output = Command::new(&program).arg("--strict").args(&files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    // The checker itself finds what is wrong.
    let wrong = place.path().join("wrong.yaml");
    let text = std::fs::read_to_string(&files[1]).unwrap();
    assert!(text.contains("backoffLimit: 3"), "{text}");
    std::fs::write(&wrong, text.replace("backoffLimit: 3", "backoffLimits: 3")).unwrap();
    assert!(!Command::new(&program).arg("--strict").arg(wrong).status().unwrap().success());
    // And no folder is forgotten.
    let mut there: Vec<String> = std::fs::read_dir(folder().join("overlays"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    assert_eq!(there, OVERLAYS);
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
    assert_eq!(codes, [1, 2, 3, 4, 5, 6, 130, 143]);
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
}
