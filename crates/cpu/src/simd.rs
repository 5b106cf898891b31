//! Vectors of f32 behind one trait, so that each kernel is written once and compiled for each instruction set.
//!
//! A value of a [`Simd`] type is proof that the processor has the instructions, so arithmetic is safe; only what
//! goes through pointers is not. [`dispatch`] enters a function that may use them: everything below it must be
//! inlined there, hence `#[inline(always)]` throughout.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::{bf16, f16};

use super::isa::{Available, Isa};
use super::tile::TileSet;

/// Vectors of [`Simd::LANES`] f32.
pub(super) trait Simd: TileSet + Copy + Send + Sync + 'static {
    /// A vector register of `LANES` values.
    type V: Copy;
    /// A vector register of `LANES` whole numbers of 32 bits.
    type I: Copy;
    /// `[V; LANES]`.
    type Square: Copy + AsRef<[Self::V]> + AsMut<[Self::V]>;
    /// Entries of a vector.
    const LANES: usize;

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// `LANES` zero vectors.
    fn square(self) -> Self::Square;
    /// Entry `j` of vector `i` becomes entry `i` of vector `j`.
    fn transpose(self, square: Self::Square) -> Self::Square;

    /// # Safety
    /// `LANES` entries can be read.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// The first `count` entries, zeros in the other lanes.
    ///
    /// # Safety
    /// `count ≤ LANES` entries can be read.
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::V;
    /// # Safety
    /// `LANES` entries can be read.
    unsafe fn load_f16(self, from: *const f16) -> Self::V;
    /// `2 * LANES` entries stored as pairs, entry `i` beside entry `i + LANES`: one load, and no shuffle.
    ///
    /// # Safety
    /// `2 * LANES` entries can be read.
    unsafe fn load_bf16_pairs(self, from: *const bf16) -> [Self::V; 2];

    /// # Safety
    /// `LANES` words can be read.
    unsafe fn load_words(self, from: *const u32) -> Self::I;
    /// # Safety
    /// `LANES` bytes can be read.
    unsafe fn load_u8(self, from: *const u8) -> Self::I;
    /// # Safety
    /// `LANES` bytes can be read.
    unsafe fn load_i8(self, from: *const i8) -> Self::I;
    /// `v >> count`, filled up with zeros.
    fn shift_right(self, v: Self::I, count: u32) -> Self::I;
    /// `v << count`.
    fn shift_left(self, v: Self::I, count: u32) -> Self::I;
    /// The lowest `count` bits, at most 31.
    fn low_bits(self, v: Self::I, count: u32) -> Self::I;
    /// The bits of both.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Signed numbers, exact below 2²⁴.
    fn float(self, v: Self::I) -> Self::V;

    /// # Safety
    /// `LANES` entries can be written.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    /// The first `count` lanes.
    ///
    /// # Safety
    /// `count ≤ LANES` entries can be written.
    unsafe fn store_first(self, to: *mut f32, v: Self::V, count: usize);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`: rounded once where the instruction set has it, and then always.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole number, for |v| below 2²².
    fn round(self, v: Self::V) -> Self::V;
    /// `v · 2^n` for whole `n` in −252..=254, rounded once.
    fn scale(self, v: Self::V, n: Self::V) -> Self::V;
    /// `v` in lanes `first..end`, `other` elsewhere.
    fn within(self, v: Self::V, first: usize, end: usize, other: Self::V) -> Self::V;
    /// The sum of all lanes, in a fixed order.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, v: Self::V) -> f32;
    /// Asks for a cache line, on its way to the second-level cache.
    fn prefetch(self, line: *const u8);
}

/// Something to compute with whichever vectors there are. `run` must be `#[inline(always)]`.
pub(super) trait Kernel {
    /// Computes with `simd`.
    fn run<S: Simd>(self, simd: S);
}

/// Runs `kernel` compiled for `isa`.
pub(super) fn dispatch(isa: Available, kernel: impl Kernel) {
    match isa.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::run(isa, kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::run(isa, kernel),
        _ => kernel.run(portable::Portable),
    }
}

/// Entries of a row of a panel for `isa`: two vectors.
pub(super) fn panel_width(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => 2 * avx512::Avx512::LANES,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => 2 * avx2::Avx2::LANES,
        _ => 2 * portable::Portable::LANES,
    }
}
