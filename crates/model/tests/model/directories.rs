//! Files of a model's directory have the effect that they have in transformers, and none is ignored silently.

use flashjob_model::Tokenizer;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use super::altered::{Altered, Checkpoint, assert_says};
use super::{golden, plain_decoder};

const LFS_POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 1234567\n";

/// Tokens and their ids.
type Spelled = &'static [(&'static str, u32)];

/// The name of a tensor in another checkpoint.
type Renamed = fn(&str) -> String;

/// Output of a template that prints all tokens that it may name.
fn rendered(model: &Checkpoint) -> String {
    let message = json!({"role": "user", "content": "x"});
    model.texts.chat_template.as_ref().unwrap().render(&[message]).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap()
}

#[test]
fn special_tokens_are_named_by_a_text_or_an_object_wherever_they_lie() {
    let template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ boi_token }}";
    let object = |text: &str| json!({"__type": "AddedToken", "content": text, "lstrip": false, "special": true});
    let names = |form: &dyn Fn(&str) -> Value| json!({"bos_token": form("<|im_start|>"), "eos_token": form("<|im_end|>"), "pad_token": form("<|endoftext|>"), "unk_token": null});
    let with = |mut names: Value, extra: Value| {
        names.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        names
    };
    let extra = |form: &dyn Fn(&str) -> Value| json!({"extra_special_tokens": {"boi_token": form("<image>")}});
    let text = |text: &str| json!(text);
    let own = json!({"chat_template": template});
    for (config, map) in [
        (with(with(names(&text), extra(&text)), own.clone()), None),
        (with(with(names(&object), extra(&object)), own.clone()), None),
        (with(with(names(&text), json!({"boi_token": "<image>"})), own.clone()), None),
        (own.clone(), Some(with(names(&text), extra(&text)))),
        (own.clone(), Some(with(names(&object), json!({"boi_token": "<image>"})))),
        (with(with(json!({"bos_token": "<s>"}), own.clone()), extra(&text)), Some(names(&object))),
    ] {
        let directory = Altered::of("llama-gqa");
        directory.write("tokenizer_config.json", config.to_string());
        if let Some(map) = &map {
            directory.write("special_tokens_map.json", map.to_string());
        }
        let model = directory.open().unwrap();
        assert_eq!(rendered(&model), "<|im_start|>|<|im_end|>|<|endoftext|>|<image>", "{config} {map:?}");
        assert_eq!(model.texts.eos_tokens, [0, 2], "{config} {map:?}");
    }
}

#[test]
fn a_template_may_lie_in_four_places_of_which_the_first_counts() {
    let directory = Altered::of("llama-gqa");
    let places = [
        ("chat_template.json", json!({"chat_template": "processor"}).to_string(), "processor"),
        (
            "tokenizer_config.json",
            json!({"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": "named"}]})
                .to_string(),
            "named",
        ),
        ("tokenizer_config.json", json!({"chat_template": "one"}).to_string(), "one"),
        ("chat_template.jinja", "\u{feff}a file of its own".to_owned(), "a file of its own"),
    ];
    directory.remove("tokenizer_config.json");
    for (name, text, expected) in places {
        directory.write(name, text);
        assert_eq!(rendered(&directory.open().unwrap()), expected, "{name}");
    }
}

#[test]
fn settings_of_a_training_run_change_no_prompt() {
    let text = "a text of more than eight tokens, certainly, and then some more of it";
    let plain = Altered::of("llama-gqa");
    let expected = ids(&plain.open().unwrap().texts.tokenizer, text);
    assert!(expected.len() > 8);
    let truncation = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    for (truncation, padding) in
        [(truncation.clone(), Value::Null), (Value::Null, padding.clone()), (truncation, padding)]
    {
        let directory = Altered::of("llama-gqa");
        directory.edit_json("tokenizer.json", |json| {
            json["truncation"] = truncation;
            json["padding"] = padding;
        });
        assert_eq!(ids(&directory.open().unwrap().texts.tokenizer, text), expected);
    }
}

#[test]
fn tokens_that_only_a_file_beside_it_adds_are_added() {
    let token = |text: &str, special: bool| json!({"content": text, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": special});
    let cases: [(&str, Value, Spelled); 3] = [
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"289": token("<|tool|>", false), "288": token("<|user|>", true), "1": token("<|im_start|>", true)}}),
            &[("<|user|>", 288), ("<|tool|>", 289), ("<|im_start|>", 1)],
        ),
        ("added_tokens.json", json!({"<|tool|>": 289, "<|user|>": 288}), &[("<|user|>", 288), ("<|tool|>", 289)]),
        (
            "tokenizer_config.json",
            json!({"pad_token": "<|pad|>", "additional_special_tokens": ["<|a|>", {"content": "<|b|>"}]}),
            &[("<|pad|>", 288), ("<|a|>", 289), ("<|b|>", 290)],
        ),
    ];
    for (name, json, expected) in cases {
        let directory = Altered::of("llama-gqa");
        directory.write(name, json.to_string());
        // Of texts alone: the fixture's embedding has no rows for more tokens.
        let tokenizer = Tokenizer::open(directory.path()).unwrap();
        for &(text, id) in expected {
            let surrounded = ids(&tokenizer, &format!("a{text}b"));
            assert_eq!(surrounded[1..surrounded.len() - 1], [id], "{text} of {json}");
        }
    }
}

