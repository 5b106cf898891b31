//! The header of a safetensors file: names, types, shapes and places of its tensors, checked against the file's size.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The crate `safetensors` is not used for reading
//! because it checks a header only together with all of the data in memory, and lets the last of two equal names win.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{ReadAt, substitute};

/// Headers of real checkpoints are a few megabytes at most; the reference implementation has the same limit.
const LARGEST_HEADER_BYTES: u64 = 100_000_000;

/// Headers of all files of a model, which are in memory together: those of a hundred thousand tensors have 12 MB.
const LARGEST_HEADERS_BYTES: u64 = 64 << 20;

/// `GGML_MAX_DIMS` is 4, and torch allows 64; nothing that is a weight of a decoder has more than 2.
const MOST_DIMENSIONS: usize = 64;

/// Bytes of the headers of a model's files so far.
#[derive(Default)]
pub(super) struct HeaderBytes(AtomicU64);

impl HeaderBytes {
    fn take(&self, bytes: u64) -> Result<(), String> {
        let all = self.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match all <= LARGEST_HEADERS_BYTES {
            true => Ok(()),
            false => Err(format!(
                "with its header of {bytes} bytes all headers take more than {LARGEST_HEADERS_BYTES}, the limit for a model"
            )),
        }
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As the header spells it: `F32`, `BF16`, …
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// From the start of the file.
    pub offset: u64,
    /// Length of its data in bytes.
    pub size_bytes: u64,
}

/// Reads and checks the header of `file`. The error is a sentence about the file.
pub(super) fn read_header(file: &dyn ReadAt, headers: &HeaderBytes) -> Result<BTreeMap<String, Entry>, String> {
    let file_bytes = file.size_bytes().map_err(|error| format!("its size cannot be read: {error}"))?;
    let mut beginning = [0; substitute::BEGINNING_BYTES];
    let beginning = &mut beginning[..file_bytes.min(substitute::BEGINNING_BYTES as u64) as usize];
    file.read_exact_at(beginning, 0).map_err(|error| format!("its header cannot be read: {error}"))?;
    if let Some(reason) = substitute::reason(beginning) {
        return Err(reason.to_owned());
    }
    let Some(&length) = beginning.first_chunk() else {
        return Err(format!("it has {file_bytes} bytes, too few for a safetensors header"));
    };
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > LARGEST_HEADER_BYTES || header_bytes > file_bytes - 8 {
        return Err(format!(
            "it claims a header of {header_bytes} bytes in a file of {file_bytes}: truncated, or not safetensors"
        ));
    }
    // All files of a model together are limited: a thousand files of the largest size each would fit one by one.
    headers.take(header_bytes)?;
    let mut header = vec![0; header_bytes as usize];
    file.read_exact_at(&mut header, 8).map_err(|error| format!("its header cannot be read: {error}"))?;
    let SafetensorsHeader(entries) =
        serde_json::from_slice(&header).map_err(|error| format!("its header is wrong: {error}"))?;
    let data_start = 8 + header_bytes;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let placed = place(&name, entry, data_start)?;
        tensors.insert(name, placed);
    }
    check_coverage(&tensors, data_start, file_bytes)?;
    Ok(tensors)
}

/// Checks one tensor by itself: its shape and type must need exactly the bytes it claims.
fn place(name: &str, raw: RawEntry, data_start: u64) -> Result<Entry, String> {
    let [begin, end] = raw.data_offsets;
    if raw.shape.len() > MOST_DIMENSIONS {
        return Err(format!("tensor {name} has {} dimensions, and {MOST_DIMENSIONS} are the limit", raw.shape.len()));
    }
    let bits = bits(&raw.dtype).ok_or_else(|| format!("tensor {name} has the unknown type {}", raw.dtype))?;
    let needed_bits = raw.shape.iter().try_fold(bits, |product, &n| product.checked_mul(n));
    let claimed = end.checked_sub(begin).ok_or_else(|| format!("tensor {name} ends before it begins"))?;
    match (needed_bits, data_start.checked_add(begin), data_start.checked_add(end)) {
        (Some(needed), Some(offset), Some(_)) if Some(needed) == claimed.checked_mul(8) => {
            Ok(Entry { dtype: raw.dtype, shape: raw.shape, offset, size_bytes: claimed })
        }
        _ => Err(format!("tensor {name} of shape {:?} and type {} claims {claimed} bytes", raw.shape, raw.dtype)),
    }
}

