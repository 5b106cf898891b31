//! The share of this process in a job, from keys and variables.
//!
//! Kubernetes numbers the pods of an Indexed Job (`JOB_COMPLETION_INDEX`) and lets each know the job's uid (`JOB_UID`, by the
//! downward API). A number without a count, or a count without a number, is refused: prompts would be run twice or never.

use std::num::NonZeroUsize;

use flashjob_config::{Origin, Replica, Share, Tracking, Workload};

use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// Longest UID in characters. A Job's has 36; the key of a run has space for 64.
const LONGEST_JOB_UID: usize = 60;

/// Determines the replica; within a group of nodes an index tells those apart. `None`: an error was recorded.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw, in_a_group: bool) -> Option<Replica> {
    let of_blueprint = resolver.read_open(&raw.recipe_replica_count, parsing::count, NonZeroUsize::to_string);
    let count = match (&raw.replica_count.given, of_blueprint) {
        (None, of_blueprint) => of_blueprint.map(|count| {
            let count = count.unwrap_or(NonZeroUsize::MIN);
            let origin = raw.recipe_replica_count.given.as_ref().map(|given| given.origin.clone());
            resolver.note(&raw.replica_count, count.to_string(), origin.unwrap_or(Origin::Default));
            count
        }),
        (Some(_), _) => resolver.read(&raw.replica_count, parsing::count, NonZeroUsize::to_string),
    };
    let index = resolver.variable(&raw.job_completion_index, "replica-index", |text| {
        parsing::whole(text, 0, parsing::LARGEST_COUNT).map(|index| index as usize)
    });
    let job_uid = resolver.variable(&raw.job_uid, "job-uid", |text| {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if plain && text.len() <= LONGEST_JOB_UID {
            Ok(text.to_owned())
        } else {
            Err(format!("it must be at most {LONGEST_JOB_UID} letters, digits and hyphens, as a Job's uid is"))
        }
    });
    let (count, index, job_uid) = (count?, index?, job_uid?);
    let share = match index {
        // Several replicas of a group are refused by `nodes::check`, which knows more.
        _ if in_a_group => Share::new(0, count),
        Some(index) => Share::new(index, count),
        None => (count == NonZeroUsize::MIN).then_some(Share::ALL),
    };
    if share.is_none() {
        resolver.errors.push(ConfigError::Together(match index {
            Some(index) => format!(
                "JOB_COMPLETION_INDEX is {index}, but replica-count is {count}, whose replicas are numbered from 0; set \
                 replica-count to the Job's completions"
            ),
            // Named after the key that was given.
            None => format!(
                "{} is {count}, but JOB_COMPLETION_INDEX is not set, so which of the prompts are this process's \
                 is unknown; run it as an Indexed Job, or set replica-count=1 to run all of them here",
                given_as(raw)
            ),
        }));
    }
    Some(Replica { share: share?, job_uid })
}

/// The key that determined the count.
pub(super) fn given_as(raw: &Raw) -> String {
    if raw.replica_count.given.is_none() && raw.recipe_replica_count.given.is_some() {
        return raw.recipe_replica_count.key();
    }
    raw.replica_count.key()
}

/// Checks that replicas can find each other, and that each has a prompt.
pub(super) fn check(
    resolver: &mut Resolver,
    raw: &Raw,
    replica: &Replica,
    workload: &Workload,
    tracking: Option<&Tracking>,
) {
    // Named after the key that the user gave, which may be the blueprint's.
    let (count, key) = (replica.share.count(), given_as(raw));
    if count > 1 && tracking.is_some() && replica.job_uid.is_none() {
        resolver.errors.push(ConfigError::Together(format!(
            "{key} is {count}, but JOB_UID is not set, by which replicas find each other in MLflow; set it from the \
             pod's label batch.kubernetes.io/controller-uid (k8s/overlays/indexed does)"
        )));
    }
    if let (None, Some(prompts)) = (workload.dataset.path(), workload.num_prompts)
        && prompts.get() < count
    {
        resolver.errors.push(ConfigError::Together(format!(
            "num-prompts is {prompts}, below {key}, which is {count}; each replica needs a prompt, so raise the one or \
             lower the other"
        )));
    }
}
