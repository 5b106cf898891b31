//! How many blocks the KV cache gets, decided before a single weight is read.
//!
//! What memory is left for it, but never more than the largest workload could use. Pure arithmetic: what is free and
//! what the rest needs is measured elsewhere.

use crate::error::Error;
use flashjob_config::EngineConfig;

/// What there is and what is needed besides the cache.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Bytes that may still be allocated; `None` where the system does not say.
    pub free_bytes: Option<u64>,
    /// Packed weights.
    pub weight_bytes: u64,
    /// Activations.
    pub workspace_bytes: u64,
    /// One block over all layers.
    pub block_bytes: u64,
    /// Longest sequence that the model was made for.
    pub max_position: usize,
    /// Angles of rotary embedding for each position.
    pub position_bytes: u64,
    /// Sequences that run at a time.
    pub max_num_seqs: usize,
}

/// Tables of angles, unless `max-model-len` asks for more: a million positions of a usual head. A configuration may claim any number
/// of positions, and a small model's cache has room for most of them.
const MOST_ANGLE_BYTES: u64 = 512 << 20;

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capacity {
    /// Blocks of the cache.
    pub kv_blocks: u32,
    /// Longest sequence that is served: as configured, or the model's own, or what the cache can hold if that is less.
    pub max_model_len: usize,
}

/// Decides.
///
/// # Errors
/// [`Error::DoesNotFit`] where not even one sequence of `max-model-len` fits (one block where that is not given);
/// [`Error::Setting`] where `max-model-len` is beyond the model.
pub fn plan(config: &EngineConfig, demand: &Demand) -> Result<Capacity, Error> {
    let block_tokens = config.block_tokens.get();
    let asked_len = config.max_model_len.map(|length| length.get());
    let most_positions = MOST_ANGLE_BYTES.checked_div(demand.position_bytes).unwrap_or(u64::MAX);
    let default_len = demand.max_position.min(usize::try_from(most_positions).unwrap_or(usize::MAX)).max(1);
    let longest = asked_len.unwrap_or(default_len);
    if longest > demand.max_position {
        let most = demand.max_position;
        return Err(Error::Setting(format!(
            "max-model-len is {longest}, but the model was made for {most} positions at most; set max-model-len to {most} or less"
        )));
    }
    let needed_blocks = asked_len.map_or(1, |length| length.div_ceil(block_tokens)) as u64;
    let rest_bytes = demand.weight_bytes.saturating_add(demand.workspace_bytes);
    let least_bytes = needed_blocks.saturating_mul(demand.block_bytes);
    let cache_bytes = match config.kv_cache_memory_bytes {
        Some(cache_bytes) => {
            let free_bytes = demand.free_bytes.unwrap_or(u64::MAX);
            if rest_bytes.saturating_add(cache_bytes) > free_bytes {
                return Err(Error::DoesNotFit {
                    what: "the model with its activations and the KV cache of kv-cache-memory".into(),
                    needed_bytes: rest_bytes.saturating_add(cache_bytes),
                    available_bytes: free_bytes,
                    advice: "lower kv-cache-memory, or give the container more memory".into(),
                });
            }
            cache_bytes
        }
        None => {
            let share = |bytes: u64| (bytes as f64 * config.memory_utilization) as u64;
            let budget_bytes = demand.free_bytes.map_or(u64::MAX, share);
            let needed_bytes = rest_bytes.saturating_add(least_bytes);
            if needed_bytes > budget_bytes {
                let tokens = asked_len.unwrap_or(block_tokens.min(demand.max_position));
                return Err(Error::DoesNotFit {
                    what: format!("the model with its activations and a KV cache for one sequence of {tokens} tokens"),
                    needed_bytes,
                    available_bytes: budget_bytes,
                    advice: format!(
                        "choose a smaller model or a dtype of 16 bits, lower max-model-len or max-num-batched-tokens, \
                         or give the container more memory ({} of what is free is used)",
                        config.memory_utilization
                    ),
                });
            }
            budget_bytes - rest_bytes
        }
    };
    let blocks = cache_bytes / demand.block_bytes.max(1);
    if blocks < needed_blocks {
        return Err(Error::DoesNotFit {
            what: format!("a KV cache for one sequence of {} tokens", asked_len.unwrap_or(block_tokens)),
            needed_bytes: least_bytes,
            available_bytes: cache_bytes,
            advice: "raise kv-cache-memory or lower max-model-len".into(),
        });
    }
    let max_model_len = longest.min(usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(block_tokens));
    let usable = (demand.max_num_seqs as u64).saturating_mul(max_model_len.div_ceil(block_tokens) as u64);
    // Slots are 32-bit numbers.
    let addressable = u64::from(u32::MAX) / block_tokens as u64;
    let kv_blocks = blocks.min(usable).min(addressable) as u32;
    Ok(Capacity { kv_blocks, max_model_len })
}

