//! Commands other than a run.

use std::path::Path;

use flashjob_config_parser::{Command, Compare, CompareFormat, Profile, Shell, Stop, completions};

use super::{PAR, check, parse_with};

#[test]
fn run_is_the_default() {
    for words in [&["--model=m"] as &[&str], &["run", "--model", "m"]] {
        assert!(matches!(parse_with(words, &[], &[]), Ok(Command::Run(_))), "{words:?}");
    }
}

#[test]
fn check_holds_the_job_and_its_settings_in_a_stable_order() {
    let first = check(&["--model=m", "--seed=1"], &[]);
    let second = check(&["--seed=1", "--model=m"], &[]);
    assert!(first.errors.is_empty());
    assert_eq!(first.settings, second.settings);
    assert_eq!(first.job.map(|job| job.settings), Some(first.settings.clone()));
    let mut keys: Vec<&str> = first.settings.iter().map(|setting| setting.key.as_str()).collect();
    keys.sort_unstable();
    let all = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), all, "each key once");
}

#[test]
fn publish_needs_no_model_and_takes_secrets_that_no_spool_holds() {
    let words = ["publish", "out", "--output-par", PAR];
    let variables = [("MLFLOW_TRACKING_URI", "http://h"), ("input-len", "nonsense")];
    match parse_with(&words, &variables, &[]) {
        Ok(Command::Publish(publish)) => {
            assert_eq!(publish.dir, Path::new("out"));
            assert_eq!(publish.tracking.map(|tracking| tracking.uri.to_string()).as_deref(), Some("http://h/"));
            assert!(publish.output.is_some());
        }
        other => panic!("{other:?}"),
    }
    match parse_with(&["publish", "out"], &[], &[]) {
        Ok(Command::Publish(publish)) => assert!(publish.tracking.is_none() && publish.output.is_none()),
        other => panic!("{other:?}"),
    }
}

/// The arguments of `flashjob compare` with these words.
fn compared(words: &[&str], variables: &[(&str, &str)]) -> Compare {
    match parse_with(&[&["compare"], words].concat(), variables, &[]) {
        Ok(Command::Compare(compare)) => *compare,
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn compare_needs_no_model_and_takes_any_number_of_runs() {
    let plain = compared(&["a", "b/result.json", "mlflow:x/y"], &[("input-len", "nonsense")]);
    assert_eq!(plain.runs, ["a", "b/result.json", "mlflow:x/y"]);
    assert_eq!((plain.format, plain.fail_below, plain.allow_different), (CompareFormat::Table, None, false));
    assert!(plain.tracking.is_none());

    let words = ["--allow-different", "a", "--format=html", "b", "--fail-below", "0.9"];
    let asked = compared(&words, &[("MLFLOW_TRACKING_URI", "http://h")]);
    assert_eq!(asked.runs, ["a", "b"], "no run is taken for the value of a switch");
    assert_eq!((asked.format, asked.allow_different), (CompareFormat::Html, true));
    assert_eq!(asked.fail_below.as_deref(), Some("0.9"));
    assert_eq!(asked.tracking.map(|tracking| tracking.uri.to_string()).as_deref(), Some("http://h/"));
}

fn profiled(words: &[&str]) -> Profile {
    match parse_with(&[&["profile", "--model=m"], words].concat(), &[], &[]) {
        Ok(Command::Profile(profile)) => *profile,
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn profile_has_a_job_and_sizes_of_steps() {
    let sizes = |list: &[std::num::NonZeroUsize]| list.iter().map(|size| size.get()).collect::<Vec<_>>();
    let plain = profiled(&[]);
    assert_eq!((sizes(&plain.batch_sizes), sizes(&plain.prompt_lens)), (vec![1, 16, 64, 256, 1024], vec![128, 2048]));
    assert_eq!((plain.context_len, plain.output), (256, None));
    let asked =
        profiled(&["--batch-sizes", "3, 5,", "--context-len=0", "--prompt-lens=", "--output=p.json", "--seed=9"]);
    assert_eq!((sizes(&asked.batch_sizes), sizes(&asked.prompt_lens)), (vec![3, 5], vec![]));
    assert_eq!((asked.context_len, asked.output.as_deref()), (0, Some(Path::new("p.json"))));
    assert_eq!(asked.job.workload.seed, 9);
    for (words, sentence) in [
        (&["--batch-sizes=1,0"][..], "--batch-sizes has `0`"),
        (&["--prompt-lens=12x"], "--prompt-lens has `12x`"),
        (&["--context-len=many"], "--context-len is `many`"),
        (&["--context-len=99999999999"], "--context-len is `99999999999`"),
        (&["--output="], "--output is empty"),
        (&["--sweep={\"seed\": [1, 2]}"], "leave sweep out"),
    ] {
        match parse_with(&[&["profile", "--model=m"], words].concat(), &[], &[]) {
            Err(Stop::Invalid(errors)) => {
                let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
                assert!(said.iter().any(|said| said.contains(sentence)), "{words:?}: {said:?}");
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }
    let many = vec!["1"; 33].join(",");
    assert!(parse_with(&["profile", "--model=m", &format!("--batch-sizes={many}")], &[], &[]).is_err());
}

#[test]
fn help_and_version_win_over_mistakes() {
    for words in [&["--help"] as &[&str], &["-h"], &["--nonsense", "--help"], &["check", "--help"], &["run", "-h"]] {
        match parse_with(words, &[("input-len", "x")], &[]) {
            Err(Stop::Help(text)) => {
                assert!(text.contains("--tensor-parallel-size") && text.contains("[default: 128]"), "{text}");
            }
            other => panic!("{words:?}: {other:?}"),
        }
    }
    match parse_with(&["--version"], &[], &[]) {
        Err(Stop::Help(text)) => assert_eq!(text, format!("flashjob {}\n", env!("CARGO_PKG_VERSION"))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_shell_has_completions() {
    for (name, shell) in
        [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish), ("powershell", Shell::PowerShell)]
    {
        assert!(
            matches!(parse_with(&["completions", name], &[], &[]), Ok(Command::Completions(found)) if found == shell)
        );
        let script = completions(shell);
        assert!(script.contains("flashjob") && script.contains("num-prompts"), "{name}");
    }
}

/// A shell's own judgement.
#[test]
fn bash_completes_a_flag() {
    let script = completions(Shell::Bash);
    let program = format!(
        "{script}\nCOMP_WORDS=(flashjob --tensor-p); COMP_CWORD=1; _flashjob flashjob --tensor-p flashjob; echo \"${{COMPREPLY[@]}}\""
    );
    let output = std::process::Command::new("bash").args(["--norc", "-c", &program]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--tensor-parallel-size", "{output:?}");
}
