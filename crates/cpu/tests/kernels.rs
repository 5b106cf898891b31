//! Kernels against references in f64, for every instruction set that this machine has (up to `FLASHJOB_ISA`), and their promise that a
//! row's bits depend on that row alone.

mod attention;
mod caches;
mod elementwise;
mod limits;
mod matmul;
mod pool;
mod quantized;
mod reference;

use std::sync::OnceLock;

use flashjob_cpu::{Isa, Pool};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// For each instruction set a pool of one thread and one of three.
fn pools() -> &'static [[Pool; 2]] {
    static POOLS: OnceLock<Vec<[Pool; 2]>> = OnceLock::new();
    POOLS.get_or_init(|| {
        let sets = Isa::available().into_iter().skip_while(|isa| *isa != Isa::detect());
        sets.map(|isa| [1, 3].map(|n| Pool::with_isa(n, isa))).collect()
    })
}

/// Runs `check` with each pool.
fn on_every_pool(mut check: impl FnMut(&'static Pool)) {
    pools().iter().flatten().for_each(&mut check);
}

/// `count` values in −1..1, the same for the same seed.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// How weights or a cache are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Storage {
    F32,
    Bf16,
    F16,
}

impl Storage {
    const ALL: [Storage; 3] = [Storage::F32, Storage::Bf16, Storage::F16];

    /// What is left of a value once stored.
    fn round(self, x: f32) -> f32 {
        match self {
            Storage::F32 => x,
            Storage::Bf16 => bf16::from_f32(x).to_f32(),
            Storage::F16 => f16::from_f32(x).to_f32(),
        }
    }
}

fn any_storage() -> impl Strategy<Value = Storage> {
    prop::sample::select(Storage::ALL.to_vec())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}: entry {i} of {} is {} here and {} there", a.len(), a[i], b[i]);
    }
}
