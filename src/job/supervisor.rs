//! As PID 1: a first process that starts the real one, passes signals on, and reaps whatever dies.
//!
//! A container's PID 1 inherits orphans and gets no default signal handlers. Doing both in a process that does
//! nothing else keeps the job's own waiting for children simple, and lets a mount be taken down even after the job
//! was killed by SIGKILL (out of memory).

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// Whether this process is PID 1.
pub fn needed() -> bool {
    std::process::id() == 1
}

/// Starts this program again as a child and waits for it. Its exit code becomes ours; a child that died of signal N
/// gives 128 + N, as a shell would.
pub fn run() -> ExitCode {
    match supervise() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            super::terminal::complain(&format!("the job's process cannot be started or watched: {error}"));
            ExitCode::from(super::Exit::Unexpected.code())
        }
    }
}

fn supervise() -> io::Result<u8> {
    // Listening starts before the child does: no signal may fall into the gap.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD])?;
    // Itself: the only child that gets the whole environment, as its configuration is in it.
    let child = Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).spawn()?;
    let child = Pid::from_raw(child.id() as i32).ok_or_else(|| io::Error::other("the child has no process id"))?;
    for signal in signals.forever() {
        if signal != SIGCHLD {
            if let Some(signal) = Signal::from_named_raw(signal) {
                // It may just have exited; its SIGCHLD is on the way then.
                let _ = kill_process(child, signal);
            }
            continue;
        }
        // One SIGCHLD may stand for several deaths.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == child {
                let status = ExitStatus::from_raw(status.as_raw());
                return Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1) as u8);
            }
        }
    }
    Err(io::Error::other("the signal stream ended"))
}
