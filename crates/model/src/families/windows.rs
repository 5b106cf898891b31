//! Layers with sliding-window attention.

use crate::Error;
use crate::config_json::ConfigJson;
use crate::gguf::Gguf;

/// For each of `layers`, its window: `window` where `layer_types` says so, or where `usually` does if it is absent.
pub(super) fn from_config_json(
    json: &ConfigJson,
    layers: usize,
    window: Option<usize>,
    usually: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, Error> {
    let Some(window) = window else { return Ok(vec![None; layers]) };
    let key = "layer_types";
    let Some(types) = json.texts(key)? else {
        return Ok((0..layers).map(|layer| usually(layer).then_some(window)).collect());
    };
    if types.len() != layers {
        return Err(json.error(key, format!("has {} entries for {layers} layers", types.len())));
    }
    let of = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(Some(window)),
        other => Err(json.error(key, format!("{other} is not supported; full_attention and sliding_attention are"))),
    };
    types.iter().map(of).collect()
}

/// The same of a GGUF file, whose `attention.sliding_window_pattern` lists for each layer whether it has a window.
pub(super) fn from_gguf(
    gguf: &Gguf,
    architecture: &str,
    layers: usize,
    window: usize,
    usually: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, Error> {
    let key = format!("{architecture}.attention.sliding_window_pattern");
    let listed = match gguf.metadata.integers(&key)? {
        None => return Ok((0..layers).map(|layer| usually(layer).then_some(window)).collect()),
        Some(listed) => listed,
    };
    if listed.len() != layers {
        return Err(gguf.metadata.error(&key, format!("has {} entries for {layers} layers", listed.len())));
    }
    Ok(listed.iter().map(|&windowed| (windowed != 0).then_some(window)).collect())
}
