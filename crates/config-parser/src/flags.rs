//! The command line, through clap: what was asked, and the text of each flag.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use clap_complete::Shell;
use flashjob_config::redact;

use super::arguments::{self, SWITCHES};
use super::command::Render;
use super::error::ConfigError;
use super::keys::{KEYS, Texts};
use super::quoting::quoted;
use super::slot::Preset;

/// Offline LLM inference as a job: mounts a model bucket, runs, shows metrics, records the result, exits.
#[derive(clap::Parser)]
#[command(name = "flashjob", version, max_term_width = 120, args_conflicts_with_subcommands = true)]
#[command(disable_help_subcommand = true)]
#[command(
    after_help = "Every key is also an environment variable (input-len, input_len or INPUT_LEN), and both spellings \
    are flags. Flags beat variables, variables beat the blueprint, the blueprint beats defaults."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Subcommand>,
    #[command(flatten)]
    texts: Texts,
}

#[derive(clap::Subcommand)]
enum Subcommand {
    /// Runs the job (also without this word)
    Run(Box<Texts>),
    /// Prints the resolved configuration and everything that would fail, without side effects
    Check(Box<Texts>),
    /// Compares a model's logits where the job would run with the CPU's in single precision; mounts nothing
    Verify(Box<Texts>),
    /// Times steps of several sizes and their operations beside the machine's limits; mounts nothing
    Profile(Box<ProfileArguments>),
    /// Sends results that could not be delivered when they were measured
    Publish(PublishArguments),
    /// Shows results of several runs side by side, with the ratio to the first one and its significance
    Compare(CompareArguments),
    /// Renders report.html again from the files of a results-dir
    Report {
        /// The results-dir of a run or a sweep
        dir: String,
    },
    /// Turns a blueprint of mode job into manifests that run elsewhere; what has no counterpart is listed in them
    Render(RenderArguments),
    /// Holds a blueprint to the platform's schema and to what the schema misses, each finding with line and column
    Validate(ValidateArguments),
    /// Prints a completion script for a shell
    Completions {
        /// Shell to complete in
        shell: Shell,
    },
}

#[derive(clap::Args)]
struct ProfileArguments {
    /// Sequences of decode steps, separated by commas; those that memory has no room for are left out
    #[arg(long, value_name = "LIST", default_value = "1,16,64,256,1024")]
    batch_sizes: String,
    /// Tokens that each sequence of a decode step has before it
    #[arg(long, value_name = "TOKENS", default_value = "256")]
    context_len: String,
    /// Lengths of prompts, separated by commas, of which a step computes as many as max-num-batched-tokens allows
    #[arg(long, value_name = "LIST", default_value = "128,2048")]
    prompt_lens: String,
    /// File that takes the profile as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<String>,
    #[command(flatten)]
    texts: Texts,
}

#[derive(clap::Args)]
struct PublishArguments {
    /// The results-dir of the run
    dir: String,
    /// MLflow tracking server, http:// or https://
    #[arg(long, value_name = "URL")]
    mlflow_uri: Option<String>,
    /// Writable Pre-Authenticated Request that takes the results
    #[arg(long, value_name = "URL")]
    output_par: Option<String>,
    /// Put before the name of each uploaded result
    #[arg(long, value_name = "PREFIX")]
    output_prefix: Option<String>,
    /// AI Blueprints JSON file that fills whatever flags and variables leave open
    #[arg(long, value_name = "FILE")]
    blueprint: Option<String>,
}

#[derive(clap::Args)]
struct CompareArguments {
    /// Results directories, result.json files, or mlflow:EXPERIMENT[/RUN]; ratios are to the first one
    #[arg(required = true, value_name = "RUNS")]
    runs: Vec<String>,
    /// Format of the comparison: table, markdown, csv, json or html
    #[arg(long, value_name = "FORMAT", default_value = "table", hide_possible_values = true)]
    format: CompareFormat,
    /// Exit code 8 where a run has fewer output tokens per second than this share of the first one's
    #[arg(long, value_name = "RATIO")]
    fail_below: Option<String>,
    /// Show runs that measured something else than the first one, marked as not comparable
    #[arg(long)]
    allow_different: bool,
    /// MLflow tracking server that holds the runs, http:// or https://
    #[arg(long, value_name = "URL")]
    mlflow_uri: Option<String>,
    /// AI Blueprints JSON file that fills whatever flags and variables leave open
    #[arg(long, value_name = "FILE")]
    blueprint: Option<String>,
}

