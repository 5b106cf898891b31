//! All files downloaded first: complete or not there, checked, bounded, and not downloaded twice.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flashjob_bucket::Object;
use flashjob_config::{InputStorage, MountMode};
use flashjob_event::Events;
use flashjob_mount::{Error, FaultKind, Method, Mounted, Mounter, mount, mount_source};
use md5::{Digest, Md5};
use tokio_util::sync::CancellationToken;

use super::scripted_source::{Behaviour, ScriptedSource, content};
use super::{config, input, wait};

const MIB: usize = 1 << 20;
const MARKER: &str = ".flashjob-copy";

fn copy(input: &InputStorage, objects: &[Object], source: &Arc<ScriptedSource>) -> Result<Mounted, Error> {
    let never = CancellationToken::new();
    wait(mount_source(input, &config(MountMode::Copy), objects, source.clone(), &never))
}

/// Names of what is at `location`, the marker left out; it must hold nothing incomplete.
fn names(location: &Path) -> Vec<String> {
    assert!(!location.join(MARKER).join("partial").exists());
    let names = fs::read_dir(location).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != MARKER).collect();
    names.sort();
    names
}

#[test]
fn a_copy_is_what_the_bucket_holds() {
    let root = tempfile::tempdir().unwrap();
    let location = root.path().join("made");
    let files = [
        ("a/b/large", content(1, 20 * MIB + 3)),
        ("a/exact", content(2, 8 * MIB)),
        ("zero", vec![]),
        ("dir/", vec![]),
        ("../up", content(3, 5)),
        ("bad//name", content(4, 5)),
        ("a/b", content(5, 5)),
    ];
    let (source, mut objects) = ScriptedSource::new(files.clone());
    for object in &mut objects {
        let (_, bytes) = files.iter().find(|(name, _)| *name == object.name).unwrap();
        object.md5 = (object.name != "a/exact").then(|| Md5::digest(bytes).into());
    }
    let source = Arc::new(source);
    let copied = copy(&input(&location), &objects, &source).unwrap();
    assert_eq!((copied.method, copied.reason.as_str()), (Method::Copy, "mount-mode=copy asks for it"));
    copied.unmount().unwrap();
    assert_eq!(names(&location), ["a", "dir", "zero"]);
    assert_eq!(names(root.path()), ["made"]);
    for (name, bytes) in files.iter().filter(|(name, _)| ["a/b/large", "a/exact", "zero"].contains(name)) {
        let path = location.join(name);
        assert!(fs::read(&path).unwrap() == *bytes, "{name}");
        let object = objects.iter().find(|object| object.name == *name).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().ok(), object.modified, "{name}");
    }
    assert!(source.most_under_way() > 1);
}

#[test]
fn complete_files_are_kept_and_others_replaced() {
    let root = tempfile::tempdir().unwrap();
    let (source, mut objects) =
        ScriptedSource::new([("a", content(1, 100)), ("b", content(2, 100)), ("c", content(3, 100))]);
    let source = Arc::new(source);
    copy(&input(root.path()), &objects, &source).unwrap().unmount().unwrap();
    assert_eq!(source.reads().len(), 3);
    copy(&input(root.path()), &objects, &source).unwrap().unmount().unwrap();
    assert_eq!(source.reads().len(), 3);
    // One is written anew, one was cut off, one is a link to somewhere else.
    objects[0].modified = objects[0].modified.map(|time| time + Duration::from_secs(1));
    fs::write(root.path().join("b"), "short").unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::remove_file(root.path().join("c")).unwrap();
    symlink(elsewhere.path(), root.path().join("c")).unwrap();
    // A killed process left this.
    fs::create_dir(root.path().join(MARKER).join("partial")).unwrap();
    fs::write(root.path().join(MARKER).join("partial/2"), "left").unwrap();
    copy(&input(root.path()), &objects, &source).unwrap().unmount().unwrap();
    assert_eq!(source.reads().len(), 6);
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(fs::read(root.path().join(name)).unwrap(), content(seed, 100));
    }
    assert_eq!(fs::read(elsewhere.path()).unwrap(), b"");
    assert_eq!(names(root.path()), ["a", "b", "c"]);
}

