//! Spellings, sources and defaults: what wins, and that it is said where it came from.

use std::path::Path;
use std::time::Duration;

use flashjob_config::{
    BackendKind, Credentials, Dataset, DeviceChoice, DtypeChoice, LogFormat, MetricsLinger, MountMode, ParTarget,
    ReplyLength, WarmUp,
};

use super::{PAR, job, job_with, setting};

#[test]
fn the_defaults_are_those_of_the_design() {
    let job = job(&["--model", "m"], &[]);
    assert_eq!(job.backend, BackendKind::Candle);
    assert_eq!(job.device, DeviceChoice::Auto);
    assert_eq!(job.tokenizer, job.model);
    let workload = &job.workload;
    assert_eq!((workload.input_len.get(), workload.output_len.get()), (128, 128));
    assert_eq!(workload.num_prompts.map(usize::from), Some(64));
    assert_eq!((workload.warmup, workload.seed, workload.ignore_eos), (WarmUp::Requests(1), 0, true));
    assert_eq!((job.sampling.temperature, job.sampling.top_p, job.sampling.top_k), (0.0, 1.0, None));
    assert_eq!(job.engine.dtype, DtypeChoice::Auto);
    assert_eq!((job.engine.tensor_parallel_size, job.engine.data_parallel_size), (None, None));
    assert_eq!((job.engine.memory_utilization, job.engine.block_tokens.get()), (0.9, 32));
    assert!(job.inputs.is_empty() && job.output.is_none() && job.tracking.is_none());
    assert_eq!(job.mount.mode, MountMode::Auto);
    assert_eq!(job.mount.storage_timeout, Duration::from_secs(300));
    assert_eq!(job.telemetry.metrics_address.to_string(), "0.0.0.0:8000");
    assert_eq!(job.telemetry.log_format, LogFormat::Auto);
    assert_eq!(job.telemetry.termination_message.as_deref(), Some(Path::new("/dev/termination-log")));
    assert_eq!(job.results_dir, Path::new("results"));
}

#[test]
fn every_spelling_means_the_same() {
    for (words, variables) in [
        (&["--input-len", "7"] as &[&str], &[] as &[(&str, &str)]),
        (&["--input-len=7"], &[]),
        (&["--input_len", "7"], &[]),
        (&["--input_len=7"], &[]),
        (&[], &[("input-len", "7")]),
        (&[], &[("input_len", "7")]),
        (&[], &[("INPUT_LEN", "7")]),
        (&[], &[("INPUT_LEN", "7"), ("input-len", "7")]),
        (&["--input-len=7", "--input_len=7"], &[]),
        (&[], &[("input-len", " 7\n")]),
    ] {
        let words: Vec<&str> = ["--model=m"].iter().chain(words).copied().collect();
        assert_eq!(job(&words, variables).workload.input_len.get(), 7, "{words:?} {variables:?}");
    }
}

#[test]
fn a_variable_without_text_is_not_set() {
    for text in ["", " ", "\t\n "] {
        for name in ["input-len", "input_len", "INPUT_LEN"] {
            let line = setting(&job(&["--model=m"], &[(name, text)]), "input-len");
            assert_eq!(line, "input-len = 128 (default)", "{name}={text:?}");
        }
        let variables = [
            ("MLFLOW_URI", text),
            ("PAR", text),
            ("DTYPE", text),
            ("IGNORE_EOS", text),
            ("KV_CACHE_MEMORY", text),
            ("METRICS_LINGER_SECONDS", text),
            ("MLFLOW_TRACKING_INSECURE_TLS", text),
            ("MLFLOW_TRACKING_TOKEN", text),
            ("JOB_COMPLETION_INDEX", text),
            ("LWS_GROUP_SIZE", text),
            ("results-dir", text),
            ("RESULTS_DIR", "elsewhere"),
        ];
        assert_eq!(job(&["--model=m"], &variables).results_dir, Path::new("elsewhere"), "{text:?}");
    }
    // What is not set does not hide what a blueprint says, nor does an empty entry of one hide the default.
    let blueprint = br#"{"recipe_mode": "job", "recipe_container_env": [
        {"key": "model", "value": "m"}, {"key": "seed", "value": 3}, {"key": "output-len", "value": ""}]}"#;
    let job = job_with(&["--blueprint=b"], &[("SEED", "")], &[("b", blueprint)]);
    assert_eq!(setting(&job, "seed"), "seed = 3 (blueprint recipe_container_env seed)");
    assert_eq!(setting(&job, "output-len"), "output-len = 128 (default)");
}

