//! Blocks of the KV cache, decided before a single weight is read.
//!
//! The cache gets the memory that is left, but never more than the largest workload could use. Pure arithmetic: free memory and
//! the needs of everything else are measured elsewhere.

use crate::error::Error;
use crate::schedule::limits::EngineLimits;
use flashjob_config::EngineConfig;

/// Memory that there is, and memory that is needed besides the cache.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBudget {
    /// Bytes that may still be allocated; `None` where the system does not say.
    pub free_bytes: Option<u64>,
    /// Packed weights.
    pub weight_bytes: u64,
    /// Activations and other buffers of a step, in bytes.
    pub workspace_bytes: u64,
    /// One block over all layers.
    pub block_bytes: u64,
    /// Angles of rotary embedding for each position.
    pub position_bytes: u64,
}

/// Tables of angles, unless `max-model-len` asks for more: a million positions of a usual head. A configuration may claim any number
/// of positions, and a small model's cache has room for most of them.
const MOST_ANGLE_BYTES: u64 = 512 << 20;

/// Tokens of a useful cache: 64 sequences of 512 tokens, among which each read of the weights is divided.
const USEFUL_CACHE_TOKENS: usize = 64 * 512;

/// Sets `num_blocks` and `max_model_len` of `limits`, whose `max_model_len` is the model's own: it becomes what is configured, or
/// what the cache can hold if that is less.
///
/// # Errors
/// [`Error::DoesNotFit`] where not even one sequence of `max-model-len` fits (one block where that is not given);
/// [`Error::Setting`] where `max-model-len` is beyond the model.
pub fn plan(config: &EngineConfig, limits: EngineLimits, budget: &MemoryBudget) -> Result<EngineLimits, Error> {
    let block_size = limits.block_size;
    let longest = longest_sequence(config, limits.max_model_len, budget.position_bytes)?;
    let needed_blocks = needed_blocks(config, block_size) as u64;
    let least_bytes = needed_blocks.saturating_mul(budget.block_bytes);
    let cache_bytes = match config.kv_cache_memory_bytes {
        Some(cache_bytes) => asked_cache_bytes(cache_bytes, budget)?,
        None => remaining_cache_bytes(config, limits, budget, least_bytes)?,
    };
    // Sizes come from the model's configuration: nothing is divided by zero, whatever it says.
    let blocks = cache_bytes / budget.block_bytes.max(1);
    if blocks < needed_blocks {
        let tokens = config.max_model_len.map_or(block_size, |length| length.get());
        return Err(Error::DoesNotFit {
            what: format!("a KV cache for one sequence of {tokens} tokens"),
            needed_bytes: least_bytes,
            available_bytes: cache_bytes,
            advice: "raise kv-cache-memory or lower max-model-len".into(),
        });
    }
    let max_model_len = longest.min(usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(block_size));
    // More blocks than all sequences take at their longest would never be used.
    let usable = (limits.max_num_seqs as u64).saturating_mul(max_model_len.div_ceil(block_size) as u64);
    // Slots are 32-bit numbers.
    let addressable = u64::from(u32::MAX) / block_size as u64;
    let num_blocks = blocks.min(usable).min(addressable) as usize;
    Ok(EngineLimits { num_blocks, max_model_len, ..limits })
}

/// Tells that `budget` leaves room for a cache with which an engine is not slower than it must be, and serves what it could serve with
/// any: for one sequence of `max-model-len`, and for [`USEFUL_CACHE_TOKENS`] or what `max-num-seqs` sequences can use at most. A cache of a
/// configured size is useful.
pub fn is_useful(config: &EngineConfig, limits: EngineLimits, budget: &MemoryBudget) -> bool {
    let planned = |budget: &MemoryBudget| plan(config, limits, budget).ok();
    let unbounded = MemoryBudget { free_bytes: None, ..*budget };
    let (Some(limits), Some(unbounded)) = (planned(budget), planned(&unbounded)) else { return false };
    let cached = limits.num_blocks.saturating_mul(limits.block_size);
    let usable = limits.max_num_seqs.saturating_mul(limits.max_model_len);
    config.kv_cache_memory_bytes.is_some()
        || (limits.max_model_len == unbounded.max_model_len && cached >= USEFUL_CACHE_TOKENS.min(usable))
}

/// Tokens of the longest sequence as far as configuration and model decide it.
fn longest_sequence(config: &EngineConfig, max_position: usize, position_bytes: u64) -> Result<usize, Error> {
    let most_positions = MOST_ANGLE_BYTES.checked_div(position_bytes).unwrap_or(u64::MAX);
    let default_len = max_position.min(usize::try_from(most_positions).unwrap_or(usize::MAX)).max(1);
    let longest = config.max_model_len.map_or(default_len, |length| length.get());
    if longest > max_position {
        return Err(Error::Setting(format!(
            "max-model-len is {longest}, but the model was made for {max_position} positions at most; set max-model-len to \
             {max_position} or less"
        )));
    }
    Ok(longest)
}