/// A sixteenth less, where the system did not give what was decided.
///
/// # Errors
/// [`Error::DoesNotFit`] where that is too little for one sequence of `max-model-len`, or for anything.
pub fn smaller(config: &EngineConfig, capacity: Capacity) -> Result<Capacity, Error> {
    let block_tokens = config.block_tokens.get();
    let kv_blocks = capacity.kv_blocks - capacity.kv_blocks.div_ceil(16);
    let needed_blocks = config.max_model_len.map_or(1, |length| length.get().div_ceil(block_tokens));
    if (kv_blocks as usize) < needed_blocks {
        return Err(Error::DoesNotFit {
            what: format!("a KV cache for one sequence of {} tokens", needed_blocks * block_tokens),
            needed_bytes: 0,
            available_bytes: 0,
            advice: "the device refused the memory; lower gpu-memory-utilization, or see who else uses it".into(),
        });
    }
    let max_model_len = capacity.max_model_len.min(kv_blocks as usize * block_tokens);
    Ok(Capacity { kv_blocks, max_model_len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_config::DtypeChoice;
    use std::num::NonZeroUsize;

    const DEMAND: Demand = Demand {
        free_bytes: Some(10_000),
        weight_bytes: 3_000,
        workspace_bytes: 1_000,
        block_bytes: 100,
        max_position: 640,
        position_bytes: 64,
        max_num_seqs: 8,
    };

    fn config(max_model_len: usize, kv_cache_memory_bytes: Option<u64>) -> EngineConfig {
        EngineConfig {
            tensor_parallel_size: None,
            max_model_len: NonZeroUsize::new(max_model_len),
            dtype: DtypeChoice::Auto,
            memory_utilization: 0.9,
            kv_cache_memory_bytes,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            prefix_caching: false,
            enforce_eager: false,
            block_tokens: NonZeroUsize::new(32).unwrap(),
            threads: None,
            validate_weights: false,
            measure_limits: false,
            instruction_set: None,
        }
    }

    #[test]
    fn the_cache_gets_what_is_left_up_to_what_can_be_used() {
        let capacity = |max_model_len, bytes, demand| {
            let Capacity { kv_blocks, max_model_len } = plan(&config(max_model_len, bytes), &demand).unwrap();
            (kv_blocks, max_model_len)
        };
        // 0.9 × 10 000 − 4 000 = 5 000 bytes; 8 sequences of 640 tokens could use 160 blocks.
        assert_eq!(capacity(0, None, DEMAND), (50, 640));
        assert_eq!(capacity(64, None, DEMAND), (16, 64));
        assert_eq!(capacity(65, None, Demand { max_num_seqs: 1, ..DEMAND }), (3, 65));
        assert_eq!(capacity(0, Some(1_050), DEMAND), (10, 320));
        assert_eq!(capacity(0, Some(6_000), DEMAND), (60, 640));
        assert_eq!(capacity(0, None, Demand { free_bytes: None, ..DEMAND }), (160, 640));
        // Angles of 8 Mi positions are half a GiB; who asks for more gets it.
        let claimed = Demand { free_bytes: None, max_position: 1 << 28, max_num_seqs: 1, ..DEMAND };
        assert_eq!(capacity(0, None, claimed).1, 8 << 20);
        assert_eq!(capacity(1 << 25, None, claimed).1, 1 << 25);
    }

    #[test]
    fn what_the_system_refuses_is_asked_for_again_in_smaller_pieces() {
        let (mut capacity, mut tries) = (Capacity { kv_blocks: 50, max_model_len: 640 }, 0);
        while let Ok(less) = smaller(&config(0, None), capacity) {
            assert!(less.kv_blocks < capacity.kv_blocks);
            assert_eq!(less.max_model_len, 640.min(less.kv_blocks as usize * 32));
            (capacity, tries) = (less, tries + 1);
        }
        assert_eq!(capacity.kv_blocks, 1);
        assert!((20..40).contains(&tries), "{tries}");
        let asked = smaller(&config(640, None), Capacity { kv_blocks: 20, max_model_len: 640 });
        assert!(matches!(asked, Err(Error::DoesNotFit { .. })));
    }

    #[test]
    fn what_cannot_fit_says_what_is_needed_and_what_there_is() {
        let refusals = [
            (config(0, None), Demand { free_bytes: Some(4_000), ..DEMAND }, Some((4_100, 3_600))),
            (config(640, None), Demand { free_bytes: Some(6_000), ..DEMAND }, Some((6_000, 5_400))),
            (config(0, Some(99)), DEMAND, Some((100, 99))),
            (config(640, Some(1_999)), DEMAND, Some((2_000, 1_999))),
            (config(0, Some(6_001)), DEMAND, Some((10_001, 10_000))),
            (config(641, None), DEMAND, None),
        ];
        for (config, demand, expected) in refusals {
            let error = plan(&config, &demand).unwrap_err();
            let found = match &error {
                Error::DoesNotFit { needed_bytes, available_bytes, .. } => Some((*needed_bytes, *available_bytes)),
                Error::Setting(text) if text.contains("641") && text.contains("640") => None,
                other => panic!("{other}"),
            };
            assert_eq!(found, expected, "{error}");
        }
    }
}
