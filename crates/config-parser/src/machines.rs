//! The index of this process among several machines that share one model, from variables.
//!
//! The variables are LeaderWorkerSet's (`LWS_LEADER_ADDRESS`, `LWS_GROUP_SIZE`, `LWS_WORKER_INDEX`); an Indexed Job sets the same
//! ones. Machine 0 leads. A group of one is an ordinary job, and says so by being `None`.

use flashjob_config::{BackendKind, EngineConfig, Machines, Replica};

use super::error::ConfigError;
use super::keys::Raw;
use super::resolver::Resolver;
use super::{parsing, replica};

/// A DNS name has 253 characters at most.
const LONGEST_ADDRESS: usize = 253;

/// Decides which machine this is. `None`: an error was noted. `Some(None)`: the only one.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<Option<Machines>> {
    let port = resolver.read(
        &raw.group_port,
        |text| parsing::whole(text, 1, u64::from(u16::MAX)).map(|port| port as u16),
        u16::to_string,
    );
    let patience = resolver.read(
        &raw.group_timeout,
        |text| {
            parsing::duration(text).and_then(|patience| match patience.is_zero() {
                true => Err("it must be above 0".to_owned()),
                false => Ok(patience),
            })
        },
        |patience| patience.as_secs_f64().to_string(),
    );
    let leader = resolver.variable(&raw.lws_leader_address, "group-leader", |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte);
        match text.bytes().all(plain) && text.len() <= LONGEST_ADDRESS {
            true => Ok(text.to_owned()),
            false => Err("it must be a host name or an IP address, without a port".to_owned()),
        }
    });
    let count = resolver.variable(&raw.lws_group_size, "group-size", parsing::count);
    let index = resolver.variable(&raw.lws_worker_index, "group-index", |text| {
        parsing::whole(text, 0, parsing::LARGEST_COUNT).map(|index| index as usize)
    });
    let (port, patience, leader, count, index) = (port?, patience?, leader?, count?, index?);
    let names = ["LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"];
    let (leader, count, index) = match (leader, count, index) {
        (None, None, None) => return Some(None),
        (Some(leader), Some(count), Some(index)) => (leader, count, index),
        (leader, count, index) => {
            let given = [leader.is_some(), count.is_some(), index.is_some()];
            let which = |set| names.iter().zip(given).filter(move |(_, given)| *given == set).map(|(name, _)| *name);
            let are = if which(true).count() > 1 { "are" } else { "is" };
            resolver.errors.push(ConfigError::Together(format!(
                "{} {are} set without {}; a machine of a group needs all three, and one that works alone none of them",
                which(true).collect::<Vec<_>>().join(" and "),
                which(false).collect::<Vec<_>>().join(" and ")
            )));
            return None;
        }
    };
    if index >= count.get() {
        resolver.errors.push(ConfigError::Together(format!(
            "LWS_WORKER_INDEX is {index}, but LWS_GROUP_SIZE is {count}, whose machines are numbered from 0"
        )));
        return None;
    }
    Some((count.get() > 1).then_some(Machines { leader, port, index, count, patience }))
}

/// Checks settings that several nodes do not support.
pub(super) fn check(
    resolver: &mut Resolver,
    raw: &Raw,
    machines: &Machines,
    backend: BackendKind,
    engine: &EngineConfig,
    replica: &Replica,
) {
    let count = machines.count;
    let mut refuse = |sentence: String| resolver.errors.push(ConfigError::Together(sentence));
    if backend != BackendKind::Candle {
        refuse(format!(
            "LWS_GROUP_SIZE is {count}, but only backend=candle shares a model with other machines; set it, or leave the LWS_ \
             variables out"
        ));
    }
    if let Some(ranks) = engine.tensor_parallel_size
        && !ranks.get().is_multiple_of(count.get())
    {
        refuse(format!(
            "tensor-parallel-size is {ranks}, which {count} machines (LWS_GROUP_SIZE) cannot share evenly; set it to a multiple of \
             {count}"
        ));
    }
    if replica.share.count() > 1 {
        refuse(format!(
            "{} is {}, but LWS_GROUP_SIZE is {count}: a group of machines runs all prompts; leave one of the two out",
            replica::given_as(raw),
            replica.share.count()
        ));
    }
}
