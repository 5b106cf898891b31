//! Rights of the process that reads bytes of strangers: none that it could misuse.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::bucket_of_tiny_model;
use crate::job::{LONG, job_without_model, result, tiny_model};
use crate::support::Flashjob as _;
use crate::support::process::{Process, skip};

/// Lines of `/proc/PID/status`, by name.
fn status(process: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.into(), value.trim().into()))
        .collect()
}

/// Everything that a thread of the job may not have, at a moment when it reads from its mount and answers scrapes.
#[track_caller]
fn expect_no_rights(process: u32) {
    for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let thread = thread.unwrap().file_name().to_str().unwrap().parse().unwrap();
        let status = status(thread);
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set} of thread {thread}, {}", status["Name"]);
        }
        assert_eq!(status["NoNewPrivs"], "1", "thread {thread}");
    }
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

/// A folder below a directory that everyone may enter, which temporary ones are not.
fn open_folder(mode: u32) -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let results = folder.path().join("results");
    fs::create_dir(&results).unwrap();
    fs::set_permissions(&results, fs::Permissions::from_mode(mode)).unwrap();
    (folder, results)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn flashjob(results: &Path) -> Process {
    Process::flashjob()
        .args(["--metrics-port=0", "--metrics-linger-seconds=0", "--measure-limits=false", "--device=cpu"])
        .args(["--results-dir".into(), results.to_owned()])
}

#[test]
fn a_job_that_has_mounted_has_no_rights_left() {
    let (folder, results) = open_folder(0o777);
    // Locations are made by the process that still has the rights to, whoever that is.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (_objects, server) = bucket_of_tiny_model();
    // All that this job needs is within reach of the images' own user. A user with too few rights mounts in a namespace of its own,
    // and stays who it is. (It is root only so that it may open /dev/fuse everywhere.)
    let few_rights: &[&str] = &["setpriv", "--inh-caps=-all", "--bounding-set=-all,+setfcap"];
    let own = rustix::process::geteuid().as_raw().to_string();
    let starts = match is_root() {
        true => vec![(&[][..], "65532"), (few_rights, "0")],
        false => vec![(&[][..], own.as_str())],
    };
    for (through, user) in starts {
        let location = folder.path().join(format!("mount-of-{user}"));
        let job = flashjob(&results.join(user))
            .args([format!("--par={}", server.url()), "--model=model".to_owned(), "--mount-mode=fuse".to_owned()])
            .args(["--mount-location".into(), location.clone()])
            .args(LONG);
        let mut running = if through.is_empty() { job } else { job.through(through) }.start();
        running.wait_for_stderr("\"phase\":\"measure\"");
        let process = running.job() as u32;
        expect_no_rights(process);
        assert_eq!(status(process)["Uid"], [user; 4].join("\t"));
        running.signal(libc::SIGTERM);
        let finished = running.wait().expect_code(143);
        assert!(finished.stderr.contains("no capabilities, no_new_privs, not dumpable; Landlock"), "{finished}");
        assert!(!location.exists(), "the location was made for the mount, and is gone with it");
    }
}

#[test]
fn a_directory_of_root_that_is_closed_keeps_the_job_root() {
    if !is_root() {
        return skip("only root can become somebody else");
    }
    let folder = TempDir::new().unwrap();
    // As `mktemp -d` makes it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for (results, location) in [("results", "models"), ("deep/below/results", "deep/models")] {
        let results = folder.path().join(results);
        let (_objects, server) = bucket_of_tiny_model();
        let finished = flashjob(&results)
            .args([format!("--par={}", server.url()), "--model=model".to_owned(), "--num-prompts=1".to_owned()])
            .args(["--mount-location".into(), folder.path().join(location)])
            .args(["--input-len=4", "--output-len=2"])
            .run()
            .expect_code(0);
        assert!(finished.stderr.contains("user 65532 cannot enter"), "{finished}");
        assert!(results.join("result.json").exists());
    }
}

#[test]
fn root_becomes_who_can_do_the_work_and_says_why() {
    if !is_root() {
        return skip("only root can become somebody else");
    }
    for (name, mode, owner, foreign_file, user, reason) in [
        ("of an ordinary user", 0o755, 1234, false, "1234:4321", "results-dir belongs to it"),
        ("of an ordinary user alone", 0o700, 1234, false, "1234:4321", "results-dir belongs to it"),
        ("of all", 0o777, 0, false, "65532:65532", "everything that the job needs is within its reach"),
        ("of root", 0o755, 0, false, "0:0", "user 65532 cannot write"),
        ("of all, with a directory of root", 0o777, 0, true, "0:0", "user 65532 does not own"),
    ] {
        let (_folder, results) = open_folder(mode);
        chown(&results, Some(owner), Some(if owner == 0 { 0 } else { 4321 })).unwrap();
        if foreign_file {
            fs::create_dir(results.join("earlier")).unwrap();
        }
        let job = flashjob(&results).args(["--model".into(), tiny_model()]).args(["--input-len=4", "--output-len=2"]);
        let finished = job.args(["--num-prompts=2"]).run().expect_code(0);
        let result: Value = serde_json::from_slice(&fs::read(results.join("result.json")).unwrap()).unwrap();
        let privileges = &result["environment"]["privileges"];
        assert_eq!(privileges["user"], user, "{name}: {finished}");
        assert!(privileges["user_reason"].as_str().unwrap().contains(reason), "{name}: {privileges}");
        assert_eq!(privileges["capabilities"], serde_json::json!([]), "{name}");
        assert_eq!((&privileges["no_new_privs"], &privileges["dumpable"]), (&true.into(), &false.into()), "{name}");
        let owner = fs::metadata(results.join("result.json")).unwrap().uid();
        assert_eq!(owner.to_string(), user.split(':').next().unwrap(), "{name}");
    }
}

