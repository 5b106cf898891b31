"""Tiny GGUF files, written with llama.cpp's Python package, and what other implementations make of them."""

import io
import json
import shutil
from pathlib import Path

import numpy
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from gguf import MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, TensorNameMap, TokenType, quants
from safetensors.numpy import save_file as save_arrays
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import golden

# How each tensor is stored; what is not named is float32.
STORED_AS = {
    "embed_tokens": Type.Q8_0,
    "lm_head": Type.F16,
    "q_proj": Type.Q8_0,
    "k_proj": Type.BF16,
    "v_proj": Type.Q4_1,
    "o_proj": Type.Q4_0,
    "gate_proj": Type.Q5_0,
    "up_proj": Type.Q5_1,
    "down_proj": Type.F16,
}

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

TEXTS = [
    "Hello, world!",
    "It's 2024, and I'm sure they've counted 1234567 of them; we'll see.",
    "  leading and   inner spaces, and trailing  ",
    "two\n\nlines\r\n\tand a tab\n",
    "naïve café, Straße, Ελληνικά, русский, 日本語, العربية, हिन्दी",
    "emoji 🦀👩‍👩‍👧 and symbols ≤ ∑ ½ ²³ ٣٤ Ⅷ",
    "if (x<=10) { return a[i]+b*c; } // 100%",
    "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\n",
    "a",
    "",
]


def quantised(name: str, weight: numpy.ndarray) -> tuple[numpy.ndarray, Type]:
    """The bytes of a tensor in its type, and the type."""
    kind = next((kind for part, kind in STORED_AS.items() if part in name), Type.F32)
    return quants.quantize(weight, kind), kind


def neighbours_rotate(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of each head reordered from (first halves, second halves) to (pair, pair, …), as Llama's converter does."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def rope_factors(parameters: dict, head_dim: int) -> numpy.ndarray:
    """Llama 3's blend as a divisor of each frequency."""
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * numpy.pi * parameters["rope_theta"] ** (2 * pair / head_dim)
        turns = parameters["original_max_position_embeddings"] / wavelength
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (kept + (1 - kept) / parameters["factor"]))
    return numpy.array(factors, dtype=numpy.float32)


def config():
    return golden.llama(
        vocab_size=288,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters=dict(golden.LLAMA3_ROPE),
    )