/// The format allows neither holes nor overlaps, and the last tensor ends the file.
fn check_coverage(tensors: &BTreeMap<String, Entry>, data_start: u64, file_bytes: u64) -> Result<(), String> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    // Empty tensors share an offset with their successor and must come first.
    in_order.sort_by_key(|(_, entry)| (entry.offset, entry.size_bytes));
    let mut position = data_start;
    for (name, entry) in in_order {
        if entry.offset < position {
            return Err(format!("tensor {name} overlaps the one before it"));
        }
        if entry.offset > position {
            return Err(format!("there is a hole of {} bytes before tensor {name}", entry.offset - position));
        }
        position += entry.size_bytes;
    }
    match position.cmp(&file_bytes) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => {
            Err(format!("its tensors need {position} bytes but it has {file_bytes}: truncated, get it again"))
        }
        std::cmp::Ordering::Less => Err(format!("{} bytes follow its last tensor", file_bytes - position)),
    }
}

/// Width of a number, `None` for types the format does not have.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The JSON object of a header, equal names refused.
struct SafetensorsHeader(BTreeMap<String, RawEntry>);

impl<'de> Deserialize<'de> for SafetensorsHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = SafetensorsHeader;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SafetensorsHeader, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<serde::de::IgnoredAny>()?;
                continue;
            }
            let entry =
                map.next_value().map_err(|error| serde::de::Error::custom(format!("tensor {name}: {error}")))?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(serde::de::Error::custom(format!("tensor {name} appears twice")));
            }
        }
        Ok(SafetensorsHeader(tensors))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &[u8], data_bytes: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.resize(file.len() + data_bytes, 0);
        file
    }

    proptest! {
        #[test]
        fn what_the_library_writes_is_read_back(tensors in prop::collection::btree_map(
            "[a-z.]{1,12}", (prop::sample::select(vec![safetensors::Dtype::F32, safetensors::Dtype::BF16]), prop::collection::vec(0usize..5, 0..4)), 0..6,
        )) {
            let data = vec![0u8; 4 * 4 * 4 * 4];
            let views = tensors.iter().map(|(name, (dtype, shape))| {
                let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), &data[..bytes]).unwrap())
            });
            let file = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
            let read = read_header(&file, &HeaderBytes::default()).unwrap();
            let library = safetensors::SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(read.len(), tensors.len());
            for (name, entry) in read {
                let view = library.tensor(&name).unwrap();
                prop_assert_eq!(entry.shape, view.shape().iter().map(|&n| n as u64).collect::<Vec<_>>());
                let offset = view.data().as_ptr() as usize - file.as_ptr() as usize;
                prop_assert!(entry.size_bytes == 0 || entry.offset == offset as u64);
                prop_assert_eq!(entry.size_bytes, view.data().len() as u64);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_header(&bytes, &HeaderBytes::default());
            let _ = read_header(&file(&bytes, 8), &HeaderBytes::default());
        }

        #[test]
        fn what_is_accepted_lies_within_the_file(
            entries in prop::collection::vec(("[ab]", prop::collection::vec(0u64..4, 0..3), 0u64..40, 0u64..40), 0..3),
            data_bytes in 0usize..40,
        ) {
            let entries = entries.iter().map(|(name, shape, begin, end)| {
                format!(r#""{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
            });
            let file = file(format!("{{{}}}", entries.collect::<Vec<_>>().join(",")).as_bytes(), data_bytes);
            let library = safetensors::SafeTensors::deserialize(&file);
            match read_header(&file, &HeaderBytes::default()) {
                Ok(tensors) => {
                    prop_assert!(library.is_ok());
                    for entry in tensors.values() {
                        prop_assert!(entry.offset + entry.size_bytes <= file.len() as u64);
                        prop_assert_eq!(entry.shape.iter().product::<u64>() * 2, entry.size_bytes);
                    }
                }
                // The library takes equal names.
                Err(reason) => prop_assert!(library.is_err() || reason.contains("twice"), "{}", reason),
            }
        }
    }
}
