//! Mistakes that an API server refuses, or a kubelet misunderstands, although the manifest fits the schema.

use std::collections::BTreeSet;

use serde_json::Value;

/// Fields that hold one of a few words, wherever they stand.
const WORDS: [(&str, &[&str]); 10] = [
    ("imagePullPolicy", &["Always", "IfNotPresent", "Never"]),
    ("terminationMessagePolicy", &["File", "FallbackToLogsOnError"]),
    ("completionMode", &["Indexed", "NonIndexed"]),
    ("medium", &["", "Memory", "HugePages"]),
    ("scheme", &["HTTP", "HTTPS"]),
    ("effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"]),
    ("action", &["FailJob", "FailIndex", "Ignore", "Count"]),
    ("protocol", &["TCP", "UDP", "SCTP"]),
    ("restartPolicy", &["Always", "OnFailure", "Never"]),
    ("podReplacementPolicy", &["TerminatingOrFailed", "Failed"]),
];

/// Everything that is wrong with the Jobs and Pods among `documents`.
pub fn wrong(documents: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for document in documents {
        words(document, &mut found);
        quantities(document, &mut found);
        let name = document["metadata"]["name"].as_str().unwrap_or_default();
        if !is_name(name, 63) {
            found.push(format!("metadata.name `{name}` is no name"));
        }
        if document["kind"] == "Pod" {
            pod(&document["spec"], &mut found);
        }
        if document["kind"] == "Job" {
            job_spec(&document["spec"], &mut found);
            pod(&document["spec"]["template"]["spec"], &mut found);
        }
    }
    found
}

fn walk(value: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            visit(name, value);
            walk(value, visit);
        }),
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

fn words(document: &Value, found: &mut Vec<String>) {
    walk(document, &mut |name, value| {
        if let Some((_, allowed)) = WORDS.iter().find(|(known, _)| *known == name)
            && let Some(word) = value.as_str()
            && !allowed.contains(&word)
        {
            found.push(format!("{name} is `{word}`, not one of {allowed:?}"));
        }
    });
}

fn quantities(document: &Value, found: &mut Vec<String>) {
    let mut check = |name: &str, value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let known = ["", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"].contains(&unit);
        if !known || digits.parse::<f64>().is_err() || text.starts_with(['-', '+']) {
            found.push(format!("{name} is `{text}`, which is no quantity"));
        }
    };
    walk(document, &mut |name, value| match name {
        "limits" | "requests" => value.as_object().into_iter().flatten().for_each(|(name, value)| check(name, value)),
        "sizeLimit" => check(name, value),
        _ => {}
    });
}

fn job_spec(spec: &Value, found: &mut Vec<String>) {
    let template = &spec["template"]["spec"];
    let policy = template["restartPolicy"].as_str().unwrap_or("Always");
    if policy == "Always" || (policy != "Never" && !spec["podFailurePolicy"].is_null()) {
        found.push(format!(
            "restartPolicy is {policy}: a Job's pods end, and with a failure policy they are not restarted"
        ));
    }
    let indexed = spec["completionMode"] == "Indexed";
    if !spec["backoffLimitPerIndex"].is_null() && !indexed {
        found.push("backoffLimitPerIndex without completionMode: Indexed".to_owned());
    }
    if indexed && spec["completions"].is_null() {
        found.push("an Indexed Job without completions".to_owned());
    }
    let names: Vec<&str> = items(&template["containers"]).filter_map(|container| container["name"].as_str()).collect();
    let mut codes = BTreeSet::new();
    for rule in items(&spec["podFailurePolicy"]["rules"]) {
        let on = &rule["onExitCodes"];
        if on.is_null() == rule["onPodConditions"].is_null() {
            found.push("a rule of the failure policy has either exit codes or conditions".to_owned());
        }
        if rule["action"] == "FailIndex" && spec["backoffLimitPerIndex"].is_null() {
            found.push("FailIndex without backoffLimitPerIndex".to_owned());
        }
        if on.is_null() {
            continue;
        }
        if !["In", "NotIn"].contains(&on["operator"].as_str().unwrap_or_default()) {
            found.push(format!("operator {} of exit codes", on["operator"]));
        }
        if let Some(name) = on["containerName"].as_str()
            && !names.contains(&name)
        {
            found.push(format!("the failure policy names the container {name}, which there is not"));
        }
        let values: Vec<i64> = items(&on["values"]).filter_map(Value::as_i64).collect();
        if !values.is_sorted_by(|a, b| a < b) {
            found.push(format!("exit codes {values:?} are not in order, or not once each"));
        }
        for code in values {
            if on["operator"] == "In" && code == 0 {
                found.push("exit code 0 in a failure policy".to_owned());
            }
            if !codes.insert(code) {
                found.push(format!("exit code {code} has two meanings"));
            }
        }
    }
}

