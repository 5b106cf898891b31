//! Our own engine as a backend: loads a model, runs requests, and turns tokens into text.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use flashjob_config::EngineConfig;
use flashjob_engine::{self as engine, Engine, Platform};
use flashjob_event::{Events, Fact};
use flashjob_model::{Files, Model, TextService};

use super::{Backend, BackendReport, Cause, Completion, EngineReport, Error, Loading, Request, Worker, opened};

/// Our own engine, and the texts of its model.
pub struct CandleBackend {
    engine: Engine,
    texts: Arc<TextService>,
    gpus: usize,
    report: BackendReport,
}

impl CandleBackend {
    /// Reads headers, then weights, and sets up the KV cache; with other nodes where there is a rendezvous.
    pub fn open(placement: &'static dyn Platform, loading: &Loading<'_>) -> Result<Self, Error> {
        let &Loading { config, rendezvous, files, model, texts, events, cancel, .. } = loading;
        let model = headers(files, model)?;
        let engine = match rendezvous {
            None => Engine::load_on(placement, &model, &config.engine, events, cancel),
            Some(nodes) => Engine::load_distributed(placement, &model, &config.engine, nodes, events, cancel),
        };
        let engine = engine.map_err(from_loading)?;
        // Waited for only now: tokenizer and template are opened while weights are read.
        let texts = opened(texts)?;
        let warnings = texts.facts().warnings.clone();
        let report = BackendReport { warnings, ..report(&model, engine.report()) };
        let gpus = match engine.report().num_nodes {
            1 => engine.report().tensor_parallel_size * placement.gpus_per_rank(),
            // GPUs of other nodes cannot be asked for their energy from here.
            _ => 0,
        };
        Ok(Self { engine, texts, gpus, report })
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
        self.engine.reschedule(max_num_seqs, max_num_batched_tokens, config.prefix_caching).map_err(from_engine)?;
        self.report.engine = EngineReport::Candle(Box::new(self.engine.report().clone()));
        Ok(())
    }

    fn measure_limits_again(&mut self, events: &Events) {
        self.engine.measure_limits_again(events);
    }

    fn run(
        &mut self,
        requests: Vec<Request>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut dyn FnMut(Completion),
    ) -> Result<(), Error> {
        let eos_tokens = &self.texts.facts().eos_tokens;
        let requests = requests.into_iter().map(|request| engine_request(request, eos_tokens)).collect();
        let mut undecodable = None;
        let mut complete = |output: engine::Output| {
            // The run goes on to its end: its measurement is kept for diagnosis, although the job then fails.
            let text = self.texts.decode(&output.tokens).unwrap_or_else(|error| {
                undecodable.get_or_insert(error);
                String::new()
            });
            let error = output.error.map(|error| error.to_string());
            let completion = Completion { id: output.id, text, tokens: output.tokens, reason: output.reason, error };
            // After decoding, so that end-to-end latency includes the text.
            events.emit(Fact::RequestFinished {
                request: completion.id,
                output_tokens: completion.tokens.len() as u32,
                reason: completion.reason,
            });
            finished(completion);
        };
        self.engine.run(requests, events, cancel, &mut complete).map_err(from_engine)?;
        undecodable.map_or(Ok(()), |error| Err(Error::Inference(Cause::Model(error).into())))
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

/// `request` in the engine's type. The only place that converts one into the other.
fn engine_request(request: Request, eos_tokens: &[u32]) -> engine::Request {
    engine::Request {
        id: request.id,
        prompt: request.prompt,
        max_tokens: request.max_tokens,
        stop_tokens: if request.ignore_eos { Vec::new() } else { eos_tokens.to_vec() },
        sampling: request.sampling,
        seed: request.seed.number(),
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
        engine::Error::Request { .. }
        | engine::Error::Machines(_)
        | engine::Error::Ended { .. }
        | engine::Error::Compute { .. } => Error::Inference(Cause::Engine(error).into()),
    }
}
