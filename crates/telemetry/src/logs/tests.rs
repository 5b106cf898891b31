//! Form of log lines, and content that they must not hold.

use std::io::Write;
use std::sync::Arc;

use indicatif::{InMemoryTerm, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use parking_lot::Mutex;
use serde_json::Value;
use tracing::{debug, info, warn};

use super::*;

pub(crate) const OPTIONS: Options = Options { format: LogFormat::Json, filter: None, copy: None, secrets: &[] };

/// Runs `act` with logging as `options` say, and returns what was shown.
pub(crate) fn shown(options: &Options, act: impl FnOnce()) -> String {
    let stream = Arc::new(Mutex::new(Vec::new()));
    let writer: Arc<Mutex<dyn Write + Send>> = stream.clone();
    let dispatch = dispatch(options, false, Screen::stream(writer), LogTail::default()).unwrap();
    tracing::dispatcher::with_default(&dispatch, act);
    String::from_utf8(stream.lock().clone()).unwrap()
}

fn text(filter: Option<&'static str>) -> Options<'static> {
    Options { format: LogFormat::Text, filter, ..OPTIONS }
}

#[test]
fn json_lines_hold_typed_fields() {
    let lines = shown(&OPTIONS, || {
        info!(target: "flashjob::mount", files = 12, share = 0.5, ok = true, nan = f64::NAN, location = "/models", "ready");
    });
    let line: Value = serde_json::from_str(&lines).unwrap();
    for (key, value) in [
        ("level", Value::from("info")),
        ("target", "flashjob::mount".into()),
        ("message", "ready".into()),
        ("files", 12.into()),
        ("share", 0.5.into()),
        ("ok", true.into()),
        ("nan", "NaN".into()),
        ("location", "/models".into()),
    ] {
        assert_eq!(line[key], value, "{key} in {lines}");
    }
    let timestamp = line["timestamp"].as_str().unwrap();
    time::OffsetDateTime::parse(timestamp, &time::format_description::well_known::Rfc3339).unwrap();
    assert_eq!(timestamp.len(), "2026-01-31T12:00:00.000Z".len());
}

#[test]
fn text_lines_are_for_people() {
    let lines = shown(&text(None), || {
        warn!(target: "flashjob::bucket", reason = "throttled", note = "two words", tries = 3, "tried again");
    });
    let (timestamp, rest) = lines.split_once(' ').unwrap();
    assert!(timestamp.ends_with('Z'), "{lines}");
    assert_eq!(rest, " WARN bucket: tried again reason=throttled note=\"two words\" tries=3\n");
}

#[test]
fn a_fact_is_one_line_whatever_it_holds() {
    let hostile = "one\ntwo\r\u{1b}[31mred\u{0}";
    for options in [OPTIONS, text(None)] {
        let lines = shown(&options, || info!(target: "flashjob", value = hostile, spaced = "a\nb c", "{hostile}"));
        assert_eq!(lines.matches('\n').count(), 1, "{lines:?}");
        assert!(lines.ends_with('\n') && !lines.contains(['\r', '\u{1b}', '\u{0}']), "{lines:?}");
    }
}

#[test]
fn a_field_cannot_take_the_place_of_a_line_s_own() {
    let lines = shown(&OPTIONS, || info!(target: "flashjob", level = "high", timestamp = 1, "message"));
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((&line["level"], &line["level_"]), (&"info".into(), &"high".into()));
    assert_eq!(line["timestamp_"], 1);
}

#[test]
fn other_crates_are_heard_when_they_warn() {
    let say = || {
        info!(target: "hyper", "chatter");
        warn!(target: "hyper", "trouble");
        debug!(target: "flashjob::mount", "detail");
        info!(target: "flashjob::mount", "fact");
    };
    let messages = |filter| {
        let lines = shown(&Options { filter, ..OPTIONS }, say);
        lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(messages(None), ["trouble", "fact"]);
    assert_eq!(messages(Some(" ")), ["trouble", "fact"]);
    assert_eq!(messages(Some("error,flashjob::mount=debug")), ["detail", "fact"]);
}

#[test]
fn packages_are_modules_of_one_program() {
    let say = || {
        debug!(target: "flashjob_mount::fuse", "detail");
        info!(target: "flashjob_mlflow::sender", "fact");
    };
    let json = |filter| {
        let lines = shown(&Options { filter, ..OPTIONS }, say);
        let targets = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["target"].clone());
        targets.collect::<Vec<_>>()
    };
    assert_eq!(json(None), ["flashjob::mlflow::sender"]);
    assert_eq!(json(Some("error,flashjob::mount=debug")), ["flashjob::mount::fuse"]);
    assert_eq!(json(Some("debug,flashjob::mount::fuse=off")), ["flashjob::mlflow::sender"]);
    let lines = shown(&text(None), say);
    assert!(lines.ends_with(" INFO mlflow::sender: fact\n"), "{lines}");
}

#[test]
fn records_of_the_log_crate_say_where_they_come_from() {
    // The shape in which `tracing-log` hands them over.
    let lines = shown(&Options { filter: Some("info"), ..OPTIONS }, || {
        info!(target: "log", { log.target = "fuser::session", log.file = "session.rs", log.line = 3 }, "mounting");
    });
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((&line["target"], &line["message"]), (&"fuser::session".into(), &"mounting".into()));
    assert_eq!(line.as_object().unwrap().len(), 4, "{lines}");
}

#[test]
fn a_bad_filter_is_named() {
    for filter in ["flashjob=loud", "a=b=c", "[unclosed"] {
        let error =
            dispatch(&text(Some(filter)), false, Screen::stream(Arc::new(Mutex::new(Vec::new()))), LogTail::default())
                .unwrap_err();
        assert!(error.to_string().contains(&format!("`{filter}` is not valid")), "{error}");
    }
}

#[test]
fn no_line_holds_a_secret() {
    let secrets = ["t0k\"en/+", "12345", "info"].map(Secret::new);
    #[derive(Debug)]
    struct Holder {
        #[expect(dead_code, reason = "seen through Debug")]
        token: &'static str,
    }
    for format in [LogFormat::Json, LogFormat::Text] {
        let lines = shown(&Options { format, secrets: &secrets, ..OPTIONS }, || {
            info!(target: "flashjob", "GET https://host/p/t0k\"en/+/n/ns");
            info!(target: "flashjob", url = "https://host/p/t0k%22en%2F%2B/n", "percent-encoded");
            info!(target: "flashjob", holder = ?Holder { token: "t0k\"en/+" }, "debug");
            info!(target: "flashjob", error = %std::io::Error::other("t0k\"en/+ refused"), "display");
            info!(target: "flashjob", error = &std::io::Error::other("t0k\"en/+") as &dyn std::error::Error, "error");
            info!(target: "flashjob", pin = 12345, signed = -12345, part = 0.12345, word = "info", "numbers");
        });
        for hidden in ["t0k", "12345", "word=info", "\"word\":\"info\""] {
            assert!(!lines.contains(hidden), "{hidden} in {lines}");
        }
        assert_eq!(lines.lines().count(), 6);
        if format == LogFormat::Json {
            lines.lines().for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
        }
    }
}

#[test]
fn the_copy_is_json_whatever_the_screen_shows() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flashjob.log");
    let file = File::options().append(true).create(true).open(&path).unwrap();
    let secrets = [Secret::new("hunter2")];
    let options = Options { copy: Some(&file), secrets: &secrets, ..text(None) };
    for _ in 0..2 {
        shown(&options, || info!(target: "flashjob", password = "hunter2", "said"));
    }
    let copy = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = copy.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "a second run in the same place adds to the log");
    assert_eq!((&lines[1]["message"], &lines[1]["password"]), (&"said".into(), &"<redacted>".into()));
}

