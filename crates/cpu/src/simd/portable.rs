//! Arrays that the compiler vectorises for the build's baseline: SSE2, NEON, or whatever else there is.

use half::{bf16, f16};

use super::Simd;

/// The fallback, which needs no instruction set extension.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable;

const LANES: usize = 8;

/// One entry for each lane.
#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut v = [0.0; LANES];
    for (i, x) in v.iter_mut().enumerate() {
        *x = f(i);
    }
    v
}

impl Simd for Portable {
    type V = [f32; LANES];
    type I = [i32; LANES];
    type Square = [[f32; LANES]; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn square(self) -> Self::Square {
        [[0.0; LANES]; LANES]
    }

    #[inline(always)]
    fn transpose(self, square: Self::Square) -> Self::Square {
        let mut turned = square;
        for (i, row) in turned.iter_mut().enumerate() {
            *row = lanes(|j| square[j][i]);
        }
        turned
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::V {
        let mut v = [0.0; LANES];
        // SAFETY: the caller's; `count` is at most the length of `v`.
        unsafe { std::ptr::copy_nonoverlapping(from, v.as_mut_ptr(), count) };
        v
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::V {
        // SAFETY: the caller's.
        lanes(|i| f16_to_f32(unsafe { from.add(i).read() }))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(self, from: *const bf16) -> [Self::V; 2] {
        // SAFETY: the caller's.
        let pair = |i: usize| unsafe { from.add(2 * i).cast::<[bf16; 2]>().read_unaligned() };
        [lanes(|i| pair(i)[0].to_f32()), lanes(|i| pair(i)[1].to_f32())]
    }

    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> Self::I {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: the caller's.
        unsafe { from.cast::<[u8; LANES]>().read() }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::I {
        // SAFETY: the caller's.
        unsafe { from.cast::<[i8; LANES]>().read() }.map(i32::from)
    }

    #[inline(always)]
    fn shift_right(self, v: Self::I, count: u32) -> Self::I {
        v.map(|word| (word.cast_unsigned() >> count).cast_signed())
    }

    #[inline(always)]
    fn shift_left(self, v: Self::I, count: u32) -> Self::I {
        v.map(|word| word << count)
    }

    #[inline(always)]
    fn low_bits(self, v: Self::I, count: u32) -> Self::I {
        v.map(|word| word & ((1 << count) - 1))
    }

    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn float(self, v: Self::I) -> Self::V {
        v.map(|word| word as f32)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::V) {
        // SAFETY: the caller's.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, v: Self::V, count: usize) {
        // SAFETY: the caller's; `count` is at most the length of `v`.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, count) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Where the baseline has no such instruction, `mul_add` would be a call for each entry.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            lanes(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanes(|i| a[i] * b[i] + c[i])
        }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        // Adding 1.5 · 2²³ leaves no bits for a fraction: the sum is rounded to a whole number, ties to even.
        const WHOLE: f32 = 12_582_912.0;
        lanes(|i| (v[i] + WHOLE) - WHOLE)
    }

    #[inline(always)]
    fn scale(self, v: Self::V, n: Self::V) -> Self::V {
        // In two steps, so that each power has an exponent of its own: the second product alone may round.
        let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
        lanes(|i| {
            // SAFETY: whole and small, by this method's terms; NaN is excluded below.
            let n = if n[i].is_nan() { 0 } else { unsafe { n[i].to_int_unchecked::<i32>() } };
            let half = n >> 1;
            v[i] * power(half) * power(n - half)
        })
    }

    #[inline(always)]
    fn within(self, v: Self::V, first: usize, end: usize, other: Self::V) -> Self::V {
        lanes(|i| if i >= first && i < end { v[i] } else { other[i] })
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let half: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (half[0] + half[2]) + (half[1] + half[3])
    }

    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn prefetch(self, _line: *const u8) {}
}

/// Exactly, by moving the exponent: without a branch, unlike `half`'s, so that it vectorises.
#[inline(always)]
fn f16_to_f32(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    // 2¹¹²: the difference between the two types' exponent biases; subnormals are normalised by the product.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = f32::from_bits(magnitude | 0x7f80_0000);
    let value = if bits & 0x7c00 == 0x7c00 { special } else { scaled };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

super::super::tile::tiles!(Portable, Portable, [], 1 2 3 4, coded 1 2);