#[test]
fn names_that_only_look_like_ours_are_left_alone() {
    let foreign = [
        ("PORT", "x"),
        ("Input_Len", "x"),
        ("INPUT-LEN", "x"),
        ("FLASHJOB_SEED", "x"),
        ("MODEL_PORT", "x"),
        ("mlflow_tracking_uri", "x"),
        // What Kubernetes tells of services called `metrics` and `recipe-container`.
        ("METRICS_PORT", "tcp://10.0.0.1:9090"),
        ("METRICS_PORT_9090_TCP", "tcp://10.0.0.1:9090"),
        ("RECIPE_CONTAINER_PORT", "udp://10.0.0.2:1"),
    ];
    let job = job(&["--model=m"], &foreign);
    assert_eq!(setting(&job, "metrics-port"), "metrics-port = 8000 (default)");
    assert!(job.tracking.is_none());
}

#[test]
fn flags_beat_variables_beat_the_blueprint_beats_defaults() {
    let blueprint = br#"{"recipe_mode": "job", "recipe_container_env": [
        {"key": "model", "value": "m"}, {"key": "seed", "value": 3}, {"key": "warmup", "value": "3"},
        {"key": "output-len", "value": "3"}, {"key": "input-len", "value": "4"}],
        "recipe_container_command_args": ["--input-len", "5"]}"#;
    let words = ["--blueprint=b", "--seed=1"];
    let variables = [("SEED", "2"), ("warmup", "2")];
    let job = job_with(&words, &variables, &[("b", blueprint)]);
    for line in [
        "seed = 1 (flag)",
        "warmup = 2 (variable warmup)",
        "output-len = 3 (blueprint recipe_container_env output-len)",
        "input-len = 5 (blueprint recipe_container_command_args)",
        "num-prompts = 64 (default)",
    ] {
        assert_eq!(setting(&job, line.split(' ').next().unwrap()), line);
    }
    let workload = &job.workload;
    assert_eq!((workload.seed, workload.warmup), (1, WarmUp::Requests(2)));
    assert_eq!((workload.output_len.get(), workload.input_len.get()), (3, 5));
}

#[test]
fn the_port_falls_back_to_the_blueprint() {
    for (variables, port) in [
        (&[("recipe_container_port", "9000")] as &[(&str, &str)], 9000),
        (&[("recipe_container_port", "9000"), ("metrics-port", "0")], 0),
        (&[], 8000),
    ] {
        assert_eq!(job(&["--model=m"], variables).telemetry.metrics_address.port(), port);
    }
    let job = job(&["--model=m", "--metrics-address=::1", "--metrics-linger-seconds=0"], &[]);
    assert_eq!(job.telemetry.metrics_address.to_string(), "[::1]:8000");
    assert_eq!(job.telemetry.metrics_linger, MetricsLinger::For(Duration::ZERO));
}

#[test]
fn the_limit_of_a_step_is_derived_unless_it_is_given() {
    assert_eq!(job(&["--model=m"], &[]).engine.step_timeout, None);
    assert_eq!(job(&["--model=m", "--step-timeout-seconds=auto"], &[]).engine.step_timeout, None);
    let job = job(&["--model=m", "--step-timeout-seconds=2m"], &[]);
    assert_eq!(job.engine.step_timeout, Some(Duration::from_secs(120)));
    assert_eq!(setting(&job, "step-timeout-seconds"), "step-timeout-seconds = 120 (flag)");
}

#[test]
fn switches_need_no_value_and_take_one() {
    assert!(!job(&["--model=m"], &[]).engine.prefix_caching, "a benchmark that reuses work measures less of it");
    assert!(job(&["--model=m", "--enable-prefix-caching"], &[]).engine.prefix_caching);
    assert!(job(&["--model=m"], &[("ENABLE_PREFIX_CACHING", "true")]).engine.prefix_caching);
    let batch = ["--model=m", "--dataset=jsonl", "--dataset-path=p"];
    assert!(job(&batch, &[]).engine.prefix_caching, "a batch wants its answers");
    assert!(!job(&batch, &[("ENABLE_PREFIX_CACHING", "false")]).engine.prefix_caching);
    assert!(!job(&[&batch[..], &["--repeats=2"]].concat(), &[]).engine.prefix_caching);
    for (words, validate) in [
        (&["--validate-weights"] as &[&str], true),
        (&["--validate-weights", "false"], false),
        (&["--validate_weights=1"], true),
        (&["--validate-weights", "--seed=1"], true),
        (&[], false),
    ] {
        let words: Vec<&str> = words.iter().copied().chain(["--model=m"]).collect();
        assert_eq!(job(&words, &[]).engine.validate_weights, validate, "{words:?}");
    }
}

