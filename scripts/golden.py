"""Tiny models with seeded weights, and what Hugging Face transformers computes with them.

Usage: golden.py DIRECTORY [NAME ...]. The formats are described in tests/golden/README.md.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    Mistral3Config,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

PROMPT_LENGTHS = [1, 7, 33, 100]
NEW_TOKENS = 64
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The likeliest token must lead by this share of the logits' range at every greedy step, so that rounding decides none.
SMALLEST_LEAD = 3e-4

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TRAINING_TEXT = """The job mounts a bucket, reads the model, and answers each request in turn.
When the last token of the last request is there, it writes down how long that took, and leaves.
In 2024 there were 365 or 366 days; it's said they've counted 1234567 of them. I'm sure we'll see, you'd say.
The weather in the north is the weather that the north wind brings: rain, then more rain, then the sun.
Reading and writing are the two things that a file is for; the rest is naming and caring for the names.
""" * 4


def train_tokenizer(pre_tokenizer, vocab_size: int) -> Tokenizer:
    """A byte-level BPE with the special tokens first, as SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TRAINING_TEXT.splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == vocab_size
    return tokenizer


def smollm_pre_tokenizer():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def llama3_pre_tokenizer():
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def takes_images(config: PreTrainedConfig) -> bool:
    return config.get_text_config() is not config


