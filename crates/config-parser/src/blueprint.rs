//! A whole AI Blueprints JSON file → what its container would be told.
//!
//! The variables of `recipe_container_env` and the words of `recipe_container_command_args` are read by the same
//! readers as the real ones, after `$(key)` references were replaced as Kubernetes would. Fields that configure
//! the platform (node shapes, pools, probes) are none of the job's business and are passed over.

use std::ffi::OsString;

use flashjob_config::{Origin, redact};
use serde_json::Value;

use super::error::ConfigError;
use super::flags::Asked;
use super::keys::{Raw, Texts};
use super::quoting::quoted;
use super::{environment, flags, reference};

const ENV: &str = "recipe_container_env";
const ARGS: &str = "recipe_container_command_args";

#[derive(serde::Deserialize)]
struct File {
    recipe_mode: Option<String>,
    #[serde(default)]
    recipe_container_env: Vec<Variable>,
    #[serde(default)]
    recipe_container_command_args: Vec<Scalar>,
    input_object_storage: Option<Value>,
    output_object_storage: Option<Value>,
    recipe_container_port: Option<Scalar>,
    recipe_nvidia_gpu_count: Option<Scalar>,
    recipe_replica_count: Option<Scalar>,
    #[serde(alias = "deployment_group")]
    pre_filled_samples: Option<serde::de::IgnoredAny>,
}

#[derive(serde::Deserialize)]
struct Variable {
    key: String,
    value: Scalar,
}

/// A value that may be quoted in JSON or not.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(serde_json::Number),
    Bool(bool),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Scalar::Text(text) => text.clone(),
            Scalar::Number(number) => number.to_string(),
            Scalar::Bool(bool) => bool.to_string(),
        }
    }
}

/// Fills keys that `raw` lacks from the blueprint in `bytes`, read from `path`.
pub(super) fn fill(raw: &mut Raw, path: &str, bytes: &[u8], errors: &mut Vec<ConfigError>) {
    let mut refuse = |problem: String| errors.push(ConfigError::Blueprint { file: quoted(path), problem });
    let Ok(text) = std::str::from_utf8(bytes) else {
        return refuse("is not UTF-8 text; give the JSON file itself".to_owned());
    };
    // Some editors begin a file with a byte order mark.
    let file = match serde_json::from_str::<Value>(text.trim_start_matches('\u{feff}')) {
        Ok(file @ Value::Object(_)) => file,
        Ok(_) => return refuse("is not a JSON object; give the JSON that the recipe is deployed with".to_owned()),
        Err(error) => return refuse(format!("is not JSON: {error}")),
    };
    let file: File = match serde_json::from_value(file) {
        Ok(file) => file,
        Err(error) => {
            return refuse(format!("does not have the shape of an AI Blueprints file: {}", redact(&error.to_string())));
        }
    };
    match file.recipe_mode.as_deref() {
        // The platform has other modes; only a job ends by itself.
        Some("job") => {}
        Some("shared_node_pool") => {
            return refuse(
                "creates a shared node pool and runs nothing (recipe_mode `shared_node_pool`); deploy it in the portal, \
                 then give the blueprint of the job that is to run on that pool"
                    .to_owned(),
            );
        }
        Some(mode) => {
            return refuse(format!("has recipe_mode {}, but flashjob runs blueprints of mode `job`", quoted(mode)));
        }
        None if file.pre_filled_samples.is_some() => {
            return refuse("holds several recipes; give a file with one of them".to_owned());
        }
        None => {
            return refuse("has no recipe_mode; one that flashjob can run has `\"recipe_mode\": \"job\"`".to_owned());
        }
    }

    // In order: Kubernetes lets a variable refer to those before it.
    let mut variables: Vec<(String, String)> = Vec::new();
    for Variable { key, value } in &file.recipe_container_env {
        let value = reference::expand(&value.text(), |name| lookup(&variables, name));
        variables.push((key.clone(), value));
    }
    let words: Vec<OsString> = file
        .recipe_container_command_args
        .iter()
        .map(|word| reference::expand(&word.text(), |name| lookup(&variables, name)).into())
        .collect();

    let mut wrong = Vec::new();
    match flags::read(words.into_iter(), &mut wrong) {
        Some(Asked::Run(texts)) if texts.blueprint.is_none() => raw.fill(texts, |_| Origin::Blueprint(ARGS.to_owned())),
        Some(_) => wrong.push(ConfigError::Usage("its command must be a run without another blueprint".to_owned())),
        None => {}
    }
    errors.extend(
        wrong.into_iter().map(|error| ConfigError::Blueprint {
            file: quoted(path),
            problem: format!("has a wrong {ARGS}: {error}"),
        }),
    );
    let pairs = variables.into_iter().map(|(key, value)| (key.into(), value.into()));
    let environment = environment::read(pairs, |name| Origin::Blueprint(format!("{ENV} {name}")), errors);
    environment.fill(raw);

    let json = |value: Option<Value>| value.map(|value| value.to_string());
    let scalar = |value: Option<Scalar>| value.map(|value| value.text());
    let texts = Texts {
        input_object_storage: json(file.input_object_storage),
        output_object_storage: json(file.output_object_storage),
        recipe_container_port: scalar(file.recipe_container_port),
        recipe_nvidia_gpu_count: scalar(file.recipe_nvidia_gpu_count),
        recipe_replica_count: scalar(file.recipe_replica_count),
        ..Texts::default()
    };
    raw.fill(texts, |field| Origin::Blueprint(field.to_owned()));
}

/// The last value of a variable, which wins in a container, too.
fn lookup(variables: &[(String, String)], name: &str) -> Option<String> {
    variables.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
}
