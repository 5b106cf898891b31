//! A blueprint becomes text for another place, with a heading that says what was left out.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::document::{self, Node};
use super::recipe::{LeftOut, Recipe};
use super::{Finding, Kind, compose, docker, kubernetes, validate};
use flashjob_config_parser::expand_references;

/// Target of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Kubernetes Job, with a Secret for what is secret.
    Job,
    /// A compose file.
    Compose,
    /// A shell script with one `docker run`.
    Docker,
}

/// The text, and what it does not hold.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The manifest. Holds the blueprint's secrets: it is as secret as the blueprint.
    pub text: String,
    /// Keys without a counterpart; `text` lists them, too.
    pub left_out: Vec<LeftOut>,
}

/// Reasons why there is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The blueprint is not sound.
    #[error("the blueprint is not sound")]
    Unsound(Vec<Finding>),
    /// It is sound, and there is nothing in it that could run elsewhere.
    #[error("{0}")]
    NothingToRun(String),
}

/// Renders the blueprint in `text`.
///
/// # Errors
/// A blueprint that is not sound, or that is none of a job.
pub fn render(text: &str, format: Format) -> Result<Rendered, RenderError> {
    let kind = validate(text).map_err(RenderError::Unsound)?;
    let document = document::read(text).map_err(|finding| RenderError::Unsound(vec![finding]))?;
    if kind != Kind::Job {
        return Err(RenderError::NothingToRun(nothing_to_run(kind, &document)));
    }
    let recipe = Recipe::of(&document);
    // The mode is what the manifest expresses.
    recipe.take("recipe_mode");
    let body = match format {
        Format::Job => kubernetes::manifests(&recipe),
        Format::Compose => compose::file(&recipe),
        Format::Docker => docker::script(&recipe),
    };
    let left_out = recipe.left_out();
    let text = match format {
        // A script must begin with its shebang, so the heading comes second.
        Format::Docker => body.replacen('\n', &format!("\n{}", heading(&left_out)), 1),
        Format::Job | Format::Compose => format!("{}{body}", heading(&left_out)),
    };
    Ok(Rendered { text, left_out })
}

fn nothing_to_run(kind: Kind, document: &Node) -> String {
    let pool = |key: &str| document.member(key).map(|value| value.json().to_string()).unwrap_or_default();
    match (kind, document.member("recipe_mode").and_then(Node::text)) {
        (Kind::SharedNodePool, _) => format!(
            "this blueprint makes a shared node pool ({} of {}, selected as {}) and runs nothing: deploy it on the platform \
             first, then the job that names the pool; elsewhere, nodes with GPUs take its place",
            pool("shared_node_pool_size"),
            pool("shared_node_pool_shape"),
            pool("shared_node_pool_selector")
        ),
        (_, Some(mode)) => {
            format!("this blueprint has the mode `{mode}`; only those of mode `job` run to an end elsewhere")
        }
        (_, None) => "this file holds several recipes; give a file with one of mode `job`".to_owned(),
    }
}

fn heading(left_out: &[LeftOut]) -> String {
    let mut text =
        "# Made from an AI Blueprint by `flashjob render`. It holds what the blueprint holds, secrets included.\n"
            .to_owned();
    if !left_out.is_empty() {
        text.push_str("# Not carried over:\n");
    }
    for LeftOut { key, line, value, reason } in left_out {
        let _ = writeln!(text, "#   {key} (line {line}) = {value}: {reason}");
    }
    text
}

/// The container's variables in order, as text; the platform mounts inputs itself, flashjob is told of them by a variable.
pub(super) fn variables(recipe: &Recipe) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for entry in recipe.list("recipe_container_env") {
        if let (Some(key), Some(value)) = (entry["key"].as_str(), plain(&entry["value"])) {
            variables.push((key.to_owned(), value));
        }
    }
    // flashjob accepts several spellings of a variable, any of which counts as given.
    let named = |name: &str| variables.iter().any(|(known, _)| known.replace('-', "_").to_lowercase() == name);
    let mut own: Vec<(String, String)> = Vec::new();
    if let Some(inputs) = inputs(recipe) {
        own.push(("input_object_storage".to_owned(), inputs.to_string()));
    }
    if let Some(port) = recipe.text("recipe_container_port")
        && !named("metrics_port")
    {
        own.push(("metrics_port".to_owned(), port.to_owned()));
    }
    for (key, name) in
        [("recipe_nvidia_gpu_count", "recipe_nvidia_gpu_count"), ("recipe_replica_count", "replica_count")]
    {
        if let Some(number) = recipe.integer(key)
            && !named(name)
        {
            own.push((name.to_owned(), number.to_string()));
        }
    }
    variables.extend(own);
    variables
}

