//! A recipe as a Kubernetes Job, with a Secret for what is secret.
//!
//! The pod has no privileges: inputs are copied. Where nodes have a device plugin for FUSE, `k8s/overlays` shows what to add.

use serde_json::{Value, json};

use super::recipe::Recipe;
use super::render::{self, object};
use super::yaml;

/// Exit codes that another attempt does not mend, and those that it may (README, "Exit code").
const FAIL: [u8; 5] = [1, 2, 4, 6, 7];
const COUNT: [u8; 4] = [3, 5, 130, 143];

/// The documents, as YAML.
pub(super) fn manifests(recipe: &Recipe) -> String {
    let name = render::name(recipe);
    let variables = render::variables(recipe);
    // Secrets go into an object of their own, which can be withheld from those who may read Jobs.
    let (secret, open): (Vec<_>, Vec<_>) =
        variables.into_iter().partition(|(name, value)| render::is_secret(name, value));
    let mut documents = Vec::new();
    if !secret.is_empty() {
        let data: serde_json::Map<String, Value> =
            secret.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        documents.push(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "stringData": data,
        }));
    }
    documents.push(job(recipe, &name, &secret, &open));
    documents.iter().map(yaml::document).collect::<Vec<_>>().join("---\n")
}

fn job(recipe: &Recipe, name: &str, secret: &[(String, String)], open: &[(String, String)]) -> Value {
    let labels = json!({"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "flashjob-render"});
    let annotations = recipe.text("recipe_id").map_or(Value::Null, |id| json!({"flashjob/recipe-id": id}));
    let replicas = recipe.integer("recipe_replica_count").unwrap_or(1);
    let mut spec = json!({
        "backoffLimit": 3,
        "activeDeadlineSeconds": 86_400,
        "ttlSecondsAfterFinished": 604_800,
        "podFailurePolicy": {"rules": [
            // Eviction and drain are no fault of the job: such a pod is replaced without being counted.
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "job", "operator": "In", "values": FAIL}},
            {"action": "Count", "onExitCodes": {"containerName": "job", "operator": "In", "values": COUNT}},
        ]},
    });
    // The index tells each pod its share of the prompts.
    if replicas > 1 {
        spec["completionMode"] = json!("Indexed");
        spec["completions"] = json!(replicas);
        spec["parallelism"] = json!(replicas);
        // Kubernetes allows only one of both limits. Per index, one replica cannot use up the retries of all.
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("backoffLimit");
            spec.insert("backoffLimitPerIndex".to_owned(), json!(3));
        }
    }
    let scraped = recipe.is_set("recipe_prometheus_enabled");
    let port = recipe.text("recipe_container_port").unwrap_or("8000").to_owned();
    let scrape = if scraped {
        json!({"prometheus.io/scrape": "true", "prometheus.io/port": port, "prometheus.io/path": "/metrics"})
    } else {
        Value::Null
    };
    spec["template"] = json!({
        "metadata": object([("labels", labels.clone()), ("annotations", scrape)]),
        "spec": pod(recipe, name, secret, open, &port),
    });
    let metadata = object([("name", json!(name)), ("labels", labels), ("annotations", annotations)]);
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
}

fn pod(recipe: &Recipe, name: &str, secret: &[(String, String)], open: &[(String, String)], port: &str) -> Value {
    let (volumes, mounts) = volumes(recipe);
    // References stay: Kubernetes replaces `$(NAME)` itself.
    let (command, arguments) = render::command(recipe, None);
    let arguments = if arguments.is_empty() { Value::Null } else { json!(arguments) };
    let container = object([
        ("name", json!("job")),
        ("image", recipe.text("recipe_image_uri").map_or(Value::Null, |image| json!(image))),
        ("command", command.map_or(Value::Null, |command| json!(command))),
        ("args", arguments),
        ("env", environment(recipe, name, secret, open)),
        ("ports", json!([{"name": "metrics", "containerPort": port.parse::<u16>().unwrap_or(8000)}])),
        ("resources", resources(recipe)),
        ("startupProbe", probe(recipe, "recipe_startup_probe_params", port)),
        ("livenessProbe", probe(recipe, "recipe_liveness_probe_params", port)),
        ("readinessProbe", probe(recipe, "recipe_readiness_probe_params", port)),
        // A container that dies before it can write its message leaves its last log lines.
        ("terminationMessagePolicy", json!("FallbackToLogsOnError")),
        ("securityContext", json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}})),
        ("volumeMounts", json!(mounts)),
    ]);
    let pull = recipe.text("recipe_container_secret_name").map_or(Value::Null, |name| json!([{"name": name}]));
    object([
        ("restartPolicy", json!("Never")),
        // The job never talks to Kubernetes' API.
        ("automountServiceAccountToken", json!(false)),
        // As long as a job needs to leave a partial result after SIGTERM.
        ("terminationGracePeriodSeconds", json!(30)),
        ("imagePullSecrets", pull),
        ("nodeSelector", node_selector(recipe)),
        ("tolerations", tolerations(recipe)),
        ("containers", json!([container])),
        ("volumes", json!(volumes)),
    ])
}

/// Nodes by the labels that every cloud sets. A FLEX shape has the same label.
fn node_selector(recipe: &Recipe) -> Value {
    let labels: serde_json::Map<String, Value> = [
        ("recipe_node_shape", "node.kubernetes.io/instance-type"),
        ("recipe_node_selector_arch", "kubernetes.io/arch"),
        ("recipe_node_name", "kubernetes.io/hostname"),
    ]
    .into_iter()
    .filter_map(|(key, label)| Some((label.to_owned(), json!(recipe.text(key)?))))
    .collect();
    if labels.is_empty() { Value::Null } else { Value::Object(labels) }
}

