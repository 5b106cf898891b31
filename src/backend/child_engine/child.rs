//! The process that an engine's driver runs in: lines in and out, and an end that leaves nothing behind.
//!
//! It leads a process group of its own, which ends as a whole: when it is told to, or when this process dies, however that
//! comes about (the driver sees its standard input close). Temporary files of the group lie in a directory that goes with it. What
//! it writes to standard error goes to our log. This module does not know which engine it is.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::environment;
use super::protocol::DriverMessage;

const START: &str = include_str!("start.py");

/// Interval in which a wait for the child's next line looks at the child itself and at the cancellation.
const LOOK_UP: Duration = Duration::from_millis(25);

/// Time that the child has to end by itself once it was asked to.
const GRACE: Duration = Duration::from_millis(700);

/// Time that the system has to end it after that.
const KILL: Duration = Duration::from_millis(500);

/// Time in which its last lines on standard error arrive after its end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Longest line of the driver's: a step in which a thousand requests end says all of their texts.
const LONGEST_ANSWER_BYTES: usize = 64 << 20;

/// Lines of the driver's that wait to be heard; it waits with further ones.
const MOST_UNHEARD: usize = 1024;

/// A line of standard error is logged up to here: progress bars may go on without a line feed.
const LONGEST_LOGGED_BYTES: usize = 2000;

/// A line of standard error is cut to this in a message.
const LONGEST_WORDS: usize = 500;

/// Variable with the directory that the driver removes when this process has died.
const TEMPORARY_DIRECTORY: &str = "FLASHJOB_TEMPORARY_DIRECTORY";

/// Variable with the directory of compiled kernels, which later jobs use, too: it stays out of the directory that goes.
const COMPILED_KERNELS: &str = "TORCHINDUCTOR_CACHE_DIR";

/// A driver: Python sources that are part of this program.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    /// Name and source of each module that it imports, in the order in which they import each other.
    pub modules: &'static [(&'static str, &'static str)],
    /// Source that runs the engine.
    pub main: &'static str,
    /// Variables that are added where the user has not set them.
    pub variables: &'static [(&'static str, &'static str)],
    /// Name of the engine in the log.
    pub log_name: &'static str,
}

/// A child that speaks the driver's protocol.
pub struct Child {
    process: std::process::Child,
    group: Option<Pid>,
    input: Option<Sender<String>>,
    output: Receiver<Result<DriverMessage, String>>,
    last_words: Arc<Mutex<Option<String>>>,
    log: JoinHandle<()>,
    ended: bool,
    /// Removed after the group's end; `None` where there is no place for temporary files.
    _temporary: Option<TempDir>,
}

/// Reason for which there is no next message.
#[derive(Debug)]
pub enum ChildEnd {
    /// The job was asked to stop.
    Cancelled,
    /// The child is gone, or broke the protocol: a clause that follows its name.
    Ended(String),
}

