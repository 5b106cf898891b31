//! A process that mounts and unmounts on the job's behalf, and keeps the rights for it when the job gives up its own.
//!
//! It ends when the job has ended, whatever of, and takes down what is still mounted then: also when the supervisor was killed, and
//! nothing else is left that could.

use std::ffi::CStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::process::{Pid, WaitOptions, waitpid};

use flashjob_mount::Mounter;

use super::privileges::{self, Made};
use super::supervisor::{MEANT_FOR_THE_JOB, fork};

/// Name of the process, as `ps` shows it.
const NAME: &CStr = c"flashjob-mount";

/// Time for taking mounts down once the job has ended.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Time between two looks for its end.
const POLL: Duration = Duration::from_millis(2);

/// The process, as a child of this one.
pub struct MountProcess(Pid);

/// Both halves of this process after [`start`].
pub enum Started {
    /// The first one: mounts are asked for through this. A job without locations has no such process.
    Asking(Option<MountProcess>, Mounter),
    /// The one that mounts, at its end.
    Ended(ExitCode),
}

/// Starts it, to mount at `locations` and nowhere else, and to remove what was `made` for them. To be called while there is one
/// thread.
///
/// # Errors
/// The system gives no sockets or no process.
pub fn start(locations: &[PathBuf], made: Made) -> io::Result<Started> {
    if locations.is_empty() {
        return Ok(Started::Asking(None, Mounter::this_process()));
    }
    let (mounter, broker) = Mounter::through_broker(locations)?;
    match fork()? {
        Some(process) => {
            made.keep();
            Ok(Started::Asking(Some(MountProcess(process)), mounter))
        }
        None => {
            // Otherwise the end of the job would not be the end of the connection.
            drop(mounter);
            rustix::thread::set_name(NAME)?;
            privileges::keep_for_mounting();
            stay_when_the_job_is_signalled()?;
            broker.serve();
            drop(made);
            Ok(Started::Ended(ExitCode::SUCCESS))
        }
    }
}

/// Signals of a terminal go to all of its processes, and this one is needed to the end.
fn stay_when_the_job_is_signalled() -> io::Result<()> {
    for signal in MEANT_FOR_THE_JOB {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

impl MountProcess {
    /// Waits until it has ended, which it does soon after the job.
    pub fn wait(&self) {
        let start = Instant::now();
        while let Ok(None) = waitpid(Some(self.0), WaitOptions::NOHANG)
            && start.elapsed() < LONGEST_WAIT
        {
            thread::sleep(POLL);
        }
    }
}
