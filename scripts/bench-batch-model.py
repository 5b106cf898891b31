"""SmolLM2 of a GGUF file as a directory in Hugging Face layout, which vLLM reads: GGUF DIRECTORY. Needs torch, transformers and gguf."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

gguf, directory = map(Path, sys.argv[1:])
model = AutoModelForCausalLM.from_pretrained(
    gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
)
model.save_pretrained(directory)
AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