/// `PreTrainedTokenizerFast`, `LlamaTokenizerFast` and `Qwen2Tokenizer` of transformers 5.23 leave what surrounds a text to the
/// post-processor of `tokenizer.json`, whatever these keys say.
#[test]
fn the_tokenizer_file_decides_what_surrounds_a_text() {
    let begin = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    });
    for flags in [json!({}), json!({"add_bos_token": false}), json!({"add_bos_token": true, "add_eos_token": true})] {
        for (post_processor, first) in [(Value::Null, None), (begin.clone(), Some(1))] {
            let directory = Altered::of("llama-gqa");
            directory.edit_json("tokenizer.json", |json| json["post_processor"] = post_processor);
            directory.edit_json("tokenizer_config.json", |json| {
                json.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
            });
            let tokenizer = directory.open().unwrap().texts.tokenizer;
            let plain = tokenizer.encode("a text", false).unwrap();
            let expected: Vec<u32> = first.into_iter().chain(plain).collect();
            assert_eq!(ids(&tokenizer, "a text"), expected, "{flags}");
        }
    }
}

#[test]
fn an_id_beyond_the_embedding_is_refused_in_a_prompt_and_nowhere_else() {
    // 300 tokens for 272 rows.
    let tokenizer = golden::directory("llama-sharded").join("tokenizer.json");
    let model = Checkpoint::open(&golden::directory("llama-mqa-tied"), &tokenizer).unwrap();
    assert_eq!(model.texts.tokenizer.vocab_size(), 272);
    let beyond = model.texts.tokenizer.token(280).unwrap();
    let said = model.texts.tokenizer.encode(&beyond, false).unwrap_err().to_string();
    assert_says(&said, &["token", "embedding has 272 rows", "leave that token out"]);
    assert!(!model.texts.tokenizer.encode("q", false).unwrap().is_empty());
    assert!(model.texts.eos_tokens.iter().all(|&id| id < 272));
}

#[test]
fn what_lies_in_the_place_of_a_file_is_named() {
    let page = "<!DOCTYPE html>\n<html><head><title>404</title></head></html>";
    for (file, fixture) in [
        ("model.safetensors", "llama-gqa"),
        ("tokenizer.json", "llama-gqa"),
        ("config.json", "llama-gqa"),
        ("generation_config.json", "llama-gqa"),
        ("tokenizer_config.json", "llama-gqa"),
        ("model.gguf", "llama-gguf"),
        ("model.safetensors.index.json", "llama-sharded"),
    ] {
        for (content, parts) in [
            (LFS_POINTER, ["git-lfs pointer", "git lfs pull"]),
            ("", ["it is empty", "get it again"]),
            (page, ["web page", "download it again"]),
        ] {
            let directory = Altered::of(fixture);
            directory.write(file, content);
            let said = directory.refusal();
            assert_says(&said, &parts);
            assert_says(&said, &[file]);
        }
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let directory = Altered::of("llama-gqa");
        let marked = [b"\xef\xbb\xbf".to_vec(), directory.read(file)].concat();
        directory.write(file, marked);
        assert_eq!(directory.open().unwrap().texts.eos_tokens, [0, 2], "{file}");
    }
}

/// The fixture as part of a checkpoint that takes images too: its configuration within another, its tensors under other
/// names, and tensors beside them that texts never pass.
fn of_several_modalities(fixture: &str, architecture: &str, renamed: Renamed, left_out: &[&str]) -> Altered {
    let directory = Altered::of(fixture);
    directory.edit_json("config.json", |json| {
        let mut text_config = json.clone();
        for key in left_out {
            text_config.as_object_mut().unwrap().remove(*key);
        }
        text_config["architectures"] = Value::Null;
        *json = json!({
            "architectures": [architecture], "model_type": "several", "text_config": text_config,
            "vision_config": {"hidden_size": 8}, "eos_token_id": [2], "image_token_id": 5,
            "tie_word_embeddings": true,
        });
    });
    let file = directory.read("model.safetensors");
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let data = &file[8 + length..];
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let mut tensors: serde_json::Map<String, Value> =
        tensors.map(|(name, entry)| (renamed(name), entry.clone())).collect();
    for (index, name) in ["vision_tower.patch.weight", "multi_modal_projector.weight"].into_iter().enumerate() {
        let begin = data.len() + 4 * index;
        tensors.insert(name.to_owned(), json!({"dtype": "F32", "shape": [1], "data_offsets": [begin, begin + 4]}));
    }
    let header = serde_json::to_vec(&tensors).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, data, &[0; 8]].concat();
    directory.write("model.safetensors", file);
    directory
}

