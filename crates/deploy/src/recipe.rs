//! A recipe whose keys are taken one by one; keys that no renderer took are known and reported.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Place, document};
use flashjob_config::redact;

/// The keys of one recipe, and what became of them.
pub(super) struct Recipe {
    keys: Map<String, Value>,
    places: BTreeMap<String, Place>,
    taken: RefCell<BTreeMap<String, ()>>,
    notes: RefCell<Vec<(String, String)>>,
}

/// A key without a counterpart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Key of the blueprint.
    pub key: String,
    /// Its line in the blueprint.
    pub line: usize,
    /// Its value, without a token.
    pub value: String,
    /// Reason why it has no counterpart.
    pub reason: String,
}

/// Values longer than this are told by their type alone.
const LONGEST_SHOWN: usize = 80;

impl Recipe {
    pub(super) fn of(document: &document::Node) -> Self {
        let members = document.members();
        Self {
            keys: members.iter().map(|member| (member.name.clone(), member.value.json())).collect(),
            places: members.iter().map(|member| (member.name.clone(), member.place)).collect(),
            taken: RefCell::default(),
            // Interior mutability, so that renderers may take keys inside of closures.
            notes: RefCell::default(),
        }
    }

    /// A key's value; from now on it is taken.
    pub(super) fn take(&self, key: &str) -> Option<&Value> {
        let value = self.keys.get(key)?;
        self.taken.borrow_mut().insert(key.to_owned(), ());
        Some(value)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.take(key)?.as_str()
    }

    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        self.take(key)?.as_i64()
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.take(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn list(&self, key: &str) -> &[Value] {
        self.take(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        self.list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// A key, or a part of one, that is left out although something of it was taken.
    pub(super) fn leave_out(&self, key: &str, reason: impl Into<String>) {
        let note = (key.to_owned(), reason.into());
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// Keys that were left out, in the order of the file: those that no renderer took, and those recorded as left out.
    pub(super) fn left_out(&self) -> Vec<LeftOut> {
        let (taken, notes) = (self.taken.borrow(), self.notes.borrow());
        let mut found: Vec<LeftOut> = Vec::new();
        for (key, value) in &self.keys {
            let reasons: Vec<String> =
                notes.iter().filter(|(noted, _)| noted == key).map(|(_, why)| why.clone()).collect();
            let reasons = match (taken.contains_key(key), reasons.is_empty()) {
                // A key may be taken by a renderer and still have parts that are left out.
                (true, true) => continue,
                (false, true) => vec![reason(key).to_owned()],
                (_, false) => reasons,
            };
            let line = self.places.get(key).map_or(0, |place| place.line);
            let value = shown(value);
            found.extend(reasons.into_iter().map(|reason| LeftOut {
                key: key.clone(),
                line,
                value: value.clone(),
                reason,
            }));
        }
        found
    }
}

/// A value in a few words. What has parts is not told: one of them may be a key or a token.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(members) => format!("an object of {}", members.len()),
        plain => {
            let text = redact(&plain.to_string());
            if text.chars().count() <= LONGEST_SHOWN { text } else { "a long text".to_owned() }
        }
    }
}

/// Reason why a key that no renderer takes has no counterpart.
fn reason(key: &str) -> &'static str {
    match key {
        "recipe_node_pool_size"
        | "recipe_node_boot_volume_size_in_gbs"
        | "recipe_flex_shape_ocpu_count"
        | "recipe_flex_shape_memory_size_in_gbs"
        | "recipe_node_image_ocid"
        | "recipe_availability_domain"
        | "recipe_public_ssh_key"
        | "recipe_max_pods_per_node"
        | "recipe_node_pool_name"
        | "recipe_node_labels"
        | "recipe_node_autoscaling_params"
        | "multinode_rdma_enabled_in_shared_pool"
        | "multinode_num_nodes_to_use_from_shared_pool" => "the platform makes nodes; here they must be there",
        "recipe_node_shape" | "recipe_node_selector_arch" | "recipe_node_name" => {
            "there is one machine here, and it is chosen by where this is started"
        }
        "recipe_use_shared_node_pool" | "recipe_shared_node_pool_selector" => {
            "shared node pools are the platform's; choose nodes by a nodeSelector of your cluster"
        }
        "recipe_compartment_ocid"
        | "recipe_worker_subnet_nsg_ocid"
        | "recipe_pod_subnet_ocid"
        | "recipe_pod_subnet_nsg_ocid" => "the network and the compartment are the cloud's",
        "recipe_pod_autoscaling_params"
        | "recipe_additional_ingress_ports"
        | "recipe_inference_gateway"
        | "service_endpoint_domain"
        | "service_endpoint" => "it belongs to services; a job ends by itself and is not called",
        "recipe_host_port" => "a job is not called from outside; Prometheus reaches the container's own port",
        "input_file_system" => "the file system is mounted by the platform; make a volume of it and mount that",
        "recipe_team_info" | "team" => {
            "teams and their quotas are the platform's; with Kueue set kueue.x-k8s.io/queue-name"
        }
        "skip_capacity_validation" | "skip_quota_validation" => "only the platform validates capacity",
        "recipe_container_secret_name" => "log in to the registry where this is started",
        "recipe_amd_gpu_count" => "AMD GPUs need --device /dev/kfd and /dev/dri, which depend on the machine",
        "mig_resource_request" => "a part of a GPU is chosen by the machine's device plugin",
        "recipe_ephemeral_storage_size" => "there is no limit of this kind here",
        "recipe_liveness_probe_params" | "recipe_readiness_probe_params" | "recipe_startup_probe_params" => {
            "nothing probes here; the image has no shell to do it with"
        }
        "recipe_prometheus_enabled" => "point Prometheus at the container's port",
        "pre_filled_sample_name" => "only the portal shows it",
        _ if key.starts_with("shared_node_pool_") => "it describes a node pool, which a job does not make",
        _ => "it has no counterpart here",
    }
}
