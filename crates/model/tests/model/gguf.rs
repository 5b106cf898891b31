//! GGUF files with something changed in them, written by another implementation of the format.

use std::io::Cursor;
use std::sync::LazyLock;

use candle_core::quantized::gguf_file::{Content, Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use flashjob_model::{Dtype, RopeScaling, Shard, Validation};
use proptest::prelude::*;

use super::altered::{Altered, assert_says};

/// The fixture taken apart.
struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, QTensor)>,
}

impl Parts {
    fn of_fixture() -> Self {
        static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| Altered::of("llama-gguf").read("model.gguf"));
        let mut file = Cursor::new(&*BYTES);
        let content = Content::read(&mut file).unwrap();
        let tensors = content
            .tensor_infos
            .keys()
            .map(|name| (name.clone(), content.tensor(&mut file, name, &Device::Cpu).unwrap()));
        let mut tensors: Vec<_> = tensors.collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let mut metadata: Vec<_> = content.metadata.clone().into_iter().collect();
        metadata.sort_by(|a, b| a.0.cmp(&b.0));
        Self { metadata, tensors }
    }

    /// Sets or, with `None`, removes a key.
    fn set(mut self, key: &str, value: Option<Value>) -> Self {
        self.metadata.retain(|(existing, _)| existing != key);
        self.metadata.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    fn drop_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|(existing, _)| existing != name);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = Cursor::new(Vec::new());
        write(&mut file, &metadata, &tensors).unwrap();
        file.into_inner()
    }

    fn model(&self) -> Altered {
        let model = Altered::of("llama-gguf");
        model.write("model.gguf", self.bytes());
        model
    }
}

fn text(text: &str) -> Option<Value> {
    Some(Value::String(text.into()))
}

fn texts(texts: &[&str]) -> Option<Value> {
    Some(Value::Array(texts.iter().map(|text| Value::String((*text).into())).collect()))
}

