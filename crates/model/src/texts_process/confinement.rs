//! Limits that the process sets itself before it reads a model's files.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::set_no_new_privs;

/// Address space besides that for files: threads' stacks and heaps, and work on texts.
const BASE_BYTES: u64 = 3 << 30;

/// Address space for each byte of a tokenizer's files: tables of tokens take some thirty times their spelling.
const BYTES_PER_FILE_BYTE: u64 = 64;

/// Largest part of a file that counts, in bytes. A GGUF file has weights behind its tokens.
const LONGEST_FILE_BYTES: u64 = 256 << 20;

/// CPU time in total, for datasets of any length that a job can finish in a day.
pub(super) const CPU_SECONDS: u64 = 24 * 60 * 60;

/// Limits this process, which will open `files`. Lower existing limits stay.
pub(super) fn confine(files: &[&Path]) -> io::Result<()> {
    close_inherited()?;
    set_no_new_privs(true)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If memory runs out, the kernel should kill this process rather than the job.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let address_space = BASE_BYTES + BYTES_PER_FILE_BYTE * files.iter().map(|path| file_bytes(path)).sum::<u64>();
    limit(Resource::As, address_space)?;
    limit(Resource::Cpu, CPU_SECONDS)?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)
}

/// Refuses every further descriptor, as the files are read.
pub(super) fn refuse_descriptors() -> io::Result<()> {
    limit(Resource::Nofile, 0)
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let held = getrlimit(resource);
    let lower = |held: Option<u64>| Some(held.map_or(most, |held| held.min(most)));
    Ok(setrlimit(resource, Rlimit { current: lower(held.current), maximum: lower(held.maximum) })?)
}

/// Bytes of the file at `path`, or of the largest file in the directory there that is not weights.
fn file_bytes(path: &Path) -> u64 {
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len().min(LONGEST_FILE_BYTES));
    match std::fs::read_dir(path) {
        Err(_) => bytes(path),
        Ok(entries) => {
            let paths = entries.flatten().map(|entry| entry.path());
            let holds_texts = |path: &Path| path.extension().is_some_and(|kind| kind == "json" || kind == "gguf");
            paths.filter(|path| holds_texts(path)).map(|path| bytes(&path)).max().unwrap_or(0)
        }
    }
}

/// Closes inherited descriptors, such as a mount's.
fn close_inherited() -> io::Result<()> {
    let first = std::io::stderr().as_raw_fd() + 1;
    // SAFETY: nothing in this process has opened a descriptor yet, so that none beyond standard error is in use here.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    match closed {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Before Linux 5.9, or under a container's seccomp filter: they stay open, unused.
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
            error => Err(error),
        },
    }
}
