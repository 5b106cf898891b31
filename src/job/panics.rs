//! Panics: a line in the log each, and a failure of the run with the usual ending.

use parking_lot::Mutex;

use super::Exit;
use super::exit::Failure;

/// Message and place of the last panic.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Turns panics into one log line each, kept for [`failure`].
pub fn log() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
        let text = format!("{message}{place}");
        tracing::error!("panic: {text}");
        *PANIC.lock() = Some(text);
    }));
}

/// The failure that a caught panic means.
pub fn failure() -> Failure {
    let text = PANIC.lock().take();
    let text = text.unwrap_or_else(|| "a thread ended unexpectedly".to_owned());
    Failure::sentence(Exit::Unexpected, format!("unexpected failure ({text}); this is a bug, please report it"))
}
