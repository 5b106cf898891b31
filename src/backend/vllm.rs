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
    takes_requests_while_it_runs: true,
    without_counterpart: &[
        (
            "deterministic",
            "false",
            "vLLM has it as the variable VLLM_BATCH_INVARIANT, for some GPUs and models only, which the job does not set",
        ),
        ("quantization", "auto", "it follows the checkpoint by itself; vllm-args has its own `quantization`"),
        ("validate-weights", "false", "it does not look at the weights that it loads"),
        ("step-timeout-seconds", "auto", "it watches its steps by itself"),
        ("schedule", "input", "it decides by itself which request runs next"),
        ("measure-limits", "false", "it does not say what its steps need, so there is nothing to hold limits against"),
        (
            "data-parallel-size",
            "1",
            "offline it runs one engine in a process (LLM refuses data_parallel_size); jobs of one GPU each divide prompts by replica-count",
        ),
    ],
    decided: &[
        ("model", "set model"),
        ("tokenizer", "set tokenizer"),
        ("dtype", "set dtype"),
        ("tensor_parallel_size", "set tensor-parallel-size"),
        ("data_parallel_size", "leave it out: offline vLLM runs one engine in a process"),
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
        ("logprobs_mode", "leave it out: log-probabilities are those of the model, before options change logits"),
        ("max_logprobs", "leave it out: requests may ask for 20"),
    ],
};
