//! Programs run from outside.
//!
//! A program starts with nothing of this process's environment but `PATH` and `FLASHJOB_ISA`, is killed when it takes too
//! long or is dropped, and never outlives the test process.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Default time limit of a program.
const PATIENCE: Duration = Duration::from_secs(60);

/// Variables of this process that each program sees.
const PASSED_ON: [&str; 2] = ["PATH", "FLASHJOB_ISA"];

/// A program that is about to run.
pub struct Process {
    command: Command,
    input: Option<Vec<u8>>,
    timeout: Duration,
}

impl Process {
    /// Any program, by path or by name.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        // A variable of the developer's, such as INPUT_LEN, would be read as configuration.
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        Self { command, input: None, timeout: PATIENCE }
    }

    /// Appends arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// The same, run by another program: `setpriv OPTIONS PROGRAM ARGUMENTS`.
    pub fn through<S: AsRef<OsStr>>(self, words: impl IntoIterator<Item = S>) -> Self {
        // A new command: what was to be run becomes the last words of the other program.
        let mut words = words.into_iter();
        let mut process = Self::new(words.next().expect("a program"));
        process.command.args(words).arg(self.command.get_program()).args(self.command.get_args());
        process.command.envs(self.command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Self { input: self.input, timeout: self.timeout, ..process }
    }

    /// Sets the working directory.
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Standard input of the program; empty by default.
    pub fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.command.stdin(Stdio::piped());
        self.input = Some(text.into());
        self
    }

    /// Sets the time after which it is killed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end, or kills it when the time is over.
    pub fn run(self) -> Finished {
        self.start().wait()
    }

    /// Starts it; what it writes is collected from the beginning.
    pub fn start(self) -> Running {
        let name = self.command.get_program().to_owned();
        let started = Instant::now();
        let mut child = spawn(self.command).unwrap_or_else(|error| panic!("{name:?} cannot be started: {error}"));
        if let Some((input, mut pipe)) = self.input.zip(child.stdin.take()) {
            // A program that does not read to the end is its own business.
            std::thread::spawn(move || drop(pipe.write_all(&input)));
        }
        let stdout = Collector::start(child.stdout.take().unwrap());
        let stderr = Collector::start(child.stderr.take().unwrap());
        Running { child, stdout, stderr, deadline: started + self.timeout }
    }
}

/// The process of the job that `supervisor` watches. Its other child mounts for the job.
pub fn job_of(supervisor: u32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let mounts = |child: &&str| {
        std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "flashjob-mount")
    };
    children.split_whitespace().find(|child| !mounts(child))?.parse().ok()
}

/// A program under way; killed when dropped.
pub struct Running {
    child: Child,
    stdout: Collector,
    stderr: Collector,
    deadline: Instant,
}

impl Running {
    /// The process identifier.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` (a `libc::SIG…`).
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill has no memory effects, and the child is not reaped yet, so its id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0, "{}", io::Error::last_os_error());
    }

    /// The process of the job, which the one that was started watches.
    pub fn job(&self) -> i32 {
        loop {
            // It is not there yet in the first moments.
            if let Some(job) = job_of(self.child.id()) {
                return job;
            }
            assert!(Instant::now() < self.deadline, "it has no job:\n{}", self.stderr.so_far());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the job's process by `signal`, past the one that watches it.
    pub fn signal_job(&self, signal: i32) {
        // SAFETY: kill has no memory effects, and the job is reaped by the process that watches it, which has not ended.
        assert_eq!(unsafe { libc::kill(self.job(), signal) }, 0, "{}", io::Error::last_os_error());
    }

    /// Waits until standard error holds `text`.
    pub fn wait_for_stderr(&mut self, text: &str) {
        while !self.stderr.so_far().contains(text) {
            // A program that failed to start is reported now, and not when its time is over.
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended ({status}) and never said {text:?}:\n{}", self.stderr.so_far());
            }
            assert!(Instant::now() < self.deadline, "it never said {text:?}:\n{}", self.stderr.so_far());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Standard error up to now.
    pub fn stderr_so_far(&self) -> String {
        self.stderr.so_far()
    }

    /// Waits for its end, or kills it when the time is over.
    pub fn wait(mut self) -> Finished {
        let mut timed_out = false;
        // Polled, as no wait of the standard library has a time limit.
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() >= self.deadline {
                timed_out = true;
                self.child.kill().unwrap();
                break self.child.wait().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Finished { status, timed_out, stdout: self.stdout.end(), stderr: self.stderr.end() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both are refused where it has ended already. Without the wait it would stay as a zombie until the last test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Exit status and output of a program.
#[derive(Debug)]
pub struct Finished {
    /// The exit code or signal.
    pub status: ExitStatus,
    /// It was killed when its time was over.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Fails the test, with everything it said, unless it ended with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let killed = if self.timed_out { ", killed when its time was over" } else { "" };
        write!(f, "{}{killed}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.stdout, self.stderr)
    }
}

/// Reads a pipe to its end on a thread of its own, so that the program never waits for us.
struct Collector {
    text: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = text.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                sink.lock().extend_from_slice(&buffer[..length]);
            }
        });
        Self { text, thread: Some(thread) }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock()).into_owned()
    }

    /// Everything. A grandchild that holds the pipe open is not waited for longer than a second.
    fn end(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            // Not joined: the thread ends with the last holder of the pipe, which may be a daemon.
            let patience = Instant::now() + Duration::from_secs(1);
            while !thread.is_finished() && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.so_far()
    }
}

/// Spawns `command` such that the kernel kills it when this process ends, however that comes about.
///
/// The kernel's signal (`PR_SET_PDEATHSIG`) fires when the *thread* that spawned ends, and each test has
/// its own; so one thread that lives as long as the process spawns for all.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    // SAFETY: prctl is async-signal-safe and touches nothing but the new process.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, result) = channel();
    spawner.send((command, answer)).expect("the spawner lives as long as the process");
    result.recv().expect("the spawner answers each order")
}

/// A TCP port without a listener at the moment.
pub fn free_port() -> u16 {
    // Closed again at once: another program may take it before the caller does, which is rare as ports are given out in turn.
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Path of `program`. Under `CI` a missing one fails the test; elsewhere the test reports that it is skipped, and what
/// to install.
pub fn installed(program: &str, debian_package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{program} is not installed (Debian's package {debian_package} has it)"));
    }
    found
}

/// Says that the rest of a test is skipped, and why; fails it under `CI`.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}; under CI nothing is skipped");
    let thread = std::thread::current();
    let _ = writeln!(io::stderr(), "skipped {}: {why}", thread.name().unwrap_or("a test"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let finished = Process::new("sleep").args(["600"]).timeout(Duration::from_millis(100)).run();
        assert!(finished.timed_out, "{finished}");
        assert_eq!((finished.code(), finished.signal()), (None, Some(libc::SIGKILL)));
    }

    #[test]
    fn a_program_sees_only_what_it_is_given() {
        let finished = Process::new("env").env("KEY", "value").run().expect_code(0);
        let mut seen: Vec<&str> = finished.stdout.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        seen.sort_unstable();
        // The tests run with lower instruction sets too: then FLASHJOB_ISA is set, and passed on.
        let mut expected: Vec<&str> = PASSED_ON.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
        expected.push("KEY");
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }

    #[test]
    fn both_streams_are_collected_whole() {
        let text = "line\n".repeat(50_000);
        let script = "tee /dev/stderr; exit 3";
        let finished = Process::new("sh").args(["-c", script]).input(text.clone()).run().expect_code(3);
        assert!(finished.stdout == text && finished.stderr == text);
    }
}
