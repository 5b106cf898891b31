//! Log lines: one a fact, for people on a terminal and for collectors otherwise, with a copy on disk.
//!
//! Lines go to standard error. Standard output carries the result alone, so that `flashjob … | jq` sees
//! no line of the log. No line ever holds a secret that was registered at the start: that is the last
//! defence, behind types that do not show themselves.

mod format;
mod sink;

use std::fs::File;
use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::MultiProgress;
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use self::format::{Json, MODULE, PACKAGE, Text};
use self::sink::{FileCopy, Screen};
use flashjob_config::{LogFormat, Redaction, Secret, redact};

/// What is said unless a filter asks for more or less: our facts, and other crates' warnings.
const DEFAULT_FILTER: &str = "warn,flashjob=info";

/// How lines are written.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Text or JSON; `Auto` looks at standard error.
    pub format: LogFormat,
    /// In the syntax of `RUST_LOG` (`tracing_subscriber::EnvFilter`); `None` or empty is our facts at `info`
    /// and other crates' warnings.
    pub filter: Option<&'a str>,
    /// Takes a copy of each line as JSON; open for appending.
    pub copy: Option<&'a File>,
    /// Texts that no line may hold.
    pub secrets: &'a [Secret],
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter that cannot be parsed.
    #[error(
        "the log filter `{filter}` is not valid ({reason}); RUST_LOG takes e.g. `info` or `warn,flashjob::mount=debug`"
    )]
    Filter {
        /// As it was given.
        filter: String,
        /// The parser's words.
        reason: String,
    },
    /// The system has no further descriptor for the copy.
    #[error("the log cannot be copied to results-dir: {0}; raise the number of files that this process may have open")]
    Copy(std::io::Error),
    /// Someone else logs in this process already.
    #[error("logging was started twice in one process (a bug: please report)")]
    Twice,
}

/// Logging that stands: what a progress bar needs to share the terminal.
#[derive(Clone)]
pub struct Logs {
    screen: MultiProgress,
    terminal: bool,
}

impl Logs {
    /// Where bars are drawn so that lines do not tear them.
    pub(super) fn screen(&self) -> &MultiProgress {
        &self.screen
    }

    /// Logging on a terminal that a test can read.
    #[cfg(test)]
    pub(super) fn on_terminal(screen: MultiProgress) -> Self {
        Self { screen, terminal: true }
    }

    /// Whether a person looks at standard error.
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
    let dispatch = dispatch(options, terminal, Screen::stderr(screen.clone()))?;
    dispatch.try_init().map_err(|_| Error::Twice)?;
    Ok(Logs { screen, terminal })
}

/// A filter that means packages where it names modules: `flashjob::mount=debug` is meant for `flashjob_mount`, too. What it adds
/// stands at the end, so that the first mistake is still the first one.
fn with_packages(filter: &str) -> String {
    let directives = filter.split(',').filter(|directive| !directive.contains('['));
    let packages = directives.filter_map(|directive| directive.strip_prefix(MODULE));
    packages.fold(filter.to_owned(), |filter, rest| format!("{filter},{PACKAGE}{rest}"))
}

/// Builds the subscriber without making it the process's own, for tests and for [`init`].
fn dispatch(options: &Options, terminal: bool, screen: Screen) -> Result<Dispatch, Error> {
    let text = match options.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let filter = options.filter.filter(|filter| !filter.trim().is_empty()).unwrap_or(DEFAULT_FILTER);
    let filter = EnvFilter::builder()
        .parse(with_packages(filter))
        .map_err(|reason| Error::Filter { filter: redact(filter), reason: redact(&reason.to_string()) })?;
    let redaction = Arc::new(Redaction::new(options.secrets));
    let copy = options.copy.map(File::try_clone).transpose().map_err(Error::Copy)?;
    let shown = if text {
        fmt::layer().event_format(Text { redaction: redaction.clone() }).with_writer(screen).boxed()
    } else {
        fmt::layer().event_format(Json { redaction: redaction.clone() }).with_writer(screen).boxed()
    };
    let copied = copy.map(|file| fmt::layer().event_format(Json { redaction }).with_writer(FileCopy::to(file)));
    Ok(Dispatch::new(Registry::default().with(filter).with(shown).with(copied)))
}

#[cfg(test)]
pub(super) mod tests;