/// Blocks of one sequence of `max-model-len`; one where that is not given.
fn needed_blocks(config: &EngineConfig, block_size: usize) -> usize {
    config.max_model_len.map_or(1, |length| length.get().div_ceil(block_size))
}

/// Bytes of a cache whose size is configured.
fn asked_cache_bytes(cache_bytes: u64, budget: &MemoryBudget) -> Result<u64, Error> {
    let needed_bytes = budget.weight_bytes.saturating_add(budget.workspace_bytes).saturating_add(cache_bytes);
    let free_bytes = budget.free_bytes.unwrap_or(u64::MAX);
    if needed_bytes > free_bytes {
        return Err(Error::DoesNotFit {
            what: "the model with its activations and the KV cache of kv-cache-memory".into(),
            needed_bytes,
            available_bytes: free_bytes,
            advice: "lower kv-cache-memory, or give the container more memory".into(),
        });
    }
    Ok(cache_bytes)
}

/// Bytes that are left of the share of memory that may be used, which must be `least_bytes` at least.
fn remaining_cache_bytes(
    config: &EngineConfig,
    limits: EngineLimits,
    budget: &MemoryBudget,
    least_bytes: u64,
) -> Result<u64, Error> {
    let rest_bytes = budget.weight_bytes.saturating_add(budget.workspace_bytes);
    let share = |bytes: u64| (bytes as f64 * config.memory_utilization) as u64;
    let available_bytes = budget.free_bytes.map_or(u64::MAX, share);
    let needed_bytes = rest_bytes.saturating_add(least_bytes);
    if needed_bytes > available_bytes {
        let least_tokens = limits.block_size.min(limits.max_model_len);
        let tokens = config.max_model_len.map_or(least_tokens, |length| length.get());
        return Err(Error::DoesNotFit {
            what: format!("the model with its activations and a KV cache for one sequence of {tokens} tokens"),
            needed_bytes,
            available_bytes,
            advice: format!(
                "choose a smaller model or a dtype of 16 bits, lower max-model-len or max-num-batched-tokens, \
                 or give the container more memory ({} of what is free is used)",
                config.memory_utilization
            ),
        });
    }
    Ok(available_bytes - rest_bytes)
}

