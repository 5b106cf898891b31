//! What a decode step, greedy and sampled, and a mixed one ask of a GPU, call by call, for the shapes of Llama-3.1-8B: committed
//! tables, so that no launch, copy or wait is added unseen.
//!
//! Shapes only: the stand-in neither computes nor copies, the weights are holes in a file, and two layers stand for 32, as every
//! layer but the last, with its fewer rows, launches the same.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::model::golden::directory;
use crate::support::Flashjob as _;
use crate::support::process::Process;

/// `meta-llama/Llama-3.1-8B`, its `config.json`, but for the layers.
const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 14336;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCABULARY: usize = 128_256;
const LAYERS: usize = 32;
/// Those that are loaded.
const LOADED_LAYERS: usize = 2;

const SEQUENCES: usize = 8;

/// A directory in Hugging Face layout whose weights are all zeros that no disk holds.
fn shapes_of_llama(folder: &Path) {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(directory("llama-gqa").join(file), folder.join(file)).unwrap();
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LOADED_LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCABULARY,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN]),
        ("lm_head.weight".into(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..LOADED_LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![q, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, q]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut start = (header.len() as u64).to_le_bytes().to_vec();
    start.extend(header.bytes());
    let path = folder.join("model.safetensors");
    fs::write(&path, &start).unwrap();
    File::options().write(true).open(&path).unwrap().set_len((start.len() + end) as u64).unwrap();
}

/// The trace of a job, by steps: a step begins with its upload.
fn steps(model: &Path, eager: bool, more: &[&str]) -> Vec<Vec<String>> {
    let mut steps: Vec<Vec<String>> = Vec::new();
    let sequences = format!("--num-prompts={SEQUENCES}");
    let arguments = [&["--max-model-len=256", "--input-len=32", &sequences][..], more].concat();
    for line in trace(model, eager, &arguments).lines() {
        // While weights are loaded, too: those have no synchronisation at their ends.
        if line.starts_with("copy-in ") {
            steps.push(Vec::new());
        }
        if let Some(step) = steps.last_mut() {
            step.push(line.to_owned());
        }
    }
    steps
}

fn trace(model: &Path, eager: bool, more: &[&str]) -> String {
    trace_with(model, eager, more, &[])
}

fn trace_with(model: &Path, eager: bool, more: &[&str], variables: &[(&str, &str)]) -> String {
    let results = TempDir::new().unwrap();
    // The job writes to its own directories alone.
    let trace = results.path().join("out/trace");
    let job = Process::flashjob();
    let job = variables.iter().fold(job, |job, (name, value)| job.env(name, value));
    job.args(["--metrics-port=0", "--metrics-linger-seconds=0", "--measure-limits=false", "--results-dir"])
        .args([results.path().join("out")])
        .args(["--model".into(), model.to_owned()])
        .args(["--device=cuda", "--output-len=12", &format!("--enforce-eager={eager}")])
        .args(more)
        .env("LD_LIBRARY_PATH", std::env::var("LD_LIBRARY_PATH").expect("scripts/test-cuda sets LD_LIBRARY_PATH"))
        .env("STAND_IN_DEVICES", "1")
        .env("STAND_IN_SHAPES", "134217728")
        .env("STAND_IN_MEMORY", "80000000000")
        .env("STAND_IN_TRACE", &trace)
        .run()
        .expect_code(0);
    fs::read_to_string(&trace).unwrap()
}

/// How often each call was made, sizes left out.
fn counts<'a>(calls: impl IntoIterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry(call.split(' ').next().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

fn table(title: &str, counts: &BTreeMap<String, usize>) -> String {
    let mut text = format!("{title}\n");
    for (call, count) in counts {
        writeln!(text, "    {call:<20} {count}").unwrap();
    }
    text
}

const NO_LAUNCH: [&str; 4] = ["copy-in", "copy-out", "arrive", "synchronize"];

fn launches(counts: &BTreeMap<String, usize>) -> usize {
    counts.iter().filter(|(call, _)| !NO_LAUNCH.contains(&call.as_str())).map(|(_, count)| count).sum()
}

/// Calls of a step that was launched kernel by kernel.
struct Calls {
    layer: BTreeMap<String, usize>,
    beside: BTreeMap<String, usize>,
}

impl Calls {
    fn of(step: &[String]) -> Self {
        let begins_layer = |call: &&String| call.starts_with("rope_and_cache");
        let layers: Vec<usize> =
            step.iter().enumerate().filter(|(_, call)| begins_layer(call)).map(|(place, _)| place).collect();
        let [first, second] = layers[..] else { panic!("{LOADED_LAYERS} layers, and {layers:?}") };
        let layer = counts(&step[first..second]);
        let beside = counts(step)
            .into_iter()
            .map(|(call, count)| {
                let of_layers = LOADED_LAYERS * layer.get(&call).copied().unwrap_or(0);
                (call, count - of_layers)
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        Self { layer, beside }
    }

    /// Launches of a step of so many layers.
    fn launches(&self, layers: usize) -> usize {
        launches(&self.beside) + layers * launches(&self.layer)
    }

    /// As it is written down, `what` being the step; `reader` goes on with who writes it.
    fn text(&self, what: &str, reader: &str) -> String {
        let mut text = format!(
            "Llama-3.1-8B in bfloat16, {what} on one GPU, as the stand-in driver sees it.\n\
             Written by `BLESS=1 scripts/test-cuda cuda::trace`{reader}.\n\n"
        );
        text += &table(&format!("a layer: {} launches", launches(&self.layer)), &self.layer);
        text += &table(&format!("\nbeside the layers: {} launches", launches(&self.beside)), &self.beside);
        writeln!(text, "\n{LAYERS} layers: {} launches", self.launches(LAYERS)).unwrap();
        text
    }
}

/// Holds `text` to the file with this name, or writes that.
fn hold_to(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "see whether that is meant, then BLESS=1:\n{text}\ninstead of\n{written}");
}

#[test]
fn a_decode_step_of_llama_3_1_8b_makes_the_calls_that_are_written_down() {
    let what = format!("a decode step of {SEQUENCES} sequences");
    hold_decode_step_to("llama-3.1-8b.trace", &what, ", read by scripts/estimate", &[]);
}

#[test]
fn no_logits_leave_the_gpu_in_a_step_whose_tokens_are_sampled() {
    let what = format!("a decode step of {SEQUENCES} sequences with temperature 1 and top-p 0.95");
    let step = hold_decode_step_to("llama-3.1-8b-sampled.trace", &what, "", &["--temperature=1", "--top-p=0.95"]);
    let copied: Vec<&String> = step.iter().filter(|call| call.starts_with("copy-out")).collect();
    assert_eq!(copied, [&format!("copy-out {}", SEQUENCES * size_of::<u32>())], "not the tokens alone");
}

/// The stand-in brings tokens to the host no earlier than it waits for them.
#[test]
fn a_step_is_queued_before_the_tokens_of_the_one_before_it_are_read() {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());
    let text =
        trace(model.path(), false, &["--max-model-len=256", "--input-len=32", &format!("--num-prompts={SEQUENCES}")]);
    // Steps of all sequences, whose tokens go out one step after the other.
    let tokens = SEQUENCES * size_of::<u32>();
    let (mut unread, mut unread_at_replays) = (0, Vec::new());
    for line in text.lines() {
        match line {
            _ if line == format!("copy-out {tokens}") => unread += 1,
            _ if line == format!("arrive {tokens}") => unread -= 1,
            _ if line.starts_with("replay ") => unread_at_replays.push(unread),
            _ => {}
        }
    }
    assert_eq!(unread, 0, "tokens that nobody read");
    assert!(unread_at_replays.ends_with(&[1; 8]), "{unread_at_replays:?}");
}

/// Holds a decode step to the table that is committed as `file`, and returns its calls; `what` is the step, and `reader` goes on with
/// who writes the table.
fn hold_decode_step_to(file: &str, what: &str, reader: &str, sampling: &[&str]) -> Vec<String> {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());

    let launched = steps(model.path(), true, sampling);
    // The last steps decode; the very last one is followed by the end of the program.
    let step = &launched[launched.len() - 2];
    assert_eq!(step, &launched[launched.len() - 3], "no steady state");
    let calls = Calls::of(step);

    let replayed = steps(model.path(), false, sampling);
    let replay = counts(&replayed[replayed.len() - 2]);
    let recorded = calls.launches(LOADED_LAYERS) - 1;
    assert!(replayed[replayed.len() - 2].contains(&format!("replay {recorded}")), "{:?}", replayed[replayed.len() - 2]);

    hold_to(file, &(calls.text(what, reader) + &table("\nreplayed, with enforce-eager=false", &replay)));
    step.clone()
}

