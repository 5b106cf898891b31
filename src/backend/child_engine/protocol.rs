//! Messages between this process and the driver: one line of JSON each.
//!
//! The drivers' half is `driver.py`, and the file of that name of each engine. Moments are nanoseconds of the system's monotonic
//! clock, which both sides and all processes of an engine read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use flashjob_config::{DeviceChoice, DtypeChoice, EngineArguments, SamplingOptions};
use flashjob_event::FinishReason;
use flashjob_guidance::Grammar;

use super::super::{ChildEngineReport, Request};

/// Engines take seeds with a sign.
const GREATEST_SEED: u64 = i64::MAX as u64;

/// The first thing that the driver is told, in vLLM's words. `None` leaves the choice to the engine.
#[derive(Debug, Serialize)]
pub struct Settings<'a> {
    pub model: &'a Path,
    pub tokenizer: &'a Path,
    pub device: DeviceChoice,
    pub dtype: DtypeChoice,
    /// `None` is all GPUs, divided among engines.
    pub tensor_parallel_size: Option<usize>,
    pub data_parallel_size: Option<usize>,
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
    /// Arguments of the engine's own, by the user.
    pub arguments: &'a EngineArguments,
}

/// Command to the driver once the engine is loaded.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverCommand<'a> {
    /// Hold these ready; nothing of them is handed to the engine yet. Within a stream they are handed to it at once.
    Take(Vec<DriverRequest<'a>>),
    /// Hand over what was taken, and run until all of it is done.
    Run,
    /// Run whatever is taken from here on, until the stream is closed and all of it is done.
    Stream,
    /// No more is taken within the stream.
    Close,
}

/// A request in the form that `driver.py` takes.
#[derive(Debug, Serialize)]
pub struct DriverRequest<'a> {
    id: u32,
    prompt: &'a [u32],
    max_tokens: usize,
    ignore_eos: bool,
    /// Tokens that end it besides the engine's own; none where they are ignored.
    stop_tokens: &'a [u32],
    temperature: f32,
    top_p: f32,
    /// Most likely tokens that are kept; 0 keeps all.
    top_k: usize,
    /// Options beyond those; `None` for most requests.
    options: Option<DriverOptions<'a>>,
    /// `None` where the user set none for this request: engines take slower samplers for requests with a seed.
    seed: Option<u64>,
    /// Texts that end it; the one that does is a part of its text where `include_stop` says so.
    stop: &'a [String],
    include_stop: bool,
    /// What it must be.
    guided: Option<DriverGrammar<'a>>,
}

/// A grammar in the form that drivers take.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverGrammar<'a> {
    JsonObject(bool),
    Json(&'a str),
    Regex(&'a str),
    Choice(&'a [String]),
    Grammar(&'a str),
}

impl<'a> From<&'a Grammar> for DriverGrammar<'a> {
    fn from(grammar: &'a Grammar) -> Self {
        match grammar {
            Grammar::JsonObject => DriverGrammar::JsonObject(true),
            Grammar::JsonSchema(schema) => DriverGrammar::Json(schema),
            Grammar::Regex(expression) => DriverGrammar::Regex(expression),
            Grammar::Choice(texts) => DriverGrammar::Choice(texts),
            Grammar::Lark(grammar) => DriverGrammar::Grammar(grammar),
        }
    }
}

/// Options of a request under vLLM's names.
#[derive(Debug, Serialize)]
struct DriverOptions<'a> {
    min_p: f32,
    min_tokens: usize,
    stop_token_ids: &'a [u32],
    presence_penalty: f32,
    frequency_penalty: f32,
    repetition_penalty: f32,
    /// `None` without biases: engines take slower samplers for requests with some.
    logit_bias: Option<BTreeMap<u32, f32>>,
    /// Likeliest tokens whose log-probabilities are wanted beside that of the token that is chosen.
    logprobs: Option<usize>,
}

impl<'a> DriverOptions<'a> {
    fn new(options: &'a SamplingOptions, max_tokens: usize) -> Self {
        let biases = options.logit_bias.iter().copied();
        Self {
            min_p: options.min_p,
            // A warm-up cuts requests short.
            min_tokens: options.min_tokens.min(max_tokens),
            stop_token_ids: &options.stop_token_ids,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            repetition_penalty: options.repetition_penalty,
            logit_bias: (!options.logit_bias.is_empty()).then(|| biases.collect()),
            logprobs: options.logprobs,
        }
    }
}

impl<'a> DriverRequest<'a> {
    /// `request`, which ends at one of `eos_tokens` unless it ignores them.
    pub fn new(request: &'a Request, eos_tokens: &'a [u32]) -> Self {
        let (sampling, text) = (request.sampling, request.text.as_deref());
        let stop = text.and_then(|text| text.stop.as_ref());
        let guided = text.and_then(|text| text.guided.as_ref());
        // Where a text of a grammar is complete nothing but such a token is left to engines.
        let ignore_eos = request.ignore_eos && guided.is_none();
        Self {
            id: request.id.0,
            prompt: &request.prompt,
            max_tokens: request.max_tokens,
            ignore_eos,
            stop_tokens: if ignore_eos { &[] } else { eos_tokens },
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k.map_or(0, usize::from),
            options: request.options.as_ref().map(|options| DriverOptions::new(options, request.max_tokens)),
            seed: if sampling.is_greedy() {
                None
            } else {
                request.seed.of_request().map(|seed| seed.wrapping_add(u64::from(request.choice)) & GREATEST_SEED)
            },
            stop: stop.map_or(&[], |stop| &stop.texts),
            include_stop: stop.is_some_and(|stop| stop.is_included),
            guided: guided.map(|guided| (&guided.grammar).into()),
        }
    }
}

/// Message of the driver.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverMessage {
    /// The engine is loaded.
    Loaded(Box<Loaded>),
    /// This image or machine lacks what the job asks for: a sentence.
    Refused(String),
    /// Loading, or a step, ended in an exception: its last sentence.
    Failed(String),
    /// So many requests are held ready.
    Taken(usize),
    /// The moment from which requests are handed to the engine.
    Running(u64),
    /// A step of the engine has ended.
    Step(Step),
    /// A request has ended, after the steps that made its tokens.
    End(RequestEnd),
    /// All that was taken is done.
    Done,
}

