//! Engines of others as backends: a child process runs the engine, its steps told as our facts.
//!
//! The driver is ours, the engine and its detokeniser are its makers', driven as their own offline benchmark drives them. Requests are
//! handed to the driver before the region begins and to the engine within it, which is where those benchmarks draw the line, too.
//! What an engine cannot tell is not made up: there is no roofline, as none reports operations and bytes of its steps. What is
//! particular to one engine stands in a file of its name.

mod child;
mod environment;
mod logprobs;
mod protocol;
mod run;
mod settings;
mod stream;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use flashjob_config::{EngineArguments, JobConfig};
use flashjob_event::{Events, Fact};
use flashjob_model::TextService;

use self::child::{Child, ChildEnd};
use self::protocol::{DriverCommand, DriverMessage, DriverRequest, Loaded};
use self::run::{Run, Unfinished};
use super::presence::Interpreter;
use super::{Backend, BackendReport, Cause, Completion, EngineReport, Error, Loading, Request, RequestSource, opened};

pub use child::Driver;
pub use environment::command;
pub use settings::refused;

/// Modules that every driver imports.
pub const DRIVER_MODULE: (&str, &str) = ("flashjob_driver", include_str!("child_engine/driver.py"));

/// An engine that runs in a child process: everything that is particular to it.
#[derive(Debug)]
pub struct Product {
    /// Name in sentences.
    pub name: &'static str,
    /// Value of `backend`, Python package and image target.
    pub backend: &'static str,
    /// Program that runs it.
    pub driver: Driver,
    /// The key with arguments of its own, and where their values stand.
    pub arguments_key: &'static str,
    /// Arguments of the user.
    pub arguments: fn(&JobConfig) -> &EngineArguments,
    /// Its driver adds requests to those that it runs; otherwise it runs one list after the other.
    pub takes_requests_while_it_runs: bool,
    /// Keys without a counterpart: what comes of them with this engine, and why nothing else can be had.
    pub without_counterpart: &'static [(&'static str, &'static str, &'static str)],
    /// Arguments that flashjob decides, and the remedy.
    pub decided: &'static [(&'static str, &'static str)],
}

/// An engine that is loaded, and the texts of its model.
pub struct ChildEngine {
    product: &'static Product,
    child: Child,
    texts: Arc<TextService>,
    gpus: usize,
    report: BackendReport,
}

impl ChildEngine {
    /// Starts the engine and waits until it is loaded.
    pub fn open(product: &'static Product, interpreter: &Interpreter, loading: &Loading<'_>) -> Result<Self, Error> {
        let &Loading { config, model, tokenizer, texts, events, cancel, .. } = loading;
        let name = product.name;
        // The path would be taken for a name on the Hugging Face Hub, with a complaint about the network.
        if !model.join("config.json").is_file() {
            let reason = format!("{name} takes a directory in Hugging Face layout, and there is no config.json in it");
            return Err(Error::Model(format!("{}: {reason}", model.display()).into()));
        }
        let mut child = Child::start(interpreter.path(), &product.driver).map_err(|source| {
            Error::Unavailable(Cause::Start { engine: name, interpreter: interpreter.path().to_owned(), source }.into())
        })?;
        child.tell(&settings::of(config, (product.arguments)(config), model, tokenizer));
        let loaded = match child.next(cancel) {
            Ok(DriverMessage::Loaded(loaded)) => loaded,
            Ok(DriverMessage::Refused(reason)) => return Err(Error::Unavailable(reason.into())),
            Ok(DriverMessage::Failed(reason)) => {
                return Err(Error::Model(format!("{name} cannot load {}: {reason}", model.display()).into()));
            }
            Ok(other) => return Err(Error::Model(out_of_turn(name, &other).into())),
            Err(ChildEnd::Cancelled) => return Err(Error::Cancelled),
            Err(ChildEnd::Ended(how)) => {
                return Err(Error::Model(format!("{name} {how} (while it loaded {})", model.display()).into()));
            }
        };
        let Loaded { version, parameters, max_model_len, gpus, kv_blocks, block_tokens, engine } = *loaded;
        events.emit(Fact::EngineReady { engines: 1, kv_blocks, block_tokens });
        let texts = opened(texts)?;
        let report = BackendReport {
            backend: product.backend,
            version,
            architecture: texts.facts().architecture.clone(),
            parameters,
            max_model_len,
            other_modalities: None,
            warnings: texts.facts().warnings.clone(),
            engine: EngineReport::Child(Box::new(engine)),
        };
        Ok(Self { product, child, texts, gpus, report })
    }