/// Inputs that can be reached from anywhere: those with a PAR.
fn inputs(recipe: &Recipe) -> Option<Value> {
    let all = recipe.list("input_object_storage");
    let reachable: Vec<&Value> = all.iter().filter(|entry| entry.get("par").is_some()).collect();
    for entry in all.iter().filter(|entry| entry.get("par").is_none()) {
        let bucket = entry["bucket_name"].as_str().unwrap_or_default();
        recipe.leave_out(
            "input_object_storage",
            format!(
                "the bucket {bucket} is reached by the platform's own rights; give a Pre-Authenticated Request instead"
            ),
        );
    }
    // Without any input the variable is absent, since an empty list would be a mistake.
    (!reachable.is_empty()).then(|| json!(reachable))
}

/// Locations of inputs, each with the size of its volume in GB.
pub(super) fn input_locations(recipe: &Recipe) -> Vec<(String, Option<i64>)> {
    let entries = recipe.list("input_object_storage").iter().filter(|entry| entry.get("par").is_some());
    entries
        .filter_map(|entry| Some((entry["mount_location"].as_str()?.to_owned(), entry["volume_size_in_gbs"].as_i64())))
        .collect()
}

/// Locations from which the platform collects results.
pub(super) fn output_locations(recipe: &Recipe) -> Vec<(String, Option<i64>)> {
    let entries = recipe.list("output_object_storage");
    for entry in entries {
        let (bucket, at) =
            (entry["bucket_name"].as_str().unwrap_or_default(), entry["mount_location"].as_str().unwrap_or_default());
        recipe.leave_out(
            "output_object_storage",
            format!("{at} is there, but nothing takes it to the bucket {bucket}; give output_par, which flashjob writes to itself"),
        );
    }
    entries
        .iter()
        .filter_map(|entry| Some((entry["mount_location"].as_str()?.to_owned(), entry["volume_size_in_gbs"].as_i64())))
        .collect()
}

/// Directories of the node: `(on the node, in the container)`.
pub(super) fn node_directories(recipe: &Recipe) -> Vec<(String, String)> {
    let entries = recipe.list("local_filesystem").iter();
    entries
        .filter_map(|entry| {
            Some((entry["node_directory_path"].as_str()?.to_owned(), entry["mount_location"].as_str()?.to_owned()))
        })
        .collect()
}

/// The entrypoint and its arguments, where the blueprint says them. With `resolved`, references are replaced.
pub(super) fn command(recipe: &Recipe, resolved: Option<&[(String, String)]>) -> (Option<Vec<String>>, Vec<String>) {
    let entrypoint = recipe.texts("recipe_container_command");
    let mut arguments = recipe.texts("recipe_container_command_args");
    let mut entrypoint = (!entrypoint.is_empty()).then_some(entrypoint);
    if let Some(variables) = resolved {
        // The last value wins, as in a container.
        let lookup = |name: &str| variables.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        for word in entrypoint.iter_mut().flatten().chain(&mut arguments) {
            *word = expand_references(word, lookup);
        }
    }
    // The platform joins the words unquoted, and so does this.
    if recipe.is_set("recipe_container_command_use_shell") {
        let line: Vec<String> = entrypoint.into_iter().flatten().chain(arguments).collect();
        return (Some(vec!["/bin/sh".to_owned(), "-c".to_owned()]), vec![line.join(" ")]);
    }
    (entrypoint, arguments)
}

/// The blueprint's name as Kubernetes and Docker take one.
pub(super) fn name(recipe: &Recipe) -> String {
    let given = recipe.text("deployment_name").unwrap_or_default().to_lowercase();
    let plain: String = given.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    // Pods of an Indexed Job append an index and five letters, within 63 characters.
    let cut: String = plain.trim_matches('-').chars().take(50).collect();
    let cut = cut.trim_end_matches('-').to_owned();
    if cut.starts_with(|c: char| c.is_ascii_alphabetic()) {
        cut
    } else {
        format!("job-{cut}").trim_end_matches('-').to_owned()
    }
}

/// Returns whether a variable is a secret that must not be in a manifest.
pub(super) fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_lowercase();
    // The path of a PAR begins with `/p/`, wherever it is in a value.
    ["password", "token", "secret", "api_key"].iter().any(|word| name.contains(word)) || value.contains("/p/")
}

/// A text, number or boolean as text.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An object without the members that are null.
pub(super) fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let members = members.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(members.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}