#[test]
fn a_dataset_brings_its_own_number_of_prompts_and_may_stop_early() {
    let words = ["--model=m", "--dataset=jsonl", "--dataset-path=prompts.jsonl"];
    let job = job(&words, &[]);
    assert_eq!(job.workload.dataset, Dataset::Jsonl("prompts.jsonl".into()));
    assert_eq!(job.workload.num_prompts, None);
    assert!(!job.workload.ignore_eos);
    let words: Vec<&str> = words.into_iter().chain(["--num-prompts=5", "--ignore-eos"]).collect();
    let job = self::job(&words, &[]);
    assert_eq!(job.workload.num_prompts.map(usize::from), Some(5));
    assert!(job.workload.ignore_eos);
    // ShareGPT measures: exactly as many tokens as its replies have, or as were asked for.
    let words = ["--model=m", "--dataset=sharegpt", "--dataset-path=s.json"];
    for (more, reply_length) in [(None, ReplyLength::Recorded), (Some("--output-len=128"), ReplyLength::OutputLen)] {
        let words: Vec<&str> = words.into_iter().chain(more).collect();
        let job = self::job(&words, &[]);
        assert_eq!(job.workload.dataset, Dataset::ShareGpt { path: "s.json".into(), reply_length });
        assert!(job.workload.ignore_eos);
    }
}

#[test]
fn words_and_amounts_have_their_synonyms() {
    for (text, dtype) in [
        ("half", DtypeChoice::Float16),
        ("float16", DtypeChoice::Float16),
        ("bfloat16", DtypeChoice::Bfloat16),
        ("float", DtypeChoice::Float32),
        ("float32", DtypeChoice::Float32),
    ] {
        assert_eq!(job(&["--model=m", "--dtype", text], &[]).engine.dtype, dtype);
    }
    for (text, bytes) in [("1", 1), ("2MiB", 2 << 20), ("3Gi", 3 << 30), ("4 GB", 4_000_000_000)] {
        assert_eq!(job(&["--model=m", "--kv-cache-memory", text], &[]).engine.kv_cache_memory_bytes, Some(bytes));
    }
    for (text, seconds) in [("90", 90.0), ("1.5", 1.5), ("2m", 120.0), ("1h 1s", 3601.0)] {
        let job = job(&["--model=m", "--storage-timeout", text], &[]);
        assert_eq!(job.mount.storage_timeout, Duration::from_secs_f64(seconds));
    }
    for (text, top_k) in [("0", None), ("-1", None), ("5", Some(5))] {
        assert_eq!(job(&["--model=m", "--top-k", text], &[]).sampling.top_k.map(usize::from), top_k);
    }
    let job = job(&["--model=m", "--termination-message-path=none", "--price-per-hour=2.5"], &[]);
    assert_eq!((job.telemetry.termination_message, job.price_per_hour), (None, Some(2.5)));
}

