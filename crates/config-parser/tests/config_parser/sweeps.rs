//! Sweeps: combinations from words, JSON, variables and blueprints, their order, and what is said of wrong ones.

use flashjob_config::{BackendKind, Reload, Sweep};
use flashjob_config_parser::{Command, Stop};
use serde_json::json;

use super::nodes::group;
use super::{check, errors, parse_with};

/// The sweep that `text` asks for, with further words.
fn sweep_with(text: &str, words: &[&str], variables: &[(&str, &str)]) -> Sweep {
    let sweep = format!("--sweep={text}");
    let words: Vec<&str> = ["--model=m", &sweep].into_iter().chain(words.iter().copied()).collect();
    match parse_with(&words, variables, &[]) {
        Ok(Command::Sweep(sweep)) => *sweep,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn sweep(text: &str) -> Sweep {
    sweep_with(text, &[], &[])
}

/// `key=value …` of each combination.
fn names(sweep: &Sweep) -> Vec<String> {
    sweep.combinations.iter().map(|combination| combination.name()).collect()
}

fn reloads(sweep: &Sweep) -> Vec<Option<Reload>> {
    sweep.combinations.iter().map(|combination| combination.job.as_ref().ok().map(|job| job.reload)).collect()
}

#[test]
fn the_last_key_changes_first() {
    let found = sweep("input-len=128,2048 num-prompts=4,8,16");
    assert_eq!(found.keys, ["input-len", "num-prompts"]);
    assert_eq!(
        names(&found),
        [
            "input-len=128 num-prompts=4",
            "input-len=128 num-prompts=8",
            "input-len=128 num-prompts=16",
            "input-len=2048 num-prompts=4",
            "input-len=2048 num-prompts=8",
            "input-len=2048 num-prompts=16",
        ]
    );
    let numbers: Vec<usize> = found.combinations.iter().map(|combination| combination.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    let last = &found.combinations[5].job.as_ref().unwrap().config;
    assert_eq!((last.workload.input_len.get(), last.workload.num_prompts.map(usize::from)), (2048, Some(16)));
    let setting = |key: &str| last.settings.iter().find(|setting| setting.key == key).unwrap().to_string();
    assert_eq!(setting("input-len"), "input-len = 2048 (sweep)");
    assert_eq!(setting("sweep"), "sweep = input-len=128,2048 num-prompts=4,8,16 (flag)");
    assert_eq!(setting("output-len"), "output-len = 128 (default)");
}

#[test]
fn lists_ranges_and_linked_keys_are_one_language_in_words_and_json() {
    for (text, expected) in [
        (
            "max-num-seqs=128..1024*2",
            &["max-num-seqs=128", "max-num-seqs=256", "max-num-seqs=512", "max-num-seqs=1024"][..],
        ),
        // The end is reached by the last step that does not pass it.
        ("num_prompts=1..10+4,64", &["num-prompts=1", "num-prompts=5", "num-prompts=9", "num-prompts=64"]),
        ("num-prompts=5..5+1", &["num-prompts=5"]),
        ("input-len,output-len=128/16,2048/128", &["input-len=128 output-len=16", "input-len=2048 output-len=128"]),
        ("model=a/b,../c", &["model=a/b", "model=../c"]),
        (
            r#"{"max-num-seqs": ["1..4*2", 64]}"#,
            &["max-num-seqs=1", "max-num-seqs=2", "max-num-seqs=4", "max-num-seqs=64"],
        ),
        (
            r#"{"input-len,output-len": [[128, 16], ["2048", 128]]}"#,
            &["input-len=128 output-len=16", "input-len=2048 output-len=128"],
        ),
        (
            r#"[{"num-prompts": 4, "ignore-eos": true}, {"temperature": 0.5}]"#,
            &["num-prompts=4 ignore-eos=true", "temperature=0.5"],
        ),
    ] {
        let found = match text.starts_with("model") {
            // Swept, and so not given.
            true => match parse_with(&[&format!("--sweep={text}")], &[], &[]) {
                Ok(Command::Sweep(sweep)) => *sweep,
                other => panic!("{text}: {other:?}"),
            },
            false => sweep(text),
        };
        assert_eq!(names(&found), expected, "{text}");
    }
}

#[test]
fn combinations_of_one_model_come_one_after_the_other() {
    let found = sweep("max-num-seqs=64,256 num-prompts=4,8 dtype=bfloat16,float16");
    assert_eq!(
        names(&found),
        [
            "max-num-seqs=64 num-prompts=4 dtype=bfloat16",
            "max-num-seqs=64 num-prompts=8 dtype=bfloat16",
            "max-num-seqs=256 num-prompts=4 dtype=bfloat16",
            "max-num-seqs=256 num-prompts=8 dtype=bfloat16",
            "max-num-seqs=64 num-prompts=4 dtype=float16",
            "max-num-seqs=64 num-prompts=8 dtype=float16",
            "max-num-seqs=256 num-prompts=4 dtype=float16",
            "max-num-seqs=256 num-prompts=8 dtype=float16",
        ]
    );
    use Reload::{Model, Nothing, Scheduler};
    assert_eq!(reloads(&found), [Model, Nothing, Scheduler, Nothing, Model, Nothing, Scheduler, Nothing].map(Some));
    // Other engines take their limits when they start.
    let found = sweep_with("max-num-seqs=64,256 num-prompts=4,8", &["--backend=vllm"], &[]);
    assert_eq!(reloads(&found), [Model, Nothing, Model, Nothing].map(Some));
    let found = sweep("backend=candle,vllm max-num-seqs=64,256");
    assert_eq!(reloads(&found), [Model, Scheduler, Model, Model].map(Some));
    let backends: Vec<BackendKind> = found.planned().map(|(_, job)| job.config.backend).collect();
    assert_eq!(backends, [BackendKind::Candle, BackendKind::Candle, BackendKind::Vllm, BackendKind::Vllm]);
}

#[test]
fn values_that_do_not_go_together_refuse_their_combination_alone() {
    let found = sweep("max-num-seqs=64,512 max-num-batched-tokens=256,1024");
    let refused: Vec<(String, String)> = found
        .combinations
        .iter()
        .filter_map(|combination| Some((combination.name(), combination.job.as_ref().err()?.to_string())))
        .collect();
    assert_eq!(
        refused,
        [(
            "max-num-seqs=512 max-num-batched-tokens=256".to_owned(),
            "max-num-batched-tokens is 256, below max-num-seqs, which is 512; each sequence needs a token in a step, so raise the \
             one or lower the other"
                .to_owned()
        )]
    );
    // What was refused leaves the engine as it was.
    let found = sweep_with("input-len=128,4096,256", &["--max-model-len=2048"], &[]);
    assert_eq!(reloads(&found), [Some(Reload::Model), None, Some(Reload::Nothing)]);
}

#[test]
fn variables_and_blueprints_sweep_too() {
    let found = match parse_with(&["--model=m"], &[("SWEEP", "num-prompts=1,2")], &[]) {
        Ok(Command::Sweep(sweep)) => names(&sweep),
        other => panic!("{other:?}"),
    };
    assert_eq!(found, ["num-prompts=1", "num-prompts=2"]);
    let file = |sweep: &str| {
        json!({"recipe_mode": "job", "recipe_container_env": [
            {"key": "model", "value": "m"}, {"key": "input-len", "value": "7"}, {"key": "sweep", "value": sweep}
        ]})
        .to_string()
    };
    let swept = file(r#"{"num-prompts": [1, 2]}"#);
    match parse_with(&["--blueprint=b"], &[], &[("b", swept.as_bytes())]) {
        Ok(Command::Sweep(sweep)) => assert_eq!(names(&sweep), ["num-prompts=1", "num-prompts=2"]),
        other => panic!("{other:?}"),
    }
    // A flag is stronger than the blueprint's value, which a sweep of the blueprint would lose in silence.
    let words = ["--blueprint=b", "--sweep=input-len=1,2"];
    match parse_with(&words, &[], &[("b", file("num-prompts=1,2").as_bytes())]) {
        Ok(Command::Sweep(sweep)) => assert_eq!(names(&sweep), ["input-len=1", "input-len=2"]),
        other => panic!("{other:?}"),
    }
    let lost = errors(&["--blueprint=b"], &[], &[("b", file("input-len=1,2").as_bytes())]);
    assert_eq!(
        lost,
        [
            "input-len is swept (blueprint recipe_container_env sweep) and given (blueprint recipe_container_env input-len); leave one \
          of the two out"
        ]
    );
}

#[test]
fn a_dry_run_and_a_check_list_what_a_run_would_run() {
    for words in [&["--dry-run"] as &[&str], &["--dry-run=true"]] {
        let words: Vec<&str> =
            ["--model=m", "--sweep=num-prompts=1,2"].into_iter().chain(words.iter().copied()).collect();
        match parse_with(&words, &[], &[]) {
            Ok(Command::ListSweep(sweep)) => assert_eq!(names(&sweep), ["num-prompts=1", "num-prompts=2"]),
            other => panic!("{other:?}"),
        }
    }
    let checked = check(&["--model=m", "--sweep=num-prompts=1,2"], &[]);
    assert_eq!(names(&checked.sweep.unwrap()).len(), 2);
    assert_eq!(checked.job.unwrap().workload.num_prompts.map(usize::from), Some(1), "the first one");
    assert!(checked.errors.is_empty());
    let checked = check(&["--model=m", "--sweep=num-prompts=0"], &[]);
    assert!(checked.sweep.is_none() && checked.job.is_none() && checked.errors.len() == 1, "{:?}", checked.errors);
}

#[test]
fn a_thousand_combinations_are_one_job_and_no_more() {
    assert_eq!(sweep("seed=1..1000+1").combinations.len(), 1000);
    let many = "--sweep=seed=1..100+1 num-prompts=1..100+1";
    assert_eq!(
        errors(&["--model=m", many], &[], &[]),
        [
            "sweep is `seed=1..100+1 num-prompts=1..100+1` (flag --sweep), but it has 10000 combinations, above the 1000 of one job; \
          give fewer values, or start several jobs"
        ]
    );
}

#[test]
fn wrong_sweeps_are_refused_with_a_sentence() {
    for (text, clause) in [
        ("max-num-seqs", "`max-num-seqs` is no KEY=VALUE,VALUE"),
        ("max-num-seq=1,2", "`max-num-seq` is not a key of flashjob; did you mean max-num-seqs?"),
        ("nonsense=1", "`nonsense` is not a key of flashjob; see --help"),
        ("=1,2", "`=1,2` is no KEY=VALUE,VALUE"),
        ("max-num-seqs=", "max-num-seqs has no values"),
        ("max-num-seqs=1,,2", "max-num-seqs has an empty value"),
        ("max-num-seqs=1,2,1", "max-num-seqs has the value `1` twice"),
        ("max-num-seqs=1,2 max_num_seqs=3", "max-num-seqs stands there twice"),
        ("input-len,input-len=1/2", "input-len stands there twice"),
        ("results-dir=a,b", "results-dir is the same for the whole job and cannot be swept"),
        ("mlflow-uri=http://a,http://b", "mlflow-uri is the same for the whole job and cannot be swept"),
        ("metrics-port=1,2", "metrics-port is the same for the whole job and cannot be swept"),
        ("mount-location=/a,/b", "mount-location is the same for the whole job and cannot be swept"),
        ("replica-count=1,2", "replica-count is the same for the whole job and cannot be swept"),
        // Regions of all combinations take turns.
        ("repeats=1,2", "repeats is the same for the whole job and cannot be swept"),
        ("sweep=1,2", "sweep is the same for the whole job and cannot be swept"),
        ("JOB_UID=1,2", "`JOB_UID` is not a key of flashjob; see --help"),
        ("job-uid=1,2", "job-uid is the same for the whole job and cannot be swept"),
        ("num-prompts=1..9", "the range `1..9` must be of whole numbers with a step, such as 128..4096*2 or 1..9+2"),
        (
            "num-prompts=1..9*2*2",
            "the range `1..9*2*2` must be of whole numbers with a step, such as 128..4096*2 or 1..9+2",
        ),
        (
            "temperature=0.1..0.9+0.2",
            "the range `0.1..0.9+0.2` must be of whole numbers with a step, such as 128..4096*2 or 1..9+2",
        ),
        ("num-prompts=9..1+2", "the range `9..1+2` ends before it begins"),
        ("num-prompts=1..9*1", "the range `1..9*1` does not grow"),
        ("num-prompts=0..9*2", "the range `0..9*2` does not grow"),
        ("num-prompts=1..9+0", "the range `1..9+0` does not grow"),
        (
            "num-prompts=1..99999999999999999999+1",
            "the range `1..99999999999999999999+1` must be of whole numbers with a step, such as 128..4096*2 or 1..9+2",
        ),
        ("num-prompts=1..600+1,601..1200+1", "num-prompts has more than 1000 values"),
        ("num-prompts=1..1001+1", "the range `1..1001+1` has more than 1000 values"),
        (
            "input-len,output-len=128/1,2",
            "input-len,output-len has `2`, which is not one value for each of 2 keys; separate them by a slash, and give the sweep \
             as JSON where a value has one itself",
        ),
        ("", "it sweeps no key; give KEY=VALUE,VALUE"),
        ("{", "it is not JSON: EOF while parsing an object at line 1 column 1"),
        ("{}", "it sweeps no key; give KEY=VALUE,VALUE"),
        ("[]", "it sweeps no key; give KEY=VALUE,VALUE"),
        (
            "[1]",
            "it must be a JSON object with a list for each key, or a JSON list with an object for each combination",
        ),
        (r#"{"num-prompts": 4}"#, "num-prompts must have a list of values"),
        (r#"{"num-prompts": []}"#, "num-prompts has no values"),
        (r#"{"num-prompts": [[1]]}"#, "num-prompts must have texts, numbers, true or false as values"),
        (r#"{"num-prompts": [1], "num-prompts": [2]}"#, "num-prompts stands there twice"),
        (r#"{"input-len,output-len": [[1]]}"#, "input-len,output-len must have lists of 2 values, one for each key"),
        (r#"[{"num-prompts": 1}, {}]"#, "in entry 1 no key has a value"),
        (r#"[{"num-prompts": null}]"#, "in entry 0 num-prompts must have texts, numbers, true or false as values"),
        (r#"[{"num-prompts": 1}, {"num-prompts": 1}]"#, "entries 0 and 1 are the same combination"),
        (r#"[{"results-dir": "a"}]"#, "in entry 0 results-dir is the same for the whole job and cannot be swept"),
    ] {
        let sweep = format!("--sweep={text}");
        let found = errors(&["--model=m", &sweep], &[], &[]);
        assert!(
            found.len() == 1 && found[0].starts_with("sweep is ") && found[0].ends_with(&format!(", but {clause}")),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn what_is_wrong_with_the_whole_sweep_ends_it() {
    let two = group("2", "0");
    for (words, variables, expected) in [
        // No job could have this value.
        (
            &["--sweep=dtype=float16,float17 num-prompts=1,2"] as &[&str],
            &[] as &[(&str, &str)],
            &["dtype is `float17` (sweep), but it must be one of auto, float16, bfloat16, float32, half, float"][..],
        ),
        // Nor any combination this one.
        (
            &["--sweep=num-prompts=1,2", "--temperature=hot"],
            &[],
            &["temperature is `hot` (flag --temperature), but it must be a number of at least 0"],
        ),
        (
            &["--sweep=num-prompts=1,2", "--dataset=jsonl"],
            &[],
            &["dataset is `jsonl`, but dataset-path is missing; give the file of JSON lines"],
        ),
        (
            &["--sweep=max-num-seqs=64,512 max-num-batched-tokens=32"],
            &[],
            &[
                "none of the 2 combinations of the sweep can run: max-num-batched-tokens is 32, below max-num-seqs, which is 64; each \
               sequence needs a token in a step, so raise the one or lower the other; max-num-batched-tokens is 32, below \
               max-num-seqs, which is 512; each sequence needs a token in a step, so raise the one or lower the other",
            ],
        ),
        (
            &["--sweep=num-prompts=1,2", "--num-prompts=4"],
            &[],
            &["num-prompts is swept (flag --sweep) and given (flag --num-prompts); leave one of the two out"],
        ),
        (
            &["--sweep=num-prompts=1,2"],
            &two,
            &[
                "sweep is given, but LWS_GROUP_SIZE is 2: a group of nodes runs one combination; leave one of the two out",
            ],
        ),
        (
            &["--sweep=num-prompts=4,8", "--replica-count=2"],
            &[("JOB_COMPLETION_INDEX", "0")],
            &[
                "sweep is given, but replica-count is 2: replicas share the prompts of one combination; leave one of the two out",
            ],
        ),
        (
            &["--dry-run"],
            &[],
            &[
                "dry-run is true, but there is no sweep whose combinations it could list; leave it out: `flashjob check` shows what \
               one job would do",
            ],
        ),
        (
            &["--sweep=num-prompts=1,2", "--dry-run=perhaps"],
            &[],
            &["dry-run is `perhaps` (flag --dry-run), but it must be true or false"],
        ),
        (
            &["--sweep=$(SWEEP)"],
            &[],
            &[
                "sweep is the unresolved reference `$(SWEEP)` (flag --sweep): there is no environment variable `SWEEP`; set it, or \
               write the value itself",
            ],
        ),
    ] {
        let words: Vec<&str> = ["--model=m"].into_iter().chain(words.iter().copied()).collect();
        assert_eq!(errors(&words, variables, &[]), expected, "{words:?}");
    }
    match parse_with(&["verify", "--model=m", "--sweep=num-prompts=1,2"], &[], &[]) {
        Err(Stop::Invalid(errors)) => {
            assert_eq!(errors.len(), 1);
            assert_eq!(errors[0].to_string(), "verify compares one configuration; leave sweep out");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_long_text_is_not_read() {
    let text = format!("--sweep=seed={}", (0..60_000).map(|number| number.to_string()).collect::<Vec<_>>().join(","));
    let found = errors(&["--model=m", &text], &[], &[]);
    assert!(found.len() == 1 && found[0].contains("bytes, above the 262144 that are read"), "{found:?}");
}