fn pod(spec: &Value, found: &mut Vec<String>) {
    let mut volumes = BTreeSet::new();
    for volume in items(&spec["volumes"]) {
        let name = volume["name"].as_str().unwrap_or_default();
        if !is_name(name, 63) || !volumes.insert(name) {
            found.push(format!("the volume `{name}` has no name of its own"));
        }
    }
    let as_root = spec["securityContext"]["runAsUser"] == 0;
    for container in items(&spec["containers"]) {
        let mut paths = BTreeSet::new();
        for mount in items(&container["volumeMounts"]) {
            let (name, path) =
                (mount["name"].as_str().unwrap_or_default(), mount["mountPath"].as_str().unwrap_or_default());
            if !volumes.contains(name) {
                found.push(format!("{path} is a mount of `{name}`, which is no volume"));
            }
            if !path.starts_with('/') || !paths.insert(path.trim_end_matches('/')) {
                found.push(format!("the mount path `{path}` is there twice, or not absolute"));
            }
        }
        let mut names = BTreeSet::new();
        for variable in items(&container["env"]) {
            let name = variable["name"].as_str().unwrap_or_default();
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if name.is_empty() || !plain || name.starts_with(|c: char| c.is_ascii_digit()) || !names.insert(name) {
                found.push(format!("the variable `{name}` is there twice, or no name"));
            }
        }
        let ports: Vec<&Value> = items(&container["ports"]).collect();
        for port in &ports {
            if port["name"].as_str().is_some_and(|name| name.len() > 15 || !is_name(name, 15)) {
                found.push(format!("the port name {}", port["name"]));
            }
        }
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let port = &container[probe]["httpGet"]["port"];
            let there =
                |port: &Value| ports.iter().any(|known| known["name"] == *port || known["containerPort"] == *port);
            if !port.is_null() && !there(port) {
                found.push(format!("{probe} asks port {port}, which the container has not got"));
            }
            let threshold = &container[probe]["successThreshold"];
            if probe != "readinessProbe" && !threshold.is_null() && *threshold != 1 {
                found.push(format!("successThreshold of {probe} must be 1"));
            }
        }
        let security = &container["securityContext"];
        let powerful =
            security["privileged"] == true || items(&security["capabilities"]["add"]).any(|added| added == "SYS_ADMIN");
        if powerful && security["allowPrivilegeEscalation"] == false {
            found.push("allowPrivilegeEscalation is off beside privileged or SYS_ADMIN".to_owned());
        }
        let must_not_be_root = spec["securityContext"]["runAsNonRoot"] == true || security["runAsNonRoot"] == true;
        if must_not_be_root && (as_root || security["runAsUser"] == 0) {
            found.push("runAsNonRoot with user 0".to_owned());
        }
        for (name, limit) in container["resources"]["limits"].as_object().into_iter().flatten() {
            let request = &container["resources"]["requests"][name];
            if name.contains('/') && !request.is_null() && request != limit {
                found.push(format!("{name} is requested and limited differently"));
            }
        }
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Checks a name by RFC 1123.
fn is_name(text: &str, longest: usize) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=longest).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}
