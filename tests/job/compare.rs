//! `flashjob compare` from outside: real runs, sweeps, MLflow, thresholds, and arguments that are none.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{job, result};
use crate::support::Flashjob as _;
use crate::support::mlflow_server;
use crate::support::process::{Finished, Process, free_port};
use crate::support::result_files::{finished, set, write};

fn compare<S: AsRef<std::ffi::OsStr>>(place: &Path, arguments: impl IntoIterator<Item = S>) -> Finished {
    Process::flashjob().directory(place).args(["compare"]).args(arguments).run()
}

/// A place with the runs `a` and `b`, of which the second has `changes`.
fn two(changes: &[(&[&str], Value)]) -> TempDir {
    let place = TempDir::new().unwrap();
    write(&place.path().join("a"), &finished());
    let mut other = finished();
    changes.iter().for_each(|(path, value)| set(&mut other, path, value.clone()));
    write(&place.path().join("b"), &other);
    place
}

const RATE: &[&str] = &["metrics", "output_tokens_per_second"];

#[test]
fn runs_of_this_binary_are_compared() {
    let arguments = ["--input-len=8", "--output-len=6", "--num-prompts=3", "--repeats=2"];
    let [one, other] = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    job(&one).args(arguments).run().expect_code(0);
    job(&other).args(arguments).args(["--max-num-seqs=2"]).run().expect_code(0);
    let runs = [one.path().join("out"), other.path().join("out/result.json")];
    let compared = compare(one.path(), runs.iter().map(|path| path.to_str().unwrap()).chain(["--format=json"]));
    let document: Value = serde_json::from_str(&compared.expect_code(0).stdout).unwrap();
    let regions: Vec<&Value> = document["runs"].as_array().unwrap().iter().map(|run| &run["regions"]).collect();
    assert_eq!(regions, [2, 2]);
    let differences: Vec<&str> =
        document["differences"].as_array().unwrap().iter().map(|found| found["key"].as_str().unwrap()).collect();
    assert!(differences.contains(&"max-num-seqs") && !differences.contains(&"results-dir"), "{differences:?}");
    let row = &document["figures"][0];
    let of_region = |result: &Value, place: usize| {
        result["repeats"]["regions"][place]["metrics"]["output_tokens_per_second"].as_f64().unwrap()
    };
    for (place, results) in [&one, &other].into_iter().enumerate() {
        let result = result(results);
        let mean = (of_region(&result, 0) + of_region(&result, 1)) / 2.0;
        let shown = row["runs"][place]["value"].as_f64().unwrap();
        assert!((shown / mean - 1.0).abs() < 1e-9, "{shown} is not {mean}");
        let interval = &result["repeats"]["summary"]["output_tokens_per_second"];
        let [low, expected] =
            [&row["runs"][place]["interval"]["low"], &interval["low"]].map(|low| low.as_f64().unwrap());
        assert!((low - expected).abs() < 1e-6 * mean, "{low} is not {expected}");
    }
    assert!(row["runs"][1]["p_value"].is_f64() && row["runs"][0]["p_value"].is_null(), "{row}");
}

#[test]
fn a_sweep_is_all_of_its_finished_combinations() {
    let place = TempDir::new().unwrap();
    let combination = |number: u64, status: &str| {
        json!({"number": number, "directory": format!("000{number}"), "settings": {"max-num-seqs": "1"}, "status": status,
            "exit_code": 0, "error": null, "output_tokens_per_second": 1.0})
    };
    let combinations = [combination(1, "finished"), combination(2, "refused"), combination(3, "finished")];
    let sweep = place.path().join("sweep");
    for number in [1, 3] {
        write(&sweep.join(format!("000{number}")), &finished());
    }
    fs::write(sweep.join("sweep.json"), json!({"schema_version": 1, "combinations": combinations}).to_string())
        .unwrap();
    let compared = compare(place.path(), ["sweep"]).expect_code(0);
    assert!(compared.stdout.contains("0001: sweep/0001 (1 region, the baseline)"), "{compared}");
    assert!(compared.stdout.contains("0003: sweep/0003 (1 region)"), "{compared}");

    let none = json!({"schema_version": 1, "combinations": [combination(2, "refused")]});
    fs::write(sweep.join("sweep.json"), none.to_string()).unwrap();
    let refused = compare(place.path(), ["sweep"]).expect_code(2);
    assert_eq!(
        refused.stderr,
        "flashjob: no combination of the sweep `sweep` has finished; wait for it, or see its log\n"
    );
}

#[test]
fn every_format_is_printed_to_standard_output_alone() {
    let place = two(&[(RATE, json!(610.496))]);
    for (format, part) in [
        ("table", "* 610.5  2.000×"),
        ("markdown", "| **610.5  2.000×** |"),
        ("csv", "figure,output_tokens_per_second,tokens/s,b,610.496,,,2,,,true"),
        ("json", "\"ratio\": 2.0"),
        ("html", "★ 610.5  2.000×"),
    ] {
        let compared = compare(place.path(), ["a", "b", "--format", format]).expect_code(0);
        assert!(compared.stdout.contains(part) && compared.stderr.is_empty(), "{compared}");
    }
}

