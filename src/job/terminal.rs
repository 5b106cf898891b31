//! Standard output and error, the only place that writes to them outside the log: results on the one, complaints of
//! a process that has no log yet on the other.

use std::io::Write;

use flashjob_config::{escape_controls, hide_pars};

use super::Exit;

/// Prints `text` to standard output. A reader that has gone away is no failure of the job.
pub fn print(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Exit::Done
}

/// Prints a line to standard output that may hold what others have written.
pub fn tell(line: &str) -> Exit {
    print(&format!("{}\n", shown(line)))
}

/// Columns of standard output, where that is a terminal.
pub fn width() -> Option<u16> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(columns, _)| columns.0)
}

/// Prints one line to standard error.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "flashjob: {}", shown(line));
}

/// One line, without Pre-Authenticated Requests: no log stands between it and the reader.
fn shown(line: &str) -> String {
    escape_controls(&hide_pars(line)).into_owned()
}