def seeded_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Weights large enough that logits spread and attention is not uniform; each is exact in bfloat16."""
    config._attn_implementation = "eager"
    kind = AutoModelForImageTextToText if takes_images(config) else AutoModelForCausalLM
    model = kind.from_config(config).float().eval()
    norms_less_by_one = config.model_type.startswith("gemma")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                value = noise * (2.0 / weight.shape[1] ** 0.5)
            elif name.endswith("bias"):
                value = 0.5 * noise
            else:
                value = 0.2 * noise + (0 if norms_less_by_one else 1)
                if norms_less_by_one and "post_" in name:
                    value = value + 3
            if name.endswith("embed_tokens.weight"):
                # Gemma scales its embedding up, and ties the head to it: what layers add must not drown in it, or each
                # token is followed by itself.
                value = 0.15 * noise if norms_less_by_one else noise
            weight.copy_(value.bfloat16().float())
    return model


@torch.no_grad()
def reference(model: PreTrainedModel, seed: int, prompt_lengths: list[int]) -> tuple[dict[str, torch.Tensor], float]:
    """Prompts, logits and greedy continuations; and the smallest lead of a chosen token, relative to the range."""
    generator = torch.Generator().manual_seed(seed)
    tensors, smallest_lead = {}, float("inf")
    for index, length in enumerate(prompt_lengths):
        vocab_size = model.config.get_text_config().vocab_size
        prompt = torch.randint(len(SPECIAL_TOKENS), vocab_size, [1, length], generator=generator)
        logits = model(prompt, use_cache=False).logits[0]
        positions = sorted({0, length // 2, length - 1})
        sequence = prompt
        for _ in range(NEW_TOKENS):
            last = model(sequence, use_cache=False).logits[0, -1]
            first, second = last.topk(2).values
            smallest_lead = min(smallest_lead, float((first - second) / (last.max() - last.min())))
            sequence = torch.cat([sequence, last.argmax().view(1, 1)], dim=1)
        greedy = sequence[0, length:]
        if len(set(greedy.tolist())) < NEW_TOKENS // 3:
            smallest_lead = 0.0  # a loop proves little
        tensors |= {
            f"prompt.{index}": prompt[0].int(),
            f"positions.{index}": torch.tensor(positions, dtype=torch.int32),
            f"logits.{index}": logits[positions].clone(),
            f"greedy.{index}": greedy.int(),
        }
    return tensors, smallest_lead


def first_good_seed(make_model, prompt_lengths=PROMPT_LENGTHS):
    """Tries seeds until no greedy step is a close call."""
    for seed in range(1000):
        model = make_model(seed)
        tensors, lead = reference(model, seed, prompt_lengths)
        if lead >= SMALLEST_LEAD:
            return seed, model, tensors
    sys.exit("no seed gives clear greedy choices")


def save_reference(directory: Path, tensors, seed: int) -> None:
    # One key: several would be written in random order.
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}, seed {seed}"
    save_file(tensors, directory / "golden.safetensors", metadata={"made_by": made_by})


def save_model(directory: Path, model: PreTrainedModel, tokenizer: Tokenizer, dtype: torch.dtype, shards: int) -> None:
    """A complete directory in Hugging Face layout."""
    if takes_images(model.config):
        # Names of tensors, and what a configuration leaves out, are transformers' own.
        model.to(dtype).save_pretrained(directory)
        save_texts(directory, tokenizer)
        return
    config = model.config.to_dict()
    for absent in ["_name_or_path", "_attn_implementation_autoset"]:
        config.pop(absent, None)
    config |= {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    write_json(directory / "config.json", config)
    save_texts(directory, tokenizer)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    if shards == 1:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map, names = {}, sorted(state)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[shard::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def save_texts(directory: Path, tokenizer: Tokenizer) -> None:
    """What is about texts, beside the model."""
    write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [0, 2]})
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE},
    )


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def llama(**settings) -> LlamaConfig:
    return LlamaConfig(bos_token_id=1, eos_token_id=2, max_position_embeddings=512, rms_norm_eps=1e-5, **settings)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# What every family here has in common.
SMALL = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TINY_VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 4,
    "image_size": 8,
    "patch_size": 2,
}

# Prompts longer than a window; Phi 3's long factors hold from the first token on.
LONG_PROMPTS = [33, 47, 70, 100]

MODELS = {
    # Grouped queries; long wavelengths stretched within reach of the longest prompt.
    "llama-gqa": (
        lambda: llama(
            vocab_size=288,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters=dict(LLAMA3_ROPE),
        ),
        torch.bfloat16,
        1,
    ),
    # One key and value head for all queries; the head is the embedding.
    "llama-mqa-tied": (
        lambda: llama(
            vocab_size=272,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
        torch.float32,
        1,
    ),
    # Two files; heads wider than hidden / heads; positions divided; widths that fill no vector register.
    "llama-sharded": (
        lambda: llama(
            vocab_size=300,
            hidden_size=40,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        ),
        torch.bfloat16,
        2,
    ),
    # A window shorter than three of the four prompts, in every layer.
    "mistral-window": (
        lambda: MistralConfig(**SMALL, num_hidden_layers=2, head_dim=16, sliding_window=5, tie_word_embeddings=False),
        torch.bfloat16,
        1,
    ),
    # Biases; a window in the upper layer only; the head is the embedding.
    "qwen2-bias-window": (
        lambda: Qwen2Config(
            **SMALL,
            num_hidden_layers=2,
            use_sliding_window=True,
            sliding_window=20,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
        torch.bfloat16,
        1,
    ),
    # Normalised heads, wider than hidden / heads.
    "qwen3-qk-norm": (
        lambda: Qwen3Config(**SMALL, num_hidden_layers=2, head_dim=24, tie_word_embeddings=False),
        torch.bfloat16,
        1,
    ),
    # Fused tensors, three quarters of a head rotated, factors for short sequences with a magnitude of their own.
    "phi3-short": (
        lambda: Phi3Config(
            **SMALL | {"hidden_size": 64},
            num_hidden_layers=2,
            pad_token_id=0,
            original_max_position_embeddings=512,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.05, 1.1, 1.3, 1.7, 2.5],
                "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
                "original_max_position_embeddings": 512,
                "attention_factor": 1.2,
            },
        ),
        torch.bfloat16,
        1,
    ),
    # The same beyond the original length, and a window.
    "phi3-long-window": (
        lambda: Phi3Config(
            **SMALL,
            num_hidden_layers=2,
            pad_token_id=0,
            sliding_window=21,
            original_max_position_embeddings=32,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 1.5, 2.5, 4.0],
                "original_max_position_embeddings": 32,
            },
        ),
        torch.bfloat16,
        1,
        LONG_PROMPTS,
    ),
    # Norms on both sides, bounded scores and logits, a window in every other layer, scores scaled by another width.
    "gemma2-softcaps": (
        lambda: Gemma2Config(
            **SMALL,
            num_hidden_layers=3,
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=9,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=1.5,
        ),
        torch.bfloat16,
        1,
    ),
    # Normalised heads, one key and value head, one layer in three that sees everything and rotates otherwise.
    "gemma3-two-ropes": (
        lambda: Gemma3TextConfig(
            **SMALL | {"num_key_value_heads": 1},
            num_hidden_layers=3,
            head_dim=24,
            query_pre_attn_scalar=20,
            sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        torch.bfloat16,
        1,
    ),
    # Language models within models that take images, too; the parts for those are as small as can be.
    "gemma3-images": (
        lambda: Gemma3Config(
            text_config=SMALL
            | {
                "num_hidden_layers": 3,
                "head_dim": 24,
                "query_pre_attn_scalar": 20,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                "tie_word_embeddings": True,
            },
            vision_config=TINY_VISION,
            mm_tokens_per_image=4,
            image_token_id=0,
            boi_token_id=0,
            eoi_token_id=0,
            eos_token_id=2,
        ),
        torch.bfloat16,
        1,
    ),
    "mistral3-images": (
        lambda: Mistral3Config(
            text_config=SMALL | {"model_type": "mistral", "num_hidden_layers": 2, "head_dim": 16, "sliding_window": None},
            vision_config=TINY_VISION | {"model_type": "pixtral"},
            image_token_id=0,
            spatial_merge_size=2,
        ),
        torch.bfloat16,
        1,
    ),
}


def main(root: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, (config, dtype, shards, *prompt_lengths) in MODELS.items():
        if only and name not in only:
            continue
        directory = root / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        seed, model, tensors = first_good_seed(lambda seed: seeded_model(config(), seed), *prompt_lengths)
        tokenizer = train_tokenizer(smollm_pre_tokenizer(), model.config.get_text_config().vocab_size)
        save_model(directory, model, tokenizer, dtype, shards)
        save_reference(directory, tensors, seed)
        spread = max(float(tensors[f"logits.{i}"].abs().max()) for i in range(len(PROMPT_LENGTHS)))
        print(f"{name}: seed {seed}, largest logit {spread:.2f}")
    if not only:
        golden_gguf.write_all(root)


if __name__ == "__main__":
    import golden_gguf  # which takes from this file what both need

    main(Path(sys.argv[1]), sys.argv[2:])
