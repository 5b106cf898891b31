//! Directories that hold what flashjob did not write, or no longer as it wrote it.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{everything_in, expect_said, short_job};
use crate::job::{LONG, job_without_model, tiny_model};

const RECORD: &str = ".flashjob-run.jsonl";

/// Files that a run of [`short_job`] leaves.
const LEFT: [&str; 4] = [RECORD, "flashjob.log", "report.html", "result.json"];

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The one folder in `earlier`.
fn earlier(out: &Path) -> PathBuf {
    let found: Vec<PathBuf> = fs::read_dir(out.join("earlier")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_others_have_there_stays_where_it_is() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    for name in [".ssh/id_ed25519", "notes.txt", "etc/passwd", "lost+found/x", "results.json", ".result.json.partial"] {
        write(&out.join(name), "theirs");
    }
    symlink("/nonexistent", out.join("link")).unwrap();
    let before = everything_in(&out);
    let unchanged = || {
        let after = everything_in(&out);
        before.iter().all(|(path, was)| after.get(path) == Some(was))
    };
    let first = short_job(&folder).run().expect_code(4);
    assert!(unchanged() && !first.stderr.contains("were moved") && !out.join("earlier").exists(), "{first}");
    let second = short_job(&folder).run().expect_code(4);
    assert!(unchanged());
    expect_said(&second, "files of the run before this one were moved");
    assert_eq!(names(&earlier(&out)), LEFT);
    for name in LEFT {
        expect_said(&second, name);
        assert!(out.join(name).is_file(), "{name}");
    }
}

/// History of a directory, of which the first part is a run's.
type Made<'a> = &'a dyn Fn(&Path);

#[test]
fn a_file_of_others_in_the_place_of_a_result_keeps_the_job_from_starting() {
    let file = |name: &'static str| move |out: &Path| write(&out.join(name), "theirs");
    let append = |name: &'static str| {
        move |out: &Path| {
            let text = fs::read_to_string(out.join(name)).unwrap();
            fs::write(out.join(name), text.replace("a run", "a walk") + "\n").unwrap();
        }
    };
    let link = |name: &'static str| {
        move |out: &Path| {
            fs::create_dir_all(out).unwrap();
            write(&out.join("target"), "theirs");
            let _ = fs::remove_file(out.join(name));
            symlink("target", out.join(name)).unwrap();
        }
    };
    let unknown = "and no `.flashjob-run.jsonl` says that an earlier run of flashjob wrote it; move that file away";
    let differs = "which differs from what `.flashjob-run.jsonl` has of the run before; move that file away";
    let cases: [(bool, Made, &str, &str); 24] = [
        (false, &file("result.json"), "`result.json`", unknown),
        (false, &file("requests.jsonl"), "`requests.jsonl`", unknown),
        (false, &file("outputs.jsonl"), "`outputs.jsonl`", unknown),
        (false, &file("flashjob.log"), "`flashjob.log`", unknown),
        (false, &file("timeline.json"), "`timeline.json`", unknown),
        (false, &file("report.html"), "`report.html`", unknown),
        (false, &file("mlflow/project/x"), "`mlflow`", unknown),
        (false, &file("mlflow"), "`mlflow`", unknown),
        (false, &file("result.json/in/a/directory"), "`result.json`", unknown),
        (false, &link("result.json"), "`result.json`", unknown),
        (
            false,
            &|out| drop((fs::create_dir(out), symlink("/nonexistent", out.join("flashjob.log")))),
            "`flashjob.log`",
            unknown,
        ),
        (true, &file("result.json"), "`result.json`", differs),
        (true, &append("result.json"), "`result.json`", differs),
        (true, &file("flashjob.log"), "`flashjob.log`", differs),
        (true, &append("flashjob.log"), "`flashjob.log`", differs),
        (true, &file("outputs.jsonl"), "`outputs.jsonl`", differs),
        (true, &file("mlflow/20260101T000000Z-0123456789abcdef/run.json"), "`mlflow`", differs),
        (true, &link("result.json"), "`result.json`", differs),
        (true, &|out| chown(out.join("result.json"), Some(12345), None).unwrap(), "`result.json`", differs),
        (true, &|out| fs::remove_file(out.join(RECORD)).unwrap(), "`flashjob.log`", unknown),
        (true, &|out| fs::write(out.join(RECORD), "").unwrap(), "`flashjob.log`", unknown),
        (true, &file(RECORD), "`.flashjob-run.jsonl`", "which is damaged, or another program's"),
        (
            true,
            &|out| fs::write(out.join(RECORD), "{\"flashjob_run\":\"../../x\"}\n").unwrap(),
            RECORD,
            "which is damaged",
        ),
        (true, &link(RECORD), "`.flashjob-run.jsonl`", "which cannot be read"),
    ];
    for (number, (after_a_run, make, name, reason)) in cases.into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("out");
        if after_a_run {
            short_job(&folder).run().expect_code(4);
        }
        make(&out);
        let before = everything_in(folder.path());
        let refused = short_job(&folder).run().expect_code(2);
        assert_eq!(everything_in(folder.path()), before, "case {number}: {refused}");
        expect_said(&refused, &format!("results-dir={} holds ", out.display()));
        assert!(refused.stderr.contains(name) && refused.stderr.contains(reason), "case {number}: {refused}");
    }
}