#[test]
fn a_full_disk_does_not_stop_the_job() {
    let full = File::options().append(true).open("/dev/full").unwrap();
    let options = Options { copy: Some(&full), ..OPTIONS };
    let lines = shown(&options, || (0..3).for_each(|number| info!(target: "flashjob", number, "goes on")));
    assert_eq!(lines.lines().count(), 3);
}

#[test]
fn a_progress_bar_and_lines_do_not_tear_each_other() {
    struct Terminal(InMemoryTerm);
    impl Write for Terminal {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            // What a terminal's driver does with a line feed.
            self.0.write_str(&String::from_utf8_lossy(text).replace('\n', "\r\n"))?;
            Ok(text.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let terminal = InMemoryTerm::new(20, 120);
    let bars = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
    let bar = bars.add(ProgressBar::new(10).with_style(ProgressStyle::with_template("{bar:10} {pos}/{len}").unwrap()));
    let screen = Screen::shared(bars, Arc::new(Mutex::new(Terminal(terminal.clone()))));
    let dispatch = dispatch(&text(None), true, screen, LogTail::default()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        for number in 0..5 {
            bar.inc(1);
            bar.tick();
            info!(target: "flashjob", number, "said");
        }
    });
    bar.tick();
    let contents = terminal.contents();
    let lines: Vec<&str> = contents.lines().collect();
    assert_eq!(lines.len(), 6, "{contents}");
    for (number, line) in lines[..5].iter().enumerate() {
        assert!(line.ends_with(&format!("INFO flashjob: said number={number}")), "{contents}");
    }
    assert!(lines[5].ends_with("5/10"), "{contents}");
}

#[test]
fn the_tail_is_short_redacted_and_quotes_no_dataset() {
    let (tail, secret) = (LogTail::default(), [Secret::new("very-secret-token".to_owned())]);
    let options = Options { filter: Some("trace"), secrets: &secret, ..OPTIONS };
    let screen = Screen::stream(Arc::new(Mutex::new(Vec::new())));
    let dispatch = dispatch(&options, false, screen, tail.clone()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        info!(target: "flashjob::mount", token = "very-secret-token", "ready");
        debug!(target: "flashjob::mount", "details");
        info!(target: "hyper", "of another crate");
        warn!(target: DATASET, "line 3 is skipped: `a prompt`");
        warn!(target: "flashjob_bucket", "{}", "x".repeat(10_000));
    });
    let lines = tail.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("mount: ready token=") && !lines[0].contains("very-secret-token"), "{lines:?}");
    assert!(lines[1].len() < 600 && lines[1].ends_with("…\n"), "{lines:?}");
    tracing::dispatcher::with_default(&dispatch, || {
        (0..100).for_each(|number| info!(target: "flashjob", number, "line"))
    });
    let lines = tail.lines();
    assert!(lines.len() == 40 && lines[39].contains("number=99"), "{lines:?}");
}