#[test]
fn a_file_taken_apart_and_written_again_is_the_same_model() {
    let (original, rewritten) = (Altered::of("llama-gguf"), Parts::of_fixture().model());
    assert_ne!(original.read("model.gguf"), rewritten.read("model.gguf"));
    let (original, rewritten) = (original.open().unwrap(), rewritten.open().unwrap());
    assert_eq!(original.config, rewritten.config);
    for tensor in original.weights.tensors() {
        let read = |model: &flashjob_model::Model| {
            let read = model.weights.read(tensor, Shard::WHOLE, Dtype::F32, Validation::Finite).unwrap();
            read.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(read(&original), read(&rewritten), "{tensor:?}");
    }
}

#[test]
fn a_senseless_or_unsupported_key_is_named() {
    let u32 = |number| Some(Value::U32(number));
    let cases: Vec<(&str, Option<Value>, &str)> = vec![
        ("general.architecture", text("mamba"), "architecture mamba is not supported; supported are llama"),
        ("general.architecture", None, "general.architecture: is missing"),
        ("general.alignment", u32(0), "general.alignment should be a power of two"),
        ("general.alignment", u32(24), "general.alignment should be a power of two"),
        ("split.count", Some(Value::U16(3)), "split.count = 3 is not implemented"),
        ("llama.expert_count", u32(8), "llama.expert_count = 8 is not implemented"),
        ("llama.block_count", u32(0), "llama.block_count: should be a whole number from 1"),
        ("llama.block_count", None, "llama.block_count: is missing"),
        ("llama.block_count", text("2"), "llama.block_count: should be a whole number from 1 to 268435456, not \"2\""),
        ("llama.attention.head_count", u32(5), "llama.embedding_length: 64 is not a multiple of the 5 heads"),
        ("llama.attention.head_count_kv", u32(3), "4 heads are not a multiple of 3 key and value heads"),
        (
            "llama.attention.head_count_kv",
            Some(Value::Array(vec![Value::U32(2), Value::U32(4)])),
            "llama.attention.head_count_kv = a list of 2 numbers is not implemented",
        ),
        ("llama.attention.value_length", u32(32), "llama.attention.value_length = 32 is not implemented"),
        ("llama.rope.dimension_count", u32(8), "llama.rope.dimension_count = 8 is not implemented"),
        ("llama.rope.scaling.type", text("yarn"), "llama.rope.scaling.type = \"yarn\" is not implemented"),
        ("llama.rope.scaling.type", text("linear"), "either alone is"),
        ("llama.attention.layer_norm_rms_epsilon", None, "llama.attention.layer_norm_rms_epsilon: is missing"),
        ("llama.context_length", None, "llama.context_length: is missing"),
        ("llama.feed_forward_length", u32(32), "the weights do not fit the configuration"),
        (
            "tokenizer.ggml.model",
            text("t5"),
            "tokenizer.ggml.model = \"t5\" is not implemented; it is Unigram; gpt2, llama",
        ),
        ("tokenizer.ggml.model", text("bert"), "it is WordPiece, which encoders have"),
        ("tokenizer.ggml.model", text("rwkv"), "it is the tokenizer of RWKV"),
        ("tokenizer.ggml.model", None, "tokenizer.ggml.model: is missing"),
        ("tokenizer.ggml.pre", text("mmbert"), "tokenizer.ggml.pre = \"mmbert\" is not implemented; default, gpt-2"),
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens: is missing"),
        ("tokenizer.ggml.token_type", Some(Value::Array(vec![Value::I32(1); 2])), "has 2 entries for 288 tokens"),
        ("tokenizer.ggml.merges", None, "tokenizer.ggml.merges: is missing"),
        (
            "tokenizer.ggml.eos_token_id",
            Some(Value::I32(-1)),
            "tokenizer.ggml.eos_token_id: should be a token id, not -1",
        ),
        ("tokenizer.chat_template", u32(1), "tokenizer.chat_template: should be a string, not 1"),
    ];
    for (key, value, said) in cases {
        let refusal = Parts::of_fixture().set(key, value).model().refusal();
        assert_says(&refusal, &["model.gguf", said]);
    }
}

#[test]
fn settings_that_change_the_meaning_arrive() {
    let scaling = |parts: Parts| parts.model().open().unwrap().model.config.rope.scaling;
    assert!(matches!(scaling(Parts::of_fixture()), RopeScaling::Factors(factors) if factors.len() == 8));
    let plain = || Parts::of_fixture().drop_tensor("rope_freqs.weight");
    assert_eq!(scaling(plain()), RopeScaling::None);
    let linear = plain().set("llama.rope.scaling.type", text("linear"));
    let linear = linear.set("llama.rope.scaling.factor", Some(Value::F32(4.0)));
    assert_eq!(scaling(linear), RopeScaling::Linear { factor: 4.0 });
    let tied = Parts::of_fixture().drop_tensor("output.weight").model().open().unwrap();
    assert!(tied.config.tied_head);
    let eot = Parts::of_fixture().set("tokenizer.ggml.eot_token_id", Some(Value::U32(0))).model().open().unwrap();
    assert_eq!(eot.texts.eos_tokens, [0, 2]);
    let eos = Parts::of_fixture().set("tokenizer.ggml.add_eos_token", Some(Value::Bool(true))).model().open().unwrap();
    assert_eq!(eos.texts.tokenizer.encode("a", true).unwrap().last(), Some(&2));
}

/// The fixture's tokens and kinds with `tokens` in the place of the last ones, as normal tokens.
fn with_last_tokens(tokens: &[&str]) -> Parts {
    let parts = Parts::of_fixture();
    let of_key = |key: &str| {
        let (_, value) = parts.metadata.iter().find(|(existing, _)| existing == key).unwrap();
        value.to_vec().unwrap().clone()
    };
    let mut spelled = of_key("tokenizer.ggml.tokens");
    let first = spelled.len() - tokens.len();
    for (at, token) in tokens.iter().enumerate() {
        spelled[first + at] = Value::String((*token).into());
    }
    parts.set("tokenizer.ggml.tokens", Some(Value::Array(spelled)))
}

#[test]
fn an_answer_ends_with_every_token_that_is_spelled_as_an_end() {
    let cases: &[(&[&str], &[u32])] = &[
        (&["<|eot_id|>"], &[287]),
        (&["<|end|>", "<end_of_turn>"], &[286, 287]),
        (&["<|im_end|>x", "<｜end▁of▁sentence｜>"], &[287]),
        (&["<EOT>", "_<EOT>", "[EOT]", "<|eom_id|>", "<end_of_utterance>"], &[283, 284, 285, 286, 287]),
        // In these vocabularies a message ends with <|end|>, and </s> is a text.
        (&["<|return|>", "<|call|>", "<|end|>"], &[285, 286]),
        (&["<|flush|>", "<|calls|>", "<|end|>"], &[285, 286]),
        (&["<|tool_response>", "</s>"], &[286]),
        (&["</s>"], &[287]),
        // Not marked as control tokens.
        (&["<|eot|>", "<PAD>"], &[]),
    ];
    for (tokens, ends) in cases {
        let model = with_last_tokens(tokens).model().open().unwrap();
        let mut expected = vec![0, 2];
        expected.extend_from_slice(ends);
        assert_eq!(model.texts.eos_tokens, expected, "{tokens:?}");
        for &end in *ends {
            assert!(model.texts.tokenizer.special_tokens().contains(&end), "{tokens:?}");
            let spelled = model.texts.tokenizer.token(end).unwrap();
            assert_eq!(model.texts.tokenizer.encode(&format!("a{spelled}"), false).unwrap()[1..], [end], "{tokens:?}");
        }
    }
}

#[test]
fn harmless_flaws_of_a_vocabulary_are_told_of() {
    let u32 = |number| Some(Value::U32(number));
    let plain = || Parts::of_fixture().model().open().unwrap().texts.tokenizer;
    assert_eq!(plain().warnings(), [] as [&str; 0]);
    let cases: Vec<(Parts, Option<&str>)> = vec![
        (with_last_tokens(&["a"]), Some("1 tokens appear more than once, such as \"a\"")),
        (with_last_tokens(&[""]), Some("1 of 29 merges")),
        (with_last_tokens(&["\u{fffd}", "\u{fffd}"]), Some("appear more than once")),
        (
            Parts::of_fixture().set("tokenizer.ggml.merges", texts(&["ab", "nosuchtoken b", "a b"])),
            Some("3 of 3 merges"),
        ),
        (Parts::of_fixture().set("tokenizer.ggml.bos_token_id", u32(288)), Some("bos_token_id is 288, of 288 tokens")),
        (
            Parts::of_fixture().set("tokenizer.ggml.eos_token_id", u32(4_294_967_295)),
            Some("eos_token_id is 4294967295"),
        ),
        (Parts::of_fixture().set("tokenizer.ggml.token_type", None), None),
        (Parts::of_fixture().set("tokenizer.ggml.eos_token_id", None), None),
        (Parts::of_fixture().set("tokenizer.ggml.add_bos_token", u32(0)), None),
        (
            Parts::of_fixture()
                .set("tokenizer.ggml.bos_token_id", None)
                .set("tokenizer.ggml.add_bos_token", Some(Value::Bool(true))),
            Some("bos_token_id is missing, although texts want it"),
        ),
    ];
    for (parts, warning) in cases {
        let tokenizer = parts.model().open().unwrap().texts.tokenizer;
        let warnings = tokenizer.warnings().join("; ");
        match warning {
            Some(warning) => assert_says(&warnings, &[warning]),
            None => assert!(warnings.is_empty(), "{warnings}"),
        }
        let ids = tokenizer.encode("a text", false).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), "a text", "{warnings}");
    }
}

