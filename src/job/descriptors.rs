//! Descriptors: as many as the system allows, and a few kept back for the result.

use std::fs::File;

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that the result, the termination message and a first connection for it need at once, generously.
const KEPT_BACK: usize = 16;

/// Raises this process's limit to the one that it may set itself. A system that refuses leaves it as it was.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Reserved descriptors, which the rest of this process cannot use up: a result that was measured is written in any case.
#[derive(Default)]
pub struct KeptBack(Mutex<Vec<File>>);

impl KeptBack {
    /// Opens the reserve, as far as the limit allows.
    pub fn take() -> Self {
        let files = (0..KEPT_BACK).map_while(|_| File::open("/dev/null").ok()).collect();
        Self(Mutex::new(files))
    }

    /// Closes the reserve, so that the files of the result can be opened.
    pub fn give_back(&self) {
        self.0.lock().clear();
    }
}
