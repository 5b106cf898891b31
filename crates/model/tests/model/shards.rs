//! Shards of ranks equal slices of the whole tensor, in every format.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{fs, io};

use candle_core::{DType, Tensor};
use flashjob_model::{
    Dtype, Error, Files, LayerTensor, Lent, Model, ReadAt, Shard, ShardShape, SystemFiles, TensorName, Validation,
};

use super::altered::{Altered, assert_says};
use super::golden;

fn open(fixture: &str) -> Model {
    Model::open(&golden::directory(fixture)).unwrap()
}

fn read(model: &Model, tensor: TensorName, shard: Shard, dtype: Dtype) -> Tensor {
    model.weights.read(tensor, shard, dtype, Validation::Finite).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let numbers = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers.into_iter().map(f32::to_bits).collect()
}

#[test]
fn shards_are_slices_of_the_whole() {
    for fixture in golden::MODELS {
        let model = open(fixture);
        let head_dim = model.config.head_dim;
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for (world_size, rank) in [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)] {
                let shard = Shard { rank, world_size };
                let part = ShardShape::new(&model.config, shard).unwrap();
                for tensor in model.weights.tensors() {
                    let whole = read(&model, tensor, Shard::WHOLE, dtype);
                    assert_eq!(whole.dims(), model.config.shape(tensor));
                    let (dimension, range) = match tensor {
                        TensorName::Embedding | TensorName::Head => (0, part.vocabulary.clone()),
                        TensorName::Layer(_, LayerTensor::Q | LayerTensor::QBias) => {
                            (0, part.heads.start * head_dim..part.heads.end * head_dim)
                        }
                        TensorName::Layer(
                            _,
                            LayerTensor::K | LayerTensor::V | LayerTensor::KBias | LayerTensor::VBias,
                        ) => (0, part.kv_heads.start * head_dim..part.kv_heads.end * head_dim),
                        TensorName::Layer(_, LayerTensor::Gate | LayerTensor::Up) => (0, part.intermediate.clone()),
                        TensorName::Layer(_, LayerTensor::O) => {
                            (1, part.heads.start * head_dim..part.heads.end * head_dim)
                        }
                        TensorName::Layer(_, LayerTensor::Down) => (1, part.intermediate.clone()),
                        _ => (0, 0..whole.dim(0).unwrap()),
                    };
                    let slice = whole.narrow(dimension, range.start, range.len()).unwrap();
                    let read = read(&model, tensor, shard, dtype);
                    assert_eq!(read.dims(), slice.dims(), "{fixture} {tensor:?}");
                    assert_eq!(read.dtype(), DType::from(dtype));
                    assert_eq!(bits(&read), bits(&slice), "{fixture} {tensor:?} {shard:?} {dtype}");
                }
            }
        }
    }
}

/// Files in memory that lend their bytes, which begin so many bytes behind an even address.
struct Lenders {
    shift: usize,
    lent: Arc<AtomicUsize>,
}

struct Lender {
    bytes: Vec<u8>,
    start: usize,
    lent: Arc<AtomicUsize>,
}

impl Files for Lenders {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadAt>> {
        let file = std::fs::read(path)?;
        let mut bytes = vec![0; file.len() + 16];
        let start = bytes.as_ptr().align_offset(8) + self.shift;
        bytes[start..start + file.len()].copy_from_slice(&file);
        bytes.truncate(start + file.len());
        Ok(Arc::new(Lender { bytes, start, lent: Arc::clone(&self.lent) }))
    }
}

impl ReadAt for Lender {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok((self.bytes.len() - self.start) as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.read_exact_at(buffer, offset + self.start as u64)
    }

    fn lend(&self, range: Range<u64>) -> io::Result<Option<Lent<'_>>> {
        self.lent.fetch_add(1, Ordering::Relaxed);
        self.bytes.lend(range.start + self.start as u64..range.end + self.start as u64)
    }
}

/// Files that are opened together, or not at all.
struct Together {
    asked: Mutex<usize>,
    wanted: usize,
    all: Condvar,
}

impl Files for Together {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadAt>> {
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        self.all.notify_all();
        let patience = Duration::from_secs(30);
        let (asked, waited) = self.all.wait_timeout_while(asked, patience, |asked| *asked < self.wanted).unwrap();
        drop(asked);
        if waited.timed_out() { Err(io::Error::other("it was opened alone")) } else { SystemFiles.open(path) }
    }
}

/// From a bucket each is a journey there and back.
#[test]
fn headers_of_all_files_are_read_at_a_time() {
    let directory = golden::directory("llama-sharded");
    let is_shard = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("model-");
    let wanted = fs::read_dir(&directory).unwrap().flatten().filter(is_shard).count();
    assert!(wanted > 1);
    let together = Together { asked: Mutex::default(), wanted, all: Condvar::new() };
    Model::open_through(&together, &directory).unwrap();
}

#[test]
fn weights_that_lie_in_memory_are_those_of_the_file() {
    for fixture in golden::MODELS {
        let expected = open(fixture);
        let directory = golden::directory(fixture);
        for shift in [0, 1] {
            let lent = Arc::new(AtomicUsize::new(0));
            let files = Lenders { shift, lent: Arc::clone(&lent) };
            let model = Model::open_through(&files, &directory).unwrap();
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                for shard in [Shard::WHOLE, Shard { rank: 1, world_size: 2 }] {
                    for tensor in model.weights.tensors() {
                        let found = model.weights.read(tensor, shard, dtype, Validation::Trust).unwrap();
                        let expected = read(&expected, tensor, shard, dtype);
                        assert_eq!(bits(&found), bits(&expected), "{fixture} {tensor:?} {shard:?} {dtype} {shift}");
                    }
                }
            }
            assert!(lent.load(Ordering::Relaxed) > 0, "{fixture}: nothing was lent");
        }
    }
}

