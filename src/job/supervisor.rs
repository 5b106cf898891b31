//! A process that outlives the job: it passes signals on, reaps whatever dies, and clears up behind a job that a signal ended.
//!
//! A job that is killed outright (memory runs out, a library aborts) cannot take its mounts down nor say a word. So the program
//! parts in two before anything is begun: the job, and this process, which does nothing else. As a container's PID 1 it also
//! inherits orphans, and the job never runs with PID 1's special rules for signals and children.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::SystemTime;

use rustix::process::{
    Pid, Resource, Signal, WaitOptions, getpid, getppid, getrlimit, kill_process, set_parent_process_death_signal, wait,
};
use signal_hook::consts::{SIGABRT, SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use flashjob_config::JobConfig;
use flashjob_mount as mount;

use super::mount_process::MountProcess;
use super::{Exit, privileges, signals, terminal, termination_file};

/// Signals that a user or a container's runtime sends, which the job answers and no process beside it.
pub const MEANT_FOR_THE_JOB: [i32; 6] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];

/// Traces of a job that was killed.
#[derive(Default)]
pub struct Remains {
    /// Places of its own mounts.
    mounts: Vec<PathBuf>,
    /// The file of its last words.
    termination_message: Option<PathBuf>,
    /// The time of the last change there before the job began.
    written: Option<SystemTime>,
    /// Mounts and unmounts for it.
    mount_process: Option<MountProcess>,
}

impl Remains {
    /// The traces that `job`, which has not begun yet, may leave.
    pub fn of(job: &JobConfig, mount_process: Option<MountProcess>) -> Self {
        // A mount that was passed in is for others to take down.
        let is_own = job.mount.descriptor.is_none();
        let mounted = job.inputs.iter().filter(|input| is_own && input.par.is_some());
        let termination_message = job.telemetry.termination_message.clone();
        let written = termination_message.as_deref().and_then(written);
        let mounts = mounted.map(|input| input.location.clone()).collect();
        Self { mounts, termination_message, written, mount_process }
    }

    /// Waits until the mounts are gone, and takes down those that are still there.
    fn unmount(&self) {
        if let Some(process) = &self.mount_process {
            process.wait();
        }
        for location in &self.mounts {
            mount::clear_stale(location);
        }
    }

    /// Leaves the last words of a job that had no time for its own.
    fn leave_message(&self, exit_code: u8, sentence: &str) {
        if self.termination_message.as_deref().and_then(written) == self.written {
            let message = serde_json::json!({"status": "killed", "exit_code": exit_code, "error": sentence});
            termination_file::write(self.termination_message.as_deref(), &message.to_string());
        }
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// Tells that this process is PID 1.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Parts this process in two, while it has one thread: returns `of_the_job` in the job's process. In the other one it ends with an
/// exit code, once the job has ended; a job that died of signal N gives 128 + N, as a shell would.
pub fn part<T>(remains: &Remains, of_the_job: T) -> Result<T, ExitCode> {
    let watcher = getpid();
    let (is_watching, watching) = match io::pipe() {
        Ok(ends) => ends,
        Err(error) => return Err(unexpected(&error)),
    };
    let outcome = match fork() {
        Ok(None) => {
            drop(watching);
            return follow(watcher, is_watching).map(|()| of_the_job).map_err(|error| unexpected(&error));
        }
        Ok(Some(job)) => {
            // Its connections belong to the job: a copy that stays open here would hide the job's end from their other
            // sides.
            drop(of_the_job);
            privileges::keep_for_supervision();
            watch(job, remains, watching)
        }
        Err(error) => Err(error),
    };
    Err(outcome.map_or_else(|error| unexpected(&error), ExitCode::from))
}

/// Ends this process at once, without the exit handlers of libraries: CUDA's wait for a GPU that hangs.
pub fn leave(exit_code: u8) -> ! {
    // SAFETY: it runs no code of this process any more.
    unsafe { libc::_exit(exit_code.into()) }
}

fn unexpected(error: &io::Error) -> ExitCode {
    terminal::complain(&format!("the job's process cannot be started or watched: {error}"));
    ExitCode::from(Exit::Unexpected.code())
}

/// A new process's number, or nothing in that process itself. To be called while there is one thread.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: there is one thread, which the caller vouches for, so that no lock is held and no state is half made in the copy.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => Pid::from_raw(child).map(Some).ok_or_else(|| io::Error::other("the new process has no process id")),
    }
}

/// Binds this process's life to that of `watcher`, and waits until that handles signals: one that comes as soon as the job shows a
/// sign of life would otherwise end the watcher.
fn follow(watcher: Pid, mut is_watching: PipeReader) -> io::Result<()> {
    end_with_watcher()?;
    // It ends when the other side closes its end, also by dying.
    is_watching.read_to_end(&mut Vec::new())?;
    match getppid() == Some(watcher) {
        true => Ok(()),
        false => Err(io::Error::other("the process that watches it is gone")),
    }
}

/// Has the kernel end the job in order, mounts included, when the process that watches it is killed. To be called again once this
/// process has other rights: the kernel forgets it then.
///
/// # Errors
/// The system refuses it.
pub fn end_with_watcher() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::TERM))?)
}

fn watch(job: Pid, remains: &Remains, watching: PipeWriter) -> io::Result<u8> {
    let passed_on = MEANT_FOR_THE_JOB.into_iter().filter(|&signal| !signals::is_ignored(signal));
    let mut signals = Signals::new(passed_on.chain([SIGCHLD]))?;
    drop(watching);
    // The job may have ended before this process listened for SIGCHLD.
    if let Some(status) = reap(job) {
        return Ok(end(status, remains));
    }
    for signal in signals.forever() {
        match Signal::from_named_raw(signal) {
            Some(Signal::CHILD) => {
                if let Some(status) = reap(job) {
                    return Ok(end(status, remains));
                }
            }
            // It may just have ended; its SIGCHLD is on the way then. At a terminal the job has had the signal already, and does
            // not mind a second one.
            Some(signal) => drop(kill_process(job, signal)),
            None => {}
        }
    }
    Err(io::Error::other("the signal stream ended"))
}

/// The end of the job, if it has come. One SIGCHLD may stand for several deaths.
fn reap(job: Pid) -> Option<ExitStatus> {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == job {
            return Some(ExitStatus::from_raw(status.as_raw()));
        }
    }
    None
}

/// The exit code of a job that has ended, behind which everything is clear.
fn end(status: ExitStatus, remains: &Remains) -> u8 {
    remains.unmount();
    let Some(signal) = status.signal() else { return status.code().unwrap_or(1) as u8 };
    let name = signal_hook::low_level::signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned);
    let limit = getrlimit(Resource::As).current;
    let (code, clause) = match (signal, limit) {
        (SIGABRT, Some(bytes)) => {
            let clause = format!(
                "it may have {bytes} bytes of address space, which may be too few: lift the limit (`ulimit -v`)"
            );
            (Exit::Configuration.code(), clause)
        }
        (SIGKILL, _) => {
            (128 + signal as u8, "as happens where memory runs out: give it more, or ask for less".to_owned())
        }
        (SIGTERM | SIGINT | SIGHUP | SIGQUIT, _) => {
            (128 + signal as u8, "before it could be stopped in order".to_owned())
        }
        _ => (128 + signal as u8, "which is a bug of it or of a library: please report it with its log".to_owned()),
    };
    let sentence = format!("the job's process was ended by {name}, {clause}");
    terminal::complain(&sentence);
    remains.leave_message(code, &sentence);
    code
}
