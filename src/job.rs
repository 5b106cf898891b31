//! The phases in order, signals, and the exit code: the one room that knows all others.

mod batch;
mod blueprint;
mod check;
mod clock;
mod compare;
mod context;
mod dataset_log;
mod descriptors;
mod exit;
mod faults;
mod files;
mod finish;
mod host;
mod linger;
mod load;
mod local_model;
mod locate;
mod mount_process;
mod panics;
mod phases;
mod privileges;
mod profile;
mod publish;
mod replicas;
mod report;
mod resend_spooled;
mod run;
mod signals;
mod step_watch;
mod supervisor;
mod sweep;
mod terminal;
mod termination_file;
mod text_file;
mod tracking;
mod umask;
mod upload;
mod verify;
mod work;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use exit::Exit;

use flashjob_config::{JobConfig, MountMode, Sweep};
use flashjob_config_parser::{self as config_parser, Command, Stop};
use flashjob_model as model;
use flashjob_mount as mount;

use mount_process::Started;
use supervisor::Remains;

/// Runs the process: parses, does what was asked, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    // The process for a model's texts is this program again, under other arguments.
    if let Some(code) = model::serve_texts(std::env::args_os().skip(1)) {
        return code;
    }
    umask::restrict();
    descriptors::raise_limit();
    let read_file = |path: &Path| text_file::read(path);
    let asked = config_parser::parse(std::env::args_os().skip(1), std::env::vars_os(), &read_file);
    // Commands that run no job fork as well where this is PID 1, which has to reap orphans and pass signals on.
    let is_job = matches!(asked, Ok(Command::Run(_) | Command::Sweep(_)));
    if !is_job
        && supervisor::is_first()
        && let Err(code) = supervisor::part(&Remains::default(), ())
    {
        return code;
    }
    let exit = match asked {
        Ok(Command::Run(job)) => return supervised(*job, None),
        Ok(Command::Sweep(sweep)) => match sweep::whole(&sweep) {
            Some(job) => return supervised(job, Some(*sweep)),
            // A sweep of which nothing can run is refused before.
            None => terminal::print(&sweep::list(&sweep)),
        },
        Ok(Command::ListSweep(sweep)) => terminal::print(&sweep::list(&sweep)),
        Ok(Command::Check(check)) => check::check(&check),
        Ok(Command::Verify(job)) => verify::verify(&job),
        Ok(Command::Profile(asked)) => profile::profile(&asked),
        Ok(Command::Publish(asked)) => publish::publish(*asked),
        Ok(Command::Compare(asked)) => compare::compare(&asked),
        Ok(Command::Report { dir }) => report::report(&dir),
        Ok(Command::Render(asked)) => blueprint::render(&asked),
        Ok(Command::Validate { blueprint }) => blueprint::validate(&blueprint),
        Ok(Command::Completions(shell)) => terminal::print(&config_parser::completions(shell)),
        Err(Stop::Help(text)) => terminal::print(&text),
        Err(Stop::Invalid(errors)) => exit::invalid(&errors),
    };
    ExitCode::from(exit.code())
}

/// Runs `job`, or the combinations of `sweep` that it is the whole of, in a process that has given up its rights, beside one that mounts for it and one that watches it. To be called while
/// there is one thread.
fn supervised(job: JobConfig, sweep: Option<Sweep>) -> ExitCode {
    let mounts = job.mount.mode != MountMode::Copy && job.mount.descriptor.is_none();
    if mounts && job.inputs.iter().any(|input| input.par.is_some()) {
        mount::enter_if_needed();
    }
    // Directories are made while the process may still make them anywhere. Forks come before threads: a fork copies one
    // thread only.
    let plan = privileges::Plan::of(&job);
    let made = plan.make_directories();
    let locations: Vec<PathBuf> = job.inputs.iter().map(|input| input.location.clone()).collect();
    let (mount_process, mounter) = match mount_process::start(&locations, made) {
        Ok(Started::Asking(process, mounter)) => (process, mounter),
        Ok(Started::Ended(code)) => return code,
        Err(error) => return failed(&format!("no process can be started that mounts for the job: {error}")),
    };
    let mounter = match supervisor::part(&Remains::of(&job, mount_process), mounter) {
        Ok(mounter) => mounter,
        Err(code) => return code,
    };
    let given_up = plan.give_up().and_then(|privileges| supervisor::end_with_watcher().map(|()| privileges));
    match given_up {
        Ok(privileges) => ExitCode::from(run::run(job, sweep, mounter, privileges).code()),
        Err(error) => failed(&format!("the job's process cannot give up its rights: {error}")),
    }
}

fn failed(sentence: &str) -> ExitCode {
    ExitCode::from(exit::before_log(Exit::Unexpected, sentence).code())
}
