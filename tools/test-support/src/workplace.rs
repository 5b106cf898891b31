//! Folders of servers that all tests share: there until this process ends, and removed then, however it ends.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Waits for the end of its standard input, ends what works in the folder, and removes that with what is mounted in it.
const GUARD: &str = r#"
read -r _
eval "$2"
awk -v below="$1/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort --reverse | xargs --no-run-if-empty umount --lazy
rm -rf -- "$1"
"#;

/// A temporary directory of one test.
pub struct Workplace {
    path: PathBuf,
    /// Its standard input stays open until this process ends.
    _guard: Child,
}

impl Workplace {
    /// A new folder; the shell runs `end` before it is removed, where `$1` is the folder.
    pub fn ended_by(end: &str) -> Self {
        // Kept: the guard removes it, which a destructor of a killed process could not.
        let path = tempfile::tempdir().unwrap().keep();
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "sh"]).arg(&path).arg(end);
        // In a group of its own: an interrupt at the terminal is not for it.
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Self { path, _guard: guard.spawn().unwrap() }
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
