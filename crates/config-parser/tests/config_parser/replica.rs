//! The index of a replica, from variables that Kubernetes sets, or refused.

use super::{errors, job, job_with, setting};

const UID: (&str, &str) = ("JOB_UID", "6f1c9c1e-0d3b-4a52-9c3e-0a9a4bd7a1f2");

#[test]
fn a_process_alone_runs_everything() {
    let alone = job(&["--model=m"], &[]);
    assert_eq!((alone.replica.share.index(), alone.replica.share.count()), (0, 1));
    assert_eq!(alone.workload.share.of(10), 0..10);
    assert_eq!(setting(&alone, "replica-count"), "replica-count = 1 (default)");
    // An Indexed Job of one, and a variable that is there and empty.
    for variables in [&[("JOB_COMPLETION_INDEX", "0")] as &[_], &[("JOB_COMPLETION_INDEX", ""), ("JOB_UID", "")]] {
        assert_eq!(job(&["--model=m"], variables).replica.share, alone.replica.share);
    }
}

#[test]
fn replicas_take_their_share() {
    let second = job(&["--model=m", "--replica-count=4"], &[("JOB_COMPLETION_INDEX", "1"), UID]);
    assert_eq!((second.replica.share.index(), second.workload.share.of(10)), (1, 2..5));
    assert_eq!(second.replica.job_uid.as_deref(), Some(UID.1));
    assert_eq!(setting(&second, "replica-index"), "replica-index = 1 (variable JOB_COMPLETION_INDEX)");
    let blueprint = br#"{"recipe_mode": "job", "recipe_replica_count": 3, "recipe_container_env":
        [{"key": "model", "value": "m"}]}"#;
    let third = job_with(&["--blueprint=b"], &[("JOB_COMPLETION_INDEX", "2")], &[("b", blueprint)]);
    assert_eq!((third.replica.share.index(), third.replica.share.count()), (2, 3));
    let told_otherwise = job_with(&["--blueprint=b", "--replica-count=1"], &[], &[("b", blueprint)]);
    assert_eq!(told_otherwise.replica.share.count(), 1);
}

#[test]
fn what_would_run_prompts_twice_or_never_is_refused() {
    let tracked = "--mlflow-uri=http://h";
    for (words, variables, expected) in [
        (&["--replica-count=0"] as &[&str], &[] as &[(&str, &str)], "replica-count is `0`"),
        (&["--replica-count=3"], &[], "JOB_COMPLETION_INDEX is not set, so which of the prompts are this"),
        (&[], &[("JOB_COMPLETION_INDEX", "1")], "JOB_COMPLETION_INDEX is 1, but replica-count is 1"),
        (&["--replica-count=3"], &[("JOB_COMPLETION_INDEX", "3")], "numbered from 0"),
        (&["--replica-count=3"], &[("JOB_COMPLETION_INDEX", "-1")], "JOB_COMPLETION_INDEX is `-1`"),
        (&["--replica-count=3"], &[("JOB_COMPLETION_INDEX", "$(INDEX)")], "unresolved reference `$(INDEX)`"),
        (&["--replica-count=3", tracked], &[("JOB_COMPLETION_INDEX", "0")], "JOB_UID is not set"),
        (&[], &[("JOB_UID", "a b")], "JOB_UID is `a b`"),
        (&["--replica-count=3", "--num-prompts=2"], &[("JOB_COMPLETION_INDEX", "0")], "num-prompts is 2, below"),
    ] {
        let words: Vec<&str> = ["--model=m"].into_iter().chain(words.iter().copied()).collect();
        let found = errors(&words, variables, &[]);
        assert!(found.len() == 1 && found[0].contains(expected), "{words:?} {variables:?}: {found:?}");
    }
}