#[test]
fn a_run_below_the_threshold_has_an_exit_code_of_its_own() {
    let place = two(&[(RATE, json!(290.0))]);
    let slower = compare(place.path(), ["a", "b", "--fail-below=0.96"]).expect_code(8);
    assert!(slower.stdout.contains("0.950×"), "{slower}");
    assert_eq!(
        slower.stderr,
        "flashjob: `b` has 0.9500 of the output tokens per second of `a`, below 0.96; significance is unknown, as it takes two \
         measured regions of both (repeats)\n"
    );
    assert_eq!(compare(place.path(), ["a", "b", "--fail-below=0.95"]).expect_code(0).stderr, "");
    assert_eq!(compare(place.path(), ["b", "a", "--fail-below", "1"]).expect_code(0).stderr, "");
}

#[test]
fn runs_that_measured_something_else_are_refused_or_marked() {
    let place = two(&[(&["settings", "seed", "value"], json!("7"))]);
    let refused = compare(place.path(), ["a", "b"]).expect_code(2);
    assert_eq!(
        refused.stderr,
        "flashjob: `b` cannot be compared with `a`: seed is `7` and not `0`; run both with the same prompts and counts, or pass \
         --allow-different to see it marked\n"
    );
    assert_eq!(refused.stdout, "");
    let marked = compare(place.path(), ["a", "b", "--allow-different"]).expect_code(0);
    assert!(marked.stdout.contains("b: b (1 region); NOT COMPARABLE: seed is `7` and not `0`"), "{marked}");
}

/// Each mistake with everything that is said of it.
#[test]
fn arguments_that_cannot_be_compared_are_explained() {
    let place = two(&[]);
    let at = |name: &str| place.path().join(name);
    let with = |name: &str, path: &[&str], value: Value| {
        let mut document = finished();
        set(&mut document, path, value);
        write(&at(name), &document);
    };
    fs::create_dir(at("empty")).unwrap();
    with("failed", &["status"], json!("failed"));
    with("failed", &["error"], json!("out of memory"));
    with("newer", &["schema_version"], json!(2));
    with("deep", &["backend", "engine"], (0..200).fold(json!(0), |inner, _| json!([inner])));
    with("text", &["metrics", "mfu"], json!("NaN"));
    fs::create_dir(at("words")).unwrap();
    fs::write(at("words/result.json"), "status: finished").unwrap();
    fs::create_dir(at("nan")).unwrap();
    fs::write(at("nan/result.json"), finished().to_string().replace("305.248", "NaN")).unwrap();
    fs::create_dir(at("keys")).unwrap();
    fs::write(at("keys/result.json"), "{\"schema_version\": 1}").unwrap();
    fs::create_dir(at("large")).unwrap();
    fs::File::create(at("large/result.json")).unwrap().set_len(100 << 20).unwrap();
    std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
    let mut failed = finished();
    set(&mut failed, &["status"], "failed");
    set(&mut failed, &["error"], "out of memory");
    write(&at("failed"), &failed);

    let damaged = "; it is damaged, or no result of flashjob";
    let changed = "; it is damaged, or another program has changed it";
    let advice = "; run both with the same prompts and counts, or pass --allow-different to see it marked";
    let threshold = |text: &str| {
        format!("--fail-below is `{text}`, but it must be a number above 0 and at most 1000, such as 0.95")
    };
    let unreachable = free_port();
    let uri = format!("--mlflow-uri=http://127.0.0.1:{unreachable}");
    for (arguments, sentence) in [
        (&["a"][..], "a comparison needs two runs, and there is one, `a`; name a second results directory".to_owned()),
        (&["a", "nowhere"], "`nowhere` cannot be read: No such file or directory (os error 2); name the results-dir of a job that has ended, or its result.json".to_owned()),
        (&["a", "empty"], "`empty` holds neither a result.json nor a sweep.json; name the results-dir of a job that has ended, or wait for its end".to_owned()),
        (&["a", "failed"], format!("`failed` cannot be compared with `a`: it failed (out of memory){advice}")),
        (&["failed", "a"], "`failed` cannot be compared: it failed (out of memory); name a run that has finished, or pass --allow-different to see it marked".to_owned()),
        (&["a", "newer"], "`newer/result.json` has schema_version 2, and flashjob 0.1.0 reads 1; use the version of flashjob that wrote it, or run the job again".to_owned()),
        (&["a", "large"], "`large/result.json` has more than 16777216 bytes, the limit for such a file; another program has written it, or it is damaged".to_owned()),
        (&["a", "words"], format!("`words/result.json` cannot be parsed as JSON: expected value at line 1 column 1{damaged}")),
        (&["a", "deep"], format!("`deep/result.json` cannot be parsed as JSON: recursion limit exceeded at line 1 column {{}}{damaged}")),
        (&["a", "nan"], format!("`nan/result.json` cannot be parsed as JSON: expected value at line 1 column {{}}{damaged}")),
        (&["a", "text"], format!("`text/result.json` cannot be read as a result of flashjob: invalid type: string \"NaN\", expected f64 at line 1 column {{}}{changed}")),
        (&["a", "keys"], format!("`keys/result.json` cannot be read as a result of flashjob: missing field `flashjob_version` at line 1 column 21{changed}")),
        (&["a", "a"], "`a` is the same run as `a`; name each run once".to_owned()),
        (&["a", "link/result.json"], "`link/result.json` is the same run as `a`; name each run once".to_owned()),
        (&["a", "mlflow:nightly"], "mlflow:nightly is in MLflow, and mlflow-uri is not set; give its address as --mlflow-uri".to_owned()),
        (&["a", "b", "--fail-below=abc"], threshold("abc")),
        (&["a", "b", "--fail-below", "-1"], threshold("-1")),
        (&["a", "b", "--fail-below=NaN"], threshold("NaN")),
        (&["a", "b", "--fail-below=0"], threshold("0")),
        (&["a", "b", "--format=pdf"], "`pdf` is not one of table, markdown, csv, json, html".to_owned()),
        (&["a", "b", "--fail-bellow=1"], "--fail-bellow is not a flag of flashjob; did you mean --fail-below?".to_owned()),
    ] {
        let refused = compare(place.path(), arguments).expect_code(2);
        let (start, end) = sentence.split_once("{}").unwrap_or((&sentence, ""));
        let said = refused.stderr.strip_prefix("flashjob: ").and_then(|said| said.strip_suffix('\n')).unwrap();
        assert!(said.starts_with(start) && said.ends_with(end), "{arguments:?}:\n{said}\n{sentence}");
        assert!(!sentence.is_empty() && (sentence.contains("{}") || said == sentence), "{arguments:?}:\n{said}\n{sentence}");
        assert_eq!(refused.stdout, "", "{arguments:?}");
    }
    let none = compare(place.path(), ["--format=csv"]).expect_code(2);
    assert!(none.stderr.contains("RUNS") && none.stderr.contains("is missing; see --help"), "{none}");
    // It is tried again for a while, as a server that starts is.
    let away = Process::flashjob().directory(place.path()).args(["compare", "a", "mlflow:nightly", &uri]);
    let away = away.timeout(std::time::Duration::from_secs(200)).run().expect_code(2);
    let start = format!(
        "flashjob: cannot look up the experiment `nightly` at MLflow http://127.0.0.1:{unreachable}: it cannot be reached ("
    );
    assert!(away.stderr.starts_with(&start), "{away}");
}

