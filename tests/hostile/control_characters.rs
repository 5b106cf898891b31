//! Control characters in what is shown: no line of others, no orders to a terminal.

use tempfile::TempDir;

use crate::job::job_without_model;
use crate::support::Flashjob as _;
use crate::support::process::Process;

#[test]
fn neither_summary_nor_log_obeys_what_it_shows() {
    for (hostile, shown) in [
        ("x\nstatus                     finished", "x\\nstatus"),
        ("x\x1b[2J\x1b]0;title\x07", "x\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
        ("x\rdone", "x\\rdone"),
        ("x\u{9b}31m", "x\\u{9b}31m"),
    ] {
        let folder = TempDir::new().unwrap();
        let finished = job_without_model(&folder)
            .args([format!("--model=/nonexistent/{hostile}")])
            .args(["--results-dir".into(), folder.path().join(format!("out {hostile}"))])
            .args(["--log-format=text"])
            .run()
            .expect_code(2);
        // The first directory stands; of two different ones the job knows no better.
        assert!(!finished.stderr.contains(['\x1b', '\r', '\u{9b}']), "{finished}");

        let out = folder.path().join(format!("other {hostile}"));
        let finished = Process::flashjob()
            .args(["--metrics-port=0", "--metrics-linger-seconds=0", "--device=cpu", "--log-format=text"])
            .args([format!("--model=/nonexistent/{hostile}")])
            .args(["--results-dir".into(), out])
            .run()
            .expect_code(4);
        for (name, text) in [("standard output", &finished.stdout), ("standard error", &finished.stderr)] {
            assert!(!text.contains(['\x1b', '\r', '\x07', '\u{9b}']), "{name} of {hostile:?}: {finished}");
            assert!(text.contains(shown), "no {shown} in {name}: {finished}");
        }
        let says_status = finished.stdout.lines().filter(|line| line.starts_with("status")).count();
        assert_eq!(says_status, 1, "{finished}");
    }
}

#[test]
fn commands_escape_what_they_repeat() {
    let hostile = "/nonexistent/x\x1b[2J\nstatus";
    let commands: [&[&str]; 4] = [
        &["publish", hostile],
        &["validate", "--blueprint", hostile],
        &["render", "--blueprint", hostile],
        &["check", "--metrics-port=0", "--model", hostile],
    ];
    for words in commands {
        let finished = Process::flashjob().args(words).run();
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(
            !said.contains('\x1b') && !said.lines().any(|line| line.starts_with("status")),
            "{words:?}: {finished}"
        );
    }
}
