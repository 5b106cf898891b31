//! Accepted and refused values of `config.json`, with the messages for refused ones.

use flashjob_model::{Dtype, RopeScaling};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::altered::{Altered, Checkpoint, assert_says};
use super::golden;

fn open(fixture: &str) -> Checkpoint {
    Checkpoint::open(&golden::directory(fixture), &golden::directory(fixture)).unwrap()
}

#[test]
fn both_spellings_of_rotary_settings_mean_the_same() {
    let new = open("llama-gqa").model.config;
    assert_eq!(
        new.rope.scaling,
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 64 }
    );
    let old = Altered::of("llama-gqa");
    old.edit_json("config.json", |json| {
        let mut parameters = json["rope_parameters"].take();
        json["rope_theta"] = parameters["rope_theta"].take();
        json["rope_scaling"] = parameters;
    });
    assert_eq!(old.open().unwrap().config, new);
    let linear = open("llama-sharded").model.config;
    let oldest = Altered::of("llama-sharded");
    oldest.edit_json("config.json", |json| {
        json["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
        json["rope_parameters"] = Value::Null;
    });
    assert_eq!(oldest.open().unwrap().config, linear);
}

#[test]
fn what_a_model_is_comes_from_its_files() {
    let facts = |fixture| {
        let model = open(fixture);
        (model.dtype, model.parameters, model.config.tied_head, model.model.architecture)
    };
    let llama = || "LlamaForCausalLM".to_owned();
    // 2 · 288 · 64 + 2 · (2 · 64 · 64 + 2 · 32 · 64 + 3 · 96 · 64 + 2 · 64) + 64
    assert_eq!(facts("llama-gqa"), (Dtype::Bf16, 98_624, false, llama()));
    // 272 · 32 + 3 · (2 · 32 · 32 + 2 · 8 · 32 + 3 · 64 · 32 + 2 · 32) + 32
    assert_eq!(facts("llama-mqa-tied"), (Dtype::F32, 35_040, true, llama()));
    assert_eq!(facts("llama-gguf"), (Dtype::F16, 98_624, false, llama()));
}

#[test]
fn a_gguf_file_is_found_in_its_directory_unless_a_whole_model_is_there() {
    let gguf = golden::directory("llama-gguf").join("model.gguf");
    let file = Checkpoint::open(&gguf, &gguf).unwrap();
    assert_eq!(file.config, open("llama-gguf").config);
    let both = Altered::of("llama-mqa-tied");
    std::fs::copy(&gguf, both.file("other.gguf")).unwrap();
    assert_eq!(both.open().unwrap().config, open("llama-mqa-tied").config);
    // Some publishers put a config.json beside their GGUF file.
    both.remove("model.safetensors");
    both.remove("tokenizer.json");
    assert_eq!(both.open().unwrap().config, file.config);
}

#[test]
fn a_senseless_or_unsupported_setting_is_named() {
    let cases: &[(Value, &[&str])] = &[
        (json!({"architectures": ["GPT2LMHeadModel"]}), &["GPT2LMHeadModel is not supported", "LlamaForCausalLM"]),
        (json!({"architectures": null, "model_type": "mamba"}), &["mamba is not supported", "LlamaForCausalLM"]),
        (json!({"architectures": null, "model_type": null}), &["architectures: is missing"]),
        (json!({"model_type": 3}), &["model_type: should be a string, not 3"]),
        (json!({"vocab_size": null}), &["vocab_size: is missing"]),
        (json!({"hidden_size": null}), &["hidden_size: is missing"]),
        (json!({"intermediate_size": null}), &["intermediate_size: is missing"]),
        (json!({"num_hidden_layers": null}), &["num_hidden_layers: is missing"]),
        (json!({"num_attention_heads": null}), &["num_attention_heads: is missing"]),
        (json!({"num_attention_heads": 0}), &["num_attention_heads: should be a whole number from 1", "not 0"]),
        (json!({"num_key_value_heads": 0}), &["num_key_value_heads: should be a whole number from 1"]),
        (json!({"num_key_value_heads": 3}), &["num_key_value_heads: 4 heads are not a multiple of 3"]),
        (json!({"num_key_value_heads": 8}), &["num_key_value_heads: 4 heads are not a multiple of 8"]),
        (json!({"hidden_size": -64}), &["hidden_size: should be a whole number from 1", "-64"]),
        (json!({"hidden_size": 64.5}), &["hidden_size: should be a whole number from 1", "64.5"]),
        (json!({"hidden_size": "64"}), &["hidden_size: should be a whole number from 1", "\"64\""]),
        (json!({"hidden_size": 66, "head_dim": null}), &["hidden_size: 66 is not a multiple of the 4 heads"]),
        (json!({"hidden_size": 1u64 << 60}), &["hidden_size: should be a whole number from 1 to"]),
        (json!({"hidden_size": 1 << 27}), &["hidden_size: 134217728 is absurd"]),
        (json!({"vocab_size": u64::MAX}), &["vocab_size: should be a whole number from 1 to"]),
        (json!({"num_hidden_layers": 1 << 20}), &["num_hidden_layers: 1048576 is absurd"]),
        (json!({"num_attention_heads": 65536, "head_dim": 65536}), &["absurdly wide"]),
        (json!({"head_dim": 15}), &["head_dim: 15 should be even"]),
        (json!({"rms_norm_eps": 0}), &["rms_norm_eps: should be a number above 0, not 0"]),
        (json!({"rms_norm_eps": "small"}), &["rms_norm_eps: should be a number above 0"]),
        (json!({"max_position_embeddings": 0}), &["max_position_embeddings: should be a whole number from 1"]),
        (json!({"tie_word_embeddings": "no"}), &["tie_word_embeddings: should be true or false, not \"no\""]),
        (json!({"hidden_act": "gelu"}), &["hidden_act = \"gelu\" is not implemented; silu is"]),
        (json!({"attention_bias": true}), &["attention_bias = true is not implemented"]),
        (json!({"mlp_bias": true}), &["mlp_bias = true is not implemented"]),
        (json!({"quantization_config": {"quant_method": "gptq"}}), &["quantization_config.quant_method = \"gptq\""]),
        (json!({"rope_parameters": {"rope_type": "yarn"}}), &["rope_parameters.rope_type = \"yarn\"", "longrope are"]),
        (json!({"rope_parameters": null, "rope_scaling": {"type": "dynamic"}}), &["rope_scaling.type = \"dynamic\""]),
        (json!({"rope_parameters": [1]}), &["rope_parameters: should be an object, not [1]"]),
        (json!({"rope_parameters": {"rope_type": "linear"}}), &["rope_parameters.factor: is missing"]),
        (json!({"rope_parameters": {"rope_theta": -1}}), &["rope_parameters.rope_theta: should be a number above 0"]),
        (
            json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}),
            &["rope_parameters.high_freq_factor: should be above low_freq_factor, 4"],
        ),
        (json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor = 0.5 is not implemented"]),
    ];
    for (change, said) in cases {
        let model = Altered::of("llama-gqa");
        model.edit_json("config.json", |json| {
            for (key, value) in change.as_object().unwrap() {
                json[key] = value.clone();
            }
        });
        let refusal = model.refusal();
        assert_says(&refusal, said);
        assert_says(&refusal, &["config.json: "]);
    }
}

