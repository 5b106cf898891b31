//! The fuzz targets' functions over the corpus in `fuzz/`, and over mutations of it, which are the same on every machine;
//! `scripts/fuzz` has libFuzzer look for new ones.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::Path;

use flashjob_bucket as bucket;
use flashjob_config as config;
use flashjob_model as model;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// Mutations of each target's corpus; a second or two in all.
const ROUNDS: usize = 20_000;

/// Numbers at which arithmetic goes wrong.
const EDGES: [u64; 8] = [0, 1, 0x7F, 0xFF, 0xFFFF, u32::MAX as u64, i64::MAX as u64, u64::MAX];

type Target = fn(&[u8]);

fn targets() -> [(&'static str, Target); 7] {
    [
        ("par_url", |data| drop(config::Par::parse(&String::from_utf8_lossy(data)))),
        ("listing", bucket::fuzzing::listing),
        ("content_range", |data| bucket::fuzzing::content_range(&String::from_utf8_lossy(data))),
        ("safetensors_header", model::fuzzing::safetensors_header),
        ("gguf_header", model::fuzzing::gguf_header),
        ("chat_template", model::fuzzing::chat_template),
        ("tokenizer", model::fuzzing::tokenizer),
    ]
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: BTreeMap<_, _> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.into_values().collect()
}

/// One to eight changes of the kinds that fuzzers make.
fn mutated(corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut data = corpus.choose(random).unwrap().clone();
    for _ in 0..random.random_range(1..=8) {
        let place = random.random_range(0..=data.len());
        match random.random_range(0..7) {
            0 if place < data.len() => data[place] ^= 1 << random.random_range(0..8),
            1 if place < data.len() => data[place] = random.random(),
            2 => data.truncate(place),
            3 => data.insert(place, random.random()),
            4 if place < data.len() => drop(data.remove(place)),
            5 => {
                let width = *[1, 2, 4, 8].choose(random).unwrap();
                let edge = EDGES.choose(random).unwrap().to_le_bytes();
                for (byte, new) in data[place..].iter_mut().zip(&edge[..width]) {
                    *byte = *new;
                }
            }
            _ => {
                let other = corpus.choose(random).unwrap();
                let start = random.random_range(0..=other.len());
                data.truncate(place);
                data.extend_from_slice(&other[start..]);
            }
        }
    }
    data
}

#[test]
fn no_input_makes_a_reader_panic() {
    for (name, target) in targets() {
        let corpus = corpus(name);
        assert!(corpus.len() > 3, "{name} has a corpus");
        let mut random = StdRng::seed_from_u64(0);
        let mutations = std::iter::repeat_with(|| mutated(&corpus, &mut random)).take(ROUNDS).collect::<Vec<_>>();
        for data in corpus.iter().chain(&mutations) {
            assert!(catch_unwind(|| target(data)).is_ok(), "{name}: {:?}", data.escape_ascii().to_string());
        }
    }
}

#[test]
fn each_target_of_the_folder_is_run_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    let mut known = targets().map(|(name, _)| name);
    known.sort();
    assert_eq!(found, known);
}
