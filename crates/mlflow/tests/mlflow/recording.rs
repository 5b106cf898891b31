//! A run that is recorded while it happens, read back through the server's own API.

use std::time::Duration;

use flashjob_mlflow::{RunStatus, Tracker};

use super::{LONG, delivered, end, pairs, spec, tracking, unique};
use crate::support::mlflow_server;

#[tokio::test]
async fn a_run_arrives_whole() {
    let Some(server) = mlflow_server::shared() else { return };
    let results = tempfile::tempdir().unwrap();
    let experiment = unique("größe/実験 😀");
    let mut spec = spec("läuft & läuft 😀");
    spec.params = pairs(&[("model", "tiny"), ("empty", ""), ("text", "a \"b\"\n\tc 😀"), ("bad key %", "x")]);
    spec.tags = pairs(&[("host", "here"), ("mlflow.user", "someone"), ("/slashes//", "kept")]);
    let mut tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec, results.path()).unwrap();
    for step in 0..20 {
        tracker.metric("output_token_throughput", 100.5 + step as f64, step);
        tracker.metric("system/cpu_utilization_percentage", 12.5, step);
    }
    tracker.metric("output_token_throughput", f64::NAN, 20);
    tracker.metric("output_token_throughput", f64::INFINITY, 20);
    tracker.tag("device", "cpu");
    tracker.params(&pairs(&[("late", "param")]));

    // It is there while the run goes on.
    let run = loop {
        if let Some(run) = server.runs(&experiment).pop()
            && run.metric("output_token_throughput").is_some()
        {
            break run;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((run.status(), run.end_time()), ("RUNNING", None));
    let link = tracker.link().unwrap();
    assert_eq!(link.run_id, run.id());

    let report = results.path().join("result.json");
    std::fs::write(&report, "{\"ü\": 1}").unwrap();
    let nested = results.path().join("pages/a b ü%20.html");
    std::fs::create_dir(nested.parent().unwrap()).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&nested, &large).unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let missing = results.path().join("missing.log");
    let mut end = end(
        RunStatus::Finished,
        &[("output_token_throughput", 0.1 + 0.2), ("requests", 64.0), ("itl p99", f64::NAN), ("größte", -1e300)],
    );
    end.tags = pairs(&[("outcome", "ok")]);
    end.artifacts = vec![report, nested, elsewhere.path().to_owned(), missing.clone()];
    let (delivered, notes) = delivered(tracker.finish(end.clone(), LONG).await);
    assert_eq!(delivered, link);

    let mut runs = server.runs(&experiment);
    assert_eq!(runs.len(), 1);
    let run = runs.remove(0);
    let experiment_id = server.experiment_id(&experiment).unwrap();
    assert_eq!(
        link.run_url,
        format!("{}/#/experiments/{experiment_id}/runs/{}?workflowType=machine_learning", server.uri(), run.id())
    );
    assert_eq!((run.status(), run.name()), ("FINISHED", "läuft & läuft 😀"));
    let milliseconds = |at: std::time::SystemTime| at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    assert_eq!(run.start_time(), Some(milliseconds(spec.start)));
    assert_eq!(run.end_time(), Some(milliseconds(end.at)));
    for (key, value) in
        [("model", "tiny"), ("empty", ""), ("text", "a \"b\"\n\tc 😀"), ("bad key _", "x"), ("late", "param")]
    {
        assert_eq!(run.param(key), Some(value), "{key}");
    }
    for (key, value) in [
        ("host", "here"),
        ("mlflow.user", "someone"),
        ("mlflow.runName", "läuft & läuft 😀"),
        ("mlflow.source.type", "JOB"),
        ("_/slashes/_/_", "kept"),
        ("device", "cpu"),
        ("outcome", "ok"),
        ("flashjob.run_key", spec.key.as_str()),
        ("flashjob.not_finite", "itl p99=NaN"),
        ("flashjob.not_finite_live_values", "2"),
    ] {
        assert_eq!(run.tag(key), Some(value), "{key}");
    }
    let live = server.history(&run, "output_token_throughput");
    let steps: Vec<(i64, f64)> = live.iter().map(|(step, _, value)| (*step, *value)).collect();
    let expected = (0..20).map(|step| (step, 100.5 + step as f64)).chain([(19, 0.1 + 0.2)]);
    assert_eq!(steps, expected.collect::<Vec<_>>());
    assert!(live.iter().all(|(_, at, _)| (milliseconds(spec.start)..=milliseconds(end.at)).contains(at)), "{live:?}");
    assert_eq!(run.metric("output_token_throughput"), Some(0.1 + 0.2), "the final value is the newest");
    assert_eq!(run.metric("requests"), Some(64.0));
    assert_eq!(run.metric("gr__te"), Some(-1e300));
    assert_eq!(run.metric("itl p99"), None);
    assert_eq!(server.history(&run, "system/cpu_utilization_percentage").len(), 20);
    assert_eq!(server.artifact(&run, "result.json").unwrap(), "{\"ü\": 1}".as_bytes());
    assert_eq!(server.artifact(&run, "pages/a b ü%20.html").unwrap(), large);
    let name = elsewhere.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(server.artifact(&run, name).unwrap(), b"");
    let notes = notes.join("\n");
    assert!(notes.contains("missing.log is not attached: No such file") && notes.contains("2 live values"), "{notes}");
}

