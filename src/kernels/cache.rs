//! What attention kernels share: head counts, and where and how cached keys and values are stored.
//!
//! Of each page and KV head keys are stored turned, `[head_dim, page]`, and values as they come, `[page, head_dim]`:
//! either is the right operand of a product as the innermost loop reads it, so attention copies nothing.

use half::{bf16, f16};

use super::simd::Simd;
use super::tile::{Panel, PanelBf16InOrder, PanelF16, PanelF32};

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

/// Where keys and values of one layer lie.
#[derive(Clone, Copy, Debug)]
pub struct CacheLayout {
    /// Heads.
    pub shape: AttentionShape,
    /// Tokens of a block, a multiple of [`CacheLayout::PAGE_STEP`].
    pub page: usize,
}

impl CacheLayout {
    /// What the tokens of a page are a multiple of: the widest panel, so that none is in two pages.
    pub const PAGE_STEP: usize = 32;

    /// Entries of the keys (or values) of `blocks` blocks: `[blocks, kv_heads, head_dim, page]` for keys,
    /// `[blocks, kv_heads, page, head_dim]` for values, and a panel more, since a panel is read whole at the end, too.
    pub fn entries(&self, blocks: usize) -> usize {
        blocks * self.block_entries() + Self::PAGE_STEP
    }

    /// Blocks that `entries` hold.
    pub(super) fn blocks(&self, entries: usize) -> usize {
        entries.saturating_sub(Self::PAGE_STEP) / self.block_entries()
    }

    /// The first entry of a head of a block, of keys and of values alike.
    #[inline(always)]
    pub(super) fn head_start(&self, block: usize, kv_head: usize) -> usize {
        (block * self.shape.kv_heads + kv_head) * self.page * self.shape.head_dim
    }

    fn block_entries(&self) -> usize {
        self.page * self.shape.cache_width()
    }

    pub(super) fn check(&self) {
        self.shape.check();
        let step = Self::PAGE_STEP;
        assert!(self.page > 0 && self.page.is_multiple_of(step), "a page of {} tokens, not of {step}", self.page);
    }
}

/// Cached keys or values of one layer: [`CacheLayout`].
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
    /// A row of them as the right operand of a product.
    type Row: Panel;

    /// Rounded to nearest, ties to even.
    fn narrow(x: f32) -> Self;

    /// # Safety
    /// `LANES` entries can be written.
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, v: S::V);
}

impl Stored for f32 {
    type Row = PanelF32;

    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut f32, v: S::V) {
        // SAFETY: the caller's.
        unsafe { simd.store(to, v) }
    }
}

impl Stored for bf16 {
    type Row = PanelBf16InOrder;

    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut bf16, v: S::V) {
        // SAFETY: the caller's.
        unsafe { simd.store_bf16(to, v) }
    }
}

impl Stored for f16 {
    type Row = PanelF16;

    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, to: *mut f16, v: S::V) {
        // SAFETY: the caller's.
        unsafe { simd.store_f16(to, v) }
    }
}
