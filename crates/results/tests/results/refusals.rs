//! Files and directories that are no results, each with its sentence.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use flashjob_results::{LARGEST_RESULT_BYTES, open};
use serde_json::{Value, json};

use crate::result_files::{finished, set, write};

/// The sentence on `path`, which is shown as `PLACE` followed by its path in `directory`.
fn refusal(directory: &Path, path: &Path) -> String {
    open(path).unwrap_err().to_string().replace(&directory.display().to_string(), "PLACE")
}

#[test]
fn paths_without_a_result_are_refused_in_words() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::create_dir_all(at("folder/result.json")).unwrap();
    for (name, sentence) in [
        (
            "nowhere",
            "`PLACE/nowhere` cannot be read: No such file or directory (os error 2); name the results-dir of a job that has \
             ended, or its result.json",
        ),
        (
            "empty",
            "`PLACE/empty` holds neither a result.json nor a sweep.json; name the results-dir of a job that has ended, or wait \
             for its end",
        ),
        ("socket", "`PLACE/socket` is not a file; name the results-dir of a job that has ended, or its result.json"),
        (
            "folder",
            "`PLACE/folder/result.json` is not a file; name the results-dir of a job that has ended, or its result.json",
        ),
    ] {
        assert_eq!(refusal(place.path(), &at(name)), sentence);
    }
}

#[test]
fn files_that_are_no_results_are_refused_in_words() {
    let damaged = "; it is damaged, or no result of flashjob";
    let changed = "; it is damaged, or another program has changed it";
    let with = |path: &[&str], value: Value| {
        let mut document = finished();
        set(&mut document, path, value);
        document.to_string()
    };
    let without = |key: &str| {
        let mut document = finished();
        document.as_object_mut().unwrap().remove(key);
        document.to_string()
    };
    let many: Value = (0..2001).map(|number| json!(number)).collect();
    let settings: serde_json::Map<String, Value> =
        (0..1001).map(|number| (format!("key-{number}"), json!({"value": "", "origin": "flag"}))).collect();
    let not_a_number = with(&["metrics", "mfu"], json!("MARK")).replace("\"MARK\"", "NaN");
    for (text, start, end) in [
        (String::new(), "cannot be parsed as JSON: EOF while parsing a value", damaged),
        ("status: finished".to_owned(), "cannot be parsed as JSON: expected value", damaged),
        ("{\"schema_version\": 1".to_owned(), "cannot be parsed as JSON: EOF while parsing an object", damaged),
        (not_a_number, "cannot be parsed as JSON: expected value", damaged),
        (with(&["backend", "engine"], deep()), "cannot be parsed as JSON: recursion limit exceeded", damaged),
        (
            "{}".to_owned(),
            "is JSON, but no result of flashjob: it has no `schema_version`",
            "name the result.json of a job",
        ),
        (without("schema_version"), "is JSON, but no result of flashjob", "name the result.json of a job"),
        (
            with(&["schema_version"], json!(2)),
            "has schema_version 2, and flashjob 0.1.0 reads 1",
            "use the version of flashjob that wrote it, or run the job again",
        ),
        (
            with(&["schema_version"], json!("1")),
            "cannot be read as a result of flashjob: invalid type: string",
            changed,
        ),
        (without("metrics"), "cannot be read as a result of flashjob: missing field `metrics`", changed),
        (without("settings"), "cannot be read as a result of flashjob: missing field `settings`", changed),
        (with(&["status"], json!("good")), "cannot be read as a result of flashjob: unknown variant `good`", changed),
        (
            with(&["exit_code"], json!(256)),
            "cannot be read as a result of flashjob: invalid value: integer `256`",
            changed,
        ),
        (
            with(&["metrics", "mfu"], json!("fast")),
            "cannot be read as a result of flashjob: invalid type: string \"fast\"",
            changed,
        ),
        (
            with(&["disturbances"], many.clone()),
            "cannot be read as a result of flashjob: invalid type: integer",
            changed,
        ),
        (
            with(&["backend", "engine", "all"], many),
            "cannot be read as a result of flashjob: an object holds more than 2000 values",
            changed,
        ),
        (
            with(&["settings"], settings.into()),
            "cannot be read as a result of flashjob: an object has more than 1000 keys",
            changed,
        ),
    ] {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("result.json"), &text).unwrap();
        let sentence = refusal(place.path(), place.path());
        let expected = format!("`PLACE/result.json` {start}");
        assert!(sentence.starts_with(&expected) && sentence.ends_with(end), "{sentence}");
    }
}

/// Arrays in arrays, deeper than any stack should go.
fn deep() -> Value {
    (0..200).fold(json!(0), |inner, _| json!([inner]))
}

#[test]
fn a_file_of_any_size_is_read_up_to_the_limit_only() {
    let place = tempfile::tempdir().unwrap();
    write(place.path(), &finished());
    let file = fs::File::options().write(true).open(place.path().join("result.json")).unwrap();
    // Sparse: a terabyte would not fit on the disk nor into memory.
    file.set_len(1 << 40).unwrap();
    let sentence = refusal(place.path(), place.path());
    assert_eq!(
        sentence,
        format!(
            "`PLACE/result.json` has more than {LARGEST_RESULT_BYTES} bytes, the limit for such a file; another program has \
             written it, or it is damaged"
        )
    );
}
