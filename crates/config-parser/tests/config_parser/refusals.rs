//! Bad input and the exact sentence that each piece of it gets.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use flashjob_config_parser::{self as config_parser, Stop};

use super::{check, errors};

const COUNT: &str = "it must be a whole number from 1 to 2147483647";
const RANGE: &str = "it must be a duration in seconds, or with a unit such as 90s or 5m";

/// Words after `--model m`, variables, the only sentence.
type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn wrong_values_get_one_sentence_each() {
    let table: &[Row<'_>] = &[
        // Numbers.
        (&["--input-len", "0"], &[], &format!("input-len is `0` (flag --input-len), but {COUNT}")),
        (&["--input-len", "-3"], &[], &format!("input-len is `-3` (flag --input-len), but {COUNT}")),
        (&["--input_len=1e3"], &[], &format!("input-len is `1e3` (flag --input-len), but {COUNT}")),
        (&["--input-len", ""], &[], &format!("input-len is empty (flag --input-len), but {COUNT}")),
        (&[], &[("INPUT_LEN", "12 ,")], &format!("input-len is `12 ,` (variable INPUT_LEN), but {COUNT}")),
        (&[], &[("output-len", "+5")], &format!("output-len is `+5` (variable output-len), but {COUNT}")),
        (
            &[],
            &[("num_prompts", "4294967296")],
            &format!("num-prompts is `4294967296` (variable num_prompts), but {COUNT}"),
        ),
        (
            &["--num-prompts=99999999999999999999999"],
            &[],
            &format!("num-prompts is `99999999999999999999999` (flag --num-prompts), but {COUNT}"),
        ),
        (
            &["--tensor-parallel-size=0"],
            &[],
            &format!("tensor-parallel-size is `0` (flag --tensor-parallel-size), but {COUNT}"),
        ),
        (
            &["--data-parallel-size=0"],
            &[],
            &format!("data-parallel-size is `0` (flag --data-parallel-size), but {COUNT}"),
        ),
        (
            &[],
            &[("data_parallel_size", "two")],
            &format!("data-parallel-size is `two` (variable data_parallel_size), but {COUNT}"),
        ),
        (
            &["--data-parallel-size=-2"],
            &[],
            &format!("data-parallel-size is `-2` (flag --data-parallel-size), but {COUNT}"),
        ),
        (&["--max-model-len=0x10"], &[], &format!("max-model-len is `0x10` (flag --max-model-len), but {COUNT}")),
        (
            &["--warmup=-1"],
            &[],
            "warmup is `-1` (flag --warmup), but it must be a whole number from 0 to 2147483647, or auto",
        ),
        (
            &["--seed=-1"],
            &[],
            "seed is `-1` (flag --seed), but it must be a whole number from 0 to 18446744073709551615",
        ),
        (&["--top-k=-2"], &[], &format!("top-k is `-2` (flag --top-k), but {COUNT}, or 0 or -1 for all")),
        (&["--top-p=0"], &[], "top-p is `0` (flag --top-p), but it must be a number above 0 and at most 1"),
        (&["--top-p=1.1"], &[], "top-p is `1.1` (flag --top-p), but it must be a number above 0 and at most 1"),
        (
            &["--temperature=NaN"],
            &[],
            "temperature is `NaN` (flag --temperature), but it must be a number of at least 0",
        ),
        (
            &["--temperature=-0.5"],
            &[],
            "temperature is `-0.5` (flag --temperature), but it must be a number of at least 0",
        ),
        (&["--block-size=33"], &[], "block-size is `33` (flag --block-size), but it must be a multiple of 32"),
        (
            &["--gpu-memory-utilization=1.5"],
            &[],
            "gpu-memory-utilization is `1.5` (flag --gpu-memory-utilization), but it must be a number above 0 and at most 1",
        ),
        (
            &["--kv-cache-memory=4GX"],
            &[],
            "kv-cache-memory is `4GX` (flag --kv-cache-memory), but it must be a number of bytes above 0, perhaps with a \
             unit such as 512MiB or 4GB",
        ),
        (
            &["--price-per-hour=free"],
            &[],
            "price-per-hour is `free` (flag --price-per-hour), but it must be a number above 0",
        ),
        (&["--storage-timeout=soon"], &[], &format!("storage-timeout is `soon` (flag --storage-timeout), but {RANGE}")),
        (
            &["--metrics-linger-seconds=-1"],
            &[],
            &format!("metrics-linger-seconds is `-1` (flag --metrics-linger-seconds), but {RANGE}, or auto"),
        ),
        (
            &["--step-timeout-seconds=0"],
            &[],
            "step-timeout-seconds is `0` (flag --step-timeout-seconds), but it must be a duration above 0 in seconds, or with a unit \
             such as 90s or 5m, or auto",
        ),
        (
            &["--metrics-port=70000"],
            &[],
            "metrics-port is `70000` (flag --metrics-port), but it must be a whole number from 0 to 65535",
        ),
        // Words.
        (
            &["--dtype=float8"],
            &[],
            "dtype is `float8` (flag --dtype), but it must be one of auto, float16, bfloat16, float32, half, float",
        ),
        (
            &["--vllm-args={\"max_loras\": 4"],
            &[],
            "vllm-args is `{\"max_loras\": 4` (flag --vllm-args), but it must be a JSON object: EOF while parsing an object at line 1 \
             column 15",
        ),
        (
            &[],
            &[("SGLANG_ARGS", "attention-backend=fa3")],
            "sglang-args is `attention-backend=fa3` (variable SGLANG_ARGS), but it must be a JSON object or words like --name=value, \
             and `attention-backend=fa3` is neither",
        ),
        (&["--backend=vLLM"], &[], "backend is `vLLM` (flag --backend), but it must be one of candle, vllm, sglang"),
        (&[], &[("DEVICE", "gpu")], "device is `gpu` (variable DEVICE), but it must be one of auto, cpu, cuda"),
        (&["--log-format=xml"], &[], "log-format is `xml` (flag --log-format), but it must be one of auto, text, json"),
        (
            &["--mount-mode=s3fs"],
            &[],
            "mount-mode is `s3fs` (flag --mount-mode), but it must be one of auto, fuse, copy",
        ),
        (
            &["--dataset=csv"],
            &[],
            "dataset is `csv` (flag --dataset), but it must be one of random, prefix, sonnet, sharegpt, jsonl, arithmetic",
        ),
        (
            &["--apply-chat-template=yes"],
            &[],
            "apply-chat-template is `yes` (flag --apply-chat-template), but it must be one of auto, always, never",
        ),
        (
            &["--on-bad-input=warn"],
            &[],
            "on-bad-input is `warn` (flag --on-bad-input), but it must be one of fail, skip",
        ),
        (
            &["--random-range-ratio=1"],
            &[],
            "random-range-ratio is `1` (flag --random-range-ratio), but it must be a number of at least 0 and below 1",
        ),
        (&["--repeats=101"], &[], "repeats is `101` (flag --repeats), but it must be a whole number from 0 to 100"),
        (&["--repeats=many"], &[], "repeats is `many` (flag --repeats), but it must be a whole number from 0 to 100"),
        (
            &["--warmup=auto2"],
            &[],
            "warmup is `auto2` (flag --warmup), but it must be a whole number from 0 to 2147483647, or auto",
        ),
        (
            &["--least-accuracy=0", "--dataset=arithmetic"],
            &[],
            "least-accuracy is `0` (flag --least-accuracy), but it must be a number above 0 and at most 1",
        ),
        (
            &["--prefix-share=1.5", "--dataset=prefix"],
            &[],
            "prefix-share is `1.5` (flag --prefix-share), but it must be a number above 0 and at most 1",
        ),
        (
            &["--prefix-len=128", "--dataset=prefix"],
            &[],
            "prefix-len is 128, which leaves no token of input-len=128 to tell prompts apart, or no prefix; it must be from 1 to one below input-len",
        ),
        (
            &["--input-len=1", "--dataset=prefix"],
            &[],
            "prefix-len is 0, which leaves no token of input-len=1 to tell prompts apart, or no prefix; it must be from 1 to one below input-len",
        ),
        (
            &["--prefix-count=4"],
            &[],
            "prefix-count is given, but dataset is `random`, whose prompts share no prefix; set dataset=prefix, or leave it out",
        ),
        (
            &["--least-accuracy=0.9"],
            &[],
            "least-accuracy is 0.9, but the prompts of this dataset have no correct answers; set dataset=jsonl with \"answer\" in its lines, dataset=arithmetic, or leave it out",
        ),
        (
            &["--dataset=sonnet", "--dataset-path=x"],
            &[],
            "dataset-path is given, but dataset is `sonnet`, which reads no file; set dataset=jsonl or dataset=sharegpt, or leave it out",
        ),
        (
            &["--dataset=sonnet", "--random-range-ratio=0.1"],
            &[],
            "random-range-ratio is 0.1, but dataset is not `random`, and its prompts have lengths of their own; leave it out",
        ),
        (&["--ignore-eos", "maybe"], &[], "ignore-eos is `maybe` (flag --ignore-eos), but it must be true or false"),
        (
            &["--metrics-address=localhost"],
            &[],
            "metrics-address is `localhost` (flag --metrics-address), but it must be an IP address such as 0.0.0.0 or ::",
        ),
        (
            &["--run-name=a\nb"],
            &[],
            "run-name is `a\\nb` (flag --run-name), but it must not hold line breaks or other control characters",
        ),
        (
            &["--run-name=https://host/p/s3cr3t/n/ns/b/x/o/"],
            &[],
            "run-name is `https://host/p/<redacted>/n/ns/b/x/o/` (flag --run-name), but it holds a Pre-Authenticated \
             Request, which is a secret and belongs into par alone",
        ),
        (&["--results-dir="], &[], "results-dir is empty (flag --results-dir), but it must be a path"),
        // References that nobody resolved.
        (
            &["--tokenizer", "$(tokenizer)"],
            &[],
            "tokenizer is the unresolved reference `$(tokenizer)` (flag --tokenizer): there is no environment variable \
             `tokenizer`; set it, or write the value itself",
        ),
        (
            &["--dtype", "$(dtype)"],
            &[("dtype", "auto")],
            "dtype is the unresolved reference `$(dtype)` (flag --dtype): the variable is set, but only Kubernetes puts it \
             in; write the value itself, or leave --dtype out",
        ),
        (
            &[],
            &[("mlflow-uri", "http://$(MLFLOW_HOST)")],
            "mlflow-uri is the unresolved reference `$(MLFLOW_HOST)` (variable mlflow-uri): there is no environment \
             variable `MLFLOW_HOST`; set it, or write the value itself",
        ),
        (
            &[],
            &[("par", "$(PAR_URL)")],
            "par is the unresolved reference `$(PAR_URL)` (variable par): there is no environment variable `PAR_URL`; set \
             it, or write the value itself",
        ),
        // The same key twice.
        (
            &[],
            &[("input-len", "1"), ("INPUT_LEN", "2")],
            "input-len is given twice with different values: `1` (variable input-len) and `2` (variable INPUT_LEN); keep \
             one of them",
        ),
        (&["--seed=1", "--seed", "2"], &[], "seed is given twice with different values: `1` and `2`; keep one of them"),
        (
            &["--output-len=1", "--output_len=2"],
            &[],
            "output-len is given twice with different values: `1` and `2`; keep one of them",
        ),
        // Values that do not go together.
        (
            &["--input-len=100", "--output-len=29", "--max-model-len=128"],
            &[],
            "input-len 100 + output-len 29 = 129 is above max-model-len 128; lower one of the two or raise max-model-len",
        ),
        (
            &["--dataset=jsonl", "--dataset-path=x", "--output-len=128", "--max-model-len=128"],
            &[],
            "output-len 128 leaves no room for a prompt in max-model-len 128; lower the one or raise the other",
        ),
        (
            &["--tensor-parallel-size=4"],
            &[("recipe_nvidia_gpu_count", "2")],
            "tensor-parallel-size is 4, above recipe-nvidia-gpu-count, which is 2; each rank needs a GPU of its own",
        ),
        (
            &["--data-parallel-size=3"],
            &[("recipe_nvidia_gpu_count", "2")],
            "data-parallel-size is 3, above recipe-nvidia-gpu-count, which is 2; each rank needs a GPU of its own",
        ),
        (
            &["--data-parallel-size=2", "--tensor-parallel-size=2"],
            &[("recipe_nvidia_gpu_count", "3")],
            "data-parallel-size is 2 and tensor-parallel-size 2, together 4 ranks, above recipe-nvidia-gpu-count, which is 3; each rank \
             needs a GPU of its own",
        ),
        (&["--dataset=jsonl"], &[], "dataset is `jsonl`, but dataset-path is missing; give the file of JSON lines"),
        (
            &["--dataset-path=x"],
            &[],
            "dataset-path is given, but dataset is `random`, which reads no file; set dataset=jsonl or dataset=sharegpt, or \
             leave it out",
        ),
        (
            &["--dataset=sharegpt"],
            &[],
            "dataset is `sharegpt`, but dataset-path is missing; give the JSON file of conversations",
        ),
        (
            &["--dataset=sharegpt", "--dataset-path=x", "--random-range-ratio=0.5"],
            &[],
            "random-range-ratio is 0.5, but dataset is not `random`, and its prompts have lengths of their own; leave it out",
        ),
        (
            &["--input-len=100", "--output-len=20", "--random-range-ratio=0.1", "--max-model-len=128"],
            &[],
            "input-len 110 + output-len 22 = 132 (the longest of random-range-ratio) is above max-model-len 128; lower one \
             of the two or raise max-model-len",
        ),
        (
            &["--max-num-seqs=8", "--max-num-batched-tokens=4"],
            &[],
            "max-num-batched-tokens is 4, below max-num-seqs, which is 8; each sequence needs a token in a step, so raise \
             the one or lower the other",
        ),
        // Storage.
        (
            &["--par=https://host/n/ns/b/x/o/"],
            &[],
            "par (flag --par) cannot be used: it is not a Pre-Authenticated Request: its path is not \
             /p/TOKEN/n/NAMESPACE/b/BUCKET/o/ (found `/n/ns/b/x/o/`)",
        ),
        (
            &["--par=models"],
            &[],
            "par (flag --par) cannot be used: it is not a Pre-Authenticated Request: it is not a URL (relative URL without \
             a base)",
        ),
        (
            &[],
            &[("PAR", "https://mlflow.example.com")],
            "par (variable PAR) cannot be used: it is not a Pre-Authenticated Request: its path is not \
             /p/TOKEN/n/NAMESPACE/b/BUCKET/o/ (found no path)",
        ),
        (
            &["--par=https://<YOUR_PAR>"],
            &[],
            "par (flag --par) cannot be used: it is a placeholder; put the URL of your Pre-Authenticated Request there",
        ),
        (
            &["--par="],
            &[],
            "par (flag --par) cannot be used: it is empty; give the URL of a Pre-Authenticated Request, or leave it out",
        ),
        (
            &["--mount-location=models"],
            &[],
            "mount-location is `models` (flag --mount-location), but it must be an absolute path such as /models",
        ),
        (
            &["--mount-location=/"],
            &[],
            "mount-location is `/` (flag --mount-location), but it belongs to the system; choose a directory of its own \
             such as /models",
        ),
        (
            &["--mount-location=/dev/shm/x"],
            &[],
            "mount-location is `/dev/shm/x` (flag --mount-location), but it belongs to the system; choose a directory of \
             its own such as /models",
        ),
        (
            &["--mount-location=/a/../b"],
            &[],
            "mount-location is `/a/../b` (flag --mount-location), but it must not contain `..`",
        ),
        (
            &["--include=a"],
            &[],
            "include (flag --include) belongs to a bucket, but there is no par; give the bucket's Pre-Authenticated \
             Request too",
        ),
        (
            &["--input_object_storage=[{]"],
            &[],
            "input-object-storage (flag --input-object-storage) cannot be used: it is not JSON: key must be a string at \
             line 1 column 3",
        ),
        (
            &["--input_object_storage=3"],
            &[],
            "input-object-storage (flag --input-object-storage) cannot be used: it must be a JSON list of objects",
        ),
        (
            &[],
            &[("input_object_storage", "[\"https://host/p/s3cr3t/n/ns/b/x/o/\"]")],
            "input-object-storage (variable input_object_storage) cannot be used: entry 0 must be a JSON object",
        ),
        (
            &[r#"--input_object_storage=[{"mount_loc":"/x"}]"#],
            &[],
            "input-object-storage (flag --input-object-storage) cannot be used: entry 0 has the unknown field `mount_loc`; \
             did you mean mount_location?",
        ),
        (
            &[r#"--input_object_storage=[{"mount_location":"x"}]"#],
            &[],
            "input-object-storage (flag --input-object-storage) cannot be used: mount_location of entry 0: it must be an \
             absolute path such as /models",
        ),
        (
            &[r#"--input_object_storage=[{"mount_location":"/x"},{"mount_location":"/x/"}]"#],
            &[],
            "input-object-storage (flag --input-object-storage) cannot be used: entries 0 and 1 have the same \
             mount_location `/x`; give each its own",
        ),
        (
            &[r#"--input_object_storage=[{"mount_location":"/x/y"},{"mount_location":"/x"}]"#],
            &[],
            "input-object-storage (flag --input-object-storage) cannot be used: mount_location `/x/y` of entry 0 lies \
             inside `/x` of entry 1; keep them apart",
        ),
        (
            &["--input_object_storage=[]"],
            &[("mount_location", "/x")],
            "input-object-storage (flag --input-object-storage) and mount-location (variable mount_location) are both \
             given; say it one way only",
        ),
        (
            &["--output-par=https://host/p/s3cr3t/n/ns/b/x/o/file"],
            &[],
            "output-par (flag --output-par) cannot be used: it is the Pre-Authenticated Request of one object; give one of \
             a bucket or prefix",
        ),
        (
            &["--output-prefix=x"],
            &[],
            "output-prefix is given, but there is no output-par for it to stand in; give both or neither",
        ),
        (
            &["--output_object_storage=[{},{}]"],
            &[],
            "output-object-storage (flag --output-object-storage) cannot be used: it has 2 entries, but results go to one \
             place",
        ),
        // MLflow.
        (
            &["--mlflow-uri=https://host/p/s3cr3t/n/ns/b/x/o/"],
            &[],
            "mlflow-uri is `https://host/p/<redacted>/n/ns/b/x/o/` (flag --mlflow-uri), but it is a Pre-Authenticated \
             Request; that belongs into par, and here the MLflow server",
        ),
        (
            &["--mlflow-uri=mlflow:5000"],
            &[],
            "mlflow-uri is `mlflow:5000` (flag --mlflow-uri), but it has no scheme; write http:// or https:// before it",
        ),
        (
            &["--mlflow-uri=https://<YOUR_MLFLOW_URL>"],
            &[],
            "mlflow-uri is `https://<YOUR_MLFLOW_URL>` (flag --mlflow-uri), but it is a placeholder; put the address of \
             your MLflow server there",
        ),
        (
            &["--mlflow-uri="],
            &[],
            "mlflow-uri is empty (flag --mlflow-uri), but it must be the address of an MLflow server, or none",
        ),
        (
            &[],
            &[("MLFLOW_TRACKING_URI", "sqlite:///x.db")],
            "MLFLOW_TRACKING_URI is `sqlite:///x.db` (variable MLFLOW_TRACKING_URI), but it must begin with http:// or \
             https://: flashjob records runs on a tracking server only",
        ),
        (&["--mlflow-uri=https:///x"], &[], "mlflow-uri is `https:///x` (flag --mlflow-uri), but it names no host"),
        (
            &["--mlflow-uri=https://h/#/experiments/1"],
            &[],
            "mlflow-uri is `https://h/#/experiments/1` (flag --mlflow-uri), but it has a query or a fragment; give the \
             server's address alone, not that of a page",
        ),
        (
            &["--mlflow-uri=https://me@h/"],
            &[],
            "mlflow-uri is `https://<redacted>@h/` (flag --mlflow-uri), but it has a user name without a password",
        ),
        (
            &["--mlflow-uri=http://h"],
            &[("MLFLOW_TRACKING_USERNAME", "me")],
            "MLFLOW_TRACKING_USERNAME is set without MLFLOW_TRACKING_PASSWORD; set both or neither",
        ),
        (
            &["--mlflow-uri=http://a:b@h"],
            &[("MLFLOW_TRACKING_USERNAME", "me"), ("MLFLOW_TRACKING_PASSWORD", "s3cr3t")],
            "mlflow-uri holds one login, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD another; keep one of them",
        ),
        (
            &["--mlflow-uri=http://h"],
            &[("MLFLOW_TRACKING_TOKEN", "s3c\nr3t")],
            "MLFLOW_TRACKING_TOKEN (variable MLFLOW_TRACKING_TOKEN) cannot be used: it holds a line break or another \
             character that no HTTP header can carry",
        ),
        (
            &["--mlflow-uri=http://h"],
            &[("MLFLOW_TRACKING_INSECURE_TLS", "yes")],
            "MLFLOW_TRACKING_INSECURE_TLS is `yes` (variable MLFLOW_TRACKING_INSECURE_TLS), but it must be true or false",
        ),
        (
            &["--mlflow-uri=http://h"],
            &[("MLFLOW_TRACKING_INSECURE_TLS", "1"), ("MLFLOW_TRACKING_SERVER_CERT_PATH", "ca.pem")],
            "MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set; a certificate is checked or \
             it is not, so keep one of them",
        ),
        // The command line.
        (&["--frobnicate=1"], &[], "--frobnicate is not a flag of flashjob; see --help"),
        (&["--imput-len", "3"], &[], "--imput-len is not a flag of flashjob; did you mean --input-len?"),
        (&["-x"], &[], "-x is not a flag of flashjob; see --help"),
        (&["--input-len", "--output-len", "3"], &[], "--input-len needs a value, but is followed by `--output-len`"),
        (&["--input-len"], &[], "--input-len needs a value"),
        (&["check"], &[], "put check before the flags: flashjob check --model …"),
        (
            &["frob"],
            &[],
            "`frob` is neither a flag nor a command; the commands are run, check, verify, profile, publish, compare, report, render, validate, completions",
        ),
        (&["--blueprint=absent.json"], &[], "the blueprint `absent.json` cannot be read: entity not found"),
    ];
    assert!(table.len() >= 40);
    for (words, variables, sentence) in table {
        let words: Vec<&str> = ["--model", "m"].iter().chain(words.iter()).copied().collect();
        assert_eq!(errors(&words, variables, &[]), [*sentence], "{words:?} {variables:?}");
    }
}

#[test]
fn wrong_commands_get_one_sentence_each() {
    for (words, sentence) in [
        (&[] as &[&str], "model is missing: give it as --model or as the variable model"),
        (&["--modle", "m"], "--modle is not a flag of flashjob; did you mean --model?"),
        (
            &["--model", "https://host/p/s3cr3t/n/ns/b/x/o/"],
            "model is `https://host/p/<redacted>/n/ns/b/x/o/` (flag --model), but it must be a path, not a URL",
        ),
        (&["runn"], "`runn` is neither a flag nor a command; did you mean run?"),
        (
            &["run", "x"],
            "`x` is neither a flag nor a command; the commands are run, check, verify, profile, publish, compare, report, render, validate, completions",
        ),
        (&["publish"], "<DIR> is missing; see --help"),
        (&["publish", "results", "--model=m"], "--model does not belong to this command; see --help"),
        (&["completions"], "<SHELL> is missing; see --help"),
        (&["completions", "cmd"], "`cmd` is not one of bash, elvish, fish, powershell, zsh"),
    ] {
        assert_eq!(errors(words, &[], &[]), [sentence], "{words:?}");
    }
}

#[test]
fn all_mistakes_are_said_at_once() {
    let words = ["--modle=m", "--input-len=0", "--dtype=int4", "--max-model-len=10", "--par=x", "--top-p"];
    let keys = ["--modle", "--top-p", "dtype", "input-len", "par"];
    let said = errors(&words, &[("OUTPUT_LEN", "none"), ("seed", "x")], &[]);
    for key in keys.iter().chain(&["output-len", "seed"]) {
        assert_eq!(said.iter().filter(|sentence| sentence.starts_with(key)).count(), 1, "{key} in {said:#?}");
    }
    // And nothing that only follows from them, such as a sum with a wrong input-len.
    assert_eq!(said.len(), 7, "{said:#?}");
    let checked = check(&["--input-len=0", "--seed=7"], &[]);
    assert!(checked.job.is_none());
    assert_eq!(checked.errors.len(), 2, "{:?}", checked.errors);
    let seed = checked.settings.iter().find(|setting| setting.key == "seed");
    assert_eq!(seed.map(ToString::to_string).as_deref(), Some("seed = 7 (flag)"), "what could be resolved is shown");
}

#[test]
fn bytes_that_are_not_text_are_refused_only_where_they_are_ours() {
    let bad = || OsString::from_vec(b"a\xff".to_vec());
    let with = |prefix: &str| OsString::from_vec([prefix.as_bytes(), b"\xff"].concat());
    let parse = |words: Vec<OsString>, variables: Vec<(OsString, OsString)>| {
        let words = ["--model".into(), "m".into()].into_iter().chain(words);
        config_parser::parse(words, variables.into_iter(), &|_| Ok(Vec::new()))
    };
    for (words, variables, sentence) in [
        (
            vec!["--run-name".into(), bad()],
            vec![],
            "flag --run-name is not UTF-8 text (`a\u{fffd}`); write it in UTF-8",
        ),
        (vec![with("--run_name=x")], vec![], "flag --run-name is not UTF-8 text (`x\u{fffd}`); write it in UTF-8"),
        (vec![with("--par=s3cr3t")], vec![], "flag --par is not UTF-8 text (a value not shown); write it in UTF-8"),
        (vec![bad()], vec![], "argument 3 is not UTF-8 text (`a\u{fffd}`); write it in UTF-8"),
        (
            vec![],
            vec![("run-name".into(), bad())],
            "variable run-name is not UTF-8 text (`a\u{fffd}`); write it in UTF-8",
        ),
        (vec![], vec![("PAR".into(), bad())], "variable PAR is not UTF-8 text (a value not shown); write it in UTF-8"),
    ] {
        match parse(words, variables) {
            Err(Stop::Invalid(errors)) => {
                assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [sentence]);
            }
            other => panic!("{sentence}: {other:?}"),
        }
    }
    assert!(parse(vec![], vec![("LS_COLORS".into(), bad()), (bad(), "x".into())]).is_ok());
}
