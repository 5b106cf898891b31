//! The prompts of a job: those of each measured region, and those that warm up before the first.
//!
//! Prompts that are drawn are drawn anew for each region, from a seed of its own, so that a region repeats the workload and not the
//! prompts. Lines of a file are the same in each region; what is drawn anew is the choice of their tokens.

use std::sync::Arc;

use flashjob_config::{Dataset, Sampling, Workload};
use flashjob_event::RequestId;
use flashjob_model::TextService;

use super::{Error, random_prompts, share, sonnet};
use crate::backend::{Request, Seed};

/// Prompts where neither the user nor a file says how many.
const DEFAULT_PROMPTS: usize = 64;

/// The requests of a job.
pub struct Prompts {
    /// Requests of the first region: made before the model is loaded, so that a mistake is found early.
    first: Vec<Request>,
    source: Source,
    /// They measure: exact counts are what they are run for, and a request that ends with an error spoils them. Others are to be
    /// answered, each as far as it can be.
    pub exact: bool,
}

/// Origin of the prompts of further regions, and of the warm-up.
enum Source {
    Drawn(Box<Drawing>),
    /// A dataset whose entries are what they are.
    Fixed {
        seed: u64,
    },
}

/// Everything that prompts are drawn from.
struct Drawing {
    workload: Workload,
    sampling: Sampling,
    texts: Arc<TextService>,
    max_model_len: usize,
}

impl Prompts {
    /// The prompts that `workload` draws.
    ///
    /// # Errors
    /// Lengths that do not fit the model, a vocabulary that has not so many sequences, or fewer prompts than replicas.
    pub(super) fn drawn(
        workload: &Workload,
        sampling: Sampling,
        texts: &Arc<TextService>,
        max_model_len: usize,
    ) -> Result<Self, Error> {
        let drawing = Drawing { workload: workload.clone(), sampling, texts: texts.clone(), max_model_len };
        let mut drawn = drawing.draw(workload.seed, drawing.count())?;
        let first: Vec<Request> = drawn.drain(workload.share.of(drawn.len())).collect();
        if first.is_empty() {
            return Err(share::nothing_left(workload.share, drawing.count()));
        }
        // The answer to a random prompt is of no use to anyone: what counts is that all of its tokens were computed.
        Ok(Self { first, source: Source::Drawn(Box::new(drawing)), exact: true })
    }

    /// The requests of a dataset.
    pub(super) fn fixed(workload: &Workload, requests: Vec<Request>) -> Self {
        Self { first: requests, source: Source::Fixed { seed: workload.seed }, exact: workload.ignore_eos }
    }

    /// Number of requests in a region.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Tokens of the longest request of any region, its output included.
    pub fn longest(&self) -> usize {
        match &self.source {
            Source::Drawn(drawing) => {
                let workload = &drawing.workload;
                workload.input_lengths().end() + workload.output_lengths().end()
            }
            Source::Fixed { .. } => {
                self.first.iter().map(|request| request.prompt.len() + request.max_tokens).max().unwrap_or(0)
            }
        }
    }

    /// Seed of region `number`, counted from 0.
    pub fn seed(&self, number: usize) -> u64 {
        let first = match &self.source {
            Source::Drawn(drawing) => drawing.workload.seed,
            Source::Fixed { seed } => *seed,
        };
        first.wrapping_add(number as u64)
    }

    /// The requests of region `number`, counted from 0.
    ///
    /// # Errors
    /// A vocabulary that has not so many sequences.
    pub fn region(&self, number: usize) -> Result<Vec<Request>, Error> {
        if number == 0 {
            return Ok(self.first.clone());
        }
        match &self.source {
            Source::Drawn(drawing) => drawing.draw(self.seed(number), drawing.count()),
            // A line with a seed of its own asks for the same tokens each time.
            Source::Fixed { .. } => {
                let drawn_anew = |request: &Request| match request.seed {
                    Seed::Job(_) => Request { seed: Seed::Job(self.seed(number)), ..request.clone() },
                    Seed::Request(_) => request.clone(),
                };
                Ok(self.first.iter().map(drawn_anew).collect())
            }
        }
    }

    /// `count` requests that warm up. Other prompts than the measured ones where they are drawn, so that nothing can be reused; the
    /// first ones of a file again, numbered behind all others.
    ///
    /// # Errors
    /// A vocabulary that has not so many sequences.
    pub fn warm_up(&self, count: usize) -> Result<Vec<Request>, Error> {
        if count == 0 {
            return Ok(Vec::new());
        }
        match &self.source {
            Source::Drawn(drawing) => {
                let measured = drawing.count();
                Ok(drawing.draw(drawing.workload.seed, measured + count)?.split_off(measured))
            }
            Source::Fixed { .. } => {
                let behind = self.first.iter().map(|request| request.id.0 + 1).max().unwrap_or(0);
                let again = self.first.iter().cycle().take(count).cloned();
                Ok((behind..).map(RequestId).zip(again).map(|(id, request)| Request { id, ..request }).collect())
            }
        }
    }
}

impl Drawing {
    /// Prompts of a region over all replicas.
    fn count(&self) -> usize {
        self.workload.num_prompts.map_or(DEFAULT_PROMPTS, usize::from)
    }

    /// The first `count` requests from `seed`. All of them are drawn, whatever the share, so that a prompt does not depend on the
    /// replica that runs it.
    fn draw(&self, seed: u64, count: usize) -> Result<Vec<Request>, Error> {
        let Self { workload, sampling, texts, max_model_len } = self;
        let workload = Workload { seed, ..workload.clone() };
        match &workload.dataset {
            Dataset::Sonnet => sonnet::draw(&workload, *sampling, count, texts, *max_model_len),
            _ => random_prompts::draw(&workload, *sampling, count, texts.facts(), *max_model_len),
        }
    }
}