/// Formats of the command `compare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CompareFormat {
    /// Aligned columns for a terminal.
    Table,
    /// Tables of GitHub's Markdown.
    Markdown,
    /// A line for each value.
    Csv,
    /// One document.
    Json,
    /// One page without scripts.
    Html,
}

#[derive(clap::Args)]
struct RenderArguments {
    /// AI Blueprints JSON file to render
    #[arg(long, value_name = "FILE")]
    blueprint: PathBuf,
    /// Where it is to run: job (Kubernetes), compose or docker (a script with one docker run)
    #[arg(long, value_name = "FORMAT", default_value = "job")]
    format: RenderFormat,
}

/// Formats of the command `render`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RenderFormat {
    /// A Kubernetes Job.
    Job,
    /// A compose file.
    Compose,
    /// A script with one `docker run`.
    Docker,
}

#[derive(clap::Args)]
struct ValidateArguments {
    /// AI Blueprints JSON file to judge
    #[arg(long, value_name = "FILE")]
    blueprint: PathBuf,
}

/// Arguments of the command `compare` that no key reads.
#[derive(Debug)]
pub(super) struct Comparing {
    pub(super) runs: Vec<String>,
    pub(super) format: CompareFormat,
    pub(super) fail_below: Option<String>,
    pub(super) allow_different: bool,
}

/// Arguments of the command `profile` that no key reads, as they were written.
#[derive(Debug)]
pub(super) struct Profiling {
    pub(super) batch_sizes: String,
    pub(super) context_len: String,
    pub(super) prompt_lens: String,
    pub(super) output: Option<String>,
}

/// The request of the command line.
#[derive(Debug)]
pub(super) enum Asked {
    Run(Texts),
    Check(Texts),
    /// Compare logits of two devices.
    Verify(Texts),
    /// Time steps.
    Profile {
        arguments: Profiling,
        texts: Texts,
    },
    Publish {
        dir: String,
        texts: Texts,
    },
    Compare {
        arguments: Comparing,
        texts: Texts,
    },
    /// Render the page of a results directory.
    Report {
        dir: String,
    },
    Render(Render),
    Validate {
        blueprint: PathBuf,
    },
    Completions(Shell),
    Help(String),
}

impl Asked {
    /// The path of a command that no key reads, and what it is called.
    pub(super) fn path(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Publish { dir, .. } | Self::Report { dir } => Some(("DIR", dir.clone())),
            Self::Render(Render { blueprint, .. }) | Self::Validate { blueprint } => {
                Some(("--blueprint", blueprint.to_string_lossy().into_owned()))
            }
            Self::Profile { arguments: Profiling { output: Some(output), .. }, .. } => {
                Some(("--output", output.clone()))
            }
            Self::Run(_)
            | Self::Check(_)
            | Self::Profile { .. }
            | Self::Verify(_)
            | Self::Compare { .. }
            | Self::Completions(_)
            | Self::Help(_) => None,
        }
    }
}

/// The clap command, completed by the table of keys: defaults, and switches without a value.
pub(super) fn command() -> clap::Command {
    let describe = |arg: clap::Arg| {
        let preset = KEYS.iter().find(|(field, ..)| *field == arg.get_id().as_str()).map(|(_, preset, _)| preset);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let is_switch = arg.get_long().is_some_and(|long| SWITCHES.contains(&long));
        let arg = match preset {
            Some(Preset::Text(text)) => arg.help(format!("{help} [default: {text}]")),
            Some(Preset::Decided(words)) => arg.help(format!("{help} [default: {words}]")),
            Some(Preset::Required) => arg.help(format!("{help} [required]")),
            None => arg,
        };
        if is_switch { arg.num_args(0..=1).default_missing_value("true") } else { arg }
    };
    CommandLine::command()
        .mut_args(describe)
        .mut_subcommand("run", |command| command.mut_args(describe))
        .mut_subcommand("check", |command| command.mut_args(describe))
        .mut_subcommand("verify", |command| command.mut_args(describe))
        .mut_subcommand("profile", |command| command.mut_args(describe))
        // clap moves a command that it mutates to the end: mutating all of them keeps the declared order.
        .mut_subcommand("publish", |command| command)
        .mut_subcommand("compare", |command| command)
        .mut_subcommand("report", |command| command)
        .mut_subcommand("render", |command| command)
        .mut_subcommand("validate", |command| command)
        .mut_subcommand("completions", |command| command)
}

