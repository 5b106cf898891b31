//! Our own engine as a backend: loads a model, runs requests, and turns tokens into text.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::{Backend, BackendFacts, Completion, Error, Request};
use crate::config::JobConfig;
use crate::engine::{self, Engine, Placement};
use crate::event::{Events, Fact};
use crate::model::{ChatTemplate, Files, Model, Tokenizer};

/// The engine, and what stands between it and texts.
pub struct CandleBackend {
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    eos_tokens: Vec<u32>,
    facts: BackendFacts,
}

impl CandleBackend {
    /// Reads headers, then weights, and sets up the KV cache.
    pub fn open(
        placement: Placement,
        config: &JobConfig,
        files: &dyn Files,
        [model, tokenizer]: [&Path; 2],
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let model = Model::open_through(files, model, tokenizer).map_err(|error| Error::Model(error.to_string()))?;
        let engine = Engine::load_on(placement, &model, &config.engine, events, cancel).map_err(from_loading)?;
        let engine_facts = engine.facts();
        let facts = BackendFacts {
            backend: "candle",
            version: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: model.architecture.clone(),
            parameters: Some(model.parameters),
            max_model_len: engine_facts.max_model_len,
            engine: serde_json::to_value(engine_facts).map_err(|error| Error::Inference(error.to_string()))?,
        };
        Ok(Self {
            eos_tokens: model.eos_tokens().to_vec(),
            chat_template: model.chat_template,
            tokenizer: model.tokenizer,
            engine,
            facts,
        })
    }
}

impl Backend for CandleBackend {
    fn facts(&self) -> &BackendFacts {
        &self.facts
    }

    fn gpus(&self) -> usize {
        match self.engine.facts() {
            facts if facts.device == Placement::Gpus.name() => facts.tensor_parallel_size,
            _ => 0,
        }
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
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
                max_new_tokens: request.output_tokens,
                stop_tokens: if request.ignore_eos { Vec::new() } else { self.eos_tokens.clone() },
                sampling: request.sampling,
                seed: request.seed,
            })
            .collect();
        let tokenizer = &self.tokenizer;
        let mut undecodable = None;
        let mut complete = |output: engine::Output| {
            // The run goes on to its end all the same: what it measured is kept, but it does not count as valid.
            let text = tokenizer.decode(&output.tokens).unwrap_or_else(|error| {
                undecodable.get_or_insert(error.to_string());
                String::new()
            });
            let completion = Completion { id: output.id, text, tokens: output.tokens, reason: output.reason };
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
        engine::Error::Request { .. } | engine::Error::NotFinite { .. } | engine::Error::Compute { .. } => {
            Error::Inference(error.to_string())
        }
    }
}
