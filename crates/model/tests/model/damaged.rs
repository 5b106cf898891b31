//! Files that are missing, cut off, contradictory or hostile: each is refused in a sentence that says what is wrong.

use serde_json::{Value, json};

use super::altered::{Altered, assert_says};

/// A safetensors file of this header and so much data.
fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data_bytes, 0);
    file
}

#[test]
fn a_damaged_safetensors_file_is_described() {
    let one = |entry: &str| format!(r#"{{"a":{entry}}}"#);
    let f32s = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it is empty"),
        (vec![1; 7], "it has 7 bytes, too few"),
        (vec![255; 64], "it claims a header of 18446744073709551615 bytes in a file of 64"),
        ((100u64 << 20).to_le_bytes().to_vec(), "it claims a header of 104857600 bytes in a file of 8"),
        (safetensors("{}", 0)[..9].to_vec(), "truncated, or not safetensors"),
        (safetensors("{", 0), "its header is wrong"),
        (safetensors("[]", 0), "its header is wrong"),
        (safetensors("\u{0}", 0), "its header is wrong"),
        (safetensors(&one("3"), 0), "tensor a: "),
        (safetensors(&one(r#"{"dtype":"F32","shape":[1]}"#), 4), "missing field `data_offsets`"),
        (safetensors(&one(&f32s("[-1]", 0, 4)), 4), "tensor a: "),
        (safetensors(&one(&f32s("[2]", 0, 4)), 4), "tensor a of shape [2] and type F32 claims 4 bytes"),
        (safetensors(&one(&f32s("[1]", 4, 0)), 4), "tensor a ends before it begins"),
        (safetensors(&one(&f32s("[4294967296,4294967296]", 0, 0)), 0), "tensor a of shape"),
        (safetensors(&one(&f32s("[4611686018427387904]", 0, 0)), 0), "tensor a of shape"),
        (safetensors(&one(&f32s("[0]", u64::MAX, u64::MAX)), 0), "tensor a of shape"),
        (safetensors(&one(r#"{"dtype":"F33","shape":[1],"data_offsets":[0,4]}"#), 4), "unknown type F33"),
        (safetensors(&one(&f32s("[1]", 4, 8)), 8), "there is a hole of 4 bytes before tensor a"),
        (safetensors(&one(&f32s("[1]", 0, 4)), 3), "its tensors need"),
        (safetensors(&one(&f32s("[1]", 0, 4)), 5), "1 bytes follow its last tensor"),
        (
            safetensors(&format!(r#"{{"a":{},"b":{}}}"#, f32s("[2]", 0, 8), f32s("[2]", 4, 12)), 12),
            "tensor b overlaps the one before it",
        ),
        (
            safetensors(&format!(r#"{{"a":{},"a":{}}}"#, f32s("[1]", 0, 4), f32s("[1]", 4, 8)), 8),
            "tensor a appears twice",
        ),
    ];
    let model = Altered::of("llama-gqa");
    for (file, said) in cases {
        model.write("model.safetensors", &file);
        let refusal = model.refusal();
        assert_says(&refusal, &["model.safetensors is damaged", said]);
    }
}

#[test]
fn every_truncation_of_a_file_is_noticed_before_any_weight_is_read() {
    let model = Altered::of("llama-mqa-tied");
    let whole = model.read("model.safetensors");
    for length in (0..whole.len()).step_by(whole.len() / 97).chain([whole.len() - 1]) {
        model.write("model.safetensors", &whole[..length]);
        assert_says(&model.refusal(), &["model.safetensors is damaged"]);
    }
}

/// Rewrites the header of a safetensors file in place, its data left as they are.
fn edit_header(model: &Altered, name: &str, edit: impl FnOnce(&mut Value)) {
    let file = model.read(name);
    let header_end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&file[8..header_end]).unwrap();
    edit(&mut header);
    let mut edited = safetensors(&header.to_string(), 0);
    edited.extend_from_slice(&file[header_end..]);
    model.write(name, edited);
}

#[test]
fn all_that_does_not_fit_the_configuration_is_listed_at_once() {
    let model = Altered::of("llama-gqa");
    edit_header(&model, "model.safetensors", |header| {
        let object = header.as_object_mut().unwrap();
        let taken = object.remove("model.layers.0.mlp.up_proj.weight").unwrap();
        object.insert("model.layers.0.mlp.up_proj.bias".into(), taken);
        object["model.layers.1.self_attn.k_proj.weight"]["shape"] = json!([64, 32]);
        object["model.norm.weight"]["dtype"] = json!("I16");
    });
    assert_says(
        &model.refusal(),
        &[
            "the weights do not fit the configuration",
            "model.layers.0.mlp.up_proj.weight is missing",
            "model.layers.0.mlp.up_proj.bias is unexpected",
            "model.layers.1.self_attn.k_proj.weight has shape [64, 32], expected [32, 64]",
            "model.norm.weight is I16, supported are F32, F16 and BF16",
        ],
    );
    // A long list is cut.
    model.edit_json("config.json", |json| json["num_hidden_layers"] = 3000.into());
    assert_says(&model.refusal(), &["and 26974 more"]);
}

#[test]
fn tensors_that_no_decoder_needs_are_passed_over() {
    let model = Altered::of("llama-mqa-tied");
    let file = model.read("model.safetensors");
    edit_header(&model, "model.safetensors", |header| {
        let end =
            header.as_object().unwrap().values().filter_map(|entry| entry["data_offsets"][1].as_u64()).max().unwrap();
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
        header[name] = json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]});
    });
    assert_ne!(model.read("model.safetensors"), file);
    model.open().unwrap();
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("llama-gqa", &["config.json"], &["there is no config.json in it"]),
        ("llama-gqa", &["model.safetensors"], &["neither model.safetensors nor model.safetensors.index.json"]),
        ("llama-gqa", &["tokenizer.json"], &["there is no tokenizer.json in it", "save_pretrained"]),
        ("llama-sharded", &["model.safetensors.index.json"], &["neither model.safetensors nor"]),
        (
            "llama-sharded",
            &["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            &["names files that are not there: model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"],
        ),
        ("llama-gguf", &["model.gguf"], &["there is no config.json in it", ".gguf"]),
    ];
    for (fixture, removed, said) in cases {
        let model = Altered::of(fixture);
        removed.iter().for_each(|name| model.remove(name));
        assert_says(&model.refusal(), said);
    }
    let model = Altered::of("llama-gguf");
    std::fs::copy(model.file("model.gguf"), model.file("another.gguf")).unwrap();
    assert_says(&model.refusal(), &["several GGUF files", "another.gguf, model.gguf"]);
    let nowhere = model.file("nowhere");
    let error = flashjob_model::Model::open(&nowhere).unwrap_err();
    assert_says(&error.to_string(), &["nowhere", "there is nothing at this path"]);
    let golden = model.file("golden.safetensors");
    let error = flashjob_model::Model::open(&golden).unwrap_err();
    assert_says(&error.to_string(), &["golden.safetensors", "a directory in Hugging Face layout or a .gguf file"]);
}

#[test]
fn an_index_must_be_true_and_stay_in_its_directory() {
    let index = "model.safetensors.index.json";
    let tensor = "model.norm.weight";
    for (file, said) in [
        ("../model.safetensors", "is not the name of a file beside it"),
        ("/etc/passwd", "is not the name of a file beside it"),
        ("", "is not the name of a file beside it"),
        ("..", "is not the name of a file beside it"),
        ("elsewhere.safetensors", "names files that are not there: elsewhere.safetensors"),
    ] {
        let model = Altered::of("llama-sharded");
        model.edit_json(index, |json| json["weight_map"][tensor] = file.into());
        assert_says(&model.refusal(), &[said]);
    }
    let model = Altered::of("llama-sharded");
    model.edit_json(index, |json| {
        let map = json["weight_map"].as_object_mut().unwrap();
        let other = map.values().find(|file| **file != map[tensor]).unwrap().clone();
        map.insert(tensor.into(), other);
    });
    assert_says(&model.refusal(), &["model.norm.weight is not in model-0000"]);
    for text in ["{}", "[]", r#"{"weight_map": {"a": 1}}"#] {
        model.write(index, text);
        assert_says(&model.refusal(), &["it is not an index of weights"]);
    }
}

#[test]
fn a_tokenizer_that_cannot_be_built_is_refused() {
    let texts = [
        "{}",
        "[1]",
        r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}"#,
        // The library panics on these.
        r#"{"version": "1.0", "decoder": nul, "model": {"type": "BPE", "vocab": {}, "merges": []}}"#,
        r#"{"version": "1.0", "normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}"#,
    ];
    for text in texts {
        let model = Altered::of("llama-gqa");
        model.write("tokenizer.json", text);
        assert_says(&model.refusal(), &["tokenizer.json", "does not make a tokenizer"]);
    }
}
