//! The header of a GGUF file: metadata, and where which tensor lies, checked against the file's size.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::metadata::Value;
use crate::stored::Encoding;
use crate::{Dtype, ReadAt, substitute};
use flashjob_block_format::BlockFormat;

/// Alignment of data and tensors unless `general.alignment` gives another.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Most dimensions of a tensor, `GGML_MAX_DIMS`.
const MOST_DIMENSIONS: u32 = 4;

/// Metadata and tensors of a file.
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    /// `Err` names a type that is not supported; tensors that are not read may have one.
    pub encoding: Result<Encoding, String>,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Offset from the start of the file, in bytes.
    pub offset: u64,
}

/// Reads the header of `file`. The error is a sentence about the file.
pub(super) fn read(file: &dyn ReadAt) -> Result<Header, String> {
    let mut beginning = [0; substitute::BEGINNING_BYTES];
    let bytes = file.size_bytes().map_err(|error| format!("its size cannot be read: {error}"))?;
    let beginning = &mut beginning[..bytes.min(substitute::BEGINNING_BYTES as u64) as usize];
    file.read_exact_at(beginning, 0).map_err(|error| format!("its header cannot be read: {error}"))?;
    if let Some(reason) = substitute::reason(beginning) {
        return Err(reason.to_owned());
    }
    let mut cursor = Cursor::new(file)?;
    if cursor.array::<4>()? != *b"GGUF" {
        return Err("it does not begin as a GGUF file".into());
    }
    match cursor.u32()? {
        // A big-endian version number reads as a huge one.
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => return Err("it is big-endian, which is not supported".into()),
        version => return Err(format!("it is GGUF version {version}; supported are 2 and 3")),
    }
    let tensor_count = cursor.u64()?;
    let key_count = cursor.u64()?;
    // The smallest key with the smallest value has 13 bytes, and the smallest tensor entry 24.
    cursor.expect("metadata keys", key_count, 13)?;
    cursor.expect_elements(key_count)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = cursor.name()?;
        let kind = cursor.u32()?;
        let value = value(&mut cursor, kind).map_err(|reason| format!("{key}: {reason}"))?;
        // Duplicates are refused: readers differ in which of the two counts.
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("{key} appears twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(&Value::Integer(alignment))
            if alignment > 0 && alignment < 1 << 20 && alignment & (alignment - 1) == 0 =>
        {
            alignment as u64
        }
        Some(_) => return Err("general.alignment should be a power of two below a million".into()),
    };
    cursor.expect("tensors", tensor_count, 24)?;
    cursor.expect_elements(tensor_count)?;
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = cursor.name()?;
        let info = tensor(&mut cursor).map_err(|reason| format!("tensor {name}: {reason}"))?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name} appears twice"));
        }
    }
    let data_start = cursor.position().next_multiple_of(alignment);
    place(&mut tensors, data_start, alignment, cursor.file_bytes())?;
    Ok(Header { metadata, tensors })
}

/// One value of a metadata type.
fn value(cursor: &mut Cursor<'_>, kind: u32) -> Result<Value, String> {
    Ok(match kind {
        0..=5 | 10 | 11 => Value::Integer(integer(cursor, kind)?),
        6 | 12 => Value::Float(float(cursor, kind)?),
        7 => match cursor.u8()? {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(format!("{other} is neither true nor false")),
        },
        8 => Value::Text(cursor.string()?),
        9 => array(cursor)?,
        other => return Err(format!("value type {other} is unknown")),
    })
}

fn array(cursor: &mut Cursor<'_>) -> Result<Value, String> {
    let kind = cursor.u32()?;
    let count = cursor.u64()?;
    // Smallest bytes of an element: a claimed count is checked against the bytes that are left.
    let smallest = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        // Nesting would need a limit of depth, and no known file has it.
        9 => return Err("arrays of arrays are not supported".into()),
        other => return Err(format!("value type {other} is unknown")),
    };
    cursor.expect("array elements", count, smallest)?;
    cursor.expect_elements(count)?;
    Ok(match kind {
        8 => Value::Texts((0..count).map(|_| cursor.name()).collect::<Result<_, _>>()?),
        6 | 12 => Value::Floats((0..count).map(|_| Ok(float(cursor, kind)? as f32)).collect::<Result<_, String>>()?),
        7 => Value::Integers((0..count).map(|_| cursor.u8().map(i64::from)).collect::<Result<_, _>>()?),
        _ => {
            // Unsigned values of 64 bits may exceed `i64`, the type of a list's elements.
            let narrow = |number: i128| i64::try_from(number).map_err(|_| format!("{number} is too large"));
            Value::Integers((0..count).map(|_| integer(cursor, kind).and_then(narrow)).collect::<Result<_, _>>()?)
        }
    })
}

fn integer(cursor: &mut Cursor<'_>, kind: u32) -> Result<i128, String> {
    Ok(match kind {
        0 => cursor.u8()?.into(),
        1 => i8::from_le_bytes(cursor.array()?).into(),
        2 => u16::from_le_bytes(cursor.array()?).into(),
        3 => i16::from_le_bytes(cursor.array()?).into(),
        4 => cursor.u32()?.into(),
        5 => i32::from_le_bytes(cursor.array()?).into(),
        10 => cursor.u64()?.into(),
        _ => i64::from_le_bytes(cursor.array()?).into(),
    })
}

fn float(cursor: &mut Cursor<'_>, kind: u32) -> Result<f64, String> {
    match kind {
        6 => cursor.array().map(|bytes| f32::from_le_bytes(bytes).into()),
        _ => cursor.array().map(f64::from_le_bytes),
    }
}