/// The engine's report once it is loaded.
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
    pub engine: ChildEngineReport,
}

/// Outcome of one step.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// When its tokens were there, in the process that computes.
    pub at: u64,
    /// Nanoseconds since the step before it, or since requests were handed over.
    pub took: u64,
    pub running: usize,
    pub waiting: usize,
    pub kv_blocks_used: usize,
    /// Requests that lost their blocks, once for each time.
    pub preempted: Vec<u32>,
    /// Requests that had their first place in a step.
    pub first: Vec<FirstPlace>,
    /// Token ids that the step generated, by request.
    pub tokens: Vec<(u32, Vec<u32>)>,
    /// Log-probabilities of those of requests that want them.
    #[serde(default)]
    pub logprobs: Vec<StepLogprobs>,
}

/// Log-probabilities of the tokens that a step generated for one request: an entry for each token.
#[derive(Debug, Deserialize)]
pub struct StepLogprobs {
    pub id: u32,
    /// The token that was chosen, and the likeliest ones, likeliest first.
    pub tokens: Vec<Vec<u32>>,
    /// Their log-probabilities. JSON has no infinity: the least number of this type stands for it.
    pub logprobs: Vec<Vec<f32>>,
}

/// A request's first place in a step.
#[derive(Debug, Deserialize)]
pub struct FirstPlace {
    pub id: u32,
    pub scheduled: Option<u64>,
    /// Tokens of its prompt that were found in the prefix cache, where there is one.
    pub cached: Option<u32>,
}

/// End of a request.
#[derive(Debug, Deserialize)]
pub struct RequestEnd {
    pub id: u32,
    /// When its text was there, in the process that asked for it.
    pub at: u64,
    pub reason: FinishReason,
    /// All of its text.
    pub text: String,
    /// Its last token ended it, and is no part of its text.
    #[serde(default)]
    pub by_token: bool,
}

#[cfg(test)]
mod tests {
    use flashjob_config::Sampling;
    use flashjob_event::RequestId;

    use super::super::super::Seed;
    use super::*;

    #[test]
    fn an_engine_gets_the_seeds_that_users_set_for_requests_and_no_other() {
        let hot = Sampling { temperature: 1.0, top_p: 1.0, top_k: None };
        let greedy = Sampling { temperature: 0.0, ..hot };
        for (seed, sampling, told) in [
            (Seed::Job(7), hot, None),
            (Seed::Request(6), hot, Some(6)),
            (Seed::Request(u64::MAX), hot, Some(GREATEST_SEED)),
            (Seed::Request(6), greedy, None),
        ] {
            let id = RequestId(1);
            let request = Request {
                id,
                prompt: vec![1],
                max_tokens: 1,
                ignore_eos: true,
                sampling,
                options: None,
                choice: 0,
                seed,
                text: None,
            };
            assert_eq!(DriverRequest::new(&request, &[]).seed, told, "{seed:?}");
        }
    }
}