def requantised_model(seed: int):
    """A seeded model whose weights survive their types unchanged."""
    model = golden.seeded_model(config(), seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            data, kind = quantised(name, weight.numpy())
            weight.copy_(torch.from_numpy(quants.dequantize(data, kind).astype(numpy.float32).reshape(weight.shape)))
    return model


def write_model(directory: Path, model, tokenizer) -> None:
    c = model.config
    writer = GGUFWriter(directory / "model.gguf", "llama")
    writer.add_name("golden")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(golden.LLAMA3_ROPE["rope_theta"])
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_vocab_size(c.vocab_size)
    add_byte_level(writer, tokenizer, "smollm")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(golden.CHAT_TEMPLATE)
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    for name, weight in model.state_dict().items():
        weight = weight.numpy()
        for part, count in heads.items():
            if part in name:
                weight = neighbours_rotate(weight, count)
        data, kind = quantised(name, weight)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.add_tensor("rope_freqs.weight", rope_factors(golden.LLAMA3_ROPE, c.head_dim))
    finish(writer)


def gguf_name(name: str) -> str:
    name = name.removesuffix(".weight")
    if name.startswith("model.layers."):
        _, _, layer, part = name.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.weight"
    return f"{GGUF_NAMES[name]}.weight"


def add_byte_level(writer: GGUFWriter, tokenizer, pre: str) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if token in golden.SPECIAL_TOKENS else TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_expected(path: Path, encode, decode, texts=TEXTS) -> None:
    """Ids of each text, and the text that these ids give, one entry a line."""
    entries = [{"text": text, "ids": (ids := encode(text)), "decoded": decode(ids)} for text in texts]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n")


def write_tokenizers(directory: Path) -> None:
    """Files without weights, each beside the ids that the original tokenizer gives."""
    llama3 = golden.train_tokenizer(golden.llama3_pre_tokenizer(), 300)
    llama3.model.ignore_merges = True
    writer = GGUFWriter(directory / "llama-bpe.gguf", "llama")
    add_byte_level(writer, llama3, "llama-bpe")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    finish(writer)
    write_expected(directory / "llama-bpe.json", lambda text: [1] + llama3.encode(text).ids, llama3.decode)
    smollm = golden.train_tokenizer(golden.smollm_pre_tokenizer(), 288)
    write_expected(directory / "smollm.json", lambda text: smollm.encode(text).ids, smollm.decode)
    write_sentence_piece(directory)


def write_sentence_piece(directory: Path) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(golden.TRAINING_TEXT.splitlines()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(pieces.get_piece_size())

    def kind(index: int) -> TokenType:
        if pieces.is_unknown(index):
            return TokenType.UNKNOWN
        if pieces.is_control(index):
            return TokenType.CONTROL
        if pieces.is_byte(index):
            return TokenType.BYTE
        return TokenType.USER_DEFINED if pieces.id_to_piece(index).startswith("<|") else TokenType.NORMAL

    writer = GGUFWriter(directory / "llama-sentence-piece.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(index) for index in ids])
    writer.add_token_scores([pieces.get_score(index) for index in ids])
    writer.add_token_types([kind(index) for index in ids])
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_unk_token_id(pieces.unk_id())
    finish(writer)
    # After a user-defined symbol llama.cpp and tokenizers add a space again, sentencepiece does not; and for an empty
    # text sentencepiece alone adds one.
    texts = [text for text in TEXTS if text and "<|" not in text]
    write_expected(
        directory / "llama-sentence-piece.json", lambda text: [1] + pieces.encode(text), pieces.decode, texts
    )


def write_quantised(path: Path) -> None:
    """Two blocks or more of each type, and their numbers."""
    generator = numpy.random.default_rng(0)
    # Where half-precision scales lie in a block; all else may be any bits.
    scales = {Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}
    arrays = {}
    for kind in [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]:
        arrays[f"{kind.name}.bytes"] = quants.quantize(generator.standard_normal((2, 256), dtype=numpy.float32), kind)
    for kind, places in scales.items():
        size = quants.GGML_QUANT_SIZES[kind][1]
        blocks = generator.integers(0, 256, (2, size), dtype=numpy.uint8)
        for place in places:
            scale = generator.standard_normal(2).astype(numpy.float16)
            blocks[:, place : place + 2] = scale.view(numpy.uint8).reshape(2, 2)
        arrays[f"{kind.name}.bytes"] = blocks
    for name in list(arrays):
        kind = Type[name.removesuffix(".bytes")]
        arrays[f"{kind.name}.numbers"] = quants.dequantize(arrays[name], kind).astype(numpy.float32)
    save_arrays({name: numpy.ascontiguousarray(array.reshape(-1)) for name, array in arrays.items()}, path)


def write_family(fixture: Path, path: Path) -> None:
    """The model of a fixture under the names that llama.cpp has for its family's keys and tensors."""
    model = AutoModelForCausalLM.from_pretrained(fixture, dtype=torch.float32)
    c = model.config
    family = c.model_type.removesuffix("_text")
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == family)
    names = TensorNameMap(kind, c.num_hidden_layers)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer = GGUFWriter(path, family)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])
        for length in ["long", "short"]:
            name = f"rope_factors_{length}.weight"
            writer.add_tensor(name, numpy.array(rope[f"{length}_factor"], dtype=numpy.float32))
    if family.startswith("gemma"):
        writer.add_sliding_window(c.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])
    if family == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    add_byte_level(writer, Tokenizer.from_file(str(fixture / "tokenizer.json")), "smollm")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        weight = weight.numpy()
        if family.startswith("gemma") and name.endswith("norm.weight"):
            weight = weight + 1
        kind = Type.F32 if weight.ndim == 1 else Type.BF16
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(named, quants.quantize(weight, kind), raw_dtype=kind)
    finish(writer)


def write_families(root: Path) -> None:
    directory = root / "gguf"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    # Mistral's files are Llama's. A window is not in Qwen 2's, nor what scores are scaled by in Gemma's.
    for fixture in ["qwen2-bias-window", "qwen3-qk-norm", "phi3-short", "gemma2-softcaps", "gemma3-two-ropes"]:
        write_family(root / fixture, directory / f"{fixture}.gguf")


def write_all(root: Path) -> None:
    write_families(root)
    directory = root / "llama-gguf"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    seed, model, tensors = golden.first_good_seed(requantised_model)
    write_model(directory, model, golden.train_tokenizer(golden.smollm_pre_tokenizer(), model.config.vocab_size))
    golden.save_reference(directory, tensors, seed)
    print(f"llama-gguf: seed {seed}")
    tokenizers = root / "tokenizers"
    shutil.rmtree(tokenizers, ignore_errors=True)
    tokenizers.mkdir()
    write_tokenizers(tokenizers)
    write_quantised(root / "quantised.safetensors")