/// One entry of the table of tensors; its offset is still relative to the data.
fn tensor(cursor: &mut Cursor<'_>) -> Result<TensorInfo, String> {
    let dimensions = cursor.u32()?;
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        return Err(format!("{dimensions} dimensions, from 1 to {MOST_DIMENSIONS} are possible"));
    }
    let mut shape = (0..dimensions).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
    // The format lists the innermost dimension first.
    shape.reverse();
    Ok(TensorInfo { shape, encoding: encoding(cursor.u32()?), offset: cursor.u64()? })
}

/// Encoding for a number of `enum ggml_type` of ggml.h.
fn encoding(kind: u32) -> Result<Encoding, String> {
    if let Some(format) = BlockFormat::of_ggml(kind) {
        return Ok(Encoding::Blocks(format));
    }
    Ok(match kind {
        0 => Encoding::Plain(Dtype::F32),
        1 => Encoding::Plain(Dtype::F16),
        30 => Encoding::Plain(Dtype::Bf16),
        16 => return Err("IQ2_XXS".into()),
        17 => return Err("IQ2_XS".into()),
        18 => return Err("IQ3_XXS".into()),
        19 => return Err("IQ1_S".into()),
        20 => return Err("IQ4_NL".into()),
        21 => return Err("IQ3_S".into()),
        22 => return Err("IQ2_S".into()),
        23 => return Err("IQ4_XS".into()),
        29 => return Err("IQ1_M".into()),
        34 => return Err("TQ1_0".into()),
        35 => return Err("TQ2_0".into()),
        39 => return Err("MXFP4".into()),
        other => return Err(format!("type {other}")),
    })
}

/// Makes offsets absolute, and checks that tensors are aligned, inside of the file and disjoint.
fn place(
    tensors: &mut BTreeMap<String, TensorInfo>,
    data_start: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), String> {
    let mut ranges = Vec::new();
    for (name, info) in tensors {
        let inside = info.offset.is_multiple_of(alignment).then(|| data_start.checked_add(info.offset)).flatten();
        let Some(start) = inside else {
            return Err(format!("tensor {name} begins at {}, which is no multiple of {alignment}", info.offset));
        };
        // From here on, offsets are those of the file.
        info.offset = start;
        // Unknown encodings have an unknown size; they fail when the tensor is needed, with the encoding's name.
        let Ok(encoding) = info.encoding else { continue };
        let bytes = size_bytes(&info.shape, encoding)
            .ok_or_else(|| format!("tensor {name} of shape {:?} does not hold whole blocks", info.shape))?;
        match start.checked_add(bytes) {
            Some(end) if end <= file_bytes => ranges.push((start, end, name)),
            _ => {
                return Err(format!(
                    "tensor {name} needs {bytes} bytes from {start} on, but the file has {file_bytes}: truncated, get it again"
                ));
            }
        }
    }
    // Once sorted by start, an overlap shows between neighbours: n log n instead of all pairs.
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(format!("tensors {} and {} overlap", pair[0].2, pair[1].2)),
        None => Ok(()),
    }
}

fn size_bytes(shape: &[u64], encoding: Encoding) -> Option<u64> {
    let (columns, rows) = shape.split_last()?;
    let block_len = encoding.block_len() as u64;
    // Blocks never cross a row.
    let row_bytes = columns.is_multiple_of(block_len).then_some(columns / block_len)?;
    rows.iter().try_fold(row_bytes.checked_mul(encoding.block_bytes() as u64)?, |bytes, &n| bytes.checked_mul(n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn random_bytes_never_panic(keys in 0u64..4, tensors in 0u64..4, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut file = b"GGUF\x03\0\0\0".to_vec();
            file.extend_from_slice(&tensors.to_le_bytes());
            file.extend_from_slice(&keys.to_le_bytes());
            file.extend_from_slice(&bytes);
            let _ = read(&file);
            let _ = read(&bytes);
        }

        #[test]
        fn tensors_that_are_accepted_lie_within_the_file_and_apart(
            tensors in prop::collection::vec((prop::collection::vec(0u64..40, 1..3), prop::sample::select(vec![0u32, 1, 2, 8]), 0u64..6), 0..4),
            data_bytes in 0usize..400,
        ) {
            let mut file = b"GGUF\x03\0\0\0".to_vec();
            file.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
            file.extend_from_slice(&0u64.to_le_bytes());
            for (index, (shape, kind, offset)) in tensors.iter().enumerate() {
                file.extend_from_slice(&1u64.to_le_bytes());
                file.push(b'a' + index as u8);
                file.extend_from_slice(&(shape.len() as u32).to_le_bytes());
                shape.iter().for_each(|n| file.extend_from_slice(&n.to_le_bytes()));
                file.extend_from_slice(&kind.to_le_bytes());
                file.extend_from_slice(&(offset * 32).to_le_bytes());
            }
            let data_start = file.len().next_multiple_of(32);
            file.resize(data_start + data_bytes, 0);
            if let Ok(header) = read(&file) {
                let mut taken = vec![false; file.len()];
                for info in header.tensors.values() {
                    let bytes = size_bytes(&info.shape, info.encoding.clone().unwrap()).unwrap();
                    for byte in &mut taken[info.offset as usize..(info.offset + bytes) as usize] {
                        prop_assert!(!std::mem::replace(byte, true));
                    }
                }
            }
        }
    }
}
