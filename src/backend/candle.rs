//! Our own engine as a backend: loads a model, runs requests, and turns tokens into text.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Backend, BackendFacts, Completion, Error, Loading, Request, opened};
use flashjob_config::JobConfig;
use flashjob_engine::{self as engine, Engine, Platform, Rendezvous};
use flashjob_event::{Events, Fact};
use flashjob_model::{Files, Model, TextService};

/// The engine, and what stands between it and texts.
pub struct CandleBackend {
    engine: Engine,
    texts: Arc<TextService>,
    facts: BackendFacts,
}

impl CandleBackend {
    /// Reads headers, then weights, and sets up the KV cache; with other machines where there is a rendezvous.
    pub fn open(placement: Platform, loading: &Loading<'_>) -> Result<Self, Error> {
        let &Loading { config, rendezvous, files, model, texts, events, cancel, .. } = loading;
        let model = headers(files, model)?;
        let engine = Engine::load_leading(placement, &model, &config.engine, rendezvous, events, cancel);
        let engine = engine.map_err(from_loading)?;
        let texts = opened(texts)?;
        let warnings = texts.facts().warnings.clone();
        let facts = BackendFacts { warnings, ..facts(&model, engine.facts())? };
        Ok(Self { engine, texts, facts })
    }
}

impl Backend for CandleBackend {
    fn facts(&self) -> &BackendFacts {
        &self.facts
    }

    fn gpus(&self) -> usize {
        match self.engine.facts() {
            // Those of other machines cannot be asked from here.
            facts if facts.device == Platform::Gpus.name() && facts.num_nodes == 1 => facts.tensor_parallel_size,
            _ => 0,
        }
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
        let requests = requests
            .into_iter()
            .map(|request| engine::Request {
                id: request.id,
                prompt: request.prompt,
                max_tokens: request.output_tokens,
                stop_tokens: if request.ignore_eos { Vec::new() } else { self.texts.facts().eos_tokens.clone() },
                sampling: request.sampling,
                seed: request.seed,
            })
            .collect();
        let mut undecodable = None;
        let mut complete = |output: engine::Output| {
            // The run goes on to its end all the same: what it measured is kept, but it does not count as valid.
            let text = self.texts.decode(&output.tokens).unwrap_or_else(|error| {
                undecodable.get_or_insert(error.to_string());
                String::new()
            });
            let error = output.error.map(|error| error.to_string());
            let completion = Completion { id: output.id, text, tokens: output.tokens, reason: output.reason, error };
            events.emit(Fact::RequestFinished {
                request: completion.id,
                output_tokens: completion.tokens.len() as u32,
                reason: completion.reason,
            });
            finished(completion);
        };
        self.engine.run(requests, events, cancel, &mut complete).map_err(from_engine)?;
        undecodable.map_or(Ok(()), |error| Err(Error::Inference(error)))
    }
}

/// The ranks of a machine that another one leads.
pub struct Follower {
    ranks: engine::Worker,
    facts: BackendFacts,
}

impl Follower {
    /// Reads headers, finds the leader, then reads weights.
    pub fn open(
        placement: Platform,
        config: &JobConfig,
        rendezvous: &Rendezvous,
        files: &dyn Files,
        model: &Path,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let model = headers(files, model)?;
        let ranks = engine::Worker::load(placement, &model, &config.engine, rendezvous, events, cancel);
        let ranks = ranks.map_err(|error| of_leader(error, from_loading))?;
        let facts = facts(&model, ranks.facts())?;
        Ok(Self { ranks, facts })
    }

    /// What runs here.
    pub fn facts(&self) -> &BackendFacts {
        &self.facts
    }

    /// Computes what the leader says, to its end.
    ///
    /// # Errors
    /// [`Error::Ended`] where the leader says that the job failed, [`Error::Inference`] where it is gone without a word.
    pub fn follow(self, cancel: &CancellationToken) -> Result<(), Error> {
        match self.ranks.follow(cancel).map_err(|error| of_leader(error, from_engine))? {
            end if end.code == 0 => Ok(()),
            end => Err(Error::Ended(end)),
        }
    }
}

fn headers(files: &dyn Files, model: &Path) -> Result<Model, Error> {
    Model::open_through(files, model).map_err(|error| Error::Model(error.to_string()))
}

fn facts(model: &Model, engine: &engine::EngineFacts) -> Result<BackendFacts, Error> {
    Ok(BackendFacts {
        backend: "candle",
        version: env!("CARGO_PKG_VERSION").to_owned(),
        architecture: model.architecture.clone(),
        parameters: Some(model.parameters),
        max_model_len: engine.max_model_len,
        other_modalities: model.other_modalities,
        warnings: Vec::new(),
        engine: serde_json::to_value(engine).map_err(|error| Error::Inference(error.to_string()))?,
    })
}

/// What the leader says is its word, not a failure of this machine.
fn of_leader(error: engine::Error, otherwise: impl FnOnce(engine::Error) -> Error) -> Error {
    match error {
        engine::Error::Ended { end, .. } => Error::Ended(end),
        other => otherwise(other),
    }
}

/// What cannot be computed before there is a request is the fault of the model or of the memory for it.
fn from_loading(error: engine::Error) -> Error {
    match error {
        engine::Error::Compute { .. } => Error::Model(error.to_string()),
        other => from_engine(other),
    }
}

fn from_engine(error: engine::Error) -> Error {
    match error {
        engine::Error::Cancelled => Error::Cancelled,
        engine::Error::Model(_) | engine::Error::DoesNotFit { .. } => Error::Model(error.to_string()),
        engine::Error::TensorParallel { .. } | engine::Error::Setting(_) => Error::Unavailable(error.to_string()),
        engine::Error::Request { .. }
        | engine::Error::Machines(_)
        | engine::Error::Ended { .. }
        | engine::Error::Compute { .. } => Error::Inference(error.to_string()),
    }
}
