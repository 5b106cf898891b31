//! Our own engine as a backend: loads a model, runs requests, and turns tokens into text.

mod detokenizer;
mod guided;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use flashjob_config::EngineConfig;
use flashjob_engine::{self as engine, Dispatch, Engine, Engines, Platform, RequestQueue};
use flashjob_event::Events;
use flashjob_model::{Files, Model, TextService};

use detokenizer::decoded_beside;

use super::source::most_waiting;
use super::{
    Backend, BackendReport, Cause, Completion, EngineReport, Error, Loading, NextRequest, Request, RequestSource, Seed,
    Worker, opened,
};

/// Time between two looks at a cancellation while a request is waited for.
const PATIENCE: Duration = Duration::from_millis(20);

/// Our own engine, or several of it, and the texts of their model.
pub struct CandleBackend {
    engines: Engines,
    texts: Arc<TextService>,
    gpus: usize,
    report: BackendReport,
}

impl CandleBackend {
    /// Reads headers, then weights, and sets up KV caches; with other nodes where there is a rendezvous.
    pub fn open(placement: &'static dyn Platform, loading: &Loading<'_>) -> Result<Self, Error> {
        let &Loading { config, rendezvous, files, model, texts, events, cancel, .. } = loading;
        let model = headers(files, model)?;
        let engines = match rendezvous {
            None => Engines::load_on(placement, &model, &config.engine, events, cancel),
            Some(nodes) => {
                Engine::load_distributed(placement, &model, &config.engine, nodes, events, cancel).map(Engines::of_one)
            }
        };
        let engines = engines.map_err(from_loading)?;
        // Waited for only now: tokenizer and template are opened while weights are read.
        let texts = opened(texts)?;
        let warnings = texts.facts().warnings.clone();
        let engine::CandleReport { data_parallel_size, tensor_parallel_size, num_nodes, .. } = *engines.report();
        let report = BackendReport { warnings, ..report(&model, engines.report()) };
        let gpus = match num_nodes {
            1 => data_parallel_size * tensor_parallel_size * placement.gpus_per_rank(),
            // GPUs of other nodes cannot be asked for their energy from here.
            _ => 0,
        };
        Ok(Self { engines, texts, gpus, report })
    }

    fn serve(
        &mut self,
        requests: Vec<Request>,
        dispatch: Dispatch,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        let Self { engines, texts, .. } = self;
        let eos_tokens = &texts.facts().eos_tokens;
        let requests = requests.into_iter().map(|request| engine_request(request, eos_tokens)).collect();
        let serve =
            |complete: &mut dyn FnMut(engine::Output)| engines.run(requests, dispatch, events, cancel, complete);
        outcome(decoded_beside(texts, events, finished, serve))
    }

    /// Serves requests as they are made, of which a limited number wait in the engines' queue.
    fn serve_stream(
        &mut self,
        requests: &mut dyn RequestSource,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        let capacity = NonZeroUsize::new(most_waiting(&self.report)).unwrap_or(NonZeroUsize::MIN);
        let Self { engines, texts, .. } = self;
        let eos_tokens = &texts.facts().eos_tokens;
        // Several engines may each go on with a beginning of their own; all else is in order as it comes.
        let queue = &engines.queue(Dispatch::OnDemand, capacity);
        let stop = cancel.child_token();
        let serve = |complete: &mut dyn FnMut(engine::Output)| {
            std::thread::scope(|scope| {
                // Engines that have failed take nothing any more.
                let _ended = stop.clone().drop_guard();
                let feeding = stop.clone();
                scope.spawn(move || feed(requests, eos_tokens, queue, events, &feeding));
                engines.serve(queue, events, cancel, complete)
            })
        };
        outcome(decoded_beside(texts, events, finished, serve))
    }
}

impl Backend for CandleBackend {
    fn report(&self) -> &BackendReport {
        &self.report
    }

    fn gpus(&self) -> usize {
        self.gpus
    }

    fn reschedule(&mut self, config: &EngineConfig) -> Result<(), Error> {
        let [max_num_seqs, max_num_batched_tokens] =
            [config.max_num_seqs, config.max_num_batched_tokens].map(|limit| limit.map(usize::from));
        let EngineConfig { prefix_caching, schedule, .. } = *config;
        let changed = self.engines.reschedule(max_num_seqs, max_num_batched_tokens, prefix_caching, schedule);
        changed.map_err(from_engine)?;
        self.report.engine = EngineReport::Candle(Box::new(self.engines.report().clone()));
        Ok(())
    }

    fn measure_limits_again(&mut self, events: &Events) {
        self.engines.measure_limits_again(events);
    }

    fn run(
        &mut self,
        requests: &mut dyn RequestSource,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        match requests.take_all() {
            Some(requests) => self.serve(requests, Dispatch::OnDemand, events, cancel, finished),
            None => self.serve_stream(requests, events, cancel, finished),
        }
    }

    fn warm_up(
        &mut self,
        requests: Vec<Request>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        self.serve(requests, Dispatch::RoundRobin, events, cancel, finished)
    }
}

