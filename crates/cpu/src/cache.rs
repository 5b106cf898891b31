//! Head counts of attention, and the layout of cached keys and values.
//!
//! Keys and values are kept as weights are packed, in panels as wide as two vectors: either is the right operand of a
//! product, and the innermost loop reads it as it lies, one line after the other.

use half::{bf16, f16};

use super::Isa;
use super::packed::{Storage, WIDEST_PANEL};
use super::simd::panel_width;
use super::tile::{Panel, PanelBf16, PanelF16, PanelF32};

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

/// Layout of the keys and values of one layer, for one instruction set.
///
/// A panel of keys holds several tokens of a block, side by side for each entry of a head; a panel of values holds several
/// entries of a head, side by side for each token. Where a head ends inside a panel, the rest is padding.
#[derive(Clone, Copy, Debug)]
pub struct CacheLayout {
    shape: AttentionShape,
    block_size: usize,
    panel: usize,
}

impl CacheLayout {
    /// Divisor of every block size: the widest panel of any instruction set.
    pub const BLOCK_SIZE_STEP: usize = WIDEST_PANEL;

    /// For blocks of `block_size` tokens and for the kernels of `isa`.
    ///
    /// # Panics
    /// If `block_size` is not a positive multiple of [`CacheLayout::BLOCK_SIZE_STEP`], or there are no heads.
    pub fn new(isa: Isa, shape: AttentionShape, block_size: usize) -> CacheLayout {
        shape.check();
        let step = Self::BLOCK_SIZE_STEP;
        assert!(
            block_size > 0 && block_size.is_multiple_of(step),
            "a block has a multiple of {step} tokens, not {block_size}"
        );
        CacheLayout { shape, block_size, panel: panel_width(isa) }
    }

    /// For kernels that take an entry after the other, `[block_size, kv_heads, head_dim]`: here only sizes are of interest.
    ///
    /// # Panics
    /// As [`CacheLayout::new`].
    pub fn by_token(shape: AttentionShape, block_size: usize) -> CacheLayout {
        CacheLayout { panel: 1, ..CacheLayout::new(Isa::Portable, shape, block_size) }
    }

    /// Numbers of heads and entries of each.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Entries of the keys of a block: `[kv_heads, block_size / panel, head_dim, panel]`.
    pub fn block_keys(&self) -> usize {
        self.block_size * self.shape.cache_width()
    }

    /// Entries of the values of a block: `[kv_heads, panels of a head, block_size, panel]`.
    pub fn block_values(&self) -> usize {
        self.block_size * self.shape.kv_heads * self.padded_head()
    }

    /// Entries of a head of values, padding included.
    #[inline(always)]
    fn padded_head(&self) -> usize {
        self.shape.head_dim.next_multiple_of(self.panel)
    }

    /// First entry of the panel of keys that has `token` of `block`, and the token's column in it.
    #[inline(always)]
    pub(super) fn key(&self, block: usize, kv_head: usize, token: usize) -> (usize, usize) {
        let first = (block * self.shape.kv_heads + kv_head) * self.block_size + token / self.panel * self.panel;
        (first * self.shape.head_dim, token % self.panel)
    }

    /// First entry of the row of `token` of `block` in the panel of values that has the head's entry `i`, and the entry's
    /// column in it.
    #[inline(always)]
    pub(super) fn value(&self, block: usize, kv_head: usize, token: usize, i: usize) -> (usize, usize) {
        let head = (block * self.shape.kv_heads + kv_head) * self.block_size * self.padded_head();
        (head + (i / self.panel * self.block_size + token) * self.panel, i % self.panel)
    }

    /// Entries of a row of a panel.
    #[inline(always)]
    pub(super) fn panel(&self) -> usize {
        self.panel
    }
}

/// Cached keys or values of one layer, laid out by a [`CacheLayout`].
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
    /// Entries that it holds.
    pub fn len(&self) -> usize {
        match self {
            CacheSlice::F32(entries) => entries.len(),
            CacheSlice::Bf16(entries) => entries.len(),
            CacheSlice::F16(entries) => entries.len(),
        }
    }

    /// Tells whether it holds no entries.
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
    /// Rows of them as the right operand of a product.
    type Panel: Panel;
    /// Order of entries in a row of a panel.
    const STORAGE: Storage;

    /// Rounded to nearest, ties to even.
    fn narrow(x: f32) -> Self;
}

impl Stored for f32 {
    type Panel = PanelF32;
    const STORAGE: Storage = Storage::F32;

    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

impl Stored for bf16 {
    type Panel = PanelBf16;
    const STORAGE: Storage = Storage::Bf16;

    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

impl Stored for f16 {
    type Panel = PanelF16;
    const STORAGE: Storage = Storage::F16;

    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }
}