#[test]
fn runs_in_mlflow_are_compared_with_those_on_disk() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = format!("compared/{:08x}", rand::random::<u32>());
    let arguments = ["--input-len=8", "--output-len=4", "--num-prompts=2"];
    let results = TempDir::new().unwrap();
    let tracking = ["--mlflow-uri", server.uri(), "--experiment-name", &experiment, "--run-name", "tracked"];
    job(&results).args(arguments).args(tracking).run().expect_code(0);
    let here = TempDir::new().unwrap();
    job(&here).args(arguments).run().expect_code(0);
    let out = here.path().join("out").display().to_string();
    let uri = format!("--mlflow-uri={}", server.uri());
    for of_mlflow in [format!("mlflow:{experiment}/tracked"), format!("mlflow:{experiment}")] {
        let compared = compare(here.path(), [out.as_str(), &of_mlflow, &uri, "--format=json"]).expect_code(0);
        let document: Value = serde_json::from_str(&compared.stdout).unwrap();
        assert_eq!(document["runs"][1]["name"], format!("mlflow:{experiment}/tracked"));
        let shown = &document["figures"][0]["runs"][1]["value"];
        assert_eq!(shown, &result(&results)["metrics"]["output_tokens_per_second"]);
    }
    let twice = [format!("mlflow:{experiment}/tracked"), format!("mlflow:{experiment}"), uri.clone()];
    let refused = compare(here.path(), &twice).expect_code(2);
    assert_eq!(
        refused.stderr,
        format!(
            "flashjob: `mlflow:{experiment}/tracked` is the same run as `mlflow:{experiment}/tracked`; name each run once\n"
        )
    );
    let unknown = compare(here.path(), [out.as_str(), "mlflow:nobody/nothing", &uri]).expect_code(2);
    assert_eq!(
        unknown.stderr,
        format!(
            "flashjob: MLflow {} has no experiment `nobody/nothing`; name one that it has, or EXPERIMENT/RUN\n",
            server.uri()
        )
    );
}
