//! Sequences and tokens of a step at most, where they are not configured: from the kind of device and the memory that is free.
//!
//! Pure arithmetic. What a place or a token of the cache takes is computed elsewhere.

use std::ops::RangeInclusive;

use flashjob_config::EngineConfig;

/// Cause of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitReason {
    /// It is configured.
    Configured,
    /// It is the default of the kind of device.
    DeviceDefault,
    /// It is what the memory has room for.
    Memory,
}

/// Causes of the limits of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LimitReasons {
    /// Cause of the number of sequences.
    pub max_num_seqs: LimitReason,
    /// Cause of the number of tokens.
    pub max_num_batched_tokens: LimitReason,
}

impl LimitReasons {
    /// The same where sequences, or tokens, are asked for later.
    pub fn of_asked(self, [sequences, tokens]: [bool; 2]) -> Self {
        let reason = |asked, loaded| if asked { LimitReason::Configured } else { loaded };
        Self {
            max_num_seqs: reason(sequences, self.max_num_seqs),
            max_num_batched_tokens: reason(tokens, self.max_num_batched_tokens),
        }
    }
}

/// A limit and its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecidedLimit {
    /// Sequences or tokens.
    pub limit: usize,
    /// Why it is so many.
    pub reason: LimitReason,
}

/// Tokens of the sequences by which places are counted: prompts and answers of 128 tokens, or half of a request as ShareGPT has them.
/// Where they are longer, the cache is full before all places are taken, and nothing is lost.
const TOKENS_OF_A_PLACE: usize = 256;

/// Places are a multiple of the distance between the largest sizes of recorded steps.
const PLACES_STEP: usize = 64;

/// Memory for weights, activations and the cache, and what one place takes of it.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes that may be allocated; `None` where the system does not say, or says it of one of several nodes.
    pub free_bytes: Option<u64>,
    /// Weights, and activations of a step without logits.
    pub fixed_bytes: u64,
    /// Logits, and what is computed with them, of one sequence.
    pub logits_bytes: u64,
    /// Keys and values of one token.
    pub token_bytes: u64,
}

/// Sequences of a step as configured, or as many as there is room for within `defaults`; their lower end where room is unknown.
pub fn max_num_seqs(
    config: &EngineConfig,
    defaults: RangeInclusive<usize>,
    max_model_len: usize,
    room: &Room,
) -> DecidedLimit {
    if let Some(count) = config.max_num_seqs {
        return DecidedLimit { limit: count.get(), reason: LimitReason::Configured };
    }
    let (least, most) = (*defaults.start(), *defaults.end());
    let Some(free_bytes) = room.free_bytes else {
        return DecidedLimit { limit: least, reason: LimitReason::DeviceDefault };
    };
    let cache_bytes = room.token_bytes.saturating_mul(max_model_len.min(TOKENS_OF_A_PLACE) as u64);
    let (bytes, place_bytes) = match config.kv_cache_memory_bytes {
        Some(bytes) => (bytes, cache_bytes),
        None => {
            let share = (free_bytes as f64 * config.memory_utilization) as u64;
            (share.saturating_sub(room.fixed_bytes), cache_bytes.saturating_add(room.logits_bytes))
        }
    };
    let places = usize::try_from(bytes / place_bytes.max(1)).unwrap_or(usize::MAX);
    let limit = (places / PLACES_STEP * PLACES_STEP).clamp(least, most);
    let reason = if limit == most { LimitReason::DeviceDefault } else { LimitReason::Memory };
    DecidedLimit { limit, reason }
}

/// Tokens of a step as configured, or the `default` of the kind of device.
pub fn max_num_batched_tokens(config: &EngineConfig, default: usize) -> DecidedLimit {
    match config.max_num_batched_tokens {
        Some(count) => DecidedLimit { limit: count.get(), reason: LimitReason::Configured },
        None => DecidedLimit { limit: default, reason: LimitReason::DeviceDefault },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_test_engine::config;
    use std::num::NonZeroUsize;

    const GIB: u64 = 1 << 30;

    /// Llama-3.1-8B in 16 bits with steps of 8192 tokens, on a GPU with this much free memory.
    fn llama(free_gib: u64) -> Room {
        Room { free_bytes: Some(free_gib * GIB), fixed_bytes: 17 * GIB, logits_bytes: 540_000, token_bytes: 131_072 }
    }

    fn decided(config: &EngineConfig, max_model_len: usize, room: &Room) -> (usize, LimitReason) {
        let DecidedLimit { limit, reason } = max_num_seqs(config, 256..=1024, max_model_len, room);
        (limit, reason)
    }

    #[test]
    fn places_are_as_many_as_the_cache_has_room_for_up_to_the_most() {
        let config = EngineConfig { max_num_seqs: None, memory_utilization: 0.9, ..config() };
        use LimitReason::{Configured, DeviceDefault, Memory};
        assert_eq!(decided(&config, 131_072, &llama(80)), (1024, DeviceDefault));
        // 0.9 x 40 - 17 GiB at 34.1 MB a sequence.
        assert_eq!(decided(&config, 131_072, &llama(40)), (576, Memory));
        assert_eq!(decided(&config, 131_072, &llama(22)), (256, Memory));
        // Short sequences take less.
        assert_eq!(decided(&config, 64, &llama(40)), (1024, DeviceDefault));
        let unknown = Room { free_bytes: None, ..llama(80) };
        assert_eq!(decided(&config, 131_072, &unknown), (256, DeviceDefault));
        let small_cache = EngineConfig { kv_cache_memory_bytes: Some(12 * GIB), ..config.clone() };
        assert_eq!(decided(&small_cache, 131_072, &llama(80)), (384, Memory));
        let asked = EngineConfig { max_num_seqs: NonZeroUsize::new(7), ..config.clone() };
        assert_eq!(decided(&asked, 131_072, &llama(80)), (7, Configured));
        let nothing = Room { free_bytes: Some(0), fixed_bytes: 1, logits_bytes: 0, token_bytes: 0 };
        assert_eq!(decided(&config, 1, &nothing), (256, Memory));
    }
}