/// The ranks of a node that another one leads.
pub struct CandleWorker {
    ranks: flashjob_cluster::Worker,
    report: BackendReport,
}

impl CandleWorker {
    /// Reads headers, finds the leader, then reads weights.
    pub fn open(placement: &'static dyn Platform, loading: &Loading<'_>) -> Result<Self, Error> {
        let &Loading { config, rendezvous, files, model, events, cancel, .. } = loading;
        let Some(rendezvous) = rendezvous else {
            return Err(Error::Unavailable("a worker has no leader without a rendezvous".to_owned().into()));
        };
        let model = headers(files, model)?;
        let ranks = flashjob_cluster::Worker::load(placement, &model, &config.engine, rendezvous, events, cancel);
        let ranks = ranks.map_err(|error| of_leader(error, from_loading))?;
        let report = report(&model, ranks.report());
        Ok(Self { ranks, report })
    }
}

impl Worker for CandleWorker {
    fn report(&self) -> &BackendReport {
        &self.report
    }

    fn follow(self: Box<Self>, cancel: &CancellationToken) -> Result<(), Error> {
        match self.ranks.follow(cancel).map_err(|error| of_leader(error, from_engine))? {
            end if end.code == 0 => Ok(()),
            end => Err(Error::Ended(end)),
        }
    }
}

/// Moves `requests` to `queue` as there is room, until there are no more, or `stop`.
fn feed(
    requests: &mut dyn RequestSource,
    eos_tokens: &[u32],
    queue: &RequestQueue,
    events: &Events,
    stop: &CancellationToken,
) {
    /// Also after a panic: engines wait for as long as a queue is open.
    struct Closed<'a>(&'a RequestQueue);
    impl Drop for Closed<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let Closed(queue) = &Closed(queue);
    while !stop.is_cancelled() {
        match requests.next(PATIENCE) {
            // Where it could not be queued the run is over, which the loop sees.
            NextRequest::Request(request) => drop(queue.push(engine_request(request, eos_tokens), events, stop)),
            NextRequest::Later => {}
            NextRequest::End => return,
        }
    }
}

/// The outcome of a run that was served and decoded so.
fn outcome((served, decoded): (Result<(), engine::Error>, Result<(), flashjob_model::Error>)) -> Result<(), Error> {
    served.map_err(from_engine)?;
    decoded.map_err(|error| Error::Inference(Cause::Model(error).into()))
}

/// `request` in the engine's type. The only place that converts one into the other.
fn engine_request(request: Request, eos_tokens: &[u32]) -> engine::Request {
    let eos_tokens = if request.ignore_eos { &[] } else { eos_tokens };
    // A seed of its own gives the same answer wherever the request stands among others.
    let (seed, stream) = match request.seed {
        Seed::Job(seed) => (seed, request.id.0),
        Seed::Request(seed) => (seed, request.choice),
    };
    let text = request.text.as_deref();
    engine::Request {
        stop_tokens: [eos_tokens, request.stop_token_ids()].concat(),
        id: request.id,
        prompt: request.prompt,
        max_tokens: request.max_tokens,
        stop_texts: text.and_then(|text| text.stop.as_ref()).map(|stop| stop.search.clone()),
        constraint: text.and_then(|text| text.guided.clone()).map(|guided| Arc::new(guided) as _),
        sampling: request.sampling,
        options: request.options,
        seed,
        stream,
    }
}

fn headers(files: &dyn Files, model: &Path) -> Result<Model, Error> {
    Model::open_through(files, model).map_err(|error| Error::Model(Cause::Model(error).into()))
}

fn report(model: &Model, engine: &engine::CandleReport) -> BackendReport {
    BackendReport {
        backend: "candle",
        version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: model.architecture.clone(),
        parameters: Some(model.parameters),
        max_model_len: engine.max_model_len,
        other_modalities: model.other_modalities,
        warnings: Vec::new(),
        engine: EngineReport::Candle(Box::new(engine.clone())),
    }
}

/// Keeps the end that the leader reports apart from failures of this node.
fn of_leader(error: engine::Error, otherwise: impl FnOnce(engine::Error) -> Error) -> Error {
    match error {
        engine::Error::Ended { end, .. } => Error::Ended(end),
        other => otherwise(other),
    }
}

/// Blames the model, or the memory for it, where an operation fails before there is a request.
fn from_loading(error: engine::Error) -> Error {
    match error {
        engine::Error::Compute { .. } => Error::Model(Cause::Engine(error).into()),
        other => from_engine(other),
    }
}

fn from_engine(error: engine::Error) -> Error {
    match error {
        engine::Error::Cancelled => Error::Cancelled,
        engine::Error::Model(_) | engine::Error::DoesNotFit { .. } => Error::Model(Cause::Engine(error).into()),
        engine::Error::TensorParallel { .. } | engine::Error::Setting(_) => {
            Error::Unavailable(Cause::Engine(error).into())
        }
        engine::Error::Request(_)
        | engine::Error::Machines(_)
        | engine::Error::Ended { .. }
        | engine::Error::Compute { .. } => Error::Inference(Cause::Engine(error).into()),
    }
}