/// Parses `words` (without the program's name). `None` if nothing useful can be said beyond `errors`.
pub(super) fn read(words: impl Iterator<Item = OsString>, errors: &mut Vec<ConfigError>) -> Option<Asked> {
    let mut command = command();
    command.build();
    let commands: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let long = |command: &clap::Command| -> Vec<String> {
        command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
    };
    let mut flags = long(&command);
    let of_their_own = ["render", "compare", "profile"];
    // Other commands have the flags of a run, or some of them.
    flags.extend(command.get_subcommands().filter(|command| of_their_own.contains(&command.get_name())).flat_map(long));
    flags.sort();
    flags.dedup();
    let words = arguments::normalise(words, &flags, &commands, errors);
    let name = std::iter::once("flashjob".to_owned());
    let parsed =
        command.try_get_matches_from_mut(name.chain(words)).and_then(|matches| CommandLine::from_arg_matches(&matches));
    match parsed {
        Ok(CommandLine { command: None, texts }) => Some(Asked::Run(texts)),
        Ok(CommandLine { command: Some(Subcommand::Run(texts)), .. }) => Some(Asked::Run(*texts)),
        Ok(CommandLine { command: Some(Subcommand::Check(texts)), .. }) => Some(Asked::Check(*texts)),
        Ok(CommandLine { command: Some(Subcommand::Verify(texts)), .. }) => Some(Asked::Verify(*texts)),
        Ok(CommandLine { command: Some(Subcommand::Profile(profile)), .. }) => {
            let ProfileArguments { batch_sizes, context_len, prompt_lens, output, texts } = *profile;
            Some(Asked::Profile { arguments: Profiling { batch_sizes, context_len, prompt_lens, output }, texts })
        }
        Ok(CommandLine { command: Some(Subcommand::Completions { shell }), .. }) => Some(Asked::Completions(shell)),
        Ok(CommandLine { command: Some(Subcommand::Report { dir }), .. }) => Some(Asked::Report { dir }),
        Ok(CommandLine { command: Some(Subcommand::Render(RenderArguments { blueprint, format })), .. }) => {
            Some(Asked::Render(Render { blueprint, format }))
        }
        Ok(CommandLine { command: Some(Subcommand::Validate(ValidateArguments { blueprint })), .. }) => {
            Some(Asked::Validate { blueprint })
        }
        Ok(CommandLine { command: Some(Subcommand::Publish(publish)), .. }) => {
            let PublishArguments { dir, mlflow_uri, output_par, output_prefix, blueprint } = publish;
            let texts = Texts { mlflow_uri, output_par, output_prefix, blueprint, ..Texts::default() };
            Some(Asked::Publish { dir, texts })
        }
        Ok(CommandLine { command: Some(Subcommand::Compare(compare)), .. }) => {
            let CompareArguments { runs, format, fail_below, allow_different, mlflow_uri, blueprint } = compare;
            let texts = Texts { mlflow_uri, blueprint, ..Texts::default() };
            Some(Asked::Compare { arguments: Comparing { runs, format, fail_below, allow_different }, texts })
        }
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Some(Asked::Help(error.to_string()))
        }
        Err(error) => {
            errors.push(ConfigError::Usage(sentence(&error, &commands)));
            None
        }
    }
}

/// clap's error as one sentence.
fn sentence(error: &clap::Error, commands: &[String]) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let word = context(ContextKind::InvalidSubcommand).or_else(|| context(ContextKind::InvalidArg));
    match (error.kind(), word) {
        (ErrorKind::ArgumentConflict, Some(word)) if commands.contains(&word) => {
            format!("put {word} before the flags: flashjob {word} --model …")
        }
        (ErrorKind::MissingRequiredArgument, Some(word)) => format!("{word} is missing; see --help"),
        (ErrorKind::UnknownArgument, Some(word)) if word.starts_with('-') => {
            let flag = word.split('=').next().unwrap_or(&word);
            format!("{} does not belong to this command; see --help", redact(flag))
        }
        (ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict, Some(word)) => {
            let nearest = arguments::nearest(&word, commands.iter().map(String::as_str));
            let hint = nearest.map_or_else(
                || format!("the commands are {}", commands.join(", ")),
                |command| format!("did you mean {command}?"),
            );
            format!("{} is neither a flag nor a command; {hint}", quoted(&word))
        }
        (ErrorKind::InvalidValue, _) => {
            let value = context(ContextKind::InvalidValue).unwrap_or_default();
            let allowed = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(values)) => values.join(", "),
                _ => "see --help".to_owned(),
            };
            format!("{} is not one of {allowed}", quoted(&value))
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            redact(line.trim_start_matches("error: "))
        }
    }
}
