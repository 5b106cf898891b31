//! vLLM as a backend: its driver, its words, and what it does not have.

use super::child_engine::{DRIVER_MODULE, Driver, Product};

/// vLLM with the engine core in a process of its own, and everything else that the user does not set as vLLM has it.
pub static VLLM: Product = Product {
    name: "vLLM",
    backend: "vllm",
    driver: Driver {
        modules: &[DRIVER_MODULE],
        main: include_str!("vllm/driver.py"),
        // No downloads, no usage statistics.
        variables: &[
            ("HF_HUB_OFFLINE", "1"),
            ("TRANSFORMERS_OFFLINE", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("DO_NOT_TRACK", "1"),
            ("VLLM_LOGGING_COLOR", "0"),
        ],
        log_name: "vllm",
    },
    arguments_key: "vllm-args",
    arguments: |job| &job.vllm_arguments,
    without_counterpart: &[
        ("validate-weights", "false", "it does not look at the weights that it loads"),
        ("measure-limits", "false", "it does not say what its steps need, so there is nothing to hold limits against"),
    ],
    decided: &[
        ("model", "set model"),
        ("tokenizer", "set tokenizer"),
        ("dtype", "set dtype"),
        ("tensor_parallel_size", "set tensor-parallel-size"),
        ("max_model_len", "set max-model-len"),
        ("gpu_memory_utilization", "set gpu-memory-utilization"),
        ("kv_cache_memory_bytes", "set kv-cache-memory"),
        ("max_num_seqs", "set max-num-seqs"),
        ("max_num_batched_tokens", "set max-num-batched-tokens"),
        ("enable_prefix_caching", "set enable-prefix-caching"),
        ("enforce_eager", "set enforce-eager"),
        ("block_size", "set block-size"),
        ("seed", "set seed"),
        ("config", "name its settings one by one"),
        ("disable_log_stats", "leave it out: running and waiting requests are read from these"),
        ("skip_tokenizer_init", "leave it out: answers are texts"),
    ],
};
