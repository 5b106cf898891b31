//! What fuzzers drive of this room: its readers of headers, with what must hold of whatever they accept.

use super::{gguf, safetensors};

/// A safetensors file.
pub fn safetensors_header(file: &[u8]) {
    let Ok(tensors) = safetensors::read_header(&file.to_vec(), &safetensors::HeaderBytes::default()) else { return };
    let held: u64 = tensors.values().map(|entry| entry.size_bytes).sum();
    assert!(held < file.len() as u64, "tensors and a header fit into their file");
    for (name, entry) in tensors {
        assert!(entry.offset.checked_add(entry.size_bytes).is_some_and(|end| end <= file.len() as u64), "{name}");
    }
}

/// A GGUF file.
pub fn gguf_header(file: &[u8]) {
    gguf::fuzz_header(&file.to_vec());
}
