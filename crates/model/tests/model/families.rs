//! Peculiarities of families, in both formats and in both spellings of `config.json`.

use flashjob_model::{Dtype, RopeConfig, RopeScaling, Shard, Validation};
use serde_json::{Value, json};

use super::altered::{Altered, Checkpoint, assert_says};
use super::golden;

fn open(fixture: &str) -> Checkpoint {
    Checkpoint::open(&golden::directory(fixture), &golden::directory(fixture)).unwrap()
}

#[test]
fn each_family_has_what_it_is_known_for() {
    assert_eq!(open("mistral-window").config.windows, [Some(5), Some(5)]);
    let qwen2 = open("qwen2-bias-window").model.config;
    assert!(qwen2.qkv_bias && !qwen2.qk_norm && qwen2.tied_head);
    assert_eq!(qwen2.windows, [None, Some(20)]);
    let qwen3 = open("qwen3-qk-norm").model.config;
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!((qwen3.head_dim, qwen3.hidden_size / qwen3.heads, &qwen3.windows[..]), (24, 8, &[None, None][..]));
    let phi3 = open("phi3-short").model.config;
    assert_eq!((phi3.head_dim, phi3.rope.dim, phi3.rope.magnitude()), (16, 12, 1.2));
    let phi3 = open("phi3-long-window").model.config;
    assert_eq!(phi3.windows, [Some(21), Some(21)]);
    // √(1 + ln 16 / ln 32)
    assert!((phi3.rope.magnitude() - 1.341_640_8).abs() < 1e-6);
    let plain = RopeConfig { scaling: RopeScaling::None, ..phi3.rope.clone() }.inverse_frequencies(33);
    let ratio = |longest: usize| plain[3] / phi3.rope.inverse_frequencies(longest)[3];
    assert!((ratio(32) - 1.3).abs() < 1e-5 && (ratio(33) - 4.0).abs() < 1e-5);
    let gemma2 = open("gemma2-softcaps").model.config;
    assert_eq!((gemma2.attention_softcap, gemma2.logits_softcap), (Some(5.0), Some(1.5)));
    assert_eq!(gemma2.windows, [Some(9), None, Some(9)]);
    assert!(gemma2.output_norms && gemma2.tied_head && !gemma2.qk_norm);
    assert_eq!((gemma2.attention_scale, gemma2.embedding_scale), (24f32.powf(-0.5), 32f32.sqrt()));
    let gemma3 = open("gemma3-two-ropes").model.config;
    assert_eq!(gemma3.windows, [Some(8), Some(8), None]);
    assert_eq!((gemma3.rope_of(0).theta, gemma3.rope_of(2).theta), (10_000.0, 1_000_000.0));
    assert_eq!(gemma3.rope_of(2).scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((gemma3.attention_softcap, gemma3.logits_softcap), (None, None));
}

/// Files written under llama.cpp's names, with its own package, hold the same model. What they cannot say is put beside.
#[test]
fn gguf_files_hold_the_same_models() {
    for fixture in ["qwen2-bias-window", "qwen3-qk-norm", "phi3-short", "gemma2-softcaps", "gemma3-two-ropes"] {
        let path = golden::directory("gguf").join(format!("{fixture}.gguf"));
        let (gguf, expected) = (Checkpoint::open(&path, &path).unwrap(), open(fixture));
        assert_eq!(gguf.architecture, expected.architecture);
        let mut config = gguf.config.clone();
        if fixture.starts_with("qwen2") {
            assert_eq!(config.windows, [None, None]);
            config.windows = expected.config.windows.clone();
        }
        if fixture.starts_with("gemma") {
            assert!((config.attention_scale * (config.head_dim as f32).sqrt() - 1.0).abs() < 1e-6);
            config.attention_scale = expected.config.attention_scale;
        }
        assert_eq!(config, expected.config, "{fixture}");
        for tensor in expected.weights.tensors() {
            let numbers = |model: &Checkpoint| {
                let read = model.weights.read(tensor, Shard::WHOLE, Dtype::F32, Validation::Finite).unwrap();
                (read.dims().to_vec(), read.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            };
            assert_eq!(numbers(&gguf), numbers(&expected), "{fixture} {tensor:?}");
        }
        let text = "In 2024 there were 365 days.";
        assert_eq!(
            gguf.texts.tokenizer.encode(text, false).unwrap(),
            expected.texts.tokenizer.encode(text, false).unwrap()
        );
    }
}

/// As transformers 4 wrote it.
#[test]
fn older_spellings_mean_the_same() {
    let gemma3 = Altered::of("gemma3-two-ropes");
    gemma3.edit_json("config.json", |json| {
        json["rope_parameters"] = Value::Null;
        json["layer_types"] = Value::Null;
        json["rope_theta"] = json!(1_000_000.0);
        json["rope_local_base_freq"] = json!(10_000.0);
        json["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
        json["sliding_window_pattern"] = json!(3);
    });
    assert_eq!(gemma3.open().unwrap().config, open("gemma3-two-ropes").config);
    let phi3 = Altered::of("phi3-long-window");
    phi3.edit_json("config.json", |json| {
        let mut parameters = json["rope_parameters"].take();
        let (short, long) = (parameters["short_factor"].take(), parameters["long_factor"].take());
        json["original_max_position_embeddings"] = json!(32);
        json["rope_scaling"] = json!({"type": "su", "short_factor": short, "long_factor": long});
    });
    assert_eq!(phi3.open().unwrap().config, open("phi3-long-window").config);
    for fixture in ["qwen2-bias-window", "gemma2-softcaps"] {
        let older = Altered::of(fixture);
        older.edit_json("config.json", |json| {
            json["layer_types"] = Value::Null;
            json["rope_parameters"] = Value::Null;
            json["rope_theta"] = json!(10_000.0);
        });
        assert_eq!(older.open().unwrap().config, open(fixture).config, "{fixture}");
    }
}

#[test]
fn a_setting_that_a_family_has_and_the_decoder_has_not_is_named() {
    let cases: &[(&str, Value, &str)] = &[
        ("mistral-window", json!({"hidden_act": "gelu"}), "hidden_act = \"gelu\" is not implemented; silu is"),
        ("mistral-window", json!({"sliding_window": -1}), "sliding_window: should be a whole number from 1"),
        ("qwen2-bias-window", json!({"layer_types": ["full_attention"]}), "layer_types: has 1 entries for 2 layers"),
        (
            "qwen2-bias-window",
            json!({"layer_types": ["full_attention", "chunked_attention"]}),
            "layer_types: chunked_attention is not supported",
        ),
        ("qwen2-bias-window", json!({"layer_types": "all"}), "layer_types: should be a list of strings"),
        ("qwen3-qk-norm", json!({"attention_bias": true}), "attention_bias = true is not implemented; false is"),
        (
            "phi3-short",
            json!({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
            "rope_parameters.short_factor: has 1 factors, but 8 pairs of a head are rotated",
        ),
        (
            "phi3-short",
            json!({"rope_parameters": {"rope_type": "longrope", "short_factor": [0.0]}}),
            "rope_parameters.short_factor: should be a list of numbers above 0",
        ),
        ("phi3-short", json!({"rope_parameters": {"partial_rotary_factor": 1.5}}), "partial_rotary_factor = 1.5"),
        ("phi3-short", json!({"rope_parameters": {"partial_rotary_factor": 0.2}}), "cannot be rotated in pairs"),
        ("gemma2-softcaps", json!({"hidden_activation": "gelu"}), "hidden_activation = \"gelu\" is not implemented"),
        ("gemma2-softcaps", json!({"attn_logit_softcapping": 0}), "attn_logit_softcapping: should be a number above 0"),
        ("gemma3-two-ropes", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention = true is not"),
        ("gemma3-two-ropes", json!({"rope_parameters": {}}), "rope_parameters.full_attention: is missing"),
        ("gemma3-two-ropes", json!({"architectures": ["Gemma3ForConditionalGeneration"]}), "text_config: is missing"),
    ];
    for (fixture, change, said) in cases {
        let model = Altered::of(fixture);
        model.edit_json("config.json", |json| {
            for (key, value) in change.as_object().unwrap() {
                json[key] = value.clone();
            }
        });
        assert_says(&model.refusal(), &[said, "config.json: "]);
    }
}