/// Nodes with GPUs are often kept for those who ask for them.
fn tolerations(recipe: &Recipe) -> Value {
    let tolerated: Vec<Value> = gpus(recipe)
        .into_iter()
        .map(|(resource, _)| json!({"key": resource, "operator": "Exists", "effect": "NoSchedule"}))
        .collect();
    if tolerated.is_empty() { Value::Null } else { json!(tolerated) }
}

fn gpus(recipe: &Recipe) -> Vec<(String, i64)> {
    let counted = [("recipe_nvidia_gpu_count", "nvidia.com/gpu"), ("recipe_amd_gpu_count", "amd.com/gpu")];
    let mut found: Vec<(String, i64)> = counted
        .into_iter()
        .filter_map(|(key, resource)| Some((resource.to_owned(), recipe.integer(key).filter(|count| *count > 0)?)))
        .collect();
    if let Some(part) = recipe.text("mig_resource_request") {
        found.push((format!("nvidia.com/{part}"), 1));
    }
    found
}

fn resources(recipe: &Recipe) -> Value {
    let mut limits = serde_json::Map::new();
    let mut requests = serde_json::Map::new();
    for (key, name, unit) in [
        ("recipe_container_cpu_count", "cpu", ""),
        ("recipe_container_memory_size", "memory", "G"),
        ("recipe_ephemeral_storage_size", "ephemeral-storage", "G"),
    ] {
        // Equal requests and limits give the pod the Guaranteed class, which is evicted last.
        if let Some(amount) = recipe.integer(key) {
            limits.insert(name.to_owned(), json!(format!("{amount}{unit}")));
            requests.insert(name.to_owned(), json!(format!("{amount}{unit}")));
        }
    }
    for (resource, count) in gpus(recipe) {
        // Extended resources need no request: Kubernetes sets it to the limit.
        limits.insert(resource, json!(count.to_string()));
    }
    let some = |map: serde_json::Map<String, Value>| if map.is_empty() { Value::Null } else { Value::Object(map) };
    let resources = object([("requests", some(requests)), ("limits", some(limits))]);
    if resources.as_object().is_some_and(|members| members.is_empty()) { Value::Null } else { resources }
}

fn environment(recipe: &Recipe, name: &str, secret: &[(String, String)], open: &[(String, String)]) -> Value {
    let mut variables: Vec<Value> = open.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let of_secret = |variable: &str, secret: &str, key: &str| json!({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}});
    variables.extend(secret.iter().map(|(variable, _)| of_secret(variable, name, variable)));
    for entry in recipe.list("recipe_environment_secrets") {
        if let (Some(variable), Some(secret), Some(key)) =
            (entry["envvar_name"].as_str(), entry["secret_name"].as_str(), entry["secret_key"].as_str())
        {
            variables.push(of_secret(variable, secret, key));
        }
    }
    // A variable that the blueprint sets itself is not overridden.
    let known = |variables: &[Value], name: &str| variables.iter().any(|variable| variable["name"] == name);
    for (variable, path) in [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("NODE_NAME", "spec.nodeName"),
        ("JOB_UID", "metadata.labels['batch.kubernetes.io/controller-uid']"),
    ] {
        if !known(&variables, variable) {
            variables.push(json!({"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}));
        }
    }
    json!(variables)
}

fn volumes(recipe: &Recipe) -> (Vec<Value>, Vec<Value>) {
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    let mut add = |name: String, source: (&str, Value), at: &str| {
        volumes.push(json!({"name": name, source.0: source.1}));
        mounts.push(json!({"name": name, "mountPath": at}));
    };
    let sized = |size: Option<i64>| size.map_or_else(|| json!({}), |size| json!({"sizeLimit": format!("{size}G")}));
    for (index, (at, size)) in render::input_locations(recipe).into_iter().enumerate() {
        add(format!("input-{index}"), ("emptyDir", sized(size)), &at);
    }
    for (index, (at, size)) in render::output_locations(recipe).into_iter().enumerate() {
        add(format!("output-{index}"), ("emptyDir", sized(size)), &at);
    }
    for (index, (node, at)) in render::node_directories(recipe).into_iter().enumerate() {
        add(format!("node-{index}"), ("hostPath", json!({"path": node})), &at);
    }
    if let Some(size) = recipe.integer("recipe_shared_memory_volume_size_limit_in_mb") {
        let memory = json!({"medium": "Memory", "sizeLimit": format!("{size}M")});
        add("shared-memory".to_owned(), ("emptyDir", memory), "/dev/shm");
    }
    add("results".to_owned(), ("emptyDir", json!({"sizeLimit": "1G"})), "/results");
    (volumes, mounts)
}

fn probe(recipe: &Recipe, key: &str, port: &str) -> Value {
    let Some(given) = recipe.take(key) else { return Value::Null };
    // The blueprint may give fractions, and Kubernetes takes whole seconds.
    let whole = |name: &str| given.get(name).and_then(Value::as_f64).map_or(Value::Null, |number| json!(number as i64));
    let get = object([
        ("path", given.get("endpoint_path").cloned().unwrap_or_else(|| json!("/healthz"))),
        ("port", given.get("port").cloned().unwrap_or_else(|| json!(port.parse::<u16>().unwrap_or(8000)))),
        (
            "scheme",
            given.get("scheme").and_then(Value::as_str).map_or(Value::Null, |scheme| json!(scheme.to_uppercase())),
        ),
    ]);
    object([
        ("httpGet", get),
        ("initialDelaySeconds", whole("initial_delay_seconds")),
        ("periodSeconds", whole("period_seconds")),
        ("timeoutSeconds", whole("timeout_seconds")),
        ("successThreshold", whole("success_threshold")),
        ("failureThreshold", whole("failure_threshold")),
    ])
}