#[test]
fn a_link_in_the_place_of_earlier_is_not_followed() {
    let cases: [(Made, &str); 3] = [
        (&|out| symlink("../elsewhere", out.join("earlier")).unwrap(), "is a link or a file"),
        (&|out| write(&out.join("earlier"), "theirs"), "is a link or a file"),
        (
            &|out| {
                let text = fs::read_to_string(out.join(RECORD)).unwrap();
                let run: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
                fs::create_dir(out.join("earlier")).unwrap();
                let link = out.join("earlier").join(run["flashjob_run"].as_str().unwrap());
                symlink("../../elsewhere", link).unwrap();
            },
            "is a link or a file",
        ),
    ];
    for (make, reason) in cases {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("out");
        fs::create_dir(folder.path().join("elsewhere")).unwrap();
        short_job(&folder).run().expect_code(4);
        make(&out);
        let before = everything_in(folder.path());
        let refused = short_job(&folder).run().expect_code(2);
        assert_eq!(everything_in(folder.path()), before, "{refused}");
        assert!(
            refused.stderr.contains("cannot be moved to `earlier/") && refused.stderr.contains(reason),
            "{refused}"
        );
    }
}

/// A record can claim what it likes: only files under the names of results move, those that are as it says.
#[test]
fn a_forged_record_moves_nothing_else() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    write(&folder.path().join("outside"), "theirs");
    let mut lines = "{\"flashjob_run\":\"20260101T000000Z-000\"}\n".to_owned();
    for name in [
        ".ssh",
        "id",
        "../outside",
        "earlier",
        "mlflow/../id",
        "mlflow/..",
        ".upload-.jsonl",
        ".upload-../id.jsonl",
        "",
    ] {
        for mark in ["\"name\"", "{\"begins\":\"theirs\"}", "{\"whole\":{\"size_bytes\":6,\"modified\":[0,0]}}"] {
            lines += &format!("{{\"name\":{name:?},\"mark\":{mark}}}\n");
        }
    }
    write(&out.join(".ssh/id"), "theirs");
    write(&out.join("id"), "theirs");
    write(&out.join(RECORD), &(lines + "{\"name\":\"torn"));
    let mut before = everything_in(folder.path());
    before.remove(&out.join(RECORD));
    short_job(&folder).run().expect_code(4);
    let after = everything_in(folder.path());
    for (path, was) in before {
        assert_eq!(after.get(&path), Some(&was), "{}", path.display());
    }
    assert!(!out.join("earlier").exists());
}

/// Nothing that was moved before is written over, whatever the record calls its run.
#[test]
fn what_was_moved_before_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    short_job(&folder).run().expect_code(4);
    short_job(&folder).run().expect_code(4);
    let moved = earlier(&out);
    let record = fs::read_to_string(out.join(RECORD)).unwrap();
    let (_, rest) = record.split_once('\n').unwrap();
    let run = moved.file_name().unwrap().to_str().unwrap();
    fs::write(out.join(RECORD), format!("{{\"flashjob_run\":\"{run}\"}}\n{rest}")).unwrap();
    let before = everything_in(&moved);
    let refused = short_job(&folder).run().expect_code(2);
    expect_said(&refused, "cannot be moved to `earlier/");
    assert_eq!(everything_in(&moved), before);
}

/// The record is there before the files: a process that is killed at any moment leaves none that the next one does not know.
#[test]
fn a_killed_run_is_known_by_its_record() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    let job = || {
        job_without_model(&folder)
            .args(["--model".into(), tiny_model()])
            .args(["--mlflow-uri=http://127.0.0.1:1"])
            .args(LONG)
    };
    for said in ["flashjob starts", "\"phase\":\"measure\""] {
        let mut running = job().start();
        running.wait_for_stderr(said);
        running.signal(libc::SIGKILL);
        running.wait();
        write(&out.join("notes"), "theirs");
    }
    let finished = short_job(&folder).run().expect_code(4);
    expect_said(&finished, "files of the run before this one were moved");
    let moved: Vec<PathBuf> = fs::read_dir(out.join("earlier")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(moved.len(), 2);
    assert!(moved.iter().all(|run| run.join("flashjob.log").is_file() && run.join(RECORD).is_file()), "{moved:?}");
    assert!(moved.iter().any(|run| run.join("mlflow").is_dir()), "{moved:?}");
    assert_eq!(names(&out), [RECORD, "earlier", "flashjob.log", "notes", "report.html", "result.json"]);
}

/// Half a file, of a process that was killed while it wrote, and one that was killed when it had made the record.
#[test]
fn what_a_killed_run_could_not_finish_is_no_obstacle() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    write(&out.join(RECORD), "");
    short_job(&folder).run().expect_code(4);
    let record = fs::read_to_string(out.join(RECORD)).unwrap();
    let run: serde_json::Value = serde_json::from_str(record.lines().next().unwrap()).unwrap();
    let half = format!(".outputs.jsonl.{}.partial", run["flashjob_run"].as_str().unwrap());
    write(&out.join(&half), "{\"ha");
    short_job(&folder).run().expect_code(4);
    assert!(!out.join(&half).exists() && earlier(&out).join(&half).is_file());
}

/// The directory itself may be reached by a link, and be the root of a file system.
#[test]
fn a_link_to_a_directory_is_a_directory() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(folder.path().join("disk")).unwrap();
    symlink("disk", &out).unwrap();
    for _ in 0..2 {
        short_job(&folder).run().expect_code(4);
    }
    assert_eq!(names(&earlier(&out)), LEFT);
}
