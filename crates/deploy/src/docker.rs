//! A recipe as a shell script with one `docker run`.

use serde_json::Map;

use super::compose;
use super::recipe::Recipe;
use super::render;

/// The script; its first line names the shell.
pub(super) fn script(recipe: &Recipe) -> String {
    let variables = render::variables(recipe);
    let (entrypoint, arguments) = render::command(recipe, Some(&variables));
    let mut words: Vec<Vec<String>> = vec![vec!["docker".to_owned(), "run".to_owned(), "--rm".to_owned()]];
    let mut add = |flag: &str, value: &str| words.push(vec![flag.to_owned(), value.to_owned()]);
    add("--name", &render::name(recipe));
    // FUSE needs root, the device and one capability. Where FUSE is refused all the same, inputs are copied.
    add("--user", "0");
    add("--cap-drop", "ALL");
    if !render::input_locations(recipe).is_empty() {
        add("--cap-add", "SYS_ADMIN");
        add("--device", "/dev/fuse");
    }
    add("--security-opt", "no-new-privileges");
    add("--stop-timeout", "30");
    if let Some(id) = recipe.text("recipe_id") {
        add("--label", &format!("flashjob.recipe-id={id}"));
    }
    if let Some(count @ 1..) = recipe.integer("recipe_nvidia_gpu_count") {
        add("--gpus", &count.to_string());
    }
    if let Some(size) = recipe.integer("recipe_shared_memory_volume_size_limit_in_mb") {
        add("--shm-size", &(size * 1_000_000).to_string());
    }
    if let Some(size) = recipe.integer("recipe_container_memory_size") {
        add("--memory", &(size * 1_000_000_000).to_string());
    }
    if let Some(count) = recipe.integer("recipe_container_cpu_count") {
        add("--cpus", &count.to_string());
    }
    let port = recipe.text("recipe_container_port").unwrap_or("8000");
    if let Some(host) = recipe.text("recipe_host_port") {
        add("--publish", &format!("{host}:{port}"));
    }
    let locations = render::output_locations(recipe).into_iter().chain([("/results".to_owned(), None)]);
    for (index, (at, _)) in locations.enumerate() {
        add("--volume", &format!("{}-{index}:{at}", render::name(recipe)));
    }
    for (node, at) in render::node_directories(recipe) {
        add("--volume", &format!("{node}:{at}"));
    }
    let mut changed = Map::new();
    compose::one_replica(recipe, &mut changed);
    for (name, value) in &variables {
        // A variable that cannot keep its value, such as the number of replicas, is replaced in place.
        let value = changed.get(name).and_then(|value| value.as_str()).unwrap_or(value);
        add("--env", &format!("{name}={value}"));
    }
    for entry in recipe.list("recipe_environment_secrets") {
        if let (Some(variable), Some(secret)) = (entry["envvar_name"].as_str(), entry["secret_name"].as_str()) {
            recipe.leave_out(
                "recipe_environment_secrets",
                format!(
                    "{variable} is taken from the environment that this is started in, not from the Secret {secret}"
                ),
            );
            // Without a value docker passes the variable on from its own environment.
            add("--env", variable);
        }
    }
    let mut entrypoint = entrypoint.unwrap_or_default().into_iter();
    if let Some(program) = entrypoint.next() {
        add("--entrypoint", &program);
    }
    let image = recipe.text("recipe_image_uri").unwrap_or_default().to_owned();
    // docker takes one word as the entrypoint; the others go before the arguments.
    words.push(std::iter::once(image).chain(entrypoint).chain(arguments).collect());
    let lines: Vec<String> =
        words.iter().map(|line| line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")).collect();
    format!("#!/bin/sh\nexec {}\n", lines.join(" \\\n    "))
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
