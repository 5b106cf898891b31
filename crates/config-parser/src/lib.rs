//! Text in, [`JobConfig`](flashjob_config::JobConfig) out, checked once.
//!
//! Flags, environment variables and a blueprint file fill one raw struct; one function turns it into a configuration or
//! into every reason why it cannot. Each file of `flashjob-config` has its resolver in a file of the same name here.
//! It knows nothing of I/O beyond the text it is handed, and nothing of tokio.

mod arguments;
mod blueprint;
mod command;
mod engine;
mod engine_arguments;
mod environment;
mod error;
mod flags;
mod keys;
mod manual;
mod nodes;
mod parsing;
mod profile;
mod quoting;
mod reference;
mod replica;
mod resolve;
mod resolver;
mod sampling;
mod slot;
mod storage;
mod sweep;
mod telemetry;
mod tracking;
mod workload;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use flashjob_config::Origin;

pub use clap_complete::Shell;

pub use command::{Check, Command, Compare, Profile, Publish, Render};
pub use error::{ConfigError, Stop};
pub use flags::{CompareFormat, RenderFormat};
pub use manual::manual;
pub use reference::{expand as expand_references, unresolved as unresolved_reference};

use flags::{Asked, Comparing};
use keys::{Raw, Texts};
use resolver::Resolver;

/// Turns the process's words and variables into a [`Command`].
///
/// `words` come without the program's name; `read_file` is asked for the blueprint only.
///
/// # Errors
/// [`Stop::Help`] holds a text that was asked for; [`Stop::Invalid`] everything that is wrong, at once.
pub fn parse(
    words: impl Iterator<Item = OsString>,
    variables: impl Iterator<Item = (OsString, OsString)>,
    read_file: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
) -> Result<Command, Stop> {
    let mut errors = Vec::new();
    let asked = flags::read(words, &mut errors);
    if let Some((what, path)) = asked.as_ref().and_then(Asked::path)
        && let Err(clause) = parsing::path(&path)
    {
        errors.push(ConfigError::Usage(format!("{what} is {}, but {clause}", quoting::quoted(&path))));
    }
    let asked = match asked {
        Some(Asked::Help(text)) => return Err(Stop::Help(text)),
        Some(Asked::Completions(shell)) if errors.is_empty() => return Ok(Command::Completions(shell)),
        Some(Asked::Report { dir }) if errors.is_empty() => return Ok(Command::Report { dir: PathBuf::from(dir) }),
        Some(Asked::Render(render)) if errors.is_empty() => return Ok(Command::Render(render)),
        Some(Asked::Validate { blueprint }) if errors.is_empty() => return Ok(Command::Validate { blueprint }),
        Some(asked) => asked,
        None => return Err(Stop::Invalid(errors)),
    };
    let (texts, finish): (Texts, Box<Finish>) = match asked {
        Asked::Run(texts) => (texts, Box::new(run)),
        Asked::Check(texts) => (texts, Box::new(|resolver, raw| Ok(check(resolver, raw)))),
        Asked::Verify(texts) => (texts, Box::new(verify)),
        Asked::Profile { arguments, texts } => {
            (texts, Box::new(move |resolver, raw| profile::profile(&arguments, resolver, raw)))
        }
        Asked::Publish { dir, texts } => {
            (texts, Box::new(move |resolver, raw| publish(PathBuf::from(dir), resolver, raw)))
        }
        Asked::Compare { arguments, texts } => {
            (texts, Box::new(move |resolver, raw| compare(arguments, resolver, raw)))
        }
        Asked::Help(_) | Asked::Completions(_) | Asked::Report { .. } | Asked::Render(_) | Asked::Validate { .. } => {
            return Err(Stop::Invalid(errors));
        }
    };
    let (resolver, raw) = gather(texts, variables, read_file, errors);
    finish(resolver, &raw)
}

/// Turns raw values into a command.
type Finish = dyn FnOnce(Resolver, &Raw) -> Result<Command, Stop>;

