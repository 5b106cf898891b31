//! The checks of what an API server refuses, or a kubelet misunderstands: they find what they are for.

use serde_json::json;

use super::job;
use crate::support::kubernetes::wrong;
use crate::support::manifests::judges;

/// Each mistake in a Job that is right but for one thing.
#[test]
fn each_planted_mistake_is_found_and_nothing_else() {
    let Some(judges) = judges() else { return };
    let right = job(&judges);
    assert_eq!(wrong(std::slice::from_ref(&right)), Vec::<String>::new());
    let container = "/spec/template/spec/containers/0";
    for (pointer, value, expected) in [
        ("/metadata/name", json!("Flash_Job"), "is no name"),
        ("/spec/template/spec/restartPolicy", json!("Always"), "restartPolicy is Always"),
        ("/spec/template/spec/restartPolicy", json!("OnFailure"), "restartPolicy is OnFailure"),
        ("/spec/backoffLimitPerIndex", json!(2), "backoffLimitPerIndex without"),
        ("/spec/completionMode", json!("Indexed"), "without completions"),
        ("/spec/podFailurePolicy/rules/1/onExitCodes/values/0", json!(0), "exit code 0"),
        ("/spec/podFailurePolicy/rules/1/onExitCodes/values/3", json!(5), "exit code 5 has two meanings"),
        ("/spec/podFailurePolicy/rules/1/onExitCodes/values/1", json!(9), "not in order"),
        ("/spec/podFailurePolicy/rules/1/onExitCodes/operator", json!("Is"), "operator \"Is\""),
        ("/spec/podFailurePolicy/rules/1/onExitCodes/containerName", json!("other"), "names the container other"),
        ("/spec/podFailurePolicy/rules/1/action", json!("Fail"), "action is `Fail`"),
        ("/spec/podFailurePolicy/rules/1/action", json!("FailIndex"), "FailIndex without"),
        ("@/imagePullPolicy", json!("Sometimes"), "imagePullPolicy is `Sometimes`"),
        ("@/terminationMessagePolicy", json!("Logs"), "terminationMessagePolicy is `Logs`"),
        ("@/resources/limits/memory", json!("48GB"), "memory is `48GB`"),
        ("@/resources/limits/memory", json!("lots"), "memory is `lots`"),
        ("@/resources/requests/cpu", json!("-1"), "cpu is `-1`"),
        ("@/volumeMounts/0/mountPath", json!("/results/"), "there twice"),
        ("@/volumeMounts/0/mountPath", json!("models"), "not absolute"),
        ("@/volumeMounts/0/name", json!("model"), "which is no volume"),
        ("/spec/template/spec/volumes/0/name", json!("results"), "no name of its own"),
        ("@/env/0/name", json!("input_len"), "there twice"),
        ("@/env/0/name", json!("1st"), "no name"),
        ("@/ports/0/name", json!("much-too-long-a-name"), "port name"),
        ("@/livenessProbe/httpGet/port", json!("metric"), "asks port \"metric\""),
        ("@/livenessProbe/successThreshold", json!(2), "must be 1"),
        ("@/securityContext/privileged", json!(true), "allowPrivilegeEscalation is off"),
        ("@/securityContext/runAsUser", json!(0), "runAsNonRoot with user 0"),
    ] {
        let mut planted = right.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = planted.pointer_mut(&parent.replace('@', container)).unwrap_or_else(|| panic!("{pointer}"));
        match name.parse::<usize>() {
            Ok(index) if parent.is_array() => parent[index] = value.clone(),
            _ => parent[name] = value.clone(),
        }
        let found = wrong(&[planted]);
        assert!(found.iter().any(|sentence| sentence.contains(expected)), "{pointer} = {value}: {found:?}");
        // A name that is gone is missed by those who use it.
        let is_a_name = pointer.ends_with("/name") || value == json!("models");
        assert!(found.len() <= if is_a_name { 3 } else { 1 }, "{pointer} = {value}: {found:?}");
    }
}