/// A cache that is a sixteenth smaller, where the system did not give what was decided.
///
/// # Errors
/// [`Error::DoesNotFit`] where that is too little for one sequence of `max-model-len`, or for anything.
pub fn smaller(config: &EngineConfig, limits: EngineLimits) -> Result<EngineLimits, Error> {
    let block_size = limits.block_size;
    let num_blocks = limits.num_blocks - limits.num_blocks.div_ceil(16);
    let needed_blocks = needed_blocks(config, block_size);
    if num_blocks < needed_blocks {
        return Err(Error::DoesNotFit {
            what: format!("a KV cache for one sequence of {} tokens", needed_blocks * block_size),
            needed_bytes: 0,
            available_bytes: 0,
            advice: "the device refused the memory; lower gpu-memory-utilization, or see who else uses it".into(),
        });
    }
    let max_model_len = limits.max_model_len.min(num_blocks * block_size);
    Ok(EngineLimits { num_blocks, max_model_len, ..limits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_config::{DtypeChoice, Quantization, Schedule};
    use std::num::NonZeroUsize;

    const LIMITS: EngineLimits = EngineLimits {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 640,
        block_size: 32,
        num_blocks: 0,
        num_spare_blocks: 0,
        vocab_size: 100,
    };

    const BUDGET: MemoryBudget = MemoryBudget {
        free_bytes: Some(10_000),
        weight_bytes: 3_000,
        workspace_bytes: 1_000,
        block_bytes: 100,
        position_bytes: 64,
    };

    fn config(max_model_len: usize, kv_cache_memory_bytes: Option<u64>) -> EngineConfig {
        EngineConfig {
            tensor_parallel_size: None,
            data_parallel_size: None,
            max_model_len: NonZeroUsize::new(max_model_len),
            dtype: DtypeChoice::Auto,
            quantization: Quantization::Auto,
            memory_utilization: 0.9,
            kv_cache_memory_bytes,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            prefix_caching: false,
            schedule: Schedule::Input,
            enforce_eager: false,
            deterministic: false,
            block_tokens: NonZeroUsize::new(32).unwrap(),
            threads: None,
            validate_weights: false,
            measure_limits: false,
            step_timeout: None,
            instruction_set: None,
        }
    }

    #[test]
    fn the_cache_gets_what_is_left_up_to_what_can_be_used() {
        let capacity_of = |limits, max_model_len, bytes, budget| {
            let planned = plan(&config(max_model_len, bytes), limits, &budget).unwrap();
            (planned.num_blocks, planned.max_model_len)
        };
        let capacity = |max_model_len, bytes, budget| capacity_of(LIMITS, max_model_len, bytes, budget);
        // 0.9 × 10 000 − 4 000 = 5 000 bytes; 8 sequences of 640 tokens could use 160 blocks.
        assert_eq!(capacity(0, None, BUDGET), (50, 640));
        assert_eq!(capacity(64, None, BUDGET), (16, 64));
        assert_eq!(capacity_of(EngineLimits { max_num_seqs: 1, ..LIMITS }, 65, None, BUDGET), (3, 65));
        assert_eq!(capacity(0, Some(1_050), BUDGET), (10, 320));
        assert_eq!(capacity(0, Some(6_000), BUDGET), (60, 640));
        assert_eq!(capacity(0, None, MemoryBudget { free_bytes: None, ..BUDGET }), (160, 640));
        // Angles of 8 Mi positions are half a GiB; who asks for more gets it.
        let claimed = EngineLimits { max_model_len: 1 << 28, max_num_seqs: 1, ..LIMITS };
        let unknown = MemoryBudget { free_bytes: None, ..BUDGET };
        assert_eq!(capacity_of(claimed, 0, None, unknown).1, 8 << 20);
        assert_eq!(capacity_of(claimed, 1 << 25, None, unknown).1, 1 << 25);
    }

    #[test]
    fn a_cache_is_useful_that_serves_the_longest_sequence_and_many_at_a_time() {
        let of = |config: &EngineConfig, limits, cache_blocks: u64| {
            let free_bytes = Some(4_000 + cache_blocks * 100);
            is_useful(
                &EngineConfig { memory_utilization: 1.0, ..config.clone() },
                limits,
                &MemoryBudget { free_bytes, ..BUDGET },
            )
        };
        // Eight sequences of 640 tokens can use 160 blocks, less than what many share.
        let least = |config: &EngineConfig, limits| (0..4_000).find(|&blocks| of(config, limits, blocks));
        assert_eq!(least(&config(0, None), LIMITS), Some(160));
        assert_eq!(least(&config(64, None), LIMITS), Some(16));
        let many = EngineLimits { max_num_seqs: 1_000, ..LIMITS };
        assert_eq!(least(&config(0, None), many), Some(1_024));
        // A single one may be longer than all that.
        let long = EngineLimits { max_model_len: 64_000, ..many };
        assert_eq!(least(&config(0, None), long), Some(2_000));
        assert_eq!(least(&config(0, Some(300)), many), Some(3));
        assert!(is_useful(&config(0, None), many, &MemoryBudget { free_bytes: None, ..BUDGET }));
    }

    #[test]
    fn what_the_system_refuses_is_asked_for_again_in_smaller_pieces() {
        let (mut capacity, mut tries) = (EngineLimits { num_blocks: 50, ..LIMITS }, 0);
        while let Ok(less) = smaller(&config(0, None), capacity) {
            assert!(less.num_blocks < capacity.num_blocks);
            assert_eq!(less.max_model_len, 640.min(less.num_blocks * 32));
            (capacity, tries) = (less, tries + 1);
        }
        assert_eq!(capacity.num_blocks, 1);
        assert!((20..40).contains(&tries), "{tries}");
        let asked = smaller(&config(640, None), EngineLimits { num_blocks: 20, ..LIMITS });
        assert!(matches!(asked, Err(Error::DoesNotFit { .. })));
    }

    #[test]
    fn what_cannot_fit_says_what_is_needed_and_what_there_is() {
        let refusals = [
            (config(0, None), MemoryBudget { free_bytes: Some(4_000), ..BUDGET }, Some((4_100, 3_600))),
            (config(640, None), MemoryBudget { free_bytes: Some(6_000), ..BUDGET }, Some((6_000, 5_400))),
            (config(0, Some(99)), BUDGET, Some((100, 99))),
            (config(640, Some(1_999)), BUDGET, Some((2_000, 1_999))),
            (config(0, Some(6_001)), BUDGET, Some((10_001, 10_000))),
            (config(641, None), BUDGET, None),
        ];
        for (config, budget, expected) in refusals {
            let error = plan(&config, LIMITS, &budget).unwrap_err();
            let found = match &error {
                Error::DoesNotFit { needed_bytes, available_bytes, .. } => Some((*needed_bytes, *available_bytes)),
                Error::Setting(text) if text.contains("641") && text.contains("640") => None,
                other => panic!("{other}"),
            };
            assert_eq!(found, expected, "{error}");
        }
    }
}
