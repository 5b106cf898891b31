//! Log lines: one a fact, for people on a terminal and for collectors otherwise, with a copy on disk.
//!
//! Lines go to standard error. Standard output carries the result alone, so that `flashjob … | jq` sees
//! no line of the log. No line ever holds a secret that was registered at the start: that is the last
//! defence, behind types that do not show themselves.

mod format;
mod sink;
mod tail;

use std::fs::File;
use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::MultiProgress;
use tracing::{Dispatch, Level};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use self::format::{Json, MODULE, PACKAGE, Text};
use self::sink::{FileCopy, Screen};
pub use self::tail::LogTail;
use self::tail::Tail;
use flashjob_config::{LogFormat, Redaction, Secret, redact};

/// Default filter: facts of this program, and warnings of other crates.
const DEFAULT_FILTER: &str = "warn,flashjob=info";

/// Target of lines that may quote the lines of a dataset.
pub const DATASET: &str = "flashjob::dataset";

/// Options of logging.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Text or JSON; `Auto` chooses by whether standard error is a terminal.
    pub format: LogFormat,
    /// Filter in the syntax of `RUST_LOG` (`tracing_subscriber::EnvFilter`); `None` or empty stands for `info` of this
    /// program and warnings of other crates.
    pub filter: Option<&'a str>,
    /// File for a copy of each line as JSON; open for appending.
    pub copy: Option<&'a File>,
    /// Texts that no line may contain.
    pub secrets: &'a [Secret],
}

/// Reasons why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be parsed.
    #[error(
        "the log filter `{filter}` is not valid ({reason}); RUST_LOG takes e.g. `info` or `warn,flashjob::mount=debug`"
    )]
    Filter {
        /// The filter as it was given.
        filter: String,
        /// The parser's message.
        reason: String,
    },
    /// The system has no further descriptor for the copy.
    #[error("the log cannot be copied to results-dir: {0}; raise the number of files that this process may have open")]
    Copy(std::io::Error),
    /// This process has a logger already.
    #[error("logging was started twice in one process (a bug: please report)")]
    Twice,
}

/// Started logging, with what a progress bar needs to share the terminal.
#[derive(Clone)]
pub struct Logs {
    screen: MultiProgress,
    terminal: bool,
    tail: LogTail,
}

impl Logs {
    /// Drawing target for bars, so that log lines do not tear them.
    pub(super) fn screen(&self) -> &MultiProgress {
        &self.screen
    }

    /// Logging to a terminal that a test can read.
    #[cfg(test)]
    pub(super) fn on_terminal(screen: MultiProgress) -> Self {
        Self { screen, terminal: true, tail: LogTail::default() }
    }

    /// The last lines.
    pub fn tail(&self) -> LogTail {
        self.tail.clone()
    }

    /// Returns whether standard error is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }
}

/// Starts logging for the whole process, once.
///
/// # Errors
/// A bad filter, no descriptor for the copy, or a second start.
pub fn init(options: &Options) -> Result<Logs, Error> {
    let terminal = std::io::stderr().is_terminal();
    let screen = MultiProgress::new();
    let tail = LogTail::default();
    let dispatch = dispatch(options, terminal, Screen::stderr(screen.clone()), tail.clone())?;
    dispatch.try_init().map_err(|_| Error::Twice)?;
    Ok(Logs { screen, terminal, tail })
}

/// Extends a filter of modules to packages: `flashjob::mount=debug` also applies to `flashjob_mount`. Additions come
/// last, so that the first error is that of the original filter.
fn with_packages(filter: &str) -> String {
    // A directive with spans may contain commas, and is left alone.
    let directives = filter.split(',').filter(|directive| !directive.contains('['));
    let packages = directives.filter_map(|directive| directive.strip_prefix(MODULE));
    packages.fold(filter.to_owned(), |filter, rest| format!("{filter},{PACKAGE}{rest}"))
}

/// Builds the subscriber without installing it.
fn dispatch(options: &Options, terminal: bool, screen: Screen, tail: LogTail) -> Result<Dispatch, Error> {
    let text = match options.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let filter = options.filter.filter(|filter| !filter.trim().is_empty()).unwrap_or(DEFAULT_FILTER);
    let filter = EnvFilter::builder()
        .parse(with_packages(filter))
        .map_err(|reason| Error::Filter { filter: redact(filter), reason: redact(&reason.to_string()) })?;
    // Redaction is in the formatter, the last step before the bytes leave: no field can bypass it.
    let redaction = Arc::new(Redaction::new(options.secrets));
    let copy = options.copy.map(File::try_clone).transpose().map_err(Error::Copy)?;
    let shown = if text {
        fmt::layer().event_format(Text { redaction: redaction.clone() }).with_writer(screen).boxed()
    } else {
        fmt::layer().event_format(Json { redaction: redaction.clone() }).with_writer(screen).boxed()
    };
    // People elsewhere see what this program says of itself. Other crates, and lines about a dataset, may quote prompts.
    let own = filter_fn(|line| {
        let target = line.target();
        *line.level() <= Level::INFO && target.starts_with("flashjob") && target != DATASET
    });
    let tail =
        fmt::layer().event_format(Text { redaction: redaction.clone() }).with_writer(Tail(tail)).with_filter(own);
    // The copy is always JSON, whatever the terminal shows: it is for programs.
    let copied = copy.map(|file| fmt::layer().event_format(Json { redaction }).with_writer(FileCopy::to(file)));
    Ok(Dispatch::new(Registry::default().with(filter).with(shown).with(tail).with(copied)))
}

#[cfg(test)]
pub(super) mod tests;