#[tokio::test]
async fn each_way_to_end_has_its_status() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("statuses");
    for (status, name) in
        [(RunStatus::Finished, "FINISHED"), (RunStatus::Failed, "FAILED"), (RunStatus::Killed, "KILLED")]
    {
        let results = tempfile::tempdir().unwrap();
        let mut tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec(name), results.path()).unwrap();
        let (link, _) = delivered(tracker.finish(end(status, &[("m", 1.0)]), LONG).await);
        let runs = server.runs(&experiment);
        let run = runs.iter().find(|run| run.id() == link.run_id).unwrap();
        assert_eq!((run.status(), run.name(), run.metric("m")), (name, name, Some(1.0)));
        assert!(run.end_time() >= run.start_time());
    }
}

#[tokio::test]
async fn much_and_long_content_is_split_and_cut_visibly() {
    let Some(server) = mlflow_server::shared() else { return };
    let results = tempfile::tempdir().unwrap();
    let experiment = unique("much");
    let long = "ü".repeat(9000);
    let mut spec = spec(&"n".repeat(400));
    spec.params = (0..250).map(|number| (format!("param {number}"), "v".repeat(5000))).collect();
    spec.params.push(("long".to_owned(), long.clone()));
    spec.tags = (0..150).map(|number| (format!("tag {number}"), number.to_string())).collect();
    let mut tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec, results.path()).unwrap();
    for step in 0..2500 {
        tracker.metric("live", step as f64, step);
    }
    // Set again, to the same and to another value.
    tracker.params(&pairs(&[("param 0", &"v".repeat(5000)), ("param 1", "changed")]));
    let finals: Vec<(String, f64)> = (0..1200).map(|number| (format!("final {number}"), number as f64)).collect();
    let finals: Vec<(&str, f64)> = finals.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let (_, notes) = delivered(tracker.finish(end(RunStatus::Finished, &finals), LONG).await);

    let run = server.runs(&experiment).remove(0);
    assert_eq!(run.name(), format!("{}…", "n".repeat(249)));
    assert_eq!(run.keys("params").len(), 251);
    assert_eq!(run.keys("tags").iter().filter(|key| key.starts_with("tag ")).count(), 150);
    assert_eq!(run.param("param 1"), Some(&*"v".repeat(5000)));
    assert_eq!(server.history(&run, "live").len(), 2500);
    assert_eq!(run.metric("final 1199"), Some(1199.0));
    assert_eq!(run.keys("metrics").iter().filter(|key| key.starts_with("final ")).count(), 1200);
    let shown = run.param("long").unwrap();
    assert!(shown.ends_with("… [9000 characters, whole in the artifact long_values.json]"), "{shown}");
    let whole: serde_json::Value = serde_json::from_slice(&server.artifact(&run, "long_values.json").unwrap()).unwrap();
    assert_eq!(whole["param long"], long);
    assert_eq!(notes, ["param param 1 was set twice and keeps its first value, not `changed`"]);
}

#[tokio::test]
async fn names_that_the_server_would_refuse_are_changed_until_it_takes_them() {
    let Some(server) = mlflow_server::shared() else { return };
    let results = tempfile::tempdir().unwrap();
    let experiment = unique("names");
    let names = [
        "",
        ".",
        "..",
        "...",
        "/",
        "//",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        "./a",
        "..a",
        "a/..",
        "a/.",
        " ",
        "\n",
        "a\tb",
        "a%",
        "a$",
        "日本",
        "tokens/s [p99] {x=\"y\"}",
        "😀",
        "a\u{0}b",
    ];
    let long = "k".repeat(300);
    let names: Vec<&str> = names.into_iter().chain([long.as_str()]).collect();
    let mut spec = spec("names");
    spec.params = names.iter().map(|name| (name.to_string(), format!("of {name:?}"))).collect();
    spec.tags = spec.params.clone();
    let mut tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec, results.path()).unwrap();
    let finals: Vec<(&str, f64)> = names.iter().zip(0..).map(|(name, number)| (*name, f64::from(number))).collect();
    delivered(tracker.finish(end(RunStatus::Finished, &finals), LONG).await);
    let run = server.runs(&experiment).remove(0);
    let stored = |kind: &str, key: &str| run.keys(kind).contains(&key);
    assert_eq!(run.keys("params").len(), names.len());
    assert_eq!(run.keys("metrics").len(), names.len());
    for key in ["a/_/b", "_/a", "tokens/s _p99_ _x=_y__"] {
        let key = key.replace('=', "_");
        assert!(
            stored("params", &key) && stored("metrics", &key) && stored("tags", &key),
            "{key}: {:?}",
            run.keys("params")
        );
    }
}