#[test]
fn a_config_that_is_no_json_object_is_called_so() {
    for (text, said) in
        [("", "it is empty"), ("{\"a\": 1", "it is not JSON"), ("[]", "a JSON object"), ("\u{0}", "not JSON")]
    {
        let model = Altered::of("llama-gqa");
        model.write("config.json", text);
        assert_says(&model.refusal(), &["config.json", said]);
    }
}

#[test]
fn tokens_that_end_texts_must_exist() {
    let model = Altered::of("llama-gqa");
    model.write("generation_config.json", json!({"eos_token_id": 288}).to_string());
    assert_says(&model.refusal(), &["token 288", "288 rows"]);
    model.write("generation_config.json", json!({"eos_token_id": "</s>"}).to_string());
    assert_says(&model.refusal(), &["generation_config.json: eos_token_id: should be a token id or a list of them"]);
    // Without the file config.json speaks.
    model.remove("generation_config.json");
    model.remove("tokenizer_config.json");
    let opened = model.open().unwrap();
    assert_eq!((opened.texts.eos_tokens, opened.texts.bos_token), (vec![2], Some(1)));
    assert!(opened.texts.chat_template.is_none());
    // Templates name tokens as the tokenizer's file spells them, as their ids do where there is none.
    model.write("chat_template.jinja", "{{ bos_token }}|{{ eos_token }}");
    let rendered = |model: &Altered| model.open().unwrap().texts.chat_template.unwrap().render(&[]).unwrap();
    assert_eq!(rendered(&model), "<|im_start|>|<|im_end|>");
    model.write("tokenizer_config.json", json!({"bos_token": null, "eos_token": {"content": "</s>"}}).to_string());
    assert_eq!(rendered(&model), "|</s>");
    model.remove("chat_template.jinja");
    // The template has a file of its own since transformers 4.51, and had several names before.
    let named = json!({"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]});
    model.write("tokenizer_config.json", named.to_string());
    assert_eq!(model.open().unwrap().texts.chat_template.unwrap().source(), "d");
    model.write("chat_template.jinja", "j");
    assert_eq!(model.open().unwrap().texts.chat_template.unwrap().source(), "j");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_config_makes_it_panic(key in 0usize..40, value in prop_oneof![
        Just(Value::Null), any::<bool>().prop_map(Value::from), any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from), (1u64..100_000).prop_map(Value::from), ".{0,12}".prop_map(Value::from),
        prop::collection::vec(any::<u32>(), 0..3).prop_map(Value::from),
    ], cut in prop::option::weighted(0.2, any::<prop::sample::Index>())) {
        let model = Altered::of("llama-sharded");
        model.edit_json("config.json", |json| {
            let object = json.as_object_mut().unwrap();
            let key = object.keys().nth(key % object.len()).unwrap().clone();
            object[&key] = value;
        });
        if let Some(cut) = cut {
            let text = model.read("config.json");
            model.write("config.json", &text[..cut.index(text.len())]);
        }
        // Opens or says why not; reading all of what opens is cheap.
        let _ = model.open();
    }
}
