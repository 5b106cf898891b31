//! What a decode step asks of a GPU, call by call, for the shapes of Llama-3.1-8B: a committed table, so that no launch, copy or
//! wait is added unseen.
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
fn steps(model: &Path, eager: bool) -> Vec<Vec<String>> {
    let mut steps: Vec<Vec<String>> = Vec::new();
    let sequences = format!("--num-prompts={SEQUENCES}");
    for line in trace(model, eager, &["--max-model-len=256", "--input-len=32", &sequences]).lines() {
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
    let results = TempDir::new().unwrap();
    // The job writes to its own directories alone.
    let trace = results.path().join("out/trace");
    Process::flashjob()
        .args(["--metrics-port=0", "--metrics-linger-seconds=0", "--measure-limits=false", "--results-dir"])
        .args([results.path().join("out")])
        .args(["--model".into(), model.to_owned()])
        .args(["--device=cuda", "--output-len=12", &format!("--enforce-eager={eager}")])
        .args(more)
        .env("LD_LIBRARY_PATH", std::env::var("LD_LIBRARY_PATH").expect("scripts/test-cuda sets LD_LIBRARY_PATH"))
        .env("STAND_IN_DEVICES", "1")
        .env("STAND_IN_SHAPES", "1")
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

const NO_LAUNCH: [&str; 3] = ["copy-in", "copy-out", "synchronize"];

#[test]
fn a_decode_step_of_llama_3_1_8b_makes_the_calls_that_are_written_down() {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());

    let launched = steps(model.path(), true);
    // The last steps decode; the very last one is followed by the end of the program.
    let step = &launched[launched.len() - 2];
    assert_eq!(step, &launched[launched.len() - 3], "no steady state");
    let begins_layer = |call: &&String| call.starts_with("rope_and_cache");
    let layers: Vec<usize> =
        step.iter().enumerate().filter(|(_, call)| begins_layer(call)).map(|(place, _)| place).collect();
    let [first, second] = layers[..] else { panic!("{LOADED_LAYERS} layers, and {layers:?}") };
    let layer = counts(&step[first..second]);
    let whole = counts(step);
    let beside: BTreeMap<String, usize> = whole
        .iter()
        .map(|(call, count)| (call.clone(), count - LOADED_LAYERS * layer.get(call).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let launches = |counts: &BTreeMap<String, usize>| {
        counts.iter().filter(|(call, _)| !NO_LAUNCH.contains(&call.as_str())).map(|(_, count)| count).sum::<usize>()
    };
    let all = launches(&beside) + LAYERS * launches(&layer);

    let replayed = steps(model.path(), false);
    let replay = counts(&replayed[replayed.len() - 2]);
    let recorded = launches(&beside) - 1 + LOADED_LAYERS * launches(&layer);
    assert!(replayed[replayed.len() - 2].contains(&format!("replay {recorded}")), "{:?}", replayed[replayed.len() - 2]);

    let mut text = format!(
        "Llama-3.1-8B in bfloat16, a decode step of {SEQUENCES} sequences on one GPU, as the stand-in driver sees it.\n\
         Written by `BLESS=1 scripts/test-cuda cuda::trace`, read by scripts/estimate.\n\n"
    );
    text += &table(&format!("a layer: {} launches", launches(&layer)), &layer);
    text += &table(&format!("\nbeside the layers: {} launches", launches(&beside)), &beside);
    writeln!(text, "\n{LAYERS} layers: {all} launches").unwrap();
    text += &table("\nreplayed, with enforce-eager=false", &replay);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/llama-3.1-8b.trace");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "see whether that is meant, then BLESS=1:\n{text}\ninstead of\n{written}");
}

#[test]
fn the_keys_of_one_long_sequence_are_attended_to_in_parts() {
    let model = TempDir::new().unwrap();
    shapes_of_llama(model.path());
    for (length, in_parts) in [("--input-len=600", true), ("--input-len=100", false)] {
        let text = trace(model.path(), true, &["--max-model-len=1024", "--num-prompts=1", "--warmup=0", length]);
        let joined = text.lines().filter(|line| line.starts_with("join_parts")).count();
        // The first of 12 tokens comes of the prompt.
        assert_eq!(joined, if in_parts { 11 * LOADED_LAYERS } else { 0 }, "{length}");
    }
}
