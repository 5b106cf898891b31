//! A recipe as a compose file: one service that runs to its end.

use serde_json::{Map, Value, json};

use super::recipe::Recipe;
use super::render::{self, object};
use super::yaml;

/// The file, as YAML.
pub(super) fn file(recipe: &Recipe) -> String {
    let name = render::name(recipe);
    let variables = render::variables(recipe);
    let (entrypoint, arguments) = render::command(recipe, Some(&variables));
    let mut environment: Map<String, Value> =
        variables.iter().map(|(name, value)| (name.clone(), json!(escaped(value)))).collect();
    for entry in recipe.list("recipe_environment_secrets") {
        if let (Some(variable), Some(secret)) = (entry["envvar_name"].as_str(), entry["secret_name"].as_str()) {
            recipe.leave_out(
                "recipe_environment_secrets",
                format!(
                    "{variable} is taken from the environment that compose starts in, not from the Secret {secret}"
                ),
            );
            // Compose's own syntax: it refuses to start where the variable is missing.
            environment.insert(variable.to_owned(), json!(format!("${{{variable}:?set {variable}}}")));
        }
    }
    one_replica(recipe, &mut environment);
    let words = |words: Vec<String>| json!(words.iter().map(|word| escaped(word)).collect::<Vec<_>>());
    let port = recipe.text("recipe_container_port").unwrap_or("8000");
    let published = recipe.text("recipe_host_port").map_or(Value::Null, |host| json!([format!("{host}:{port}")]));
    let mounts = !render::input_locations(recipe).is_empty();
    let fuse = |value: Value| if mounts { value } else { Value::Null };
    // Taken even if absent from the output: a key that is never taken would be reported as left out.
    let shared_memory = recipe.integer("recipe_shared_memory_volume_size_limit_in_mb");
    let memory = recipe.integer("recipe_container_memory_size");
    let processors = recipe.integer("recipe_container_cpu_count");
    let service = object([
        ("image", recipe.text("recipe_image_uri").map_or(Value::Null, |image| json!(image))),
        ("entrypoint", entrypoint.map_or(Value::Null, words)),
        ("command", if arguments.is_empty() { Value::Null } else { words(arguments) }),
        ("environment", Value::Object(environment)),
        ("labels", recipe.text("recipe_id").map_or(Value::Null, |id| json!({"flashjob.recipe-id": id}))),
        ("ports", published),
        // FUSE needs root, the device and one capability. Where FUSE is refused all the same, inputs are copied.
        ("user", json!("0")),
        ("devices", fuse(json!(["/dev/fuse"]))),
        ("cap_drop", json!(["ALL"])),
        ("cap_add", fuse(json!(["SYS_ADMIN"]))),
        ("security_opt", json!(["no-new-privileges"])),
        ("stop_grace_period", json!("30s")),
        // The blueprint counts in decimal units, and compose takes bytes.
        ("shm_size", shared_memory.map_or(Value::Null, |size| json!(size * 1_000_000))),
        ("mem_limit", memory.map_or(Value::Null, |size| json!(size * 1_000_000_000))),
        ("cpus", processors.map_or(Value::Null, |count| json!(count))),
        ("deploy", gpus(recipe)),
        ("volumes", volumes(recipe)),
    ]);
    let volumes: Map<String, Value> = own_volumes(recipe).into_iter().map(|(name, _)| (name, json!({}))).collect();
    let mut services = Map::new();
    services.insert(name, service);
    yaml::document(&json!({"services": services, "volumes": volumes}))
}

/// Compose does not number replicas.
pub(super) fn one_replica(recipe: &Recipe, environment: &mut Map<String, Value>) {
    if let Some(count @ 2..) = recipe.integer("recipe_replica_count") {
        recipe.leave_out("recipe_replica_count", format!("one process runs all prompts here, not {count}"));
        // Without it, the process would run its share of the prompts only.
        environment.insert("replica_count".to_owned(), json!("1"));
    }
}

fn gpus(recipe: &Recipe) -> Value {
    match recipe.integer("recipe_nvidia_gpu_count") {
        Some(count @ 1..) => json!({"resources": {"reservations": {"devices": [
            {"driver": "nvidia", "count": count, "capabilities": ["gpu"]},
        ]}}}),
        _ => Value::Null,
    }
}

/// Volumes that compose makes: outputs and results. Inputs are mounted over directories of the container.
fn own_volumes(recipe: &Recipe) -> Vec<(String, String)> {
    let outputs = render::output_locations(recipe).into_iter().enumerate();
    let mut volumes: Vec<(String, String)> = outputs.map(|(index, (at, _))| (format!("output-{index}"), at)).collect();
    volumes.push(("results".to_owned(), "/results".to_owned()));
    volumes
}

fn volumes(recipe: &Recipe) -> Value {
    let own = own_volumes(recipe).into_iter().map(|(name, at)| format!("{name}:{at}"));
    let node = render::node_directories(recipe).into_iter().map(|(node, at)| format!("{node}:{at}"));
    json!(own.chain(node).collect::<Vec<_>>())
}

/// compose replaces `$NAME` itself.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}
