//! `flashjob validate`: the schema's rules and those that it misses, each with line and column.

use flashjob_deploy::{Kind, Place, validate};
use serde_json::{Value, json};

use super::{SCHEMA, everything, judges, seed};
use crate::support::process::Process;

const HEAD: &str = r#""recipe_mode": "job", "deployment_name": "d", "recipe_image_uri": "i""#;

/// Findings for a job with `rest` beside the required keys.
fn wrong(rest: &str) -> Vec<String> {
    let text = format!("{{{HEAD},\n{rest}}}");
    validate(&text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn the_platforms_own_files_are_sound() {
    assert_eq!(validate(&seed("offline-benchmark-blueprint.json")), Ok(Kind::Job));
    assert_eq!(validate(&seed("shared_node_pool_a10.json")), Ok(Kind::SharedNodePool));
    assert_eq!(validate(&everything().to_string()), Ok(Kind::Job));
    for folder in ["samples", "k8s/blueprints"] {
        let folder = crate::support::project().join(folder);
        for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "json") {
                let found = validate(&std::fs::read_to_string(&file).unwrap());
                assert!(found.is_ok(), "{}: {found:?}", file.display());
            }
        }
    }
}

#[test]
fn each_mistake_has_its_place_and_a_sentence() {
    for (rest, expected) in [
        (
            r#""recipe_replica_count": "2""#,
            "line 2, column 25: recipe_replica_count is a text (\"2\"), but a whole number is called for",
        ),
        (r#""recipe_replica_count": 1.5"#, "column 25: recipe_replica_count is a number (1.5), but a whole number"),
        (r#""recipe_replica_count": 0"#, "recipe_replica_count must be at least 1"),
        (r#""recipe_container_port": 8000"#, "recipe_container_port is a number (8000), but a text is called for"),
        (r#""recipe_container_port": "http""#, "recipe_container_port must be a port"),
        (r#""recipe_host_port": "70000""#, "recipe_host_port must be a port"),
        (
            r#""recipe_replicas_count": 1"#,
            "line 2, column 1: recipe_replicas_count is no key that the platform knows; did you mean `recipe_replica_count`?",
        ),
        ("\n \"ü\": 1, \"x\": 2", "line 3, column 10: x is no key"),
        (
            r#""recipe_container_env": [{"key": "a", "value": true}]"#,
            "recipe_container_env[0].value is a boolean (true), but a whole number or a text",
        ),
        (r#""recipe_container_env": [{"key": "a"}]"#, "recipe_container_env[0] has no `value`"),
        (r#""recipe_container_env": [{"key": "a", "value": 1, "x": 1}]"#, "recipe_container_env[0].x is no key"),
        (
            r#""recipe_container_env": [{"key": "a", "value": 1}, {"key": "a", "value": 2}]"#,
            "recipe_container_env[1].key is there twice, first as recipe_container_env[0]",
        ),
        (
            r#""recipe_container_env": [{"key": "a b", "value": 1}]"#,
            "recipe_container_env[0].key is no name that a variable can have",
        ),
        (
            r#""recipe_container_command_args": ["--model", "$(model)"]"#,
            "recipe_container_command_args[1] refers to `model`, which recipe_container_env has not got",
        ),
        (
            r#""input_object_storage": [{"mount_location": "/m", "volume_size_in_gbs": 1}]"#,
            "input_object_storage[0] fits none of its forms: one with par, mount_location, volume_size_in_gbs; or one with bucket_name",
        ),
        (
            r#""input_object_storage": [{"par": "https://h/p/t0ken/n/n/b/b/o/", "bucket_name": "b", "mount_location": "/m", "volume_size_in_gbs": 1}]"#,
            "input_object_storage[0] fits more than one form",
        ),
        (
            r#""input_object_storage": [{"par": "https://h/nothing", "mount_location": "/m", "volume_size_in_gbs": 1}]"#,
            "input_object_storage[0].par is no Pre-Authenticated Request",
        ),
        (
            r#""input_object_storage": [{"bucket_name": "b", "mount_location": "m", "volume_size_in_gbs": 1}]"#,
            "mount_location must be an absolute path",
        ),
        (
            r#""local_filesystem": [{"node_directory_path": "/a", "mount_location": "/m"}, {"node_directory_path": "/b", "mount_location": "/m/"}]"#,
            "local_filesystem[1].mount_location is that of local_filesystem[0] too",
        ),
        (
            r#""recipe_node_shape": "VM.GPU.A10.2", "recipe_nvidia_gpu_count": 4"#,
            "recipe_nvidia_gpu_count is 4, but VM.GPU.A10.2 has 2",
        ),
        (
            r#""recipe_pod_autoscaling_params": {"scaler_type": "cron"}"#,
            "recipe_pod_autoscaling_params.scaler_type is a text (\"cron\"), but must be one of prometheus",
        ),
        (r#""team": []"#, "team is a list, but an object is called for"),
        (r#""skip_quota_validation": null"#, "skip_quota_validation is null, but true or false is called for"),
        (r#""recipe_id": "a", "recipe_id": "b""#, "line 2, column 19: recipe_id is there twice, first in line 2"),
        (r#""recipe_id": "a",,"#, "line 2, column 18: the file is not JSON"),
        (r#""recipe_id": 'a'"#, "the file is not JSON"),
        (r#""recipe_id": "a" // note"#, "the file is not JSON"),
    ] {
        let found = wrong(rest);
        assert!(
            found.iter().any(|finding| finding.contains(expected)),
            "{rest}\n  wants {expected}\n  found {found:#?}"
        );
        assert!(!found.join("").contains("t0ken"), "{found:?}");
    }
    for (text, expected) in [
        ("", "line 1, column 1: the file is empty"),
        ("[]", "the file is not a JSON object"),
        ("{}", "the file has no `recipe_mode`"),
        (
            r#"{"recipe_mode": "jobs", "deployment_name": "d"}"#,
            "recipe_mode is a text (\"jobs\"), but must be one of service, job, update",
        ),
        (r#"{"recipe_mode": "job", "deployment_name": "d"}"#, "recipe_image_uri is missing"),
        (r#"{"recipe_mode": "shared_node_pool", "deployment_name": "d"}"#, "shared_node_pool_shape is missing"),
        (
            r#"{"blueprint_category": "games", "deployment_group": {"name": "g", "deployments": []}}"#,
            "blueprint_category is a text (\"games\"), but must be one of gpu_benchmarking, ",
        ),
        (
            r#"{"blueprint_category": "other", "deployment_group": {"name": "g", "deployments": [{"name": "a", "recipe": {"recipe_mode": "job"}}]}}"#,
            "deployment_group.deployments[0].recipe has no `deployment_name`",
        ),
        (r#"{"blueprint_category": "other", "pre_filled_samples": []}"#, "the file fits none of its forms"),
    ] {
        let found: Vec<String> = validate(text).err().unwrap_or_default().iter().map(ToString::to_string).collect();
        assert!(
            found.iter().any(|finding| finding.contains(expected)),
            "{text}\n  wants {expected}\n  found {found:#?}"
        );
    }
}

#[test]
fn findings_stand_in_the_order_of_the_file() {
    let text = format!("{{{HEAD},\n\"b\": 1,\n\"a\": 2,\n\"recipe_host_port\": \"x\"}}");
    let places: Vec<Place> = validate(&text).unwrap_err().iter().map(|finding| finding.place).collect();
    assert_eq!(places.iter().map(|place| place.line).collect::<Vec<_>>(), [2, 3, 4]);
}

/// Our evaluation of the schema beside Python's jsonschema: the same verdict about everything and its mutations.
#[test]
fn an_independent_validator_agrees() {
    let Some(judges) = judges() else { return };
    let whole = everything();
    let mut documents = vec![whole.clone(), json!({}), json!({"recipe_mode": "job"})];
    for key in whole.as_object().unwrap().keys() {
        for value in [
            json!(null),
            json!("x"),
            json!(3),
            json!(2.0),
            json!(true),
            json!([]),
            json!([{}]),
            json!({}),
            json!({"x": 1}),
        ] {
            let mut changed = whole.clone();
            changed[key] = value;
            documents.push(changed);
        }
        let mut shorter = whole.clone();
        shorter.as_object_mut().unwrap().remove(key);
        documents.push(shorter);
    }
    let group = |recipe: Value| json!({"blueprint_category": "other", "deployment_group": {"name": "g", "deployments": [{"name": "a", "recipe": recipe}]}});
    documents.extend([group(whole.clone()), group(json!({})), json!({"blueprint_category": "other"})]);
    let mut twice = group(whole);
    twice["deployment_group"]["deployments"][0]["exports"] = json!(["service_url", "service_url"]);
    documents.push(twice);
    let program = "
import json, sys
from jsonschema import Draft202012Validator
schema, documents = json.load(sys.stdin)
recipe = dict(schema, **{'$id': 'recipe'})
for key in ('properties', 'oneOf', 'type', 'title'): recipe.pop(key, None)
recipe['$ref'] = '#/$defs/recipe_payload'
whole, part = Draft202012Validator(schema), Draft202012Validator(recipe)
keys = ('blueprint_category', 'pre_filled_samples', 'deployment_group', 'blueprint_type')
print(json.dumps([(whole if any(k in d for k in keys) else part).is_valid(d) for d in documents]))";
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let finished = Process::new(judges.join("bin/python"))
        .args(["-c", program])
        .input(json!([schema, documents]).to_string())
        .run()
        .expect_code(0);
    let theirs: Vec<bool> = serde_json::from_str(&finished.stdout).unwrap();
    assert!(theirs.iter().filter(|valid| **valid).count() > 20 && theirs.iter().filter(|valid| !**valid).count() > 200);
    // Rules that the schema has not got; everything else is the schema's.
    let own = ["must be at least", "must be a port", "is missing", "no node could take", "refers to", "is that of"];
    for (document, valid) in documents.iter().zip(theirs) {
        let mut found = validate(&document.to_string()).err().unwrap_or_default();
        found.retain(|finding| !own.iter().any(|words| finding.problem.contains(words)));
        assert_eq!(found.is_empty(), valid, "{found:?}\n{document}");
    }
}
