//! `flashjob render` and `flashjob validate`: a blueprint's file in, text out.

use std::path::Path;

use flashjob_config::redact;
use flashjob_config_parser::{Render, RenderFormat};
use flashjob_deploy::{self as deploy, Finding, Format, Kind, RenderError};

use super::{Exit, exit, terminal, text_file};

/// Prints the manifest; what was left out goes to standard error, too. Exit 2 where there is nothing to print.
pub fn render(asked: &Render) -> Exit {
    let text = match read(&asked.blueprint) {
        Ok(text) => text,
        Err(exit) => return exit,
    };
    let format = match asked.format {
        RenderFormat::Job => Format::Job,
        RenderFormat::Compose => Format::Compose,
        RenderFormat::Docker => Format::Docker,
    };
    match deploy::render(&text, format) {
        Ok(rendered) => {
            for left_out in &rendered.left_out {
                terminal::complain(&format!("not carried over: {} ({})", left_out.key, left_out.reason));
            }
            terminal::print(&rendered.text)
        }
        Err(RenderError::Unsound(findings)) => refuse(&asked.blueprint, &findings),
        Err(error) => exit::before_log(Exit::Configuration, &error.to_string()),
    }
}

/// Prints what the blueprint is; or everything that is wrong with it, and exit 2.
pub fn validate(blueprint: &Path) -> Exit {
    let text = match read(blueprint) {
        Ok(text) => text,
        Err(exit) => return exit,
    };
    let what = match deploy::validate(&text) {
        Ok(Kind::Job) => "a job that can be deployed",
        Ok(Kind::SharedNodePool) => {
            "a shared node pool: the platform makes its nodes, which jobs and services run on; flashjob runs nothing of it"
        }
        Ok(Kind::Other) => "a blueprint that the platform deploys and flashjob does not run",
        Err(findings) => return refuse(blueprint, &findings),
    };
    terminal::tell(&format!("{} is sound: {what}", blueprint.display()))
}

fn read(blueprint: &Path) -> Result<String, Exit> {
    let text = text_file::read(blueprint).and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    text.map_err(|error| {
        let at = blueprint.display();
        exit::before_log(Exit::Configuration, &format!("the blueprint {at} cannot be read: {error}"))
    })
}

fn refuse(blueprint: &Path, findings: &[Finding]) -> Exit {
    let findings = findings.iter().map(|finding| format!("{}: {}", blueprint.display(), redact(&finding.to_string())));
    for finding in exit::first_of(findings) {
        terminal::complain(&finding);
    }
    Exit::Configuration
}