/// The engine that the job starts tries what the job itself might be made to try.
#[test]
fn writing_is_limited_to_the_jobs_own_directories() {
    let folder = TempDir::new().unwrap();
    let (python, cache) = (folder.path().join("bin/python3"), folder.path().join("cache"));
    for directory in ["bin", "elsewhere", "temporary"] {
        fs::create_dir(folder.path().join(directory)).unwrap();
    }
    fs::write(folder.path().join("elsewhere/file"), "whole").unwrap();
    // Asked for a package it answers that it is there; told to be the engine it ends.
    let script = "#!/bin/sh\n\
        cd \"$HOME\"\n\
        read job name state supervisor rest < /proc/$PPID/stat\n\
        { for place in out cache temporary elsewhere .; do echo x > $place/new && echo \"wrote to $place\"; done\n\
        echo x > elsewhere/file && echo 'wrote over a file'\n\
        mv elsewhere/file out/ && echo 'moved a file'\n\
        rm -f elsewhere/file && echo 'removed a file'\n\
        ln -s / elsewhere/link && echo 'made a link'\n\
        mkdir elsewhere/directory && echo 'made a directory'\n\
        kill -0 $supervisor && echo 'signalled the supervisor'\n\
        kill -0 $PPID && echo 'signalled the job'\n\
        grep -E 'CapEff|NoNewPrivs' /proc/self/status; echo x > /dev/null && echo 'wrote to /dev/null'\n\
        } > temporary/report.$$ 2> /dev/null\n";
    fs::write(&python, script).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", python.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let finished = job_without_model(&folder)
        .args(["--model".into(), tiny_model()])
        .args(["--backend=vllm", "--mlflow-uri=none", "--cache-dir"])
        .args([&cache])
        .env("PATH", path)
        .env("HOME", folder.path())
        .env("TMPDIR", folder.path().join("temporary"))
        .run()
        .expect_code(4);
    let landlock = &result(&folder)["environment"]["privileges"]["landlock"];
    let Some(abi) = landlock["abi"].as_u64() else {
        return skip(&format!("this kernel has no Landlock: {landlock}"));
    };
    let mut expected = vec![
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "signalled the job",
        "wrote to /dev/null",
        "wrote to cache",
        "wrote to out",
        "wrote to temporary",
    ];
    // Signals are kept in from Linux 6.12 on.
    expected.extend((abi < 6).then_some("signalled the supervisor"));
    let entries = fs::read_dir(folder.path().join("temporary")).unwrap().map(|entry| entry.unwrap());
    let reports: Vec<_> = entries.filter(|entry| entry.file_name() != "new").collect();
    assert_eq!(reports.len(), 2, "{finished}");
    for report in reports {
        let report = fs::read_to_string(report.path()).unwrap();
        let mut lines: Vec<&str> = report.lines().collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }
    assert_eq!(fs::read_to_string(folder.path().join("elsewhere/file")).unwrap(), "whole");
    assert_eq!(fs::read_dir(folder.path().join("elsewhere")).unwrap().count(), 1);
    let named = landlock["writable"].as_array().unwrap();
    for place in ["out", "cache", "temporary"] {
        assert!(named.iter().any(|path| path == folder.path().join(place).to_str().unwrap()), "{place}: {landlock}");
    }
}

#[test]
fn check_says_what_would_be_in_force() {
    let (_folder, results) = open_folder(0o777);
    let arguments = ["check", "--model=any", "--metrics-port=0", "--device=cpu", "--results-dir"];
    let finished = Process::flashjob().args(arguments).args([&results]).run().expect_code(0);
    let said = finished.stdout.lines().find(|line| line.starts_with("once it has mounted, the job runs as user"));
    let said = said.unwrap_or_else(|| panic!("{finished}"));
    let user = if is_root() { "65532:65532".to_owned() } else { format!("{}:", rustix::process::geteuid().as_raw()) };
    assert!(said.contains(&format!("user {user}")), "{said}");
    assert!(said.contains("Landlock (ABI ") || said.contains("Landlock is not in force: "), "{said}");
    assert_eq!(fs::read_dir(&results).unwrap().count(), 0, "check changes nothing");
}

/// A directory that was made for a mount, and one that was there.
#[test]
fn locations_are_made_and_removed_by_the_process_that_may() {
    let (folder, results) = open_folder(0o777);
    let (_objects, server) = bucket_of_tiny_model();
    let there = folder.path().join("there");
    fs::create_dir(&there).unwrap();
    for (location, stays) in [(folder.path().join("made/deep"), false), (there, true)] {
        let finished = flashjob(&results)
            .args([format!("--par={}", server.url()), "--model=model".to_owned(), "--mount-mode=fuse".to_owned()])
            .args(["--mount-location".into(), location.clone()])
            .args(["--input-len=4", "--output-len=2", "--num-prompts=2"])
            .run()
            .expect_code(0);
        assert_eq!(location.exists(), stays, "{finished}");
        assert!(!folder.path().join("made").exists(), "{finished}");
    }
}
