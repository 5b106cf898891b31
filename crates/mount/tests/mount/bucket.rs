//! Mounts of the development bucket server, as a job makes them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use flashjob_config::{InputStorage, MountConfig, MountMode, Par};
use flashjob_event::Events;
use flashjob_mount::{Error, Method, Mounted, Mounter, mount};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::scripted_source::content;
use super::{config, input, wait};
use crate::support::bucket_server::BucketServer;

pub(super) fn mount_as(input: &InputStorage, mode: MountMode, timeout: Duration) -> Result<Mounted, Error> {
    let config = MountConfig { storage_timeout: timeout, ..config(mode) };
    wait(mount(input, &config, &Mounter::this_process(), &Events::default(), &CancellationToken::new()))
}

pub(super) fn input_of(url: &str, location: &Path, include: &[&str], exclude: &[&str]) -> InputStorage {
    let own = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    let par = Some(Par::parse(url).unwrap());
    InputStorage { par, include: own(include), exclude: own(exclude), ..input(location) }
}

/// A folder with `files`, served.
pub(super) fn serve(files: &[(&str, &[u8])]) -> (tempfile::TempDir, BucketServer) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let server = BucketServer::start(folder.path());
    (folder, server)
}

/// Paths of all files below `root`, without the copy's marker.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true if entry.ends_with(".flashjob-copy") => {}
                true => directories.push(entry),
                false => found.push(entry.strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_job_sees_what_it_includes() {
    let names = ["org/m-8B/config.json", "org/m-8B/original/x.pth", "org/m-8B-Instruct/config.json", "org/m", "README"];
    let (_folder, server) = serve(&names.map(|name| (name, name.as_bytes())));
    server.add(json!([{"name": "org/m-8B/", "text": ""}, {"name": "org//m-8B", "text": "x"}]));
    for (include, exclude, expected) in [
        (vec![], vec![], "README org/m org/m-8B-Instruct/config.json org/m-8B/config.json org/m-8B/original/x.pth"),
        (vec!["org/m-8B"], vec![], "org/m-8B/config.json org/m-8B/original/x.pth"),
        (vec!["org/m-8B/"], vec!["org/m-8B/original"], "org/m-8B/config.json"),
        (vec!["org/m", "README"], vec![], "README org/m"),
        (vec!["org/m-8B", "org/m-8B/config.json"], vec!["org"], ""),
    ] {
        let root = tempfile::tempdir().unwrap();
        let input = input_of(server.url(), root.path(), &include, &exclude);
        let mounted = mount_as(&input, MountMode::Auto, Duration::from_secs(5)).unwrap();
        assert_eq!(files(root.path()).join(" "), expected, "{include:?} {exclude:?}");
        for name in files(root.path()) {
            assert_eq!(fs::read_to_string(root.path().join(&name)).unwrap(), name);
        }
        mounted.unmount().unwrap();
    }
    // What is not included is not even listed.
    server.forget_requests();
    let root = tempfile::tempdir().unwrap();
    let input = input_of(server.url(), root.path(), &["org/m-8B"], &[]);
    mount_as(&input, MountMode::Auto, Duration::from_secs(5)).unwrap().unmount().unwrap();
    assert_eq!(server.count("list"), 1);
    let input = input_of(server.url(), root.path(), &["org/m-8"], &[]);
    let error = mount_as(&input, MountMode::Auto, Duration::from_secs(5)).err().unwrap();
    assert!(matches!(&error, Error::NothingIncluded(path) if path == "org/m-8"), "{error}");
}

#[test]
fn a_par_shows_what_it_is_for() {
    let (_folder, server) = serve(&[("models/a/m.gguf", b"gguf"), ("models/b", b"b"), ("other", b"o")]);
    let object = server.par(json!({"object": "models/a/m.gguf"}));
    let prefix = server.par(json!({"prefix": "models/", "access": "AnyObjectRead", "listing": true}));
    for (url, expected) in [(object, "m.gguf"), (format!("{prefix}models/"), "models/a/m.gguf models/b")] {
        let root = tempfile::tempdir().unwrap();
        let input = input_of(&url, root.path(), &[], &[]);
        let mounted = mount_as(&input, MountMode::Auto, Duration::from_secs(5)).unwrap();
        assert_eq!(files(root.path()).join(" "), expected);
        assert_eq!(fs::read(root.path().join(expected.split(' ').next().unwrap())).unwrap(), b"gguf");
        mounted.unmount().unwrap();
    }
}

#[test]
fn a_bucket_that_cannot_be_listed_leaves_nothing() {
    let (_folder, server) = serve(&[("a", b"a")]);
    let root = tempfile::tempdir().unwrap();
    let location = root.path().join("models");
    let unlisted = server.par(json!({"access": "AnyObjectRead", "listing": false}));
    let gone = server.par(json!({"access": "AnyObjectRead", "listing": true}));
    server.revoke(&gone);
    for (url, part) in [(unlisted, "list"), (gone, "PAR")] {
        let input = input_of(&url, &location, &[], &[]);
        let error = mount_as(&input, MountMode::Auto, Duration::from_secs(5)).err().unwrap();
        let token = url.split("/p/").nth(1).unwrap().split('/').next().unwrap();
        assert!(matches!(error, Error::Bucket(_)) && error.to_string().contains(part), "{error}");
        assert!(!error.to_string().contains(token), "{error}");
        assert!(!location.exists());
    }
}

#[test]
fn a_copy_is_checked_against_the_md5_that_the_service_lists() {
    let bytes = content(1, 9_000_000);
    let (folder, server) = serve(&[("dir/a", &bytes), ("b", b"b")]);
    let root = tempfile::tempdir().unwrap();
    let input = input_of(server.url(), root.path(), &[], &[]);
    let copied = mount_as(&input, MountMode::Copy, Duration::from_secs(5)).unwrap();
    assert_eq!((copied.method, files(root.path())), (Method::Copy, vec!["b".to_owned(), "dir/a".to_owned()]));
    assert!(fs::read(root.path().join("dir/a")).unwrap() == bytes);
    let stored = fs::metadata(folder.path().join("dir/a")).unwrap().modified().unwrap();
    let shown = fs::metadata(root.path().join("dir/a")).unwrap().modified().unwrap();
    let difference = stored.duration_since(shown).unwrap_or_else(|error| error.duration());
    assert!(difference < Duration::from_secs(1), "{difference:?}");
    // Everything is there already.
    server.forget_requests();
    mount_as(&input, MountMode::Copy, Duration::from_secs(5)).unwrap();
    assert_eq!(server.count("get"), 0);
}
