//! The rank of this node among several that share one model, from variables.
//!
//! The variables are LeaderWorkerSet's (`LWS_LEADER_ADDRESS`, `LWS_GROUP_SIZE`, `LWS_WORKER_INDEX`); an Indexed Job sets the same
//! ones. Rank 0 is the leader. A group of one is an ordinary job, and is `None`.

use flashjob_config::{BackendKind, EngineConfig, NodesConfig, Replica};

use super::error::ConfigError;
use super::keys::Raw;
use super::resolver::Resolver;
use super::{parsing, replica};

/// A DNS name has 253 characters at most.
const LONGEST_ADDRESS: usize = 253;

/// Reads the rank of this node. `None`: an error was noted. `Some(None)`: it is the only node.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<Option<NodesConfig>> {
    let port = resolver.read(
        &raw.group_port,
        |text| parsing::whole(text, 1, u64::from(u16::MAX)).map(|port| port as u16),
        u16::to_string,
    );
    let timeout = resolver.read(
        &raw.group_timeout,
        |text| {
            parsing::duration(text).and_then(|timeout| match timeout.is_zero() {
                true => Err("it must be above 0".to_owned()),
                false => Ok(timeout),
            })
        },
        |timeout| timeout.as_secs_f64().to_string(),
    );
    let leader = resolver.variable(&raw.lws_leader_address, "group-leader", |text| {
        // Colons are those of an IPv6 address; a name that Kubernetes makes has letters, digits, hyphens and dots.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte);
        match text.bytes().all(plain) && text.len() <= LONGEST_ADDRESS {
            true => Ok(text.to_owned()),
            false => Err("it must be a host name or an IP address, without a port".to_owned()),
        }
    });
    let num_nodes = resolver.variable(&raw.lws_group_size, "group-size", parsing::count);
    let node_rank = resolver.variable(&raw.lws_worker_index, "group-index", |text| {
        parsing::whole(text, 0, parsing::LARGEST_COUNT).map(|node_rank| node_rank as usize)
    });
    let (port, timeout, leader, num_nodes, node_rank) = (port?, timeout?, leader?, num_nodes?, node_rank?);
    let names = ["LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"];
    let (leader, num_nodes, node_rank) = match (leader, num_nodes, node_rank) {
        (None, None, None) => return Some(None),
        (Some(leader), Some(num_nodes), Some(node_rank)) => (leader, num_nodes, node_rank),
        (leader, num_nodes, node_rank) => {
            // A half-configured group would wait for nodes that never come, or run the whole job on each.
            let given = [leader.is_some(), num_nodes.is_some(), node_rank.is_some()];
            let which = |set| names.iter().zip(given).filter(move |(_, given)| *given == set).map(|(name, _)| *name);
            let are = if which(true).count() > 1 { "are" } else { "is" };
            resolver.errors.push(ConfigError::Together(format!(
                "{} {are} set without {}; a node of a group needs all three, and one that works alone none of them",
                which(true).collect::<Vec<_>>().join(" and "),
                which(false).collect::<Vec<_>>().join(" and ")
            )));
            return None;
        }
    };
    if node_rank >= num_nodes.get() {
        resolver.errors.push(ConfigError::Together(format!(
            "LWS_WORKER_INDEX is {node_rank}, but LWS_GROUP_SIZE is {num_nodes}, whose nodes are numbered from 0"
        )));
        return None;
    }
    Some((num_nodes.get() > 1).then_some(NodesConfig { leader, port, node_rank, num_nodes, timeout }))
}

/// Checks settings that several nodes do not support.
pub(super) fn check(
    resolver: &mut Resolver,
    raw: &Raw,
    nodes: &NodesConfig,
    backend: BackendKind,
    engine: &EngineConfig,
    replica: &Replica,
) {
    let num_nodes = nodes.num_nodes;
    let mut refuse = |sentence: String| resolver.errors.push(ConfigError::Together(sentence));
    if backend != BackendKind::Candle {
        refuse(format!(
            "LWS_GROUP_SIZE is {num_nodes}, but only backend=candle shares a model with other nodes; set it, or leave the LWS_ \
             variables out"
        ));
    }
    if let Some(ranks) = engine.tensor_parallel_size
        && !ranks.get().is_multiple_of(num_nodes.get())
    {
        refuse(format!(
            "tensor-parallel-size is {ranks}, which {num_nodes} nodes (LWS_GROUP_SIZE) cannot share evenly; set it to a multiple of \
             {num_nodes}"
        ));
    }
    if let Some(engines) = engine.data_parallel_size.filter(|engines| engines.get() > 1) {
        refuse(format!(
            "data-parallel-size is {engines}, but LWS_GROUP_SIZE is {num_nodes}: nodes share one model; leave one of the two out, or \
             give each node a part of the prompts (replica-count)"
        ));
    }
    if replica.share.count() > 1 {
        refuse(format!(
            "{} is {}, but LWS_GROUP_SIZE is {num_nodes}: a group of nodes runs all prompts; leave one of the two out",
            replica::given_as(raw),
            replica.share.count()
        ));
    }
}
