//! The greatest memory of a process under way.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::process::{Finished, Process};

/// Memory that a job may take beside its model, whatever it is given.
pub const LIMIT_BYTES: u64 = 1 << 30;

/// Runs `process` to its end, and fails the test where it took more memory than it may.
#[track_caller]
pub fn run_within_limit(process: Process) -> Finished {
    let running = process.start();
    let watch = Watch::of(running.id());
    let finished = running.wait();
    let greatest = watch.greatest_bytes();
    assert!(greatest <= LIMIT_BYTES, "it took {} MiB\n{finished}", greatest >> 20);
    finished
}

/// Reads the kernel's high-water mark again and again: that of `wait4` counts the process that forked, too.
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<u64>,
}

impl Watch {
    pub fn of(process: u32) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut greatest = 0;
            loop {
                let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
                let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
                greatest = mark.and_then(|mark| mark.trim().parse::<u64>().ok()).unwrap_or(0).max(greatest);
                if stopped.recv_timeout(Duration::from_millis(5)) != Err(RecvTimeoutError::Timeout) {
                    return greatest << 10;
                }
            }
        });
        Self { stop, thread }
    }

    pub fn greatest_bytes(self) -> u64 {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}
