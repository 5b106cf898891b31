//! What attention kernels share: head counts, and the storage of cached keys and values.

use half::{bf16, f16};

use super::simd::Simd;

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads; query head `h` reads KV head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Width of a row of q, k and v: `(heads + 2 * kv_heads) * head_dim`.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of a row of attention's output: `heads * head_dim`.
    pub fn out_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Entries of the cache of K (or V) for one token: `kv_heads * head_dim`.
    pub fn cache_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    pub(super) fn check(&self) {
        assert!(
            self.kv_heads > 0 && self.heads > 0 && self.head_dim > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{self:?}: heads must be a positive multiple of kv_heads, and head_dim positive"
        );
    }
}

/// Cached keys or values of one layer: `[blocks, page, kv_heads, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum CacheSlice<'a> {
    /// Kept as computed.
    F32(&'a [f32]),
    /// Rounded to nearest, ties to even.
    Bf16(&'a [bf16]),
    /// Rounded to nearest, ties to even.
    F16(&'a [f16]),
}

impl CacheSlice<'_> {
    /// Entries.
    pub fn len(&self) -> usize {
        match self {
            CacheSlice::F32(entries) => entries.len(),
            CacheSlice::Bf16(entries) => entries.len(),
            CacheSlice::F16(entries) => entries.len(),
        }
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// [`CacheSlice`], to be written.
#[derive(Debug)]
pub enum CacheSliceMut<'a> {
    /// Kept as computed.
    F32(&'a mut [f32]),
    /// Rounded to nearest, ties to even.
    Bf16(&'a mut [bf16]),
    /// Rounded to nearest, ties to even.
    F16(&'a mut [f16]),
}

impl CacheSliceMut<'_> {
    /// The same memory, to be read.
    pub fn as_slice(&self) -> CacheSlice<'_> {
        match self {
            CacheSliceMut::F32(entries) => CacheSlice::F32(entries),
            CacheSliceMut::Bf16(entries) => CacheSlice::Bf16(entries),
            CacheSliceMut::F16(entries) => CacheSlice::F16(entries),
        }
    }
}

/// An entry of a cache.
pub(super) trait Stored: Copy + Send + Sync + 'static {
    /// Rounded to nearest, ties to even.
    fn narrow(x: f32) -> Self;

    /// Exactly.
    fn widen(self) -> f32;

    /// # Safety
    /// `LANES` entries can be read.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::V;

    /// # Safety
    /// `LANES` entries can be written.
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, v: S::V);
}

impl Stored for f32 {
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f32) -> S::V {
        // SAFETY: the caller's.
        unsafe { simd.load(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut f32, v: S::V) {
        // SAFETY: the caller's.
        unsafe { simd.store(to, v) }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const bf16) -> S::V {
        // SAFETY: the caller's.
        unsafe { simd.load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut bf16, v: S::V) {
        // SAFETY: the caller's.
        unsafe { simd.store_bf16(to, v) }
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f16) -> S::V {
        // SAFETY: the caller's.
        unsafe { simd.load_f16(from) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut f16, v: S::V) {
        // SAFETY: the caller's.
        unsafe { simd.store_f16(to, v) }
    }
}
