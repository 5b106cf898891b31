//! The same from outside: the built program, its real words and variables, its exit code.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::support::Flashjob as _;
use crate::support::process::Process;

#[test]
fn mistakes_are_sentences_on_stderr_and_exit_code_2() {
    let not_utf8 = || OsString::from_vec(b"x\xff".to_vec());
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let table: [(Vec<OsString>, &str, OsString, &str); 7] = [
        (
            words(&["--model=m"]),
            "FLASHJOB_ISA",
            "avx".into(),
            "FLASHJOB_ISA is `avx` (variable FLASHJOB_ISA), but it must be one of avx512, avx2, portable",
        ),
        (words(&["--modle", "m"]), "UNRELATED", "x".into(), "--modle is not a flag of flashjob; did you mean --model?"),
        (
            words(&["--model=m"]),
            "input-len",
            "0".into(),
            "input-len is `0` (variable input-len), but it must be a whole number from 1 to 2147483647",
        ),
        (
            words(&["--model", "$(model)"]),
            "UNRELATED",
            "x".into(),
            "model is the unresolved reference `$(model)` (flag --model): there is no environment variable `model`; set \
             it, or write the value itself",
        ),
        (
            words(&["--model=m"]),
            "mlflow_uri",
            "https://host/p/s3cr3t/n/ns/b/x/o/".into(),
            "mlflow-uri is `https://host/p/<redacted>/n/ns/b/x/o/` (variable mlflow_uri), but it is a Pre-Authenticated \
             Request; that belongs into par, and here the MLflow server",
        ),
        (
            words(&["--model=m"]),
            "RUN_NAME",
            not_utf8(),
            "variable RUN_NAME is not UTF-8 text (`x\u{fffd}`); write it in UTF-8",
        ),
        (
            vec!["--run-name".into(), not_utf8(), "--model=m".into()],
            "UNRELATED",
            not_utf8(),
            "flag --run-name is not UTF-8 text (`x\u{fffd}`); write it in UTF-8",
        ),
    ];
    for (words, name, value, sentence) in table {
        let directory = tempfile::tempdir().unwrap();
        let ended = Process::flashjob().args(words).env(name, value).directory(directory.path()).run().expect_code(2);
        assert!(ended.stderr.contains(sentence), "{sentence}\n{}", ended.stderr);
        assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("s3cr3t"), "{}", ended.stderr);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is made before the check");
    }
}

#[test]
fn a_blueprint_is_read_from_disk_and_a_pool_is_explained() {
    let sample = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name);
    let pool = Process::flashjob().args([OsString::from("--blueprint"), sample("shared-node-pool.json").into()]).run();
    let pool = pool.expect_code(2);
    assert!(pool.stderr.contains("creates a shared node pool and runs nothing"), "{}", pool.stderr);

    let words = [OsString::from("check"), "--blueprint".into(), sample("offline-benchmark.json").into()];
    let checked = Process::flashjob().args(words).env("NUM_PROMPTS", "3").run();
    for part in ["HuggingFaceTB/SmolLM2-135M-Instruct", "variable NUM_PROMPTS", "/p/<redacted>/n/example/b/weights/o/"]
    {
        assert!(checked.stdout.contains(part), "{part}\n{}", checked.stdout);
    }
    assert!(!checked.stdout.contains("EXAMPLE-TOKEN"), "{}", checked.stdout);
}

#[test]
fn help_and_completions_are_on_stdout_and_exit_code_0() {
    for words in [&["--help"] as &[&str], &["completions", "bash"]] {
        let ended = Process::flashjob().args(words).run().expect_code(0);
        assert!(ended.stdout.contains("num-prompts"), "{}", ended.stdout);
        assert_eq!(ended.stderr, "");
    }
}
