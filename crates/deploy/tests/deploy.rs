//! Blueprints from outside: judged with line and column, and turned into manifests that real tools take.

mod render;
mod validate;

use std::path::Path;

use serde_json::{Value, json};

use crate::support::manifests::{judges, yaml};

/// The platform's own files, with another token and another registry.
fn seed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blueprints").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// A recipe of mode job in which every key of the schema is set.
fn everything() -> Value {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut recipe: Value = serde_json::from_str(&seed("offline-benchmark-blueprint.json")).unwrap();
    let keys = schema["$defs"]["recipe_payload"]["properties"].as_object().unwrap();
    for (key, kind) in keys {
        if recipe.get(key).is_none() {
            recipe[key] = value_of(key, kind);
        }
    }
    recipe["recipe_replica_count"] = json!(3);
    let ours = json!({"bucket_name": "ours", "mount_location": "/ours", "volume_size_in_gbs": 7});
    recipe["input_object_storage"].as_array_mut().unwrap().push(ours);
    recipe
}

const SCHEMA: &str = include_str!("../src/blueprint_schema.json");

fn value_of(key: &str, kind: &Value) -> Value {
    match key {
        "recipe_container_command" => json!(["/flashjob"]),
        "recipe_container_command_use_shell" => json!(false),
        "recipe_environment_secrets" => {
            json!([{"envvar_name": "MLFLOW_TRACKING_PASSWORD", "secret_name": "mlflow", "secret_key": "password"}])
        }
        "recipe_host_port" => json!("8080"),
        "local_filesystem" => json!([{"node_directory_path": "/mnt/nvme", "mount_location": "/nvme"}]),
        "output_object_storage" => {
            json!([{"bucket_name": "results", "mount_location": "/results-bucket", "volume_size_in_gbs": 9}])
        }
        "input_file_system" => json!([{"file_system_ocid": "f", "mount_target_ocid": "m", "mount_location": "/fss",
            "volume_size_in_gbs": 10}]),
        "mig_resource_request" => json!("mig-1g.10gb"),
        "recipe_node_boot_volume_size_in_gbs" => json!(200),
        "recipe_liveness_probe_params" | "recipe_startup_probe_params" | "recipe_readiness_probe_params" => {
            json!({"endpoint_path": "/readyz", "port": 8000, "scheme": "http", "initial_delay_seconds": 5,
                "period_seconds": 10, "timeout_seconds": 2, "success_threshold": 1, "failure_threshold": 3})
        }
        "recipe_inference_gateway" => json!({"model_name": "m", "api_key": "s3cr3t"}),
        "recipe_additional_ingress_ports" => json!([{"name": "a", "port": 1, "path": "/"}]),
        "recipe_node_autoscaling_params" => json!({"min_nodes": 1, "max_nodes": 2}),
        "recipe_pod_autoscaling_params" => json!({"min_replicas": 1}),
        "recipe_node_labels" => json!({"a": "b"}),
        "recipe_team_info" => json!({"team_name": "t"}),
        "team" => json!({"team_name": "t", "priority_threshold": 1, "quotas": [{"shape_name": "s"}]}),
        "service_endpoint" => json!({"domain": "d"}),
        "shared_node_pool_custom_node_selectors" => json!([{"key": "k", "value": "v"}]),
        "recipe_prometheus_enabled" => json!(true),
        "recipe_node_selector_arch" => json!("amd64"),
        _ => match kind["type"].as_str() {
            Some("integer") => json!(2),
            Some("boolean") => json!(true),
            Some("string") => json!("x1"),
            other => panic!("{key}: a value of {other:?} is called for"),
        },
    }
}
