//! 256-bit vectors.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::Isa;
use super::super::isa::Available;
use super::{Kernel, Simd};

/// Exists only inside [`run`], where the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(());

/// Runs `kernel` with AVX2, FMA and F16C.
pub(super) fn run(isa: Available, kernel: impl Kernel) {
    assert_eq!(isa.isa(), Isa::Avx2);
    // SAFETY: `isa` was found on this processor.
    unsafe { enter(kernel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn enter(kernel: impl Kernel) {
    kernel.run(Avx2(()));
}

/// Evaluates intrinsics: each method has `self`, so the processor has them.
macro_rules! have {
    ($($body:tt)*) => {
        // SAFETY: `self` proves the instructions; memory is the caller's promise where a method takes a pointer.
        unsafe { $($body)* }
    };
}

impl Avx2 {
    /// From each 128 bits, the lower half of `a` and then of `b`.
    #[inline(always)]
    fn low_pairs(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))))
    }

    /// From each 128 bits, the upper half of `a` and then of `b`.
    #[inline(always)]
    fn high_pairs(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))))
    }

    /// All bits of the lanes below `count`.
    #[inline(always)]
    fn first(self, count: usize) -> __m256i {
        debug_assert!(count <= 8);
        have!(_mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)))
    }

    /// `2^n` from its exponent.
    #[inline(always)]
    fn power(self, n: __m256i) -> __m256 {
        have!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))))
    }
}

impl Simd for Avx2 {
    type V = __m256;
    type I = __m256i;
    type Square = [__m256; 8];
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        have!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn square(self) -> [__m256; 8] {
        [self.splat(0.0); 8]
    }

    #[inline(always)]
    fn transpose(self, r: [__m256; 8]) -> [__m256; 8] {
        let zero = self.splat(0.0);
        let (mut s, mut t) = ([zero; 8], [zero; 8]);
        have! {
            for i in 0..4 {
                s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                t[4 * i] = self.low_pairs(s[4 * i], s[4 * i + 2]);
                t[4 * i + 1] = self.high_pairs(s[4 * i], s[4 * i + 2]);
                t[4 * i + 2] = self.low_pairs(s[4 * i + 1], s[4 * i + 3]);
                t[4 * i + 3] = self.high_pairs(s[4 * i + 1], s[4 * i + 3]);
            }
            // Half h of t[4i + j] now holds column 4h + j of rows 4i..4i + 4.
            for j in 0..4 {
                s[j] = _mm256_permute2f128_ps::<0x20>(t[j], t[4 + j]);
                s[4 + j] = _mm256_permute2f128_ps::<0x31>(t[j], t[4 + j]);
            }
        }
        s
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        have!(_mm256_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m256 {
        have!(_mm256_maskload_ps(from, self.first(count)))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        have!(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(self, from: *const bf16) -> [__m256; 2] {
        have! {
            let pairs = _mm256_loadu_si256(from.cast());
            let low = _mm256_slli_epi32::<16>(pairs);
            let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn load_words(self, from: *const u32) -> __m256i {
        have!(_mm256_loadu_si256(from.cast()))
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m256i {
        have!(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m256i {
        have!(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))
    }

    #[inline(always)]
    fn shift_right(self, v: __m256i, count: u32) -> __m256i {
        have!(_mm256_srlv_epi32(v, _mm256_set1_epi32(count as i32)))
    }

    #[inline(always)]
    fn shift_left(self, v: __m256i, count: u32) -> __m256i {
        have!(_mm256_sllv_epi32(v, _mm256_set1_epi32(count as i32)))
    }

    #[inline(always)]
    fn low_bits(self, v: __m256i, count: u32) -> __m256i {
        have!(_mm256_and_si256(v, _mm256_set1_epi32((1 << count) - 1)))
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        have!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn float(self, v: __m256i) -> __m256 {
        have!(_mm256_cvtepi32_ps(v))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m256) {
        have!(_mm256_storeu_ps(to, v))
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, v: __m256, count: usize) {
        have!(_mm256_maskstore_ps(to, self.first(count), v))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        have!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        have!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, v: __m256) -> __m256 {
        have!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }

    #[inline(always)]
    fn scale(self, v: __m256, n: __m256) -> __m256 {
        // In two steps, so that each power has an exponent of its own: the second product alone may round.
        have! {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let rest = _mm256_sub_epi32(n, half);
            _mm256_mul_ps(_mm256_mul_ps(v, self.power(half)), self.power(rest))
        }
    }

    #[inline(always)]
    fn within(self, v: __m256, start: usize, end: usize, other: __m256) -> __m256 {
        have! {
            let inside = _mm256_andnot_si256(self.first(start), self.first(end));
            _mm256_blendv_ps(other, v, _mm256_castsi256_ps(inside))
        }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        have! {
            let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
        }
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        have! {
            let half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
        }
    }

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        have!(_mm_prefetch::<_MM_HINT_T1>(line.cast()))
    }
}

super::super::tile::tiles!(Avx2, Avx2(()), ["avx2,fma,f16c"], 1 2 3 4 5 6, coded 1 2 3);
