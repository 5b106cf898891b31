//! Share of this process in a job: all of it, or one of several replicas that share its prompts.
//!
//! Kubernetes numbers the pods of an Indexed Job (`JOB_COMPLETION_INDEX`) and lets each know the job's uid (`JOB_UID`, by the
//! downward API). A number without a count, or a count without a number, is refused: prompts would be run twice or never.

use std::num::NonZeroUsize;
use std::ops::Range;

use super::error::ConfigError;
use super::keys::{Raw, Slot};
use super::origin::{Given, Origin};
use super::resolver::Resolver;
use super::{Tracking, Workload, parsing};

/// Longest UID in characters. A Job's has 36; the key of a run has space for 64.
const LONGEST_JOB_UID: usize = 60;

/// Position of this process among the replicas of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Share of the prompts.
    pub share: Share,
    /// UID of the job, by which replicas and repeated attempts find each other in MLflow.
    pub job_uid: Option<String>,
}

/// One of `count` equal parts of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    index: usize,
    count: NonZeroUsize,
}

impl Share {
    /// The whole list.
    pub const ALL: Self = Self { index: 0, count: NonZeroUsize::MIN };

    /// The part at `index`, from 0; `None` if `index` is too large.
    pub fn new(index: usize, count: NonZeroUsize) -> Option<Self> {
        (index < count.get()).then_some(Self { index, count })
    }

    /// Index of the part.
    pub fn index(self) -> usize {
        self.index
    }

    /// Number of parts.
    pub fn count(self) -> usize {
        self.count.get()
    }

    /// Range of this part in a list of `total` entries. The parts are disjoint and complete; their lengths differ by
    /// one at most.
    pub fn of(self, total: usize) -> Range<usize> {
        // In 128 bits, so that the product cannot overflow.
        let cut = |index: usize| (index as u128 * total as u128 / self.count.get() as u128) as usize;
        cut(self.index)..cut(self.index + 1)
    }
}

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
    let index = variable(resolver, &raw.job_completion_index, "replica-index", |text| {
        parsing::whole(text, 0, parsing::LARGEST_COUNT).map(|index| index as usize)
    });
    let job_uid = variable(resolver, &raw.job_uid, "job-uid", |text| {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if plain && text.len() <= LONGEST_JOB_UID {
            Ok(text.to_owned())
        } else {
            Err(format!("it must be at most {LONGEST_JOB_UID} letters, digits and hyphens, as a Job's uid is"))
        }
    });
    let (count, index, job_uid) = (count?, index?, job_uid?);
    let share = match index {
        // Several replicas of a group are refused by `machines::check`, which knows more.
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
                "{} is {count}, but JOB_COMPLETION_INDEX is not set, so nobody knows which of the prompts are this \
                 process's; run it as an Indexed Job, or set replica-count=1 to run all of them here",
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

/// Value of a variable that Kubernetes sets; an empty one counts as unset. `None`: an error was recorded.
pub(super) fn variable<T: ToString>(
    resolver: &mut Resolver,
    slot: &Slot,
    shown_as: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Option<T>> {
    let Some(given @ Given { text, origin }) = slot.given.as_ref().filter(|given| !given.text.is_empty()) else {
        return Some(None);
    };
    if !resolver.check_reference(slot, given) {
        return None;
    }
    match parse(text) {
        Ok(value) => {
            resolver.note_as(slot, shown_as.to_owned(), value.to_string(), origin.clone());
            Some(Some(value))
        }
        Err(clause) => {
            resolver.errors.push(ConfigError::value(&slot.field.to_uppercase(), text, origin, clause));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_are_everything_once_and_even(total in 0_usize..5_000, count in 1_usize..70) {
            let count = NonZeroUsize::new(count).unwrap();
            let shares: Vec<Range<usize>> =
                (0..count.get()).map(|index| Share::new(index, count).unwrap().of(total)).collect();
            let all: Vec<usize> = shares.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..total).collect::<Vec<_>>());
            let lengths = || shares.iter().map(Range::len);
            prop_assert!(lengths().max().unwrap() - lengths().min().unwrap() <= 1);
        }
    }

    #[test]
    fn there_is_no_share_beyond_the_count_and_no_list_too_long() {
        assert_eq!(Share::new(3, NonZeroUsize::new(3).unwrap()), None);
        let last = Share::new(2, NonZeroUsize::new(3).unwrap()).unwrap();
        assert_eq!(last.of(usize::MAX).end, usize::MAX);
    }
}
