//! A directory in Hugging Face layout: its weight files, and the names that tensors have in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::config_json::BYTE_ORDER_MARK;
use super::layout::Layout;
use super::open::join;
use super::safetensors::{Entry, HeaderBytes, read_header};
use super::stored::{Encoding, RowOrder, Stored, WeightFile};
use super::{DecoderConfig, Dtype, Error, Files, LayerTensor, TensorName, Weights, small_file, substitute};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Weight files of one model at most; the largest are in some 200.
const MOST_FILES: usize = 4096;

/// From a bucket, each is a journey there and back.
const HEADERS_AT_A_TIME: usize = 16;

/// Prefixes of the language model's tensors in checkpoints of several modalities, with those in a text-only one: as
/// transformers saves them now, as in older checkpoints, and as those were once converted.
const LANGUAGE_MODEL_PREFIXES: [(&str, &str); 4] = [
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.text_model.", "model."),
];

/// Parts of a checkpoint of several modalities that texts never pass.
const OTHER_MODALITIES: [&str; 8] = [
    "vision_tower.",
    "vision_model.",
    "vision_encoder.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.vision_model.",
    "model.multi_modal_projector.",
    "image_newline",
];

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Tensors that checkpoints carry although no decoder needs them.
const IGNORED: [&str; 1] = ["rotary_emb.inv_freq"];

/// Returns whether `directory` has weights in this layout.
pub(super) fn has_weights(directory: &Path) -> bool {
    directory.join(SINGLE).exists() || directory.join(INDEX).exists()
}

/// Every tensor of a directory's files, by the name that it has in them.
pub(super) type Found = BTreeMap<String, (Arc<WeightFile>, Entry)>;

/// Finds a place for every tensor of `config` among those `found` in `directory`, and a use for every one of these.
pub(super) fn weights(
    directory: &Path,
    config: &DecoderConfig,
    layout: Layout,
    found: &Found,
) -> Result<Weights, Error> {
    let name = |tensor| name(tensor, config, layout);
    let expected: BTreeSet<String> = config.tensors().map(name).collect();
    // Old checkpoints store the frequencies of the rotary embedding, which follow from the configuration.
    let ignored = |name: &str| IGNORED.iter().any(|ignored| name.ends_with(ignored));
    let unexpected = found.keys().filter(|name| !expected.contains(*name) && !ignored(name)).cloned();
    let find = |tensor| {
        let name = name(tensor);
        let (file, entry) = found.get(&name).ok_or_else(|| format!("{name} is missing"))?;
        stored(name, file.clone(), entry, config, layout, tensor)
    };
    Weights::new(directory, config, find, unexpected)
}

/// Name that transformers gives to a tensor, or to the fused one that contains it.
fn name(tensor: TensorName, config: &DecoderConfig, layout: Layout) -> String {
    let (layer, tensor) = match tensor {
        TensorName::Embedding => return EMBEDDING.into(),
        TensorName::FinalNorm => return "model.norm.weight".into(),
        TensorName::Head => return HEAD.into(),
        TensorName::Layer(layer, tensor) => (layer, tensor),
    };
    let name = match tensor {
        LayerTensor::InputNorm => "input_layernorm.weight",
        // Before Gemma, what follows attention was only the next norm on the way.
        LayerTensor::FeedForwardNorm if config.output_norms => "pre_feedforward_layernorm.weight",
        LayerTensor::FeedForwardNorm | LayerTensor::AttentionOutputNorm => "post_attention_layernorm.weight",
        LayerTensor::FeedForwardOutputNorm => "post_feedforward_layernorm.weight",
        LayerTensor::Q | LayerTensor::K | LayerTensor::V if layout.fused => "self_attn.qkv_proj.weight",
        LayerTensor::Gate | LayerTensor::Up if layout.fused => "mlp.gate_up_proj.weight",
        LayerTensor::Q => "self_attn.q_proj.weight",
        LayerTensor::K => "self_attn.k_proj.weight",
        LayerTensor::V => "self_attn.v_proj.weight",
        LayerTensor::QBias => "self_attn.q_proj.bias",
        LayerTensor::KBias => "self_attn.k_proj.bias",
        LayerTensor::VBias => "self_attn.v_proj.bias",
        LayerTensor::QNorm => "self_attn.q_norm.weight",
        LayerTensor::KNorm => "self_attn.k_norm.weight",
        LayerTensor::O => "self_attn.o_proj.weight",
        LayerTensor::Gate => "mlp.gate_proj.weight",
        LayerTensor::Up => "mlp.up_proj.weight",
        LayerTensor::Down => "mlp.down_proj.weight",
    };
    format!("model.layers.{layer}.{name}")
}

fn stored(
    name: String,
    file: Arc<WeightFile>,
    entry: &Entry,
    config: &DecoderConfig,
    layout: Layout,
    tensor: TensorName,
) -> Result<Stored, String> {
    let part = layout.part(config, tensor);
    let mut shape = config.shape(tensor);
    // The stored tensor may be several fused ones: its rows are all of theirs.
    let rows = std::mem::replace(&mut shape[0], part.of_rows);
    if entry.shape.iter().copied().ne(shape.iter().map(|&n| n as u64)) {
        return Err(format!("{name} has shape {:?}, expected {shape:?}", entry.shape));
    }
    let dtype = match entry.dtype.as_str() {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        other => return Err(format!("{name} is {other}, supported are F32, F16 and BF16")),
    };
    let columns = shape.get(1).copied().unwrap_or(1);
    Ok(Stored {
        file,
        name,
        encoding: Encoding::Plain(dtype),
        offset: entry.offset + (part.row * columns * dtype.size_bytes()) as u64,
        rows,
        columns,
        row_order: RowOrder::Halves,
        norm_offset: layout.norm_offset(tensor),
    })
}

