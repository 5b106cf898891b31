//! The one list of keys: names, help, defaults. Flags, variables and blueprints all fill it.
//!
//! [`Texts`] is what one source says (clap and serde derive both readers from the same fields);
//! [`Raw`] is what all sources say together, each value with its origin. Nothing here judges a value.

use std::sync::LazyLock;

use flashjob_config::Origin;

use super::slot::{Given, Preset, Reach, Slot};

macro_rules! keys {
    (
        everyone { $($(#[$meta:meta])* $field:ident = $preset:expr;)* }
        variables { $($(#[doc = $doc:literal])* $variable:ident = $name:literal;)* }
    ) => {
        /// Values of one source: text by key.
        #[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
        #[serde(default)]
        pub(super) struct Texts {
            $($(#[$meta])* #[arg(long)] pub $field: Option<String>,)*
            $($(#[doc = $doc])* #[arg(skip)] pub $variable: Option<String>,)*
        }

        /// Values of all sources together.
        #[derive(Clone, Debug)]
        pub(super) struct Raw {
            $(pub $field: Slot,)*
            $(pub $variable: Slot,)*
        }

        impl Default for Raw {
            fn default() -> Self {
                Self {
                    $($field: Slot { field: stringify!($field), preset: $preset, given: None },)*
                    $($variable: Slot {
                        field: stringify!($variable), preset: Preset::Decided("not set"), given: None,
                    },)*
                }
            }
        }

        impl Raw {
            /// The slot of a field that all sources may give.
            pub fn slot_mut(&mut self, field: &str) -> Option<&mut Slot> {
                match field {
                    $(stringify!($field) => Some(&mut self.$field),)*
                    _ => None,
                }
            }

            /// Takes from `texts` what no source before it gave; `origin` says where each field's text was found.
            pub fn fill(&mut self, texts: Texts, origin: impl Fn(&'static str) -> Origin) {
                let fill = |slot: &mut Slot, text: Option<&str>| {
                    if slot.given.is_none() && let Some(text) = text {
                        slot.given = Some(Given { text: text.to_owned(), origin: origin(slot.field) });
                    }
                };
                // A file in a Kubernetes secret often ends its line; a password may well end in a space.
                $(fill(&mut self.$field, texts.$field.as_deref().map(str::trim));)*
                $(fill(&mut self.$variable, texts.$variable.as_deref().map(|text| text.trim_end_matches(['\r', '\n'])));)*
            }

        }

        /// Every key: its field, its default and who may give it.
        pub(super) const KEYS: &[(&str, Preset, Reach)] = &[
            $((stringify!($field), $preset, Reach::Everyone),)*
            $((stringify!($variable), Preset::Decided("not set"), Reach::Variable($name)),)*
        ];

        /// Purposes of the keys that are variables only, by variable.
        pub(super) const VARIABLES: &[(&str, &str)] = &[$(($name, concat!($($doc),*)),)*];
    };
}

pub(super) const MODEL: &str = "Model and engine";
pub(super) const WORKLOAD: &str = "Workload";
const SWEEP: &str = "Sweep";
const STORAGE: &str = "Object storage";
const TRACKING: &str = "Results and tracking";
const WATCHING: &str = "Metrics and logs";
const BLUEPRINT: &str = "Blueprint";

use Preset::{Decided, Required, Text};

/// The key of `field` as it is written in messages.
pub(super) fn shown(field: &str) -> String {
    field.replace('_', "-")
}

/// The heading of the key of `field` in the help text.
pub(super) fn heading(field: &str) -> Option<&'static str> {
    // Asked of clap, which has read the attributes: the table itself cannot see into them.
    static HEADINGS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
        let command = <Texts as clap::Args>::augment_args(clap::Command::new("keys"));
        let heading = |arg: &clap::Arg| Some((arg.get_id().to_string(), arg.get_help_heading()?.to_owned()));
        command.get_arguments().filter_map(heading).collect()
    });
    HEADINGS.iter().find(|(known, _)| known == field).map(|(_, heading)| heading.as_str())
}

keys! {
    everyone {
        /// Engine that runs the job, and no other: candle (ours), vllm or sglang
        #[arg(value_name = "ENGINE", help_heading = MODEL)]
        backend = Text("candle");
        /// Where the engine runs: auto, cpu or cuda
        #[arg(value_name = "DEVICE", help_heading = MODEL)]
        device = Text("auto");
        /// Model directory in Hugging Face layout or GGUF file, relative to the mount location or absolute
        #[arg(value_name = "PATH", help_heading = MODEL)]
        model = Required;
        /// Directory or file of the tokenizer, like model
        #[arg(value_name = "PATH", help_heading = MODEL)]
        tokenizer = Decided("the model");
        /// Number format of weights that are not quantised, and of the KV cache: auto (the checkpoint's), float16 (half), bfloat16 or
        /// float32 (float); weights of 16 bits stay so in memory under float32, being the same numbers
        #[arg(value_name = "DTYPE", help_heading = MODEL)]
        dtype = Text("auto");
        /// Format of quantised weights in memory: auto (the checkpoint's, on a CPU; widened when they are multiplied) or none
        /// (dequantised to dtype while they are loaded, as always on GPUs)
        #[arg(value_name = "FORMAT", help_heading = MODEL)]
        quantization = Text("auto");
        /// Ranks that share a model, on all nodes together
        #[arg(value_name = "RANKS", help_heading = MODEL)]
        tensor_parallel_size = Decided("the fewest GPUs that leave room for a useful KV cache, 1 on a CPU; with LWS_GROUP_SIZE all visible GPUs of each node");
        /// Engines that each hold the whole model, on tensor-parallel-size GPUs each, and share the requests; not with LWS_GROUP_SIZE
        #[arg(value_name = "ENGINES", help_heading = MODEL)]
        data_parallel_size = Decided("visible GPUs / tensor-parallel-size, 1 on a CPU");
        /// Port on which the leader of several nodes that share the model (LWS_GROUP_SIZE) waits for the others
        #[arg(value_name = "PORT", help_heading = MODEL)]
        group_port = Text("29500");
        /// Time for which nodes that share the model wait for each other, in seconds or with a unit (10m)
        #[arg(value_name = "DURATION", help_heading = MODEL)]
        group_timeout = Text("600");
        /// Longest prompt plus output
        #[arg(value_name = "TOKENS", help_heading = MODEL)]
        max_model_len = Decided("the model's");
        /// Share of free device memory for weights, activations and KV cache
        #[arg(value_name = "SHARE", help_heading = MODEL)]
        gpu_memory_utilization = Text("0.9");
        /// Memory for the KV cache of each GPU, or of all engines on a CPU, in bytes or with a unit (4GiB)
        #[arg(value_name = "BYTES", help_heading = MODEL)]
        kv_cache_memory = Decided("what gpu-memory-utilization leaves");
        /// Sequences in one step of an engine at most
        #[arg(value_name = "SEQUENCES", help_heading = MODEL)]
        max_num_seqs = Decided("best for the device");
        /// Tokens in one step of an engine at most
        #[arg(value_name = "TOKENS", help_heading = MODEL)]
        max_num_batched_tokens = Decided("best for the device");
        /// Compute equal beginnings of prompts once; each region begins with nothing to find
        #[arg(value_name = "BOOL", help_heading = MODEL)]
        enable_prefix_caching = Decided("true for a batch, false otherwise");
        /// Order in which waiting requests run: that of the input, prefix (prompts that begin alike one after the other) or longest
        /// (prompt and output together; shortens the end of a run)
        #[arg(value_name = "ORDER", help_heading = MODEL)]
        schedule = Text("input");
        /// On GPUs, launch every kernel of every step instead of replaying recorded steps (CUDA graphs)
        #[arg(value_name = "BOOL", help_heading = MODEL)]
        enforce_eager = Text("false");
        /// Tokens of a request do not depend on what else is in its batch: so it is on a CPU; on GPUs it costs speed
        #[arg(value_name = "BOOL", help_heading = MODEL)]
        deterministic = Text("false");
        /// Tokens in a block of the KV cache, a multiple of 32
        #[arg(value_name = "TOKENS", help_heading = MODEL)]
        block_size = Text("32");
        /// CPU threads
        #[arg(value_name = "THREADS", help_heading = MODEL)]
        threads = Decided("the container's CPU quota");
        /// Look for NaN and infinities in the weights while loading
        #[arg(value_name = "BOOL", help_heading = MODEL)]
        validate_weights = Text("false");
        /// Measure what the processors can do, before the run and after it, in about a second each: the roofline of the result
        #[arg(value_name = "BOOL", help_heading = MODEL)]
        measure_limits = Text("true");
        /// Longest time that a step may take before the job ends with 5, in seconds or with a unit (2m); auto is 60 s, 50 median
        /// steps or 4 longest steps, whichever is most
        #[arg(value_name = "DURATION", help_heading = MODEL)]
        step_timeout_seconds = Text("auto");
        /// Arguments of vLLM's own for backend=vllm: a JSON object, or words like --kv-cache-dtype=fp8
        #[arg(value_name = "ARGUMENTS", help_heading = MODEL)]
        vllm_args = Decided("none");
        /// Arguments of SGLang's own for backend=sglang: a JSON object, or words like --attention-backend=fa3
        #[arg(value_name = "ARGUMENTS", help_heading = MODEL)]
        sglang_args = Decided("none");

        /// Source of prompts: random tokens, random tokens behind shared prefixes (prefix), lines of sonnets (sonnet), a file of
        /// conversations (sharegpt) or of requests (jsonl), or sums with their results (arithmetic)
        #[arg(value_name = "DATASET", help_heading = WORKLOAD)]
        dataset = Text("random");
        /// For dataset=sharegpt a JSON array of conversations; for dataset=jsonl lines with {"prompt": "…"}, an OpenAI batch, or a
        /// Parquet table: a file (.gz and .zst as well), a folder, or a pattern
        #[arg(value_name = "PATH", help_heading = WORKLOAD)]
        dataset_path = Decided("not set");
        /// For dataset=jsonl, fields that have other names there: words like prompt=question id=row_id
        #[arg(value_name = "WORDS", help_heading = WORKLOAD)]
        dataset_columns = Decided("none");
        /// Tokens in each prompt of random, prefix and sonnet
        #[arg(value_name = "TOKENS", help_heading = WORKLOAD)]
        input_len = Text("128");
        /// Tokens to generate for each request that does not say itself, as lines of jsonl may with max_tokens, and the
        /// replies of sharegpt do unless this is given
        #[arg(value_name = "TOKENS", help_heading = WORKLOAD)]
        output_len = Text("128");
        /// How far the lengths of random prompts and of their outputs spread evenly around input-len and output-len, as a
        /// share of them: 0.25 is from three quarters to five quarters
        #[arg(value_name = "SHARE", help_heading = WORKLOAD)]
        random_range_ratio = Text("0");
        /// For dataset=prefix, different prefixes
        #[arg(value_name = "PREFIXES", help_heading = WORKLOAD)]
        prefix_count = Decided("8 for prefix");
        /// For dataset=prefix, tokens of input-len that are prefix
        #[arg(value_name = "TOKENS", help_heading = WORKLOAD)]
        prefix_len = Decided("half of input-len for prefix");
        /// For dataset=prefix, share of the prompts that begin with one of the prefixes
        #[arg(value_name = "SHARE", help_heading = WORKLOAD)]
        prefix_share = Decided("1 for prefix");
        /// Requests; of a dataset the first ones
        #[arg(value_name = "REQUESTS", help_heading = WORKLOAD)]
        num_prompts = Decided("64, or all of a file");
        /// Replicas that share the prompts, as many as an Indexed Job has completions; JOB_COMPLETION_INDEX says which of them
        /// this process is
        #[arg(value_name = "REPLICAS", help_heading = WORKLOAD)]
        replica_count = Decided("recipe-replica-count, else 1");
        /// Requests before the measured region, each of 8 tokens at most; auto runs full batches until step times are stable and
        /// each step size has been seen
        #[arg(value_name = "REQUESTS", help_heading = WORKLOAD)]
        warmup = Decided("0 for jsonl and arithmetic, 1 otherwise");
        /// Measured regions, each with a seed of its own and an empty prefix cache, and the 95 % interval of their mean; 0 goes on
        /// until it is within 2 % of output_tokens_per_second, with 3 to 10 regions
        #[arg(value_name = "REGIONS", help_heading = WORKLOAD)]
        repeats = Text("1");
        /// Share of correct answers below which the run fails with exit code 7; lines of jsonl say what is correct with "answer"
        #[arg(value_name = "SHARE", help_heading = WORKLOAD)]
        least_accuracy = Decided("none");
        /// Seed of prompts and sampling
        #[arg(value_name = "NUMBER", help_heading = WORKLOAD)]
        seed = Text("0");
        /// Sampling temperature; 0 takes the likeliest token
        #[arg(value_name = "NUMBER", help_heading = WORKLOAD)]
        temperature = Text("0");
        /// Keep the likeliest tokens up to this probability; 1 keeps all
        #[arg(value_name = "SHARE", help_heading = WORKLOAD)]
        top_p = Text("1");
        /// Keep this many of the likeliest tokens; 0 and -1 keep all
        #[arg(value_name = "TOKENS", help_heading = WORKLOAD)]
        top_k = Text("0");
        /// Generate exactly output-len tokens, whatever the model says
        #[arg(value_name = "BOOL", help_heading = WORKLOAD)]
        ignore_eos = Decided("false for jsonl and arithmetic, true otherwise");
        /// Which prompts go through the model's chat template: auto (conversations: messages, and sharegpt where there is
        /// a template), always (a bare prompt too, as what a user says) or never
        #[arg(value_name = "WHEN", help_heading = WORKLOAD)]
        apply_chat_template = Text("auto");
        /// What becomes of the job when its dataset holds something that cannot be run: fail, or skip (reported, counted, and
        /// answered with an error)
        #[arg(value_name = "ACTION", help_heading = WORKLOAD)]
        on_bad_input = Decided("skip for a batch, fail otherwise");
        /// For a batch, lines whose answers share a file, outputs/outputs-00000.jsonl and so on
        #[arg(value_name = "LINES", help_heading = WORKLOAD)]
        shard_lines = Decided("10000, or a quarter of a replica's share of a batch");
        /// For a batch, order of the answers in a file: that of the input, or any, in which they come
        #[arg(value_name = "ORDER", help_heading = WORKLOAD)]
        output_order = Decided("input for a batch");
        /// For a batch, lines without an answer beyond which the job ends with exit code 5
        #[arg(value_name = "LINES", help_heading = WORKLOAD)]
        max_errors = Decided("unlimited");

        /// Values of some keys to run one after the other, in all combinations: KEY=VALUE,VALUE words or JSON (docs/sweeps.md)
        #[arg(value_name = "WORDS", help_heading = SWEEP)]
        sweep = Decided("none: one run");
        /// List the combinations of the sweep and what of the engine each sets up anew, and run none
        #[arg(value_name = "BOOL", help_heading = SWEEP)]
        dry_run = Text("false");

        /// JSON list of {"par", "mount_location", "volume_size_in_gbs", "include", "exclude"}
        #[arg(value_name = "JSON", help_heading = STORAGE)]
        input_object_storage = Decided("none: the model must already be there");
        /// Pre-Authenticated Request of the bucket, prefix or object to mount (the short form for one input)
        #[arg(value_name = "URL", help_heading = STORAGE)]
        par = Decided("none");
        /// Absolute directory at which the bucket's files appear; without par, one that is already there
        #[arg(value_name = "DIR", help_heading = STORAGE)]
        mount_location = Text("/models");
        /// Local disk that the input may take at most, in GB
        #[arg(value_name = "GB", help_heading = STORAGE)]
        volume_size_in_gbs = Decided("no limit");
        /// Name prefixes to show, separated by commas or as a JSON list
        #[arg(value_name = "PREFIXES", help_heading = STORAGE)]
        include = Decided("all");
        /// Name prefixes to hide, also out of include
        #[arg(value_name = "PREFIXES", help_heading = STORAGE)]
        exclude = Decided("none");
        /// How a bucket becomes files: auto (FUSE, a copy where it is refused), fuse or copy
        #[arg(value_name = "MODE", help_heading = STORAGE)]
        mount_mode = Text("auto");
        /// Memory for blocks of mounted files, in MB
        #[arg(value_name = "MB", help_heading = STORAGE)]
        mount_memory_mb = Decided("a share of the memory limit");
        /// Number of a descriptor of /dev/fuse that this process is started with, mounted at mount-location already
        #[arg(value_name = "NUMBER", help_heading = STORAGE)]
        mount_descriptor = Decided("none: the mount is made here");
        /// Directory in which blocks of mounted files are kept between runs, at most volume-size-in-gbs of them; any
        /// number of jobs may share it
        #[arg(value_name = "DIR", help_heading = STORAGE)]
        cache_dir = Decided("none: nothing is kept");
        /// How long an unreachable bucket is tried again, in seconds or with a unit (5m)
        #[arg(value_name = "DURATION", help_heading = STORAGE)]
        storage_timeout = Text("300");
        /// JSON list with one {"par", "prefix"} that takes results-dir at the end
        #[arg(value_name = "JSON", help_heading = STORAGE)]
        output_object_storage = Decided("none: results stay in results-dir");
        /// Writable Pre-Authenticated Request that takes the results (the short form)
        #[arg(value_name = "URL", help_heading = STORAGE)]
        output_par = Decided("none");
        /// Put before the name of each uploaded result
        #[arg(value_name = "PREFIX", help_heading = STORAGE)]
        output_prefix = Decided("none");

        /// MLflow tracking server, http:// or https://; none keeps results local
        #[arg(value_name = "URL", help_heading = TRACKING)]
        mlflow_uri = Decided("MLFLOW_TRACKING_URI, else results stay local");
        /// MLflow experiment, made when missing
        #[arg(value_name = "NAME", help_heading = TRACKING)]
        experiment_name = Decided("MLFLOW_EXPERIMENT_NAME, else flashjob");
        /// Name of the MLflow run
        #[arg(value_name = "NAME", help_heading = TRACKING)]
        run_name = Decided("made from model, device and time");
        /// Directory in which results are written before anything is sent
        #[arg(value_name = "DIR", help_heading = TRACKING)]
        results_dir = Text("results");
        /// Price of one node an hour, for the cost per million tokens
        #[arg(value_name = "PRICE", help_heading = TRACKING)]
        price_per_hour = Decided("not set");

        /// Port of /metrics, /healthz and /readyz; 0 takes a free one
        #[arg(value_name = "PORT", help_heading = WATCHING)]
        metrics_port = Decided("recipe-container-port, else 8000");
        /// Address on which they listen
        #[arg(value_name = "IP", help_heading = WATCHING)]
        metrics_address = Text("0.0.0.0");
        /// Time that metrics stay up at the end for a last scrape: seconds, or auto, which is 35 s where a scraper has come or a
        /// container orchestrator runs the job, and no time at a terminal and elsewhere
        // The interval of kube-prometheus-stack, which the blueprint platform ships, is 30 s; a scrape may be a little
        // late. The wait ends with the scrape, so that only an unwatched job waits this long.
        #[arg(value_name = "SECONDS", help_heading = WATCHING)]
        metrics_linger_seconds = Text("auto");
        /// Log lines: auto (text on a terminal, JSON otherwise), text or json
        #[arg(value_name = "FORMAT", help_heading = WATCHING)]
        log_format = Text("auto");
        /// Where the result or the error is left for Kubernetes, if that file is there; none writes nothing
        #[arg(value_name = "FILE", help_heading = WATCHING)]
        termination_message_path = Text("/dev/termination-log");

        /// AI Blueprints JSON file that fills whatever flags and variables leave open
        #[arg(value_name = "FILE", help_heading = BLUEPRINT)]
        blueprint = Decided("none");
        /// Port that the blueprint gives the container
        #[arg(value_name = "PORT", help_heading = BLUEPRINT)]
        recipe_container_port = Decided("not set");
        /// GPUs that the blueprint gives the container: the upper bound of data-parallel-size times tensor-parallel-size
        #[arg(value_name = "GPUS", help_heading = BLUEPRINT)]
        recipe_nvidia_gpu_count = Decided("not set");
        /// Replicas that the blueprint asks for
        #[arg(value_name = "REPLICAS", help_heading = BLUEPRINT)]
        recipe_replica_count = Decided("not set");
    }
    variables {
        /// Tracking server, where mlflow-uri is not given.
        mlflow_tracking_uri = "MLFLOW_TRACKING_URI";
        /// Experiment, where experiment-name is not given.
        mlflow_experiment_name = "MLFLOW_EXPERIMENT_NAME";
        /// User name for basic authentication; with the password it beats the token.
        mlflow_tracking_username = "MLFLOW_TRACKING_USERNAME";
        /// Password for basic authentication.
        mlflow_tracking_password = "MLFLOW_TRACKING_PASSWORD";
        /// Bearer token.
        mlflow_tracking_token = "MLFLOW_TRACKING_TOKEN";
        /// `true` accepts any certificate.
        mlflow_tracking_insecure_tls = "MLFLOW_TRACKING_INSECURE_TLS";
        /// PEM file of the authority that signed the server's certificate.
        mlflow_tracking_server_cert_path = "MLFLOW_TRACKING_SERVER_CERT_PATH";
        /// Workspace on servers that have several.
        mlflow_workspace = "MLFLOW_WORKSPACE";
        /// Which of `replica-count` replicas this is, from 0; Kubernetes sets it in the pods of an Indexed Job.
        job_completion_index = "JOB_COMPLETION_INDEX";
        /// Name or address of the leader of several nodes that share the model; LeaderWorkerSet sets all three in its pods.
        lws_leader_address = "LWS_LEADER_ADDRESS";
        /// Number of nodes that share the model; 1 is an ordinary job.
        lws_group_size = "LWS_GROUP_SIZE";
        /// Rank of this node among them, from 0; the leader has rank 0: it schedules, samples, measures and reports.
        lws_worker_index = "LWS_WORKER_INDEX";
        /// Instruction set of the CPU kernels: `avx512`, `avx2` or `portable`, for tests and comparisons; the widest that the
        /// processor has unless given.
        flashjob_isa = "FLASHJOB_ISA";
        /// The Job's uid: replicas, and another attempt after a killed one, find each other's runs in MLflow by it.
        job_uid = "JOB_UID";
    }
}