#[test]
fn wrong_bytes_never_get_their_name() {
    let root = tempfile::tempdir().unwrap();
    let (source, mut objects) = ScriptedSource::new([("good", content(1, 100)), ("wrong", content(2, 100))]);
    objects[1].md5 = Some([7; 16]);
    let error = copy(&input(root.path()), &objects, &Arc::new(source)).err().unwrap();
    assert!(matches!(&error, Error::Checksum(name) if name == "wrong"), "{error}");
    assert!(!names(root.path()).contains(&"wrong".to_owned()));
}

#[test]
fn faults_name_the_object_and_leave_nothing_incomplete() {
    for behaviour in [Behaviour::FailAfter(50, FaultKind::Denied), Behaviour::StopAfter(50), Behaviour::Overshoot(1)] {
        let root = tempfile::tempdir().unwrap();
        let (source, objects) = ScriptedSource::new([("a", content(1, 100)), ("b", content(2, 100))]);
        source.behave(move |name, _| if name == "b" { behaviour } else { Behaviour::Serve });
        let source = Arc::new(source);
        let error = copy(&input(root.path()), &objects, &source).err().unwrap();
        assert!(error.to_string().starts_with("cannot copy object `b`: "), "{error}");
        assert!(!names(root.path()).contains(&"b".to_owned()));
        source.behave(|_, _| Behaviour::Serve);
        copy(&input(root.path()), &objects, &source).unwrap().unmount().unwrap();
        assert_eq!(fs::read(root.path().join("b")).unwrap(), content(2, 100));
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_fetched() {
    let root = tempfile::tempdir().unwrap();
    let location = root.path().join("made");
    let (source, mut objects) = ScriptedSource::new([("a", content(1, 60)), ("b", content(2, 50))]);
    let source = Arc::new(source);
    let bounded = |volume_bytes| InputStorage { volume_bytes: Some(volume_bytes), ..input(&location) };
    let error = copy(&bounded(109), &objects, &source).err().unwrap();
    assert!(matches!(error, Error::TooLarge { needed_bytes: 110, limit_bytes: 109, .. }), "{error}");
    assert!(error.to_string().contains("volume_size_in_gbs"));
    assert!(!location.exists());
    objects[0].size_bytes = u64::MAX / 2;
    let error = copy(&input(&location), &objects, &source).err().unwrap();
    assert!(error.to_string().contains("free space"), "{error}");
    assert!(source.reads().is_empty());
    objects[0].size_bytes = 60;
    copy(&bounded(110), &objects, &source).unwrap().unmount().unwrap();
}

#[test]
fn a_copy_can_be_cancelled() {
    let root = tempfile::tempdir().unwrap();
    let (source, objects) = ScriptedSource::new([("a", content(1, 100)), ("b", content(2, 20 * MIB))]);
    source.behave(|name, _| if name == "b" { Behaviour::WaitAfter(10) } else { Behaviour::Serve });
    let source = Arc::new(source);
    let cancel = CancellationToken::new();
    let canceller = std::thread::spawn({
        let (cancel, source) = (cancel.clone(), source.clone());
        move || {
            while source.reads().len() < 4 {
                std::thread::sleep(Duration::from_millis(1));
            }
            cancel.cancel();
        }
    });
    let input = input(root.path());
    let result = wait(mount_source(&input, &config(MountMode::Copy), &objects, source, &cancel));
    assert!(matches!(result.err().unwrap(), Error::Cancelled));
    canceller.join().unwrap();
    assert!(!names(root.path()).contains(&"b".to_owned()));
}

#[test]
fn without_a_par_a_directory_is_used_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("model"), "x").unwrap();
    let (events, never) = (Events::default(), CancellationToken::new());
    let existing = |location: &Path| {
        wait(mount(&input(location), &config(MountMode::Auto), &Mounter::this_process(), &events, &never))
    };
    let used = existing(root.path()).unwrap();
    assert_eq!(used.method, Method::Existing);
    assert!(used.direct().is_none() && used.health().is_none());
    used.unmount().unwrap();
    assert!(root.path().join("model").exists());
    let error = existing(&root.path().join("missing")).err().unwrap();
    assert!(error.to_string().contains("no PAR is given"), "{error}");
    let error = existing(&root.path().join("model")).err().unwrap();
    assert!(error.to_string().contains("is not a directory"), "{error}");
}
