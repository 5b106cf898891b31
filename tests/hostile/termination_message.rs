//! `termination-message-path`: an ordinary file is written, and nothing else is touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;

use super::{everything_in, expect_said, short_job};

/// Makes what stands at a path.
type Made<'a> = &'a dyn Fn(&Path);

#[test]
fn nothing_but_an_ordinary_file_is_written() {
    let link = |path: &Path| symlink("keys", path).unwrap();
    let pipe = |path: &Path| mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).unwrap();
    let cases: [(Made, &str); 5] = [
        (&link, "it is a symbolic link, which is not followed"),
        (&|path| symlink("nothing", path).unwrap(), "it is a symbolic link, which is not followed"),
        (&pipe, "the termination message could not be written"),
        (&|path| fs::create_dir(path).unwrap(), "the termination message could not be written"),
        (&|path| symlink("/dev/tty", path).unwrap(), "it is a symbolic link, which is not followed"),
    ];
    for (make, said) in cases {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("keys"), "theirs").unwrap();
        let path = folder.path().join("message");
        make(&path);
        let before = everything_in(folder.path());
        let finished = short_job(&folder).args(["--termination-message-path".into(), path]).run().expect_code(4);
        expect_said(&finished, said);
        let after = everything_in(folder.path());
        assert!(before.iter().all(|(path, was)| after.get(path) == Some(was)), "{finished}");
        assert!(!folder.path().join("nothing").exists());
    }
}

#[test]
fn a_file_that_is_longer_than_the_message_is_replaced() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("message");
    fs::write(&path, "x".repeat(9000)).unwrap();
    short_job(&folder).args(["--termination-message-path".into(), path.clone()]).run().expect_code(4);
    let message: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(message["exit_code"], 4);
}
