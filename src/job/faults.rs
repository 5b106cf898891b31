//! What GPUs say of themselves after a failure that may be theirs.
//!
//! A retry may land on the same GPU: the message of a job names it, with the faults that its driver has counted.

use flashjob_engine as engine;
use flashjob_host::gpus::Gpus;

use super::exit::Failure;
use super::step_watch::Overdue;

/// `failure` with a sentence on `gpus` where a device may have caused it: an operation failed, or a step did not end.
pub fn explain(failure: Failure, gpus: &Gpus) -> Failure {
    let may_be_theirs = failure.causes().any(is_of_device);
    match may_be_theirs.then(|| gpus.health()).flatten() {
        Some(health) => failure.noting(health),
        None => failure,
    }
}

fn is_of_device(cause: &(dyn std::error::Error + 'static)) -> bool {
    let computing = matches!(cause.downcast_ref(), Some(engine::Error::Compute { .. }));
    computing || cause.is::<Overdue>()
}
