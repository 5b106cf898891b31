//! The rank of a node, from LeaderWorkerSet's variables, or refused.

use std::time::Duration;

use super::{errors, job, setting};

const LEADER: (&str, &str) = ("LWS_LEADER_ADDRESS", "flashjob-0.flashjob.default");

pub fn group<'a>(size: &'a str, index: &'a str) -> [(&'a str, &'a str); 3] {
    [LEADER, ("LWS_GROUP_SIZE", size), ("LWS_WORKER_INDEX", index)]
}

#[test]
fn a_process_alone_is_no_group() {
    assert_eq!(job(&["--model=m"], &[]).nodes, None);
    assert_eq!(job(&["--model=m"], &group("1", "0")).nodes, None);
    let empty = [("LWS_LEADER_ADDRESS", ""), ("LWS_GROUP_SIZE", ""), ("LWS_WORKER_INDEX", "")];
    assert_eq!(job(&["--model=m"], &empty).nodes, None);
}

#[test]
fn nodes_of_a_group_know_their_leader() {
    let words = ["--model=m", "--tensor-parallel-size=4", "--group-port=4000", "--group-timeout=2m"];
    // An Indexed Job numbers its pods, too; they are no replicas.
    let variables = [&group("2", "1")[..], &[("JOB_COMPLETION_INDEX", "1")]].concat();
    let worker = job(&words, &variables);
    assert!(worker.is_worker());
    assert_eq!((worker.num_nodes(), worker.replica.share.count()), (2, 1));
    assert_eq!(worker.workload.share.of(10), 0..10);
    let nodes = worker.nodes.clone().unwrap();
    assert_eq!((nodes.leader.as_str(), nodes.port, nodes.node_rank), (LEADER.1, 4000, 1));
    assert_eq!(nodes.timeout, Duration::from_secs(120));
    assert_eq!(setting(&worker, "group-size"), "group-size = 2 (variable LWS_GROUP_SIZE)");
    let leader = job(&["--model=m"], &group("2", "0"));
    assert!(!leader.is_worker());
    assert_eq!(leader.nodes.unwrap().port, 29500);
}

#[test]
fn groups_that_cannot_be_are_refused() {
    let two = group("2", "1");
    for (words, variables, expected) in [
        (&[] as &[&str], &group("0", "0")[..], "LWS_GROUP_SIZE is `0`"),
        (&[], &group("two", "0"), "LWS_GROUP_SIZE is `two`"),
        (&[], &group("2", "2"), "LWS_WORKER_INDEX is 2, but LWS_GROUP_SIZE is 2, whose nodes are numbered from 0"),
        (&[], &group("2", "-1"), "LWS_WORKER_INDEX is `-1`"),
        (&[], &group("2", "$(INDEX)"), "unresolved reference `$(INDEX)`"),
        (&[], &[LEADER], "LWS_LEADER_ADDRESS is set without LWS_GROUP_SIZE and LWS_WORKER_INDEX"),
        (&[], &two[..2], "LWS_LEADER_ADDRESS and LWS_GROUP_SIZE are set without LWS_WORKER_INDEX"),
        (&[], &two[1..], "are set without LWS_LEADER_ADDRESS"),
        (&[], &[("LWS_LEADER_ADDRESS", "http://host"), two[1], two[2]], "LWS_LEADER_ADDRESS is `http://host`"),
        (&["--tensor-parallel-size=3"], &two, "tensor-parallel-size is 3, which 2 nodes (LWS_GROUP_SIZE) cannot share"),
        (&["--data-parallel-size=2"], &two, "data-parallel-size is 2, but LWS_GROUP_SIZE is 2: nodes share one model"),
        (&["--backend=vllm"], &two, "only backend=candle shares a model with other nodes"),
        (&["--replica-count=3"], &two, "replica-count is 3, but LWS_GROUP_SIZE is 2"),
        (
            &["--tensor-parallel-size=4", "--recipe-nvidia-gpu-count=1"],
            &two,
            "tensor-parallel-size is 4 on 2 nodes, above recipe-nvidia-gpu-count",
        ),
        (&["--group-port=0"], &[], "group-port is `0`"),
        (&["--group-port=65536"], &[], "group-port is `65536`"),
        (&["--group-timeout=0"], &[], "group-timeout is `0`"),
        (&["--group-timeout=soon"], &[], "group-timeout is `soon`"),
    ] {
        let words: Vec<&str> = ["--model=m"].into_iter().chain(words.iter().copied()).collect();
        let found = errors(&words, variables, &[]);
        assert!(found.len() == 1 && found[0].contains(expected), "{words:?} {variables:?}: {found:?}");
    }
    assert!(job(&["--model=m", "--data-parallel-size=1"], &two).is_worker());
    assert!(job(&["--model=m", "--tensor-parallel-size=2", "--recipe-nvidia-gpu-count=1"], &two).is_worker());
}
