//! Configuration from outside: what words, variables and blueprints come to, and what is said of wrong ones.

mod blueprint;
mod commands;
mod documentation;
mod nodes;
mod precedence;
mod properties;
mod refusals;
mod replica;
mod secrets;
mod sweeps;

use std::ffi::OsString;
use std::io;
use std::path::Path;

use flashjob_config::JobConfig;
use flashjob_config_parser::{self as config_parser, Check, Command, Stop};

/// A PAR whose token must never be seen.
const PAR: &str = "https://objectstorage.eu-frankfurt-1.oraclecloud.com/p/s3cr3t/n/ns/b/models/o/";

/// Splits at spaces and parses, with files out of `files`.
fn parse_with(words: &[&str], variables: &[(&str, &str)], files: &[(&str, &[u8])]) -> Result<Command, Stop> {
    let read_file = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, bytes)| bytes.to_vec()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    config_parser::parse(words.iter().map(OsString::from), variables, &read_file)
}

/// The job, or a panic with all that is wrong.
fn job(words: &[&str], variables: &[(&str, &str)]) -> JobConfig {
    job_with(words, variables, &[])
}

fn job_with(words: &[&str], variables: &[(&str, &str)], files: &[(&str, &[u8])]) -> JobConfig {
    match parse_with(words, variables, files) {
        Ok(Command::Run(job)) => *job,
        other => panic!("{words:?} {variables:?}: {other:?}"),
    }
}

/// Error messages, one sentence each.
fn errors(words: &[&str], variables: &[(&str, &str)], files: &[(&str, &[u8])]) -> Vec<String> {
    match parse_with(words, variables, files) {
        Err(Stop::Invalid(errors)) => errors.iter().map(ToString::to_string).collect(),
        other => panic!("{words:?} {variables:?}: {other:?}"),
    }
}

fn check(words: &[&str], variables: &[(&str, &str)]) -> Check {
    let words: Vec<&str> = std::iter::once("check").chain(words.iter().copied()).collect();
    match parse_with(&words, variables, &[]) {
        Ok(Command::Check(check)) => check,
        other => panic!("{words:?} {variables:?}: {other:?}"),
    }
}

/// `key = value (origin)` of one setting.
fn setting(job: &JobConfig, key: &str) -> String {
    let found = job.settings.iter().find(|setting| setting.key == key);
    found.map(ToString::to_string).unwrap_or_else(|| panic!("no {key} among {:#?}", job.settings))
}