/// Reads the headers of all files. `model.safetensors` goes before an index, as in transformers.
pub(super) fn read_headers(directory: &Path, opener: &dyn Files) -> Result<Found, Error> {
    if directory.join(SINGLE).exists() {
        let (file, header) = open_file(&directory.join(SINGLE), opener, &HeaderBytes::default())?;
        return Ok(header.into_iter().map(|(name, entry)| (name, (file.clone(), entry))).collect());
    }
    if !directory.join(INDEX).exists() {
        let missing =
            format!("neither {SINGLE} nor {INDEX} is there; weights in other formats must be saved as safetensors");
        return Err(Error::incomplete(directory, missing));
    }
    let weight_map = read_index(&directory.join(INDEX))?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    if names.len() > MOST_FILES {
        let reason = format!("it names {} files, and {MOST_FILES} are the limit", names.len());
        return Err(Error::malformed(&directory.join(INDEX), reason));
    }
    // All at once: a user who copies files again should learn of every one.
    let absent: Vec<&str> =
        names.iter().filter(|name| !directory.join(name).exists()).map(|name| name.as_str()).collect();
    if !absent.is_empty() {
        return Err(Error::incomplete(
            directory,
            format!("{INDEX} names files that are not there: {}", some_of(&absent)),
        ));
    }
    let headers = HeaderBytes::default();
    let mut files = BTreeMap::new();
    // In parallel, as each header is a round trip, but in groups: a model may have hundreds of files.
    for some in names.into_iter().collect::<Vec<_>>().chunks(HEADERS_AT_A_TIME) {
        let opened = std::thread::scope(|scope| {
            let open = |&name| {
                (
                    name,
                    scope.spawn({
                        let headers = &headers;
                        move || open_file(&directory.join(name), opener, headers)
                    }),
                )
            };
            let opening: Vec<_> = some.iter().map(open).collect();
            opening.into_iter().map(|(name, file)| Ok((name, join(file)?))).collect::<Result<Vec<_>, Error>>()
        });
        files.extend(opened?);
    }
    let mut found = BTreeMap::new();
    let mut problems = Vec::new();
    for (tensor, name) in &weight_map {
        let (file, header) = &files[name];
        match header.get(tensor) {
            Some(entry) => drop(found.insert(tensor.clone(), (file.clone(), entry.clone()))),
            None => problems.push(format!("{tensor} is not in {name}, where {INDEX} has it")),
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(Error::Tensors { path: directory.into(), problems }) }
}

/// The language model's tensors out of a checkpoint of several modalities, by the names that they have in one of texts alone.
pub(super) fn language_model(found: Found) -> Found {
    let named = found.into_iter().filter_map(|(name, place)| {
        if OTHER_MODALITIES.iter().any(|part| name.starts_with(part)) {
            return None;
        }
        let alone = LANGUAGE_MODEL_PREFIXES
            .iter()
            .find_map(|(prefix, alone)| Some(format!("{alone}{}", name.strip_prefix(prefix)?)));
        Some((alone.unwrap_or(name), place))
    });
    named.collect()
}

/// Decides on a head that `config` ties to the embedding, as `tie_weights` of transformers 5 does: two that are stored and differ
/// are two, and one that is stored is both, whichever it is. Two that are alike are read twice, as it takes reading to know.
pub(super) fn settle_head(found: &mut Found, config: &mut DecoderConfig) {
    match (found.contains_key(EMBEDDING), found.get(HEAD).cloned()) {
        (true, Some(_)) => config.tied_head = false,
        (false, Some(head)) if config.tied_head => {
            found.insert(EMBEDDING.to_owned(), head);
            found.remove(HEAD);
        }
        _ => {}
    }
}

/// The first of many names.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn open_file(
    path: &Path,
    opener: &dyn Files,
    headers: &HeaderBytes,
) -> Result<(Arc<WeightFile>, BTreeMap<String, Entry>), Error> {
    let bytes = opener.open(path).map_err(|source| Error::read(path, "the weights", source))?;
    let header = read_header(&*bytes, headers).map_err(|reason| Error::malformed(path, reason))?;
    Ok((Arc::new(WeightFile { path: path.into(), bytes }), header))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Tensor name to file name. A file name that leads out of the directory is refused.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let text = small_file::read(path, "the index", small_file::LARGEST_INDEX_BYTES)?;
    if let Some(reason) = substitute::reason(&text) {
        return Err(Error::malformed(path, reason));
    }
    let index: Index = serde_json::from_slice(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text))
        .map_err(|error| Error::malformed(path, format!("it is not an index of weights: {error}")))?;
    // An index is input like any other: a name with `..` would read files outside of the model.
    let plain = |name: &str| matches!(PathBuf::from(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    match index.weight_map.values().find(|name| !plain(name)) {
        Some(name) => Err(Error::malformed(path, format!("{name:?} is not the name of a file beside it"))),
        None => Ok(index.weight_map),
    }
}
