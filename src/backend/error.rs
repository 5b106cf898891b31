//! Failures of a backend, by what they mean for the job; each keeps the error that caused it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use flashjob_engine::{self as engine, End};
use flashjob_model as model;

/// Failure of a backend to open or to finish a run. Its message includes those of its causes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This image or this machine lacks what the job asks for.
    #[error(transparent)]
    Unavailable(Box<Cause>),
    /// The model's files do not make a model that runs here.
    #[error(transparent)]
    Model(Box<Cause>),
    /// A step of the engine failed.
    #[error(transparent)]
    Inference(Box<Cause>),
    /// The node that leads this one has ended the job.
    #[error("the leader ended the job: {}", .0.sentence)]
    Ended(End),
    /// The job was asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

/// The end of a request with an error that is its own: others go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Error of our own engine.
    #[error(transparent)]
    Engine(#[from] engine::RequestError),
    /// A sentence of another engine.
    #[error("{0}")]
    Sentence(String),
}

impl RequestError {
    /// Returns whether the model's output for it is not a number.
    pub fn is_not_finite(&self) -> bool {
        matches!(self, Self::Engine(engine::RequestError::NotFinite(_)))
    }
}

/// Cause of a failure: the error of another package, or a sentence of the backend itself.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Error of our own engine.
    #[error("{0}")]
    Engine(#[source] engine::Error),
    /// Error of a model's files or texts.
    #[error("{0}")]
    Model(#[source] model::Error),
    /// Error of opening a model's texts, which all that wait for them share.
    #[error("{0}")]
    Texts(#[source] Arc<model::Error>),
    /// The system starts no process for an engine.
    #[error("{engine} cannot be started by {}: {source}", interpreter.display())]
    Start {
        /// Name of the engine.
        engine: &'static str,
        /// Path of the Python interpreter.
        interpreter: PathBuf,
        /// Reason of the system.
        source: io::Error,
    },
    /// A sentence of the backend or of its child process.
    #[error("{0}")]
    Sentence(String),
}

impl From<String> for Box<Cause> {
    fn from(sentence: String) -> Self {
        Box::new(Cause::Sentence(sentence))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_failure_says_what_its_cause_says_and_keeps_it() {
        let read = || io::Error::from(io::ErrorKind::NotFound);
        let model = model::Error::Read { path: "w.safetensors".into(), what: "the header".to_owned(), source: read() };
        let sentence = model.to_string();
        let error = Error::Model(Cause::Engine(engine::Error::Model(model)).into());
        assert_eq!(error.to_string(), sentence);
        let engine = error.source().unwrap().downcast_ref::<engine::Error>();
        assert!(matches!(engine, Some(engine::Error::Model(model::Error::Read { .. }))), "{engine:?}");
        let start =
            Error::Unavailable(Cause::Start { engine: "vLLM", interpreter: "python3".into(), source: read() }.into());
        assert_eq!(start.to_string(), "vLLM cannot be started by python3: entity not found");
        assert!(start.source().unwrap().is::<io::Error>());
    }
}
