//! Rules that the schema cannot express: values that fit their type and yet cannot be deployed.

use std::collections::BTreeMap;

use super::Finding;
use super::document::{Node, inside};
use flashjob_config::Par;
use flashjob_config_parser::unresolved_reference;

/// Everything in `document` that the platform, or any other place, would refuse or misunderstand.
pub(super) fn check(document: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, recipe) in recipes(document) {
        let mut rules = Rules { recipe, at, findings: &mut findings };
        rules.check();
    }
    findings
}

/// Every recipe of a document, and what it is called there.
fn recipes(document: &Node) -> Vec<(String, &Node)> {
    let mut found = Vec::new();
    if let Some(samples) = document.member("pre_filled_samples") {
        found
            .extend(samples.items().iter().enumerate().map(|(i, sample)| (format!("pre_filled_samples[{i}]"), sample)));
    }
    let deployments = document.member("deployment_group").and_then(|group| group.member("deployments"));
    for (index, deployment) in deployments.map(Node::items).unwrap_or_default().iter().enumerate() {
        if let Some(recipe) = deployment.member("recipe") {
            found.push((format!("deployment_group.deployments[{index}].recipe"), recipe));
        }
    }
    // A file without samples or deployments is a single recipe.
    if found.is_empty() {
        found.push((String::new(), document));
    }
    found
}

struct Rules<'a> {
    recipe: &'a Node,
    at: String,
    findings: &'a mut Vec<Finding>,
}

impl Rules<'_> {
    fn refuse(&mut self, node: &Node, name: &str, problem: impl Into<String>) {
        self.findings.push(Finding { place: node.place, at: inside(&self.at, name), problem: problem.into() });
    }

    fn check(&mut self) {
        let mode = self.recipe.member("recipe_mode").and_then(Node::text);
        if mode == Some("job") && self.recipe.member("recipe_image_uri").is_none() {
            self.refuse(self.recipe, "recipe_image_uri", "is missing: a job needs an image");
        }
        if mode == Some("shared_node_pool") {
            for key in ["shared_node_pool_size", "shared_node_pool_shape", "shared_node_pool_selector"] {
                if self.recipe.member(key).is_none() {
                    self.refuse(self.recipe, key, "is missing: a shared node pool needs it");
                }
            }
        }
        self.numbers();
        self.environment();
        self.mounts();
    }

    fn numbers(&mut self) {
        for name in ["recipe_container_port", "recipe_host_port"] {
            if let Some(node) = self.recipe.member(name)
                && let Some(text) = node.text()
                // The schema types ports as texts, without a range.
                && !text.parse::<u16>().is_ok_and(|port| port > 0)
            {
                self.refuse(node, name, "must be a port, from 1 to 65535, in quotes");
            }
        }
        for (name, least) in [
            ("recipe_replica_count", 1),
            ("recipe_node_pool_size", 1),
            ("shared_node_pool_size", 1),
            ("recipe_nvidia_gpu_count", 0),
            ("recipe_amd_gpu_count", 0),
            ("recipe_shared_memory_volume_size_limit_in_mb", 1),
            ("recipe_ephemeral_storage_size", 1),
            ("recipe_container_memory_size", 1),
            ("recipe_container_cpu_count", 1),
            ("recipe_node_boot_volume_size_in_gbs", 50),
        ] {
            if let Some(node) = self.recipe.member(name)
                && node.integer().is_some_and(|number| number < least)
            {
                self.refuse(node, name, format!("must be at least {least}"));
            }
        }
        let gpus = self.recipe.member("recipe_nvidia_gpu_count");
        if let (Some(node), Some(shape)) = (gpus, self.recipe.member("recipe_node_shape").and_then(Node::text))
            && let (Some(asked), Some(there)) = (node.integer(), gpus_of(shape))
            && asked > there
        {
            let problem = format!("is {asked}, but {shape} has {there}: no node could take the job");
            self.refuse(node, "recipe_nvidia_gpu_count", problem);
        }
    }

    fn environment(&mut self) {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let variables = self.recipe.member("recipe_container_env").map(Node::items).unwrap_or_default();
        for (index, variable) in variables.iter().enumerate() {
            let Some(key) = variable.member("key") else { continue };
            let Some(name) = key.text() else { continue };
            let at = format!("recipe_container_env[{index}].key");
            if name.is_empty() || name.contains(['=', ' ', '\0']) || name.starts_with(|c: char| c.is_ascii_digit()) {
                self.refuse(key, &at, "is no name that a variable can have");
            }
            if let Some(first) = names.insert(name, index) {
                self.refuse(
                    key,
                    &at,
                    format!("is there twice, first as recipe_container_env[{first}]; keep one of them"),
                    // Kubernetes leaves an unknown reference as it is, and the program would see `$(name)`.
                );
            }
        }
        let words = self.recipe.member("recipe_container_command_args").map(Node::items).unwrap_or_default();
        for (index, word) in words.iter().enumerate() {
            if let Some(name) = word.text().and_then(unresolved_reference)
                && !names.contains_key(name)
            {
                let at = format!("recipe_container_command_args[{index}]");
                self.refuse(word, &at, format!("refers to `{name}`, which recipe_container_env has not got"));
            }
        }
    }

    fn mounts(&mut self) {
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        for list in ["input_object_storage", "output_object_storage", "input_file_system", "local_filesystem"] {
            let entries = self.recipe.member(list).map(Node::items).unwrap_or_default();
            for (index, entry) in entries.iter().enumerate() {
                let called = format!("{list}[{index}]");
                if let Some(node) = entry.member("par")
                    && let Some(text) = node.text()
                    && let Err(error) = Par::parse(text)
                {
                    self.refuse(node, &inside(&called, "par"), format!("is no Pre-Authenticated Request: {error}"));
                }
                let Some(node) = entry.member("mount_location") else { continue };
                let Some(location) = node.text() else { continue };
                let at = inside(&called, "mount_location");
                if !location.starts_with('/') || location == "/" {
                    // Trailing slashes name the same directory.
                    self.refuse(node, &at, "must be an absolute path below /");
                }
                let plain = location.trim_end_matches('/').to_owned();
                if let Some(other) = taken.insert(plain, called) {
                    self.refuse(node, &at, format!("is that of {other} too; one place can hold one mount"));
                }
            }
        }
    }
}

/// GPUs of a shape by its name, such as 2 of `VM.GPU.A10.2` and 8 of `BM.GPU.H100.8`.
fn gpus_of(shape: &str) -> Option<i64> {
    let (kind, count) = shape.rsplit_once('.')?;
    kind.contains("GPU.").then(|| count.parse().ok()).flatten()
}
