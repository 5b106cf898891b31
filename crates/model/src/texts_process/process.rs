//! The process as seen by the job: pipes, a limit of its CPU time, and the cause of its end.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::MARKER;
use super::confinement::CPU_SECONDS;
use super::frames::{Answer, Order, read_answer, write_order};

/// Interval at which a wait for an answer checks the CPU time.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Bytes of the end of standard error that are kept for a message.
const LAST_BYTES: usize = 2048;

/// A process that serves texts. Killed on drop.
pub(super) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<Answer>,
    last_words: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts `program` on the files at `model` and `tokenizer`. Its first answer tells whether they could be opened.
    pub fn start(program: &Path, model: &Path, tokenizer: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0("flashjob").arg(MARKER).args([model, tokenizer]).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: an interrupt at the terminal is for the job, which still has texts to decode then.
        command.process_group(0);
        let (started, child) = channel();
        let (said, answers) = channel();
        // The parent-death signal is tied to the thread that spawned the child, so that thread must live as long as the
        // child.
        std::thread::Builder::new().name("texts".to_owned()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let output = child.stdout.take();
            if started.send(Ok(child)).is_err() {
                return;
            }
            let mut output = output.map(BufReader::new);
            while let Some(Ok(Some(answer))) = output.as_mut().map(read_answer) {
                if said.send(answer).is_err() {
                    return;
                }
            }
        })?;
        let mut child = child.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        let input = child.stdin.take();
        let stderr = child.stderr.take();
        let last_words = std::thread::Builder::new().name("texts-words".to_owned()).spawn(|| last_words(stderr))?;
        Ok(Self { child, input, answers, last_words: Some(last_words) })
    }

    /// Sends `order` to the process.
    pub fn tell(&mut self, order: &Order) -> io::Result<()> {
        match &mut self.input {
            Some(input) => write_order(input, order),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// The next answer. The process is ended if it spends more than `patience` of CPU time without one.
    pub fn answer(&mut self, patience: Duration) -> Result<Answer, String> {
        // CPU time, not wall time: on a busy machine a process that waits must not be killed.
        let start = self.seconds_on_processors();
        loop {
            match self.answers.recv_timeout(LOOK_UP) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(self.end()),
                Err(RecvTimeoutError::Timeout) => {
                    if self.seconds_on_processors() - start > patience.as_secs_f64() {
                        self.end();
                        return Err(format!("worked for {} s without an end", patience.as_secs()));
                    }
                }
            }
        }
    }

    /// CPU time of all its threads in seconds; 0 once it is gone.
    fn seconds_on_processors(&self) -> f64 {
        let process = procfs::process::Process::new(self.child.id() as i32);
        let Ok(stat) = process.and_then(|process| process.stat()) else { return 0.0 };
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    }

    /// Ends the process if it still runs, and describes its end.
    fn end(&mut self) -> String {
        self.input = None;
        // It has closed its output or is to be stopped: either way there is nothing to wait for.
        let ended = self.child.try_wait();
        let status = match ended {
            Ok(Some(status)) => Ok(status),
            _ => wait_or_kill(&mut self.child),
        };
        let words = self.last_words.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        match status {
            Ok(status) => described(status, &words),
            Err(error) => format!("is lost: {error}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits a moment for the end of `child`, whose output closes before that, then kills it.
fn wait_or_kill(child: &mut Child) -> io::Result<ExitStatus> {
    // A process that closed its pipes ends within milliseconds; its own status says more than a kill.
    for _ in 0..100 {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()
}

/// The last bytes that are written to `stderr`.
fn last_words(stderr: Option<ChildStderr>) -> String {
    let (mut kept, mut buffer) = (VecDeque::new(), [0; 4096]);
    let Some(mut stderr) = stderr else { return String::new() };
    while let Ok(length @ 1..) = stderr.read(&mut buffer) {
        kept.extend(&buffer[..length]);
        // Read to the end but kept short: a full pipe would block the process, and a flood fill this one's memory.
        kept.drain(..kept.len().saturating_sub(LAST_BYTES));
    }
    String::from_utf8_lossy(kept.make_contiguous()).into_owned()
}

/// Describes the end of a process that wrote `words` last.
fn described(status: ExitStatus, words: &str) -> String {
    const XCPU: i32 = rustix::process::Signal::XCPU.as_raw();
    const KILL: i32 = rustix::process::Signal::KILL.as_raw();
    const ABORT: i32 = rustix::process::Signal::ABORT.as_raw();
    match status.signal() {
        Some(ABORT) if words.contains("memory allocation of") => "ran out of the memory that it may take".to_owned(),
        Some(ABORT) if words.contains("overflowed its stack") => "overflowed its stack".to_owned(),
        // RLIMIT_CPU of the process itself, which works even where the job hangs.
        Some(XCPU) => format!("spent more than {CPU_SECONDS} s on processors"),
        Some(KILL) => "was killed (SIGKILL), as happens where the machine's memory runs out".to_owned(),
        _ => {
            let line = words.lines().rfind(|line| !line.trim().is_empty());
            format!("ended ({status}){}", line.map(|line| format!(": {line}")).unwrap_or_default())
        }
    }
}