#[test]
fn one_input_in_plain_keys_or_as_a_list_is_the_same() {
    let list = format!(
        r#"[{{"par": "{PAR}", "mount_location": "/m/", "volume_size_in_gbs": 5, "include": ["a", "b"], "exclude": ["a/x"]}}]"#
    );
    let plain = [
        ("par", PAR),
        ("mount_location", "/m"),
        ("volume_size_in_gbs", "5"),
        ("include", "a, b"),
        ("exclude", r#"["a/x"]"#),
    ];
    let plain = job(&["--model=m"], &plain);
    let listed = job(&["--model=m"], &[("input_object_storage", &list)]);
    assert_eq!(plain.inputs, listed.inputs);
    let input = &plain.inputs[0];
    assert_eq!(input.volume_bytes, Some(5_000_000_000));
    assert_eq!(input.include, ["a", "b"]);
    assert_eq!(input.exclude, ["a/x"]);
    assert_eq!(input.par.as_ref().map(|par| par.target()), Some(&ParTarget::Collection));
    assert_eq!(plain.model.candidates(&plain.inputs), ["/m/m", "./m"].map(Path::new));
}

#[test]
fn inputs_have_a_default_location_and_need_no_bucket() {
    let with_par = job(&["--model=m", "--par", PAR], &[]);
    assert_eq!(with_par.inputs[0].location, Path::new("/models"));
    let without = job(&["--model=m", "--mount-location=/data"], &[]);
    assert_eq!(without.inputs[0].par, None);
    assert_eq!(without.model.candidates(&without.inputs), ["/data/m", "./m"].map(Path::new));
    let platform =
        r#"[{"bucket_name": "b", "mount_location": "/x", "volume_size_in_gbs": 1}, {"mount_location": "/y"}]"#;
    let job = job(&["--model=m", "--input_object_storage", platform], &[]);
    assert!(job.inputs.iter().all(|input| input.par.is_none()));
    assert_eq!(job.model.candidates(&job.inputs), ["/x/m", "/y/m", "./m"].map(Path::new));
    assert_eq!(
        setting(&job, "input-object-storage.1.mount-location"),
        "input-object-storage.1.mount-location = /y (flag)"
    );
    let nothing = self::job(&["--model=m"], &[]);
    assert_eq!(nothing.model.candidates(&nothing.inputs), ["/models/m", "./m"].map(Path::new));
}

#[test]
fn results_go_where_the_output_says() {
    let list = format!(r#"[{{"par": "{PAR}", "prefix": "runs/"}}]"#);
    let listed = job(&["--model=m", "--output_object_storage", &list], &[]);
    let plain = job(&["--model=m", "--output-par", PAR, "--output-prefix=runs/"], &[]);
    assert_eq!(listed.output, plain.output);
    assert_eq!(plain.output.as_ref().map(|output| output.prefix.as_str()), Some("runs/"));
    let platform = r#"[{"bucket_name": "b", "mount_location": "/out", "volume_size_in_gbs": 1}]"#;
    let collected = job(&["--model=m", "--output_object_storage", platform], &[]);
    assert!(collected.output.is_none());
    assert_eq!(collected.results_dir, Path::new("/out"));
    let own = job(&["--model=m", "--results-dir=r", "--output_object_storage", platform], &[]);
    assert_eq!(own.results_dir, Path::new("r"));
}

#[test]
fn mlflow_is_reached_as_its_own_client_would() {
    let variables = [
        ("MLFLOW_TRACKING_URI", "http://elsewhere:5000"),
        ("MLFLOW_EXPERIMENT_NAME", "elsewhere"),
        ("MLFLOW_TRACKING_TOKEN", "t0ken\n"),
        ("MLFLOW_TRACKING_INSECURE_TLS", "TRUE"),
        ("MLFLOW_WORKSPACE", "team"),
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", ""),
    ];
    let tracking = job(&["--model=m"], &variables).tracking.unwrap();
    assert_eq!(tracking.uri.as_str(), "http://elsewhere:5000/");
    assert_eq!(tracking.experiment, "elsewhere");
    assert!(matches!(&tracking.credentials, Credentials::Bearer(token) if token.reveal() == "t0ken"));
    assert!(tracking.insecure_tls && tracking.server_cert_path.is_none());
    assert_eq!(tracking.workspace.as_deref(), Some("team"));

    let blueprint =
        br#"{"recipe_mode": "job", "recipe_container_env": [{"key": "mlflow-uri", "value": "https://here/mlflow/"},
        {"key": "experiment-name", "value": "here"}]}"#;
    let words = ["--model=m", "--blueprint=b"];
    let tracking = job_with(&words, &variables, &[("b", blueprint)]).tracking.unwrap();
    assert_eq!((tracking.uri.as_str(), tracking.experiment.as_str()), ("https://here/mlflow", "here"));

    assert!(job(&["--model=m", "--mlflow-uri=none"], &variables).tracking.is_none());
    // Where nothing is recorded, half a login disturbs nobody.
    assert!(job(&["--model=m"], &[("MLFLOW_TRACKING_USERNAME", "me")]).tracking.is_none());
}

#[test]
fn a_login_comes_out_of_the_uri_or_the_variables() {
    let basic = [
        ("MLFLOW_TRACKING_USERNAME", "me"),
        ("MLFLOW_TRACKING_PASSWORD", "p@ss word "),
        ("MLFLOW_TRACKING_TOKEN", "t"),
    ];
    for (uri, variables) in
        [("http://h", &basic as &[_]), ("http://me:p%40ss%20word%20@h", &[]), ("http://me:p%40ss%20word%20@h", &basic)]
    {
        let tracking = job(&["--model=m", "--mlflow-uri", uri], variables).tracking.unwrap();
        assert_eq!(tracking.uri.as_str(), "http://h/");
        assert!(
            matches!(&tracking.credentials, Credentials::Basic { username, password }
                if username == "me" && password.reveal() == "p@ss word "),
            "{uri}"
        );
    }
    let tracking = job(&["--model=m", "--mlflow-uri=http://h"], &[]).tracking.unwrap();
    assert!(matches!(tracking.credentials, Credentials::Anonymous));
    assert_eq!((tracking.experiment.as_str(), tracking.run_name), ("flashjob", None));
}
