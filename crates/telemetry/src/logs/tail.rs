//! The last lines of the log in memory, for the live page: redacted as all lines are, few and short.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that are kept.
const LINES: usize = 40;

/// Characters of a line that are kept.
const LONGEST_CHARACTERS: usize = 500;

/// The last lines of the log; clones share them.
#[derive(Clone, Debug, Default)]
pub struct LogTail {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl LogTail {
    /// The lines that are kept, the newest last, each with its line feed.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().iter().cloned().collect()
    }
}

/// Takes whole lines: the formatter hands over each line in one piece.
pub(super) struct TailWriter<'a>(&'a LogTail);

impl Write for TailWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        let mut kept: String = text.chars().take(LONGEST_CHARACTERS).collect();
        if kept.len() < text.len() {
            kept.push('…');
        }
        kept.push('\n');
        let mut lines = self.0.lines.lock();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(kept);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Output of log lines into a [`LogTail`].
pub(super) struct Tail(pub(super) LogTail);

impl<'a> MakeWriter<'a> for Tail {
    type Writer = TailWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        TailWriter(&self.0)
    }
}