    /// Has the driver hold `requests` ready.
    fn hand_over(&mut self, requests: &[Request], cancel: &CancellationToken) -> Result<(), Error> {
        let asked =
            requests.iter().map(|request| DriverRequest::new(request, &self.texts.facts().eos_tokens)).collect();
        self.child.tell(&DriverCommand::Take(asked));
        let name = self.product.name;
        match self.listen(cancel)? {
            DriverMessage::Taken(taken) if taken == requests.len() => Ok(()),
            DriverMessage::Taken(taken) => {
                Err(Error::Inference(format!("{name} was given {} requests and took {taken}", requests.len()).into()))
            }
            other => Err(Error::Inference(out_of_turn(name, &other).into())),
        }
    }

    /// Runs `requests`, all of which the driver has before the first is run.
    fn run_all(
        &mut self,
        requests: Vec<Request>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        // The driver parses all requests before the clock starts: that is the protocol's cost, and none of the engine's.
        self.hand_over(&requests, cancel)?;
        let unfinished = requests.iter().map(|request| (request.id, Unfinished::new(request))).collect();
        // Prompts are with the driver now: a second copy of a large dataset would stay for the whole run.
        drop(requests);
        let mut run = Run { engine: self.product.name, texts: self.texts.clone(), unfinished, events, finished };
        self.child.tell(&DriverCommand::Run);
        loop {
            match self.listen(cancel)? {
                DriverMessage::Running(at) => run.begin(at),
                DriverMessage::Step(step) => run.step(step)?,
                DriverMessage::End(end) => run.end(end)?,
                DriverMessage::Done => return run.done(),
                other => return Err(Error::Inference(out_of_turn(self.product.name, &other).into())),
            }
        }
    }

    /// The driver's next message; one that ends the run is an error.
    fn listen(&mut self, cancel: &CancellationToken) -> Result<DriverMessage, Error> {
        let name = self.product.name;
        match self.child.next(cancel) {
            Ok(DriverMessage::Failed(reason)) => Err(Error::Inference(format!("{name} gave up: {reason}").into())),
            Ok(DriverMessage::Refused(reason)) => Err(Error::Unavailable(reason.into())),
            Ok(said) => Ok(said),
            Err(ChildEnd::Ended(how)) => Err(Error::Inference(format!("{name} {how}").into())),
            Err(ChildEnd::Cancelled) => {
                // Ended here and not when the backend is dropped: after a signal every tenth of a second counts.
                self.child.end();
                Err(Error::Cancelled)
            }
        }
    }
}

impl Backend for ChildEngine {
    fn report(&self) -> &BackendReport {
        &self.report
    }

    fn gpus(&self) -> usize {
        self.gpus
    }

    fn run(
        &mut self,
        requests: &mut dyn RequestSource,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        if let Some(requests) = requests.take_all() {
            return self.run_all(requests, events, cancel, finished);
        }
        self.run_stream(requests, events, cancel, finished)
    }
}

fn out_of_turn(engine: &str, said: &DriverMessage) -> String {
    let mut said = format!("{said:?}");
    // A step may hold a thousand requests.
    said.truncate(said.char_indices().nth(200).map_or(said.len(), |(at, _)| at));
    format!("the driver of {engine} says {said} out of turn; this is a bug, please report it")
}