#[test]
fn of_tokens_with_one_spelling_the_last_is_taken_and_all_are_read() {
    let first = Parts::of_fixture().model().open().unwrap().texts.tokenizer.encode("a", false).unwrap()[0];
    let tokenizer = with_last_tokens(&["a"]).model().open().unwrap().texts.tokenizer;
    assert_eq!(tokenizer.encode("a", false).unwrap(), [287]);
    assert_eq!(tokenizer.decode(&[first, 287]).unwrap(), "aa");
    let twice = with_last_tokens(&["<|eot_id|>", "<|eot_id|>"]).model().open().unwrap();
    assert_eq!(twice.texts.eos_tokens, [0, 2, 286, 287]);
    assert_eq!(twice.texts.tokenizer.decode(&[first, 286, 287]).unwrap(), "a");
}

#[test]
fn markers_of_phi_3_take_the_white_space_behind_them() {
    let ids = |name| {
        let parts = Parts::of_fixture().set("general.name", text(name));
        parts.model().open().unwrap().texts.tokenizer.encode("<|im_end|>\na", false).unwrap()
    };
    assert_eq!(ids("Phi-3 mini").len() + 1, ids("another").len());
}

#[test]
fn a_template_may_be_named_default() {
    let unnamed = Parts::of_fixture().set("tokenizer.chat_template", None);
    let named = unnamed.set("tokenizer.chat_template.tool_use", text("tools"));
    let named = named.set("tokenizer.chat_template.default", text("plain"));
    assert_eq!(named.model().open().unwrap().texts.chat_template.unwrap().source(), "plain");
}