/// Prompts of 32 tokens, 64 tokens a step: the second one decodes the first two prompts and goes on with others.
#[test]
fn a_mixed_step_of_llama_3_1_8b_makes_the_calls_that_are_written_down() {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());
    let limits = [format!("--max-num-seqs={SEQUENCES}"), "--max-num-batched-tokens=64".into(), "--warmup=0".into()];
    let steps = steps(model.path(), true, &limits.each_ref().map(String::as_str));
    let attends = |step: &&Vec<String>| step.iter().filter(|call| call.starts_with("attention")).count();
    let step = steps.iter().find(|step| attends(step) == 2 * LOADED_LAYERS).expect("no mixed step");
    let calls = Calls::of(step);
    let what = "a step of 2 sequences that decode and 62 tokens of 2 prompts";
    hold_to("llama-3.1-8b-mixed.trace", &calls.text(what, ""));
}

#[test]
fn the_keys_of_one_long_sequence_are_attended_to_in_parts() {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());
    for (length, in_parts) in [("--input-len=600", true), ("--input-len=100", false)] {
        let text = trace(model.path(), true, &["--max-model-len=1024", "--num-prompts=1", "--warmup=0", length]);
        // What comes before the first weight, the largest, is a check of attention on known numbers.
        let embedding = format!("allocate {}", 2 * VOCABULARY * HIDDEN);
        let (_, steps) = text.split_once(&embedding).expect("the embedding is allocated");
        let joined = steps.lines().filter(|line| line.starts_with("join_parts")).count();
        // The first of 12 tokens comes of the prompt.
        assert_eq!(joined, if in_parts { 11 * LOADED_LAYERS } else { 0 }, "{length}");
    }
}

