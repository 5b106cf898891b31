//! Outputs of log lines: the screen, between the frames of a progress bar, and a file.
//!
//! A line that cannot be written is lost, never a reason for the job to fail.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use indicatif::MultiProgress;
use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

/// A stream that a progress bar may share.
pub(super) struct Screen {
    bars: MultiProgress,
    stream: Arc<Mutex<dyn Write + Send>>,
}

impl Screen {
    /// Standard error, on which `bars` are drawn.
    pub(super) fn stderr(bars: MultiProgress) -> Self {
        Self { bars, stream: Arc::new(Mutex::new(io::stderr())) }
    }

    /// Any other stream without bars.
    #[cfg(test)]
    pub(super) fn stream(stream: Arc<Mutex<dyn Write + Send>>) -> Self {
        Self::shared(MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden()), stream)
    }

    /// Any other stream, shared with `bars`.
    #[cfg(test)]
    pub(super) fn shared(bars: MultiProgress, stream: Arc<Mutex<dyn Write + Send>>) -> Self {
        Self { bars, stream }
    }
}

/// Writes whole lines: the formatter hands over each line in one piece.
pub(super) struct ScreenWriter<'a>(&'a Screen);

impl Write for ScreenWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Bars are erased, the line is written, and bars are drawn again below it.
        self.0.bars.suspend(|| {
            let mut stream = self.0.stream.lock();
            let _ = stream.write_all(line);
        });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = ScreenWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        ScreenWriter(self)
    }
}

/// The copy on disk; it ends at the first line that cannot be written, and says so once.
pub(super) struct FileCopy {
    file: Mutex<Option<File>>,
}

impl FileCopy {
    /// A copy in `file`, which is open for appending.
    pub(super) fn to(file: File) -> Self {
        Self { file: Mutex::new(Some(file)) }
    }
}

pub(super) struct FileCopyWriter<'a>(&'a FileCopy);

impl Write for FileCopyWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut slot = self.0.file.lock();
        if let Some(file) = slot.as_mut()
            && let Err(error) = file.write_all(line)
        {
            // One complaint, not one for each line: a full disk stays full.
            *slot = None;
            // Not through `tracing`, which is what called us.
            let _ = writeln!(io::stderr(), "the copy of the log ends here: {error}");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for FileCopy {
    type Writer = FileCopyWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        FileCopyWriter(self)
    }
}
