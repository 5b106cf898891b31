//! The umask of this process and its children.

use rustix::fs::Mode;

/// Forbids files that group or others may write, whatever umask the process was started with; bits that it already had stay set.
pub fn restrict() {
    let others = Mode::WGRP | Mode::WOTH;
    // The system has no call that reads the umask: setting it returns the one before.
    let inherited = rustix::process::umask(others);
    rustix::process::umask(inherited | others);
}
