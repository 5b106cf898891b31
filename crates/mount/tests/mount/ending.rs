//! However a mount ends, nothing of it stays.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flashjob_config::MountMode;
use flashjob_mount::{Error, Method, Mounted, mount_source, preflight};
use tokio_util::sync::CancellationToken;

use super::scripted_source::{Behaviour, ScriptedSource, content};
use super::{config, input, mount_fuse, mounts_at, wait};
use crate::support::process::{Process, Running, installed};

fn mount_one_file(location: &Path) -> Option<(Mounted, Arc<ScriptedSource>)> {
    let (source, objects) = ScriptedSource::new([("file", content(1, 1000))]);
    let source = Arc::new(source);
    Some((mount_fuse(location, &objects, source.clone())?, source))
}

#[test]
fn a_directory_that_was_made_goes_and_others_stay() {
    let root = tempfile::tempdir().unwrap();
    for location in [root.path().to_owned(), root.path().join("made/below")] {
        let Some((mounted, _)) = mount_one_file(&location) else { return };
        assert_eq!((mounted.method, mounts_at(&location)), (Method::Fuse, 1));
        assert_eq!(fs::read(location.join("file")).unwrap(), content(1, 1000));
        mounted.unmount().unwrap();
        assert_eq!(mounts_at(&location), 0);
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn dropping_unmounts_also_from_a_task_and_while_a_panic_unwinds() {
    let root = tempfile::tempdir().unwrap();
    let Some((mounted, _)) = mount_one_file(root.path()) else { return };
    wait(async move { drop(mounted) });
    assert_eq!(mounts_at(root.path()), 0);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _mounted = mount_one_file(root.path());
        assert_eq!(mounts_at(root.path()), 1);
        panic!("as a job might");
    }));
    assert!(panicked.is_err());
    assert_eq!(mounts_at(root.path()), 0);
}

#[test]
fn a_busy_mount_is_detached_and_its_readers_end() {
    let root = tempfile::tempdir().unwrap();
    let Some((mounted, source)) = mount_one_file(root.path()) else { return };
    source.behave(|_, _| Behaviour::WaitAfter(10));
    let held = File::open(root.path().join("file")).unwrap();
    let waiting = std::thread::spawn({
        let path = root.path().join("file");
        move || File::open(path).unwrap().read_exact_at(&mut [0; 1000], 0)
    });
    while source.reads().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    mounted.unmount().unwrap();
    assert_eq!(mounts_at(root.path()), 0);
    assert!(waiting.join().unwrap().is_err());
    assert!((&held).read(&mut [0; 10]).is_err());
}

#[test]
fn a_shell_inside_does_not_keep_it() {
    let root = tempfile::tempdir().unwrap();
    let Some((mounted, _)) = mount_one_file(root.path()) else { return };
    let mut shell = Process::new("sh").args(["-c", "echo here >&2; sleep 60"]).directory(root.path()).start();
    shell.wait_for_stderr("here");
    mounted.unmount().unwrap();
    assert_eq!(mounts_at(root.path()), 0);
}

#[test]
fn an_unmount_from_outside_is_tolerated() {
    let Some(umount) = installed("umount", "mount") else { return };
    let root = tempfile::tempdir().unwrap();
    for lazy in [false, true] {
        let Some((mounted, _)) = mount_one_file(root.path()) else { return };
        let held = lazy.then(|| File::open(root.path().join("file")).unwrap());
        let options: &[&str] = if lazy { &["-l"] } else { &[] };
        let path = root.path().to_str().unwrap();
        Process::new(&umount).args(options.iter().copied().chain([path])).run().expect_code(0);
        mounted.unmount().unwrap();
        drop(held);
        assert_eq!(mounts_at(root.path()), 0);
    }
}

