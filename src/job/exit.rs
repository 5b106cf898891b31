//! Exit codes: the contract with `podFailurePolicy`.

use std::fmt;
use std::path::Path;

use flashjob_config::shortened;
use flashjob_config_parser::ConfigError;

use super::{terminal, termination_file};

/// Ends of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: measured and published.
    Done,
    /// 1: an unexpected failure, which is a bug.
    Unexpected,
    /// 2: configuration or usage.
    Configuration,
    /// 3: bucket or mount.
    Storage,
    /// 4: the model cannot be loaded.
    Model,
    /// 5: inference failed.
    Inference,
    /// 6: measured, but the result could not be delivered and is spooled.
    Undelivered,
    /// 7: measured, but fewer answers are correct than `least-accuracy` asks for.
    Inaccurate,
    /// 8: a run that is compared is slower than `--fail-below` allows.
    BelowThreshold,
    /// 130: interrupted by SIGINT.
    Interrupted,
    /// 143: terminated by SIGTERM.
    Terminated,
}

impl Exit {
    /// The end that another process of this job reports as `code`; an unknown code counts as failed inference.
    pub fn of(code: u8) -> Self {
        use Exit::{Configuration, Done, Inaccurate, Interrupted, Model, Storage, Terminated, Undelivered, Unexpected};
        let others =
            [Done, Unexpected, Configuration, Storage, Model, Undelivered, Inaccurate, Interrupted, Terminated];
        others.into_iter().find(|exit| exit.code() == code).unwrap_or(Exit::Inference)
    }

    /// The number that the controller sees.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Unexpected => 1,
            Exit::Configuration => 2,
            Exit::Storage => 3,
            Exit::Model => 4,
            Exit::Inference => 5,
            Exit::Undelivered => 6,
            Exit::Inaccurate => 7,
            Exit::BelowThreshold => 8,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }
}

/// Early end of a run: what the controller sees, and a sentence for people.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// The error with its causes: what was attempted, on what, why it failed and what to do next.
    error: anyhow::Error,
    /// The error's own message includes those of its causes.
    is_self_contained: bool,
    /// A sentence on what may have caused it.
    note: Option<String>,
}

impl Failure {
    /// An error that ends the run with `exit`.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), is_self_contained: false, note: None }
    }

    /// An error that ends the run with `exit`, and whose message includes those of its causes.
    pub fn self_contained(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), is_self_contained: true, note: None }
    }

    /// A sentence that ends the run with `exit`.
    pub fn sentence(exit: Exit, sentence: impl fmt::Display) -> Self {
        Self::self_contained(exit, anyhow::anyhow!("{sentence}"))
    }

    /// The same with a further sentence on its cause.
    pub fn noting(self, note: String) -> Self {
        Self { note: Some(note), ..self }
    }

    /// The error and its causes, the last of which came first.
    pub fn causes(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        self.error.chain()
    }

    /// The message for people: causes follow after colons, unless they are said already.
    pub fn message(&self) -> String {
        let error = if self.is_self_contained { self.error.to_string() } else { format!("{:#}", self.error) };
        match &self.note {
            Some(note) => format!("{error}; {note}"),
            None => error,
        }
    }
}

/// Longest message for people, in bytes: what it names may come from a file or a server and be as long as that likes.
const LONGEST_MESSAGE_BYTES: usize = 2000;

/// Mistakes of one file or command that are named; the rest is counted.
const MOST_MISTAKES: usize = 50;

/// `message`, cut to a length that logs and people take.
pub fn cut(message: String) -> String {
    shortened(message, LONGEST_MESSAGE_BYTES)
}

/// The first of many mistakes, each cut, and how many there are besides.
pub fn first_of(mistakes: impl ExactSizeIterator<Item = String>) -> Vec<String> {
    let more = mistakes.len().saturating_sub(MOST_MISTAKES);
    let mut named: Vec<String> = mistakes.take(MOST_MISTAKES).map(cut).collect();
    if more > 0 {
        named.push(format!("and {more} more mistakes"));
    }
    named
}

/// Ends a process that has no log yet: one line on standard error.
pub fn before_log(exit: Exit, sentence: &str) -> Exit {
    terminal::complain(&cut(sentence.to_owned()));
    exit
}

/// Ends a process whose configuration is not valid, every reason on a line of its own, also in the termination message.
pub fn invalid(errors: &[ConfigError]) -> Exit {
    let all = first_of(errors.iter().map(ToString::to_string));
    for error in &all {
        terminal::complain(error);
    }
    // The default path of Kubernetes: another one would stand in the configuration, which is not valid.
    let message =
        serde_json::json!({"status": "failed", "exit_code": Exit::Configuration.code(), "error": cut(all.join("\n"))});
    termination_file::write(Some(Path::new("/dev/termination-log")), &message.to_string());
    Exit::Configuration
}
