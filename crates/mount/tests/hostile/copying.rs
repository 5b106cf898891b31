//! Buckets whose names and lengths are made to spoil a copy.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use flashjob_config::MountMode;
use flashjob_mount::{Error, Mounted, mount_source};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::mount::scripted_source::{Behaviour, ScriptedSource, content, object};
use crate::mount::{config, input, wait};

fn copy(folder: &TempDir, objects: &[flashjob_bucket::Object], source: &Arc<ScriptedSource>) -> Result<Mounted, Error> {
    let never = CancellationToken::new();
    wait(mount_source(&input(&folder.path().join("models")), &config(MountMode::Copy), objects, source.clone(), &never))
}

/// Files that are on their way have numbers, and an object can be called like each of them.
#[test]
fn no_object_takes_the_place_of_another_one_s_file() {
    let mut files: Vec<(String, Vec<u8>)> =
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
            .into_iter()
            .enumerate()
            .map(|(seed, name)| (name.to_owned(), content(seed as u64, 9 << 20)))
            .collect();
    let own = files.clone();
    for number in 0..20 {
        files.push((format!(".flashjob-copy/partial/{number}"), content(99, 9 << 20)));
        files.push((format!(".FLASHJOB-COPY/partial/{number}"), content(99, 9 << 20)));
    }
    for name in [".flashjob-copy/README", ".flashjob-copy/", ".flashjob-copy/partial/", ".flashjob-copy/x"] {
        files.push((name.to_owned(), content(98, 5)));
    }
    let folder = TempDir::new().unwrap();
    // As of objects that were uploaded in parts, the listing has no MD5 of any.
    let (source, objects) = ScriptedSource::new(files);
    let source = Arc::new(source);
    copy(&folder, &objects, &source).unwrap();
    for (name, bytes) in own {
        assert!(fs::read(folder.path().join("models").join(&name)).unwrap() == bytes, "{name}");
    }
    assert!(source.reads().iter().all(|(name, _)| !name.to_lowercase().contains("copy")), "{:?}", source.reads());
    let readme = fs::read_to_string(folder.path().join("models/.flashjob-copy/README")).unwrap();
    assert!(readme.starts_with("flashjob copies objects"), "{readme}");
}

/// Whoever else may write there puts a file in the place of one that is on its way: it gets no object's name.
#[test]
fn only_what_was_written_gets_an_object_s_name() {
    let folder = TempDir::new().unwrap();
    let (source, objects) = ScriptedSource::new([("a", content(1, 9 << 20)), ("b", content(2, 100))]);
    let partial = folder.path().join("models/.flashjob-copy/partial");
    source.behave(move |_, _| {
        for entry in fs::read_dir(&partial).unwrap() {
            let path = entry.unwrap().path();
            let length = fs::metadata(&path).unwrap().len();
            fs::remove_file(&path).unwrap();
            fs::write(&path, vec![b'x'; length as usize]).unwrap();
        }
        Behaviour::Serve
    });
    let error = copy(&folder, &objects, &Arc::new(source)).err().unwrap().to_string();
    assert!(error.contains("another process has put another file in its place"), "{error}");
    for name in ["a", "b"] {
        assert!(!folder.path().join("models").join(name).exists(), "{name}");
    }
}

#[test]
fn a_link_in_the_place_of_the_working_folder_is_not_followed() {
    for link in [".flashjob-copy", ".flashjob-copy/README", ".flashjob-copy/partial"] {
        let folder = TempDir::new().unwrap();
        let models = folder.path().join("models");
        fs::create_dir_all(models.join(link).parent().unwrap()).unwrap();
        fs::create_dir_all(folder.path().join("theirs/partial")).unwrap();
        for name in ["theirs/README", "theirs/partial/1", "theirs/1"] {
            fs::write(folder.path().join(name), "theirs").unwrap();
        }
        let target = if link.ends_with("README") { "theirs/README" } else { "theirs" };
        symlink(folder.path().join(target), models.join(link)).unwrap();
        let before = crate::support::folders::everything_in(&folder.path().join("theirs"));
        let (source, objects) = ScriptedSource::new([("a", content(1, 100))]);
        copy(&folder, &objects, &Arc::new(source)).unwrap();
        assert_eq!(crate::support::folders::everything_in(&folder.path().join("theirs")), before, "{link}");
        assert_eq!(fs::read(models.join("a")).unwrap(), content(1, 100));
    }
}

/// Names that no request can carry are no reason to have nothing.
#[test]
fn a_name_that_cannot_be_asked_for_does_not_end_a_copy() {
    let long = format!("{}x", "x/".repeat(512));
    let names = ["line\nfeed", "dir\n/x", "re\rturn", "\n", long.as_str()];
    let folder = TempDir::new().unwrap();
    let hostile = names.into_iter().map(|name| (name, content(3, 10)));
    let (source, objects) = ScriptedSource::new(hostile.chain([("dir/good", content(1, 100))]));
    let source = Arc::new(source);
    copy(&folder, &objects, &source).unwrap();
    assert_eq!(fs::read(folder.path().join("models/dir/good")).unwrap(), content(1, 100));
    assert_eq!(source.reads().len(), 1, "{:?}", source.reads());
}

#[test]
fn lengths_that_no_disk_has_do_not_fit() {
    for lengths in [
        vec![u64::MAX],
        vec![u64::MAX, 2],
        vec![100, u64::MAX - 50],
        vec![u64::MAX, u64::MAX, 2],
        vec![1 << 63, 1 << 63],
        vec![1 << 63, 1 << 63, 5],
    ] {
        let folder = TempDir::new().unwrap();
        let (source, _) = ScriptedSource::new([("0", content(1, 100))]);
        let listed = lengths.iter().enumerate().map(|(name, length)| object(&name.to_string(), *length));
        let source = Arc::new(source);
        let error = copy(&folder, &listed.collect::<Vec<_>>(), &source).err().unwrap();
        assert!(
            matches!(error, Error::TooLarge { limit: "the free space of its file system", .. }),
            "{lengths:?}: {error}"
        );
        assert!(source.reads().is_empty());
    }
}
