//! Prompts: random ones that measure, real ones that are answered.

use std::path::Path;

use super::entries::{self, Entry};
use super::{Error, random_prompts, share};
use crate::backend::{Backend, Request};
use crate::config::{Sampling, Workload};
use crate::event::RequestId;

/// Random prompts when neither a number nor a dataset says how many.
const DEFAULT_RANDOM_PROMPTS: usize = 64;

/// The requests of a job.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// Run before the measured region. Other prompts than the measured ones where they are random, so that
    /// nothing can be reused.
    pub warm_up: Vec<Request>,
    /// The measured region.
    pub measured: Vec<Request>,
    /// They measure: exact counts are what they are run for, and a request that ends with an error spoils them. Others are to be
    /// answered, each as far as it can be.
    pub exact: bool,
}

/// Makes the requests that `workload` asks for, with ids of `backend`'s vocabulary. A dataset is read from `dataset_path`
/// where that is given, and each of its entries is given beside them, in its order; random prompts have none.
///
/// # Errors
/// An unreadable dataset, input that is no prompt, or a prompt that does not fit the model.
pub fn prepare(
    workload: &Workload,
    sampling: Sampling,
    dataset_path: Option<&Path>,
    backend: &dyn Backend,
) -> Result<(Prompts, Vec<Entry>), Error> {
    match workload.dataset.path() {
        None => Ok((random(workload, sampling, backend)?, Vec::new())),
        Some(named) => {
            let path = dataset_path.unwrap_or(named);
            let (measured, entries) = entries::read(workload, sampling, path, backend)?;
            // The first prompts again, numbered behind all others.
            let warm_up = measured.iter().cycle().take(workload.warmup).cloned();
            let behind = measured.last().map_or(0, |request| request.id.0 + 1);
            let ids = (behind..).map(RequestId);
            let warm_up = ids.zip(warm_up).map(|(id, request)| Request { id, ..request }).collect();
            Ok((Prompts { warm_up, measured, exact: workload.ignore_eos }, entries))
        }
    }
}

fn random(workload: &Workload, sampling: Sampling, backend: &dyn Backend) -> Result<Prompts, Error> {
    let count = workload.num_prompts.map_or(DEFAULT_RANDOM_PROMPTS, usize::from);
    // All of them, whatever the share: a prompt is the same whoever runs it.
    let prompts = random_prompts::draw(workload, count + workload.warmup, backend)?;
    let mut measured: Vec<Request> = prompts
        .into_iter()
        .enumerate()
        .map(|(index, prompt)| Request {
            id: RequestId(index as u32),
            prompt: prompt.tokens,
            output_tokens: prompt.output_tokens,
            ignore_eos: workload.ignore_eos,
            sampling,
            seed: workload.seed,
        })
        .collect();
    let warm_up = measured.split_off(count);
    let measured: Vec<Request> = measured.drain(workload.share.of(count)).collect();
    if measured.is_empty() {
        return Err(share::nothing_left(workload.share, count));
    }
    // Nobody waits for the answer to a random prompt.
    Ok(Prompts { warm_up, measured, exact: true })
}