#[test]
fn a_profiler_sees_phases_steps_and_operations_as_nvtx_ranges() {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());
    let libraries = std::env::var("LD_LIBRARY_PATH").expect("scripts/test-cuda sets LD_LIBRARY_PATH");
    let profiler =
        libraries.split(':').map(|folder| Path::new(folder).join("libstand-in.so")).find(|path| path.exists());
    let profiler = profiler.expect("the stand-in's library").display().to_string();
    let few = ["--max-model-len=64", "--num-prompts=1", "--input-len=8", "--warmup=0"];
    let attached = trace_with(model.path(), true, &few, &[("NVTX_INJECTION64_PATH", &profiler)]);
    let alone = trace(model.path(), true, &few);
    // The same is launched: how weights are copied depends on threads.
    let launches = |text: &str| -> Vec<String> {
        let others = ["range-", "allocate", "free", "copy-", "arrive", "synchronize", "set"];
        let launched = text.lines().filter(|line| !others.iter().any(|other| line.starts_with(other)));
        launched.map(str::to_owned).collect()
    };
    assert_eq!(launches(&attached), launches(&alone));

    let ranges: Vec<&str> = attached.lines().filter_map(|line| line.strip_prefix("range-")).collect();
    let phases: Vec<&str> =
        ranges.iter().filter_map(|line| line.strip_prefix("start ")?.split_once(' ')).map(|(_, name)| name).collect();
    assert_eq!(phases, ["mount", "load", "warm_up", "measure", "publish", "linger"], "{ranges:?}");
    let ends = ranges.iter().filter(|line| line.starts_with("end ")).count();
    assert_eq!(ends, phases.len() - 1, "a phase ends where the next one begins");
    // A step has its operations within it: as many ends as beginnings, and none is left open.
    let mut depth = 0;
    for line in &ranges {
        match line.split(' ').next() {
            Some("push") => depth += 1,
            Some("pop") => depth -= 1,
            _ => assert_eq!(depth, 0, "{line} within a step"),
        }
        assert!((0..=2).contains(&depth), "{line}");
    }
    assert_eq!(depth, 0);
    let count = |name: &str| ranges.iter().filter(|line| **line == format!("push {name}")).count();
    let steps = count("step: 1 tokens, 1 sequences");
    assert!(steps >= 11 && count("step: 8 tokens, 1 sequences") >= 1, "{ranges:?}");
    assert!(count("attention") >= LOADED_LAYERS * steps && count("head") >= steps, "{ranges:?}");
}

#[test]
fn a_profiler_that_is_not_there_is_none() {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());
    let few = ["--max-model-len=64", "--num-prompts=1", "--input-len=8", "--warmup=0"];
    let text = trace_with(model.path(), true, &few, &[("NVTX_INJECTION64_PATH", "/no/such/library.so")]);
    assert!(!text.contains("range-"), "{text}");
}