/// Fills the raw struct from all sources, the strongest first.
fn gather(
    flags: Texts,
    variables: impl Iterator<Item = (OsString, OsString)>,
    read_file: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
    mut errors: Vec<ConfigError>,
) -> (Resolver, Raw) {
    // Names of all variables, also of those that are no keys, explain why a reference was not replaced.
    let variables: Vec<(OsString, OsString)> = variables.collect();
    let names = variables.iter().filter_map(|(name, _)| name.to_str().map(str::to_owned)).collect();
    let mut raw = Raw::default();
    raw.fill(flags, |_| Origin::Flag);
    environment::read(variables.into_iter(), |name| Origin::Variable(name.to_owned()), &mut errors).fill(&mut raw);
    let mut resolver = Resolver::new(errors, names);
    if let Some(Some(path)) =
        resolver.read_open(&raw.blueprint.clone(), parsing::path, |path| path.display().to_string())
    {
        let shown = path.display().to_string();
        match read_file(&path) {
            Ok(bytes) => blueprint::fill(&mut raw, &shown, &bytes, &mut resolver.errors),
            Err(error) => resolver.errors.push(ConfigError::Blueprint {
                file: quoting::quoted(&shown),
                problem: format!("cannot be read: {error}"),
            }),
        }
    }
    (resolver, raw)
}

fn run(mut resolver: Resolver, raw: &Raw) -> Result<Command, Stop> {
    if let Some(Some(request)) = sweep::read(&mut resolver, raw) {
        let is_dry_run = request.is_dry_run;
        let sweep = Box::new(sweep::plan(resolver, raw, request).map_err(Stop::Invalid)?);
        return Ok(if is_dry_run { Command::ListSweep(sweep) } else { Command::Sweep(sweep) });
    }
    let resolved = resolve::job(resolver, raw);
    resolved.job.map(|job| Command::Run(Box::new(job))).ok_or(Stop::Invalid(resolved.errors))
}

fn verify(mut resolver: Resolver, raw: &Raw) -> Result<Command, Stop> {
    if raw.sweep.given.is_some() {
        resolver.errors.push(ConfigError::Together("verify compares one configuration; leave sweep out".to_owned()));
    }
    let resolved = resolve::job(resolver, raw);
    resolved.job.map(|job| Command::Verify(Box::new(job))).ok_or(Stop::Invalid(resolved.errors))
}

fn check(mut resolver: Resolver, raw: &Raw) -> Command {
    if let Some(Some(request)) = sweep::read(&mut resolver, raw) {
        return Command::Check(match sweep::plan(resolver, raw, request) {
            Ok(sweep) => {
                let job = sweep.planned().next().map(|(_, job)| job.config.clone());
                let settings = job.as_ref().map(|job| job.settings.clone()).unwrap_or_default();
                Check { job, sweep: Some(sweep), settings, errors: Vec::new() }
            }
            Err(errors) => Check { job: None, sweep: None, settings: Vec::new(), errors },
        });
    }
    let resolve::Resolved { job, settings, errors } = resolve::job(resolver, raw);
    Command::Check(Check { job: job.map(Box::new), sweep: None, settings, errors })
}

fn publish(dir: PathBuf, resolver: Resolver, raw: &Raw) -> Result<Command, Stop> {
    let resolve::Destination { tracking, output } = resolve::destination(resolver, raw).map_err(Stop::Invalid)?;
    Ok(Command::Publish(Box::new(Publish { dir, tracking, output })))
}

fn compare(arguments: Comparing, mut resolver: Resolver, raw: &Raw) -> Result<Command, Stop> {
    let Comparing { runs, format, fail_below, allow_different } = arguments;
    match tracking::resolve(&mut resolver, raw) {
        Some(tracking) if resolver.errors.is_empty() => {
            Ok(Command::Compare(Box::new(Compare { runs, format, fail_below, allow_different, tracking })))
        }
        _ => Err(Stop::Invalid(resolver.errors)),
    }
}

/// The completion script for `shell`.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut flags::command(), "flashjob", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
