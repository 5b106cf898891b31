//! The phases in order, signals, and the exit code: the one room that knows all others.

mod blueprint;
mod check;
mod descriptors;
mod environment;
mod exit;
mod files;
mod finish;
mod follow;
mod left_behind;
mod linger;
mod load;
mod locate;
mod phases;
mod publish;
mod replicas;
mod run;
mod signals;
mod supervisor;
mod terminal;
mod text_file;
mod tracking;
mod upload;
mod verify;
mod work;

use std::path::Path;
use std::process::ExitCode;

pub use exit::Exit;

use supervisor::Remains;

use flashjob_config::{self as config, Command, MountMode, Stop};
use flashjob_model as model;
use flashjob_mount as mount;

/// Runs the process: parses, does what was asked, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    if let Some(code) = model::serve_texts(std::env::args_os().skip(1)) {
        return code;
    }
    environment::keep_files_to_oneself();
    descriptors::raise_limit();
    let read_file = |path: &Path| text_file::read(path);
    let asked = config::parse(std::env::args_os().skip(1), std::env::vars_os(), &read_file);
    // Before there is a second thread.
    let remains = match &asked {
        Ok(Command::Run(job)) => Some(Remains::of(job)),
        _ => supervisor::is_first().then(Remains::default),
    };
    if let Some(code) = remains.and_then(|remains| supervisor::part(&remains)) {
        return code;
    }
    let exit = match asked {
        Ok(Command::Run(job)) => {
            if job.inputs.iter().any(|input| input.par.is_some())
                && job.mount.mode != MountMode::Copy
                && job.mount.descriptor.is_none()
            {
                mount::enter_if_needed();
                let _ = supervisor::end_with_watcher();
            }
            run::run(*job)
        }
        Ok(Command::Check(check)) => check::check(&check),
        Ok(Command::Verify(job)) => verify::verify(&job),
        Ok(Command::Publish(asked)) => publish::publish(*asked),
        Ok(Command::Render(asked)) => blueprint::render(&asked),
        Ok(Command::Validate { blueprint }) => blueprint::validate(&blueprint),
        Ok(Command::Completions(shell)) => terminal::print(&config::completions(shell)),
        Err(Stop::Help(text)) => terminal::print(&text),
        Err(Stop::Invalid(errors)) => exit::invalid(&errors),
    };
    ExitCode::from(exit.code())
}