impl Child {
    /// Starts `interpreter` on `driver` with the variables that an engine may see.
    ///
    /// # Errors
    /// The system starts no process.
    pub fn start(interpreter: &Path, driver: &Driver) -> io::Result<Self> {
        let mut command = environment::command(interpreter);
        // In a group of its own it gets no signals of the terminal, which are for the job to handle, and its children can be
        // ended with it.
        command.args(["-c", START]).process_group(0);
        command.args(driver.modules.iter().flat_map(|(name, source)| [name, source])).arg(driver.main);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let set: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for (name, value) in driver.variables.iter().filter(|(name, _)| !set.iter().any(|set| set == name)) {
            command.env(name, value);
        }
        // Where there is no place for it, the engine says so itself.
        let temporary = TempDir::with_prefix("flashjob-").ok();
        if let Some(directory) = &temporary {
            if !set.iter().any(|set| set == COMPILED_KERNELS) {
                command.env(COMPILED_KERNELS, compiled_kernels());
            }
            command.env("TMPDIR", directory.path()).env(TEMPORARY_DIRECTORY, directory.path());
        }
        let mut process = command.spawn()?;
        let group = Pid::from_raw(process.id() as i32);
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (input, lines) = channel::<String>();
        // A child that does not read must not hold this process up.
        thread::spawn(move || {
            let Some(mut stdin) = stdin else { return };
            // What cannot be written goes to a child that is gone, and that is seen elsewhere.
            for line in lines {
                if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                    return;
                }
            }
        });
        let (said, output) = sync_channel(MOST_UNHEARD);
        thread::spawn(move || {
            let Some(stdout) = stdout else { return };
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while matches!(read_line(&mut reader, &mut line, LONGEST_ANSWER_BYTES), Ok(true)) {
                let parsed = match line.len() < LONGEST_ANSWER_BYTES {
                    true => serde_json::from_slice(&line).map_err(|error| format!("says what is no answer: {error}")),
                    false => Err(format!("says a line of more than {LONGEST_ANSWER_BYTES} bytes")),
                };
                if said.send(parsed).is_err() {
                    return;
                }
            }
        });
        let last_words = Arc::new(Mutex::new(None));
        let (kept, name) = (last_words.clone(), driver.log_name);
        let log = thread::spawn(move || {
            if let Some(stderr) = stderr {
                log(name, stderr, &kept);
            }
        });
        Ok(Self { process, group, input: Some(input), output, last_words, log, ended: false, _temporary: temporary })
    }

    /// Says one line of JSON to the child.
    pub fn tell(&self, order: &impl serde::Serialize) {
        // Numbers, texts and paths that came in as text: there is nothing that JSON cannot hold.
        let line = serde_json::to_string(order).unwrap_or_default() + "\n";
        if let Some(input) = &self.input {
            // Fails once the child reads no more, which the next answer tells.
            let _ = input.send(line);
        }
    }

    /// The next thing that the child says.
    ///
    /// # Errors
    /// When it says nothing more, or when `cancel` is triggered.
    pub fn next(&mut self, cancel: &CancellationToken) -> Result<DriverMessage, ChildEnd> {
        loop {
            if cancel.is_cancelled() {
                return Err(ChildEnd::Cancelled);
            }
            match self.output.recv_timeout(LOOK_UP) {
                Ok(said) => return said.map_err(ChildEnd::Ended),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.reap(KILL);
                    return Err(ChildEnd::Ended(self.how_it_ended(status)));
                }
                // Its own children may hold the pipe open.
                Err(RecvTimeoutError::Timeout) => {
                    if let Ok(Some(status)) = self.process.try_wait() {
                        // Its last line may still be on the way through the pipe.
                        return match self.output.recv_timeout(LAST_WORDS) {
                            Ok(said) => said.map_err(ChildEnd::Ended),
                            Err(_) => Err(ChildEnd::Ended(self.how_it_ended(Some(status)))),
                        };
                    }
                }
            }
        }
    }

    /// Ends the child and all that it has started: asked first, killed then. Nothing is left to be reaped.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.signal(Signal::TERM);
        let by_itself = self.reap(GRACE).is_some();
        // Also when the leader is gone: what it had started may not be.
        self.signal(Signal::KILL);
        if !by_itself && self.reap(KILL).is_none() {
            tracing::warn!(process = self.process.id(), "the engine's process does not end, and is left behind");
        }
        // The driver ends its group when its input closes, should a process have survived.
        self.input = None;
        self.wait_for_group();
    }

    /// Waits until the group is gone. Its other processes are not ours to be reaped, and write temporary files to the last.
    fn wait_for_group(&self) {
        let deadline = Instant::now() + LAST_WORDS;
        while self.group.is_some_and(|group| test_kill_process_group(group).is_ok()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Fails where no process is left in the group.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits for the child's end for as long as `patience`.
    fn reap(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    fn how_it_ended(&self, status: Option<ExitStatus>) -> String {
        let how = status.map_or_else(|| "closed its output".to_owned(), |status| format!("ended ({status})"));
        let deadline = Instant::now() + LAST_WORDS;
        while !self.log.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        match &*self.last_words.lock() {
            Some(line) => format!("{how}; its last words: {line}"),
            None => format!("{how} without a word"),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads the next line into `line`, without its line feed and as far as `limit` bytes; what is longer is passed over. False:
/// there is none.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    line.clear();
    let mut is_there = false;
    loop {
        let buffer = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        if buffer.is_empty() {
            return Ok(is_there);
        }
        is_there = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let piece = &buffer[..end.unwrap_or(buffer.len())];
        line.extend_from_slice(&piece[..piece.len().min(limit - line.len())]);
        let used = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Default directory of kernels that PyTorch has compiled: below that of temporary files.
fn compiled_kernels() -> PathBuf {
    let user = std::env::var("USER").unwrap_or_else(|_| "flashjob".to_owned());
    std::env::temp_dir().join(format!("torchinductor_{user}"))
}

/// Passes lines on to the log, and keeps the last one. Progress bars end theirs with carriage returns.
fn log(name: &str, stderr: impl Read, last_words: &Mutex<Option<String>>) {
    let mut reader = BufReader::new(stderr);
    let mut bytes = Vec::new();
    while matches!(read_line(&mut reader, &mut bytes, LONGEST_LOGGED_BYTES), Ok(true)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some(line) = text.split(['\r', '\n']).map(str::trim_end).rfind(|line| !line.is_empty()) else { continue };
        tracing::info!("{name}: {line}");
        let words = line.chars().take(LONGEST_WORDS).collect();
        *last_words.lock() = Some(words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_to_a_limit_and_the_next_one_whole() {
        let text = format!("short\n\n{}\nlast", "x".repeat(100_000));
        let (mut reader, mut line, mut lengths) =
            (BufReader::with_capacity(7, text.as_bytes()), Vec::new(), Vec::new());
        while read_line(&mut reader, &mut line, 50).unwrap() {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [5, 0, 50, 4]);
    }
}
