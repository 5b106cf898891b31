//! Mutations of inputs whose parts are JSON: bytes that change at random seldom leave any.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

/// ASCII's record separator, between the parts of an input.
const SEPARATOR: u8 = 0x1e;

/// Puts a mutation of `data[..size]` into its place and gives its length: of parts that are JSON mostly as such, else as libFuzzer does.
pub fn mutated(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = StdRng::seed_from_u64(u64::from(seed));
    if random.random_bool(0.8)
        && let Some(input) = with_other_values(&data[..size], &mut random)
        && input.len() <= max_size
    {
        data[..input.len()].copy_from_slice(&input);
        return input.len();
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

/// `input` with one to three values of one of its parts replaced or left out.
fn with_other_values(input: &[u8], random: &mut StdRng) -> Option<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = input.split(|&byte| byte == SEPARATOR).map(<[u8]>::to_vec).collect();
    let at = random.random_range(0..parts.len());
    let mut document: Value = serde_json::from_slice(&parts[at]).ok()?;
    for _ in 0..random.random_range(1..=3) {
        let new = match random.random_range(0..4) {
            0 => None,
            1 => Some(edge(random)),
            _ => Some(any_within(&document, random).clone()),
        };
        replace_one(&mut document, new, random);
    }
    parts[at] = serde_json::to_vec(&document).ok()?;
    Some(parts.join(&SEPARATOR))
}

/// A value at which readers go wrong.
fn edge(random: &mut StdRng) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(0.5),
        json!(1e300),
        json!(""),
        json!("\u{0}"),
        json!("ä\u{301}▁"),
        json!([]),
        json!({}),
    ];
    values.choose(random).cloned().unwrap_or_default()
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

fn any_within<'a>(value: &'a Value, random: &mut StdRng) -> &'a Value {
    match children(value).choose(random) {
        Some(child) if random.random_bool(0.8) => any_within(child, random),
        _ => value,
    }
}

/// Puts `new` in the place of a value within `value`, or into a list; without it, that value is left out.
fn replace_one(value: &mut Value, new: Option<Value>, random: &mut StdRng) {
    let count = children(value).len();
    let at = random.random_range(0..count.max(1));
    let goes_deeper = random.random_bool(0.7);
    match (value, new) {
        (Value::Array(items), new) if count > 0 => match new {
            new if goes_deeper => replace_one(&mut items[at], new, random),
            Some(new) if random.random_bool(0.5) => items.insert(at, new),
            Some(new) => items[at] = new,
            None => drop(items.remove(at)),
        },
        (Value::Object(fields), new) if count > 0 => {
            let Some(key) = fields.keys().nth(at).cloned() else { return };
            match (new, fields.get_mut(&key)) {
                (new, Some(value)) if goes_deeper => replace_one(value, new, random),
                (Some(new), Some(value)) => *value = new,
                _ => drop(fields.remove(&key)),
            }
        }
        (value, Some(new)) => *value = new,
        (_, None) => {}
    }
}