#[test]
fn tensors_that_do_not_fit_are_listed_at_once() {
    let mut parts = Parts::of_fixture().drop_tensor("blk.0.ffn_up.weight").drop_tensor("blk.1.attn_k.weight");
    let zeros = |shape: (usize, usize)| {
        QTensor::quantize(&Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap(), GgmlDType::Q8_0)
            .unwrap()
    };
    parts.tensors.push(("blk.1.attn_k.weight".into(), zeros((64, 32))));
    parts.tensors.push(("blk.1.attn_q.bias".into(), zeros((1, 64))));
    assert_says(
        &parts.model().refusal(),
        &[
            "blk.0.ffn_up.weight is missing",
            "blk.1.attn_k.weight has shape [64, 32], expected [32, 64]",
            "blk.1.attn_q.bias is unexpected",
        ],
    );
}

#[test]
fn a_damaged_header_is_described() {
    let parts = || Parts::of_fixture();
    let doubled_key = {
        let mut parts = parts();
        parts.metadata.push(("llama.block_count".into(), Value::U32(2)));
        parts.bytes()
    };
    let whole = parts().bytes();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it is empty"),
        (b"GGML".to_vec(), "it does not begin as a GGUF file"),
        (patched(4, &1u32.to_le_bytes()), "it is GGUF version 1; supported are 2 and 3"),
        (patched(4, &3u32.to_be_bytes()), "it is big-endian"),
        (patched(8, &u64::MAX.to_le_bytes()), "it claims 18446744073709551615 tensors"),
        (patched(16, &u64::MAX.to_le_bytes()), "it claims 18446744073709551615 metadata keys"),
        (patched(24, &u64::MAX.to_le_bytes()), "it claims a string of 18446744073709551615 bytes"),
        (whole[..200].to_vec(), "truncated or not GGUF"),
        (whole[..whole.len() - 4096].to_vec(), "truncated, get it again"),
        (doubled_key, "llama.block_count appears twice"),
    ];
    let model = Altered::of("llama-gguf");
    for (file, said) in cases {
        model.write("model.gguf", file);
        assert_says(&model.refusal(), &["model.gguf is damaged", said]);
    }
}

/// Reads everything that opens.
fn exercise(model: &Altered) {
    if let Ok(model) = model.open() {
        for tensor in model.weights.tensors() {
            let _ = model.weights.read(tensor, Shard::WHOLE, Dtype::Bf16, Validation::Finite);
        }
        let _ = model.texts.tokenizer.encode("Some text, 12 <|im_end|>", true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_damage_to_a_gguf_file_makes_it_panic(
        patches in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![1usize, 2, 4, 8]), any::<u64>()), 1..4),
        small in any::<bool>(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let model = Altered::of("llama-gguf");
        let mut file = model.read("model.gguf");
        // The header is the first tenth: damage there is what matters.
        let header = file.len() / 10;
        for (at, width, value) in patches {
            let value = if small { value % 300 } else { value };
            let at = at.index(header);
            file[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        model.write("model.gguf", file);
        exercise(&model);
    }

    #[test]
    fn no_damage_to_a_hugging_face_model_makes_it_panic(
        file in prop::sample::select(vec!["tokenizer.json", "model.safetensors", "tokenizer_config.json", "generation_config.json"]),
        patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let model = Altered::of("llama-mqa-tied");
        let mut bytes = model.read(file);
        let header = bytes.len().min(8000);
        for (at, byte) in patches {
            bytes[at.index(header)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        model.write(file, bytes);
        exercise(&model);
    }
}