#[test]
fn what_others_have_mounted_there_since_is_left_alone() {
    let (Some(umount), Some(mount)) = (installed("umount", "mount"), installed("mount", "mount")) else { return };
    let root = tempfile::tempdir().unwrap();
    let Some((mounted, _)) = mount_one_file(root.path()) else { return };
    let path = root.path().to_str().unwrap();
    Process::new(&umount).args([path]).run().expect_code(0);
    Process::new(&mount).args(["-t", "tmpfs", "theirs", path]).run().expect_code(0);
    mounted.unmount().unwrap();
    assert_eq!(mounts_at(root.path()), 1);
    Process::new(&umount).args([path]).run().expect_code(0);
}

/// Runs one of the `child_…` functions below in a process of its own.
fn child(program: &str, before: &[&str], location: &Path) -> Running {
    let this = std::env::current_exe().unwrap();
    let name = format!("mount::ending::{program}");
    let test = [this.to_str().unwrap(), "--exact", &name, "--ignored", "--nocapture"].map(str::to_owned);
    let mut command = before.iter().map(|&word| word.to_owned()).chain(test);
    Process::new(command.next().unwrap()).args(command).env("MOUNT_AT", location).start()
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
#[ignore = "run in a process of its own by others"]
fn child_that_mounts() {
    let Some(location) = std::env::var_os("MOUNT_AT") else { return };
    let mounted = mount_one_file(location.as_ref());
    assert!(mounted.is_some());
    say("mounted");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn after_sigkill_the_next_start_clears_the_mount() {
    let root = tempfile::tempdir().unwrap();
    let Some((probe, _)) = mount_one_file(root.path()) else { return };
    probe.unmount().unwrap();
    let mut killed = child("child_that_mounts", &[], root.path());
    killed.wait_for_stderr("mounted");
    assert_eq!(fs::read(root.path().join("file")).unwrap(), content(1, 1000));
    killed.signal(libc::SIGKILL);
    drop(killed);
    assert_eq!(mounts_at(root.path()), 1);
    assert_eq!(fs::read_dir(root.path()).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    // It is no reason to refuse the location.
    assert_eq!(preflight(&input(root.path())), Vec::<String>::new());
    let (mounted, _) = mount_one_file(root.path()).unwrap();
    assert_eq!(mounts_at(root.path()), 1);
    assert_eq!(fs::read(root.path().join("file")).unwrap(), content(1, 1000));
    mounted.unmount().unwrap();
    assert_eq!(mounts_at(root.path()), 0);
}

#[test]
#[ignore = "run in a process of its own by others"]
fn child_without_the_right_to_mount() {
    let Some(location) = std::env::var_os("MOUNT_AT") else { return };
    let location = Path::new(&location);
    let never = CancellationToken::new();
    let mount = |mode| {
        let (source, objects) = ScriptedSource::new([("file", content(1, 1000))]);
        wait(mount_source(&input(location), &config(mode), &objects, Arc::new(source), &never))
    };
    let refused = mount(MountMode::Fuse).err().unwrap();
    assert!(matches!(refused, Error::FuseRefused { .. }), "{refused}");
    assert!(!location.exists());
    say(&refused.to_string());
    let copied = mount(MountMode::Auto).unwrap();
    assert_eq!(copied.method, Method::Copy);
    say(&copied.reason);
    copied.unmount().unwrap();
    assert_eq!(fs::read(location.join("file")).unwrap(), content(1, 1000));
}

#[test]
fn where_fuse_is_refused_files_are_copied_or_the_reason_is_given() {
    let Some(_) = installed("setpriv", "util-linux") else { return };
    let root = tempfile::tempdir().unwrap();
    let location = root.path().join("models");
    let without = ["setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin"];
    let finished = child("child_without_the_right_to_mount", &without, &location).wait().expect_code(0);
    assert!(finished.stderr.contains("use mount-mode=auto or copy"), "{finished}");
    assert!(finished.stderr.contains("FUSE is refused: mount(2) is refused"), "{finished}");
}
