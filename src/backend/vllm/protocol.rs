//! Messages between this process and the driver: one line of JSON each.
//!
//! The driver's half is `driver.py`. Moments are nanoseconds of the system's monotonic clock, which both sides read.

use std::path::Path;

use serde::{Deserialize, Serialize};

use flashjob_config::{DeviceChoice, DtypeChoice};
use flashjob_event::FinishReason;

use super::super::{Request, VllmReport};

/// The first thing that the driver is told. `None` leaves the choice to vLLM.
#[derive(Debug, Serialize)]
pub struct Settings<'a> {
    pub model: &'a Path,
    pub tokenizer: &'a Path,
    pub device: DeviceChoice,
    pub dtype: DtypeChoice,
    /// `None` is all GPUs.
    pub tensor_parallel_size: Option<usize>,
    pub max_model_len: Option<usize>,
    pub gpu_memory_utilization: Option<f64>,
    pub kv_cache_memory_bytes: Option<u64>,
    pub max_num_seqs: Option<usize>,
    pub max_num_batched_tokens: Option<usize>,
    pub enable_prefix_caching: bool,
    pub enforce_eager: bool,
    pub block_size: Option<usize>,
    pub threads: Option<usize>,
    pub seed: u64,
}

/// Command to the driver once vLLM is loaded.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverCommand<'a> {
    /// Hold these ready; nothing of them is handed to vLLM yet.
    Take(Vec<DriverRequest<'a>>),
    /// Hand over what was taken, and step until all of it is done.
    Run,
}

/// A request in the form that `driver.py` takes.
#[derive(Debug, Serialize)]
pub struct DriverRequest<'a> {
    id: u32,
    prompt: &'a [u32],
    max_tokens: usize,
    ignore_eos: bool,
    /// Tokens that end it besides vLLM's own; none where they are ignored.
    stop_tokens: &'a [u32],
    temperature: f32,
    top_p: f32,
    /// Most likely tokens that are kept; 0 keeps all.
    top_k: usize,
    /// `None` where nothing is left to chance.
    seed: Option<u64>,
}

impl<'a> DriverRequest<'a> {
    /// `request`, which ends at one of `eos_tokens` unless it ignores them.
    pub fn new(request: &'a Request, eos_tokens: &'a [u32]) -> Self {
        let sampling = request.sampling;
        Self {
            id: request.id.0,
            prompt: &request.prompt,
            max_tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
            stop_tokens: if request.ignore_eos { &[] } else { eos_tokens },
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k.map_or(0, usize::from),
            seed: (!sampling.is_greedy()).then(|| seed_of(request)),
        }
    }
}

/// vLLM draws a request's tokens from its seed alone, so that two requests with the same prompt and the same seed would be
/// answered alike: a request's number goes in, too. Kept below 2⁶³, which is what vLLM takes.
fn seed_of(request: &Request) -> u64 {
    // Steele et al., "Fast splittable pseudorandom number generators": the finaliser of SplitMix64.
    let mut mixed = request.seed.wrapping_add(u64::from(request.id.0).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) >> 1
}

/// Message of the driver.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverMessage {
    /// vLLM is loaded.
    Loaded(Box<Loaded>),
    /// This image or machine lacks what the job asks for: a sentence.
    Refused(String),
    /// Loading, or a step, ended in an exception: its last sentence.
    Failed(String),
    /// So many requests are held ready.
    Taken(usize),
    /// A step of the engine has ended.
    Step(Step),
    /// All that was taken is done.
    Done,
}

/// vLLM's report once it is loaded.
#[derive(Debug, Deserialize)]
pub struct Loaded {
    pub version: String,
    /// Parameters in the checkpoint's safetensors; `None` where its weights have another format.
    pub parameters: Option<u64>,
    pub max_model_len: usize,
    /// GPUs that it computes on.
    pub gpus: usize,
    pub kv_blocks: usize,
    pub block_tokens: usize,
    /// Its configuration, for the result.
    pub engine: VllmReport,
}

/// Outcome of one step of vLLM.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// When its tokens, text included, were there.
    pub at: u64,
    /// Nanoseconds that it took.
    pub took: u64,
    pub running: usize,
    pub waiting: usize,
    pub kv_blocks_used: usize,
    /// Requests that lost their blocks, once for each time.
    #[serde(default)]
    pub preempted: Vec<u32>,
    pub requests: Vec<Progress>,
}

/// Outcome of a step for one request.
#[derive(Debug, Deserialize)]
pub struct Progress {
    pub id: u32,
    /// Token ids that the step generated.
    pub new: Vec<u32>,
    /// With its first tokens: when it got its first place in a step.
    pub scheduled: Option<u64>,
    /// With its first tokens: how many of its prompt were found in the prefix cache.
    pub cached: Option<u32>,
    /// With its last tokens: why they are, and all of its text.
    pub end: Option<(FinishReason, String)>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use flashjob_config::Sampling;
    use flashjob_event::RequestId;

    use super::*;

    #[test]
    fn requests_of_one_job_draw_from_seeds_of_their_own() {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: None };
        let request =
            |seed, id| Request { id: RequestId(id), prompt: vec![1], max_tokens: 1, ignore_eos: true, sampling, seed };
        let seeds: HashSet<u64> =
            (0..3).flat_map(|seed| (0..1000).map(move |id| seed_of(&request(seed, id)))).collect();
        assert_eq!(seeds.len(), 3000);
        assert!(seeds.iter().all(|&seed| seed < 1 << 63));
        let greedy = Request { sampling: Sampling { temperature: 0.0, ..sampling }, ..request(1, 1) };
        assert_eq!(DriverRequest::new(&greedy, &[]).seed, None);
    }
}