#[test]
fn ranks_together_read_each_byte_once_unless_heads_replicate() {
    let model = open("llama-gqa");
    let bytes = |world_size: usize| -> u64 {
        let of = |rank| {
            let read = |tensor| model.weights.stored_bytes(tensor, Shard { rank, world_size }).unwrap();
            model.weights.tensors().filter(|tensor| model.config.shape(*tensor).len() == 2).map(read).sum::<u64>()
        };
        (0..world_size).map(of).sum()
    };
    let norms = 5 * 64 * 2;
    assert_eq!(bytes(1) + norms, model.weights.total_bytes());
    assert_eq!(bytes(2), bytes(1));
    // Two heads of keys and two of values on four ranks: each is read twice.
    let keys_and_values = 2 * 2 * (32 * 64) * 2;
    assert_eq!(bytes(4), bytes(1) + keys_and_values);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let model = open("llama-mqa-tied");
    assert!(model.weights.tensors().all(|tensor| tensor != TensorName::Head));
    let read = |tensor| bits(&read(&model, tensor, Shard { rank: 1, world_size: 2 }, Dtype::F32));
    assert_eq!(read(TensorName::Head), read(TensorName::Embedding));
}

#[test]
fn a_model_that_does_not_divide_says_what_does_not() {
    let model = open("llama-gqa");
    for (rank, world_size, said) in [
        (0, 3, "2 key and value heads cannot be split evenly"),
        (0, 8, "4 heads cannot be split evenly"),
        (2, 2, "ranks count from 0"),
        (0, 0, "ranks count from 0"),
    ] {
        let read = model.weights.read(TensorName::FinalNorm, Shard { rank, world_size }, Dtype::F32, Validation::Trust);
        let error = read.unwrap_err();
        assert!(matches!(error, Error::Shard { .. }));
        assert_says(&error.to_string(), &[said]);
    }
    // 300 rows over 7 ranks: 43 each, 42 for the last.
    let mut config = model.config.clone();
    (config.heads, config.kv_heads, config.intermediate_size, config.vocab_size) = (7, 7, 7, 300);
    let rows = |rank| ShardShape::new(&config, Shard { rank, world_size: 7 }).unwrap().vocabulary;
    assert_eq!((rows(0), rows(6)), (0..43, 258..300));
    config.vocab_size = 6;
    let error = ShardShape::new(&config, Shard { rank: 6, world_size: 7 }).unwrap_err();
    assert_says(&error.to_string(), &["a vocabulary of 6 leaves it nothing"]);
}

/// Offset of a tensor's data in a safetensors file.
fn offset(file: &[u8], tensor: &str) -> usize {
    let header_end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..header_end]).unwrap();
    header_end + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

#[test]
fn nan_and_infinity_are_found_where_they_are() {
    // float32, [32, 64]
    let down = TensorName::Layer(1, LayerTensor::Down);
    let name = "model.layers.1.mlp.down_proj.weight";
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let altered = Altered::of("llama-mqa-tied");
        let mut file = altered.read("model.safetensors");
        let at = offset(&file, name) + (7 * 64 + 40) * 4;
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
        altered.write("model.safetensors", file);
        let model = altered.open().unwrap();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for shard in [Shard::WHOLE, Shard { rank: 1, world_size: 2 }] {
                let error = model.weights.read(down, shard, dtype, Validation::Finite).unwrap_err();
                assert_says(&error.to_string(), &[name, &format!("the value {shown} at [7, 40]"), "model.safetensors"]);
                model.weights.read(down, shard, dtype, Validation::Trust).unwrap();
            }
            let other_half = Shard { rank: 0, world_size: 2 };
            model.weights.read(down, other_half, dtype, Validation::Finite).unwrap();
        }
    }
}

#[test]
fn what_float16_cannot_hold_is_told_from_damage() {
    let altered = Altered::of("llama-mqa-tied");
    let mut file = altered.read("model.safetensors");
    let at = offset(&file, "model.norm.weight") + 5 * 4;
    file[at..at + 4].copy_from_slice(&70000f32.to_le_bytes());
    altered.write("model.safetensors", file);
    let model = altered.open().unwrap();
    let read = |dtype| model.weights.read(TensorName::FinalNorm, Shard::WHOLE, dtype, Validation::Finite);
    assert_says(&read(Dtype::F16).unwrap_err().to_string(), &["inf at [5]", "try dtype bfloat16 or float32"]);
    read(Dtype::Bf16).unwrap();
}

#[test]
fn a_file_cut_short_after_opening_is_an_error_and_no_crash() {
    let altered = Altered::of("llama-mqa-tied");
    let model = altered.open().unwrap();
    std::fs::File::options().write(true).open(altered.file("model.safetensors")).unwrap().set_len(5000).unwrap();
    let results = model.weights.tensors().map(|t| model.weights.read(t, Shard::WHOLE, Dtype::F16, Validation::Trust));
    let errors: Vec<String> = results.filter_map(Result::err).map(|error| error.to_string()).collect();
    assert!(!errors.is_empty());
    assert_says(&errors[0], &["cannot read tensor model.", "model.safetensors"]);
}