#[test]
fn the_language_model_of_a_checkpoint_with_images_runs() {
    let old = |name: &str| format!("language_model.{name}");
    let new = |name: &str| match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.to_owned(),
    };
    let cases: [(&str, &str, Renamed); 4] = [
        ("gemma3-two-ropes", "Gemma3ForConditionalGeneration", old),
        ("gemma3-two-ropes", "Gemma3ForConditionalGeneration", new),
        ("mistral-window", "Mistral3ForConditionalGeneration", old),
        ("mistral-window", "Mistral3ForConditionalGeneration", new),
    ];
    for (fixture, architecture, renamed) in cases {
        let model = of_several_modalities(fixture, architecture, renamed, &["architectures"]).open().unwrap();
        assert_eq!(model.architecture, architecture);
        assert!(model.other_modalities.unwrap().contains("images are not supported"));
        assert!(model.texts.eos_tokens.contains(&2));
        for prompt in golden::prompts(fixture) {
            let computed = plain_decoder::logits(&model, &prompt.tokens);
            for (position, reference) in &prompt.logits {
                let error = golden::relative_error(reference, &computed[*position]);
                assert!(error < 1e-5, "{architecture}, position {position}: {error}");
            }
        }
    }
}

#[test]
fn a_checkpoint_with_images_that_transformers_saved_has_the_logits_that_it_has_there() {
    for name in golden::MODELS_WITH_IMAGES {
        let model = Checkpoint::open(&golden::directory(name), &golden::directory(name)).unwrap();
        assert!(model.other_modalities.unwrap().contains("images are not supported"));
        for prompt in golden::prompts(name) {
            let computed = plain_decoder::logits(&model, &prompt.tokens);
            for (position, reference) in &prompt.logits {
                let error = golden::relative_error(reference, &computed[*position]);
                assert!(error < 1e-5, "{name}, position {position}: {error}");
            }
        }
    }
}

/// `Gemma3TextConfig` of transformers 5.23: the real 4B model leaves these out.
#[test]
fn sizes_that_a_text_config_leaves_out_are_those_of_its_class() {
    let left_out = ["vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"];
    let directory = of_several_modalities(
        "gemma3-two-ropes",
        "Gemma3ForConditionalGeneration",
        |name| format!("language_model.{name}"),
        &left_out,
    );
    // The fixture has other sizes, so that what was expected shows in the refusal.
    let said = directory.refusal();
    assert_says(
        &said,
        &[
            "model.embed_tokens.weight has shape [288, 32], expected [262208, 32]",
            "expected [2048, 32]",
            "expected [1024, 32]",
        ],
    );
}

/// Name, format, shape and bytes.
type OwnedTensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// transformers 5 says that it will "NOT tie them" where both are stored and differ, and takes the one that is there for both.
#[test]
fn a_head_is_tied_where_the_file_agrees() {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let fixture = "llama-mqa-tied";
    let prompt = &golden::prompts(fixture)[0].tokens;
    let expected = plain_decoder::logits(
        &Checkpoint::open(&golden::directory(fixture), &golden::directory(fixture)).unwrap(),
        prompt,
    );
    let with_tensors = |edit: &dyn Fn(&mut Vec<OwnedTensor>)| {
        let model = Altered::of(fixture);
        let file = model.read("model.safetensors");
        let file = SafeTensors::deserialize(&file).unwrap();
        let owned =
            |(name, view): (String, TensorView<'_>)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
        let mut tensors = file.tensors().into_iter().map(owned).collect();
        edit(&mut tensors);
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
        model.write("model.safetensors", safetensors::serialize(views, None).unwrap());
        plain_decoder::logits(&model.open().unwrap(), prompt)
    };

    let only_a_head = with_tensors(&|tensors| {
        tensors.iter_mut().find(|tensor| tensor.0 == EMBEDDING).unwrap().0 = "lm_head.weight".to_owned();
    });
    assert_eq!(only_a_head, expected);

    let another_head = with_tensors(&|tensors| {
        let (_, dtype, shape, data) = tensors.iter().find(|tensor| tensor.0 == EMBEDDING).unwrap().clone();
        let rows = data.chunks(data.len() / shape[0]).rev().flatten().copied().collect();
        tensors.push(("lm_head.weight".to_owned(), dtype, shape, rows));
    });
    for (other, expected) in another_head.iter().zip(&expected) {
        assert!(other.iter().rev().zip(expected).all(|(other, expected)| (other - expected).abs() < 1e-4));
    }
}
