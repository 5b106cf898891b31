//! Weights in the block formats of ggml, as panels keep them: in their stored bits, each widened when it is multiplied.
//!
//! A block of a panel holds, for each column side by side: the scale, the minimum where the format has one, the scales of parts of the
//! block, then words of 32 bits with the lower bits of consecutive codes, and words with their upper bits where a code has more than
//! a word's share. So a vector has the same `k` of [`Simd::LANES`] columns, and shifting it brings the next. This file knows
//! nothing of products.

use flashjob_block_format::BlockFormat;
use half::f16;

use super::simd::Simd;

/// Widths and counts of a format's parts in a panel.
#[derive(Clone, Copy)]
struct Layout {
    /// Bits of a code in its lower word.
    low: usize,
    /// Bits of a code in its upper word; 0 without upper words.
    high: usize,
    /// Weights that share a scale.
    part: usize,
    /// Bytes of scales of parts, for each column.
    sub_scales: usize,
    /// There is a minimum.
    minimum: bool,
}

impl Layout {
    const fn of(format: BlockFormat) -> Self {
        let [low, high, part, sub_scales, minimum] = match format {
            BlockFormat::Q4_0 => [4, 0, 32, 0, 0],
            BlockFormat::Q4_1 => [4, 0, 32, 0, 1],
            BlockFormat::Q5_0 => [4, 1, 32, 0, 0],
            BlockFormat::Q5_1 => [4, 1, 32, 0, 1],
            BlockFormat::Q8_0 => [8, 0, 32, 0, 0],
            BlockFormat::Q2_K => [2, 0, 16, 16, 1],
            BlockFormat::Q3_K => [2, 1, 16, 16, 0],
            BlockFormat::Q4_K => [4, 0, 32, 16, 1],
            BlockFormat::Q5_K => [4, 1, 32, 16, 1],
            BlockFormat::Q6_K => [4, 2, 16, 16, 0],
        };
        Self { low, high, part, sub_scales, minimum: minimum == 1 }
    }

    /// Bytes of scale and minimum, for each column.
    const fn halves(self) -> usize {
        2 * (1 + self.minimum as usize)
    }

    /// Bytes before the words, for each column.
    const fn header(self) -> usize {
        self.halves() + self.sub_scales
    }
}

/// Bytes of a block of one column.
pub(super) const fn column_block_bytes(format: BlockFormat) -> usize {
    let layout = Layout::of(format);
    layout.header() + format.block_len() * (layout.low + layout.high) / 8
}

/// Places of a column's block within a panel's.
struct Places {
    layout: Layout,
    panel: usize,
    block_len: usize,
}

impl Places {
    fn of(format: BlockFormat, panel: usize) -> Self {
        Self { layout: Layout::of(format), panel, block_len: format.block_len() }
    }

    fn minimum(&self) -> usize {
        2 * self.panel
    }

    fn sub_scales(&self) -> usize {
        self.layout.halves() * self.panel
    }

    fn low_words(&self) -> usize {
        self.layout.header() * self.panel
    }

    fn high_words(&self) -> usize {
        self.low_words() + self.block_len * self.layout.low / 8 * self.panel
    }
}

/// Writes `block` as that of `column` of the panel's block at `to`.
///
/// # Safety
/// The panel's block can be written, and these places of it are the caller's alone.
pub(super) unsafe fn pack_block(format: BlockFormat, block: &[u8], to: *mut u8, panel: usize, column: usize) {
    let parts = format.parts(block);
    let places = Places::of(format, panel);
    let Layout { low, high, sub_scales, minimum, .. } = places.layout;
    // SAFETY: the caller's: all places are inside the panel's block.
    unsafe {
        to.cast::<u16>().add(column).write_unaligned(parts.scale);
        if minimum {
            to.add(places.minimum()).cast::<u16>().add(column).write_unaligned(parts.minimum);
        }
        for (index, &scale) in parts.sub_scales[..sub_scales].iter().enumerate() {
            to.add(places.sub_scales() + index * panel + column).write(scale);
        }
        let codes = &parts.codes[..places.block_len];
        words(codes, low, 0, to.add(places.low_words()), panel, column);
        if high > 0 {
            words(codes, high, low, to.add(places.high_words()), panel, column);
        }
    }
}

/// Writes the `bits` of each code from bit `first` on, as many as a word has room for in each word.
///
/// # Safety
/// As [`pack_block`].
unsafe fn words(codes: &[u8], bits: usize, first: usize, to: *mut u8, panel: usize, column: usize) {
    let mask = ((1_u32 << bits) - 1) as u8;
    for (index, codes) in codes.chunks(32 / bits).enumerate() {
        let place = |word: u32, (place, &code): (usize, &u8)| word | u32::from(code >> first & mask) << (place * bits);
        let word = codes.iter().enumerate().fold(0, place);
        // SAFETY: the caller's.
        unsafe { to.cast::<u32>().add(index * panel + column).write_unaligned(word) };
    }
}

/// The numbers of `column` of the panel at `from`, whole blocks of them.
///
/// # Safety
/// The panel has these blocks.
pub(super) unsafe fn unpack_column(
    format: BlockFormat,
    from: *const u8,
    panel: usize,
    column: usize,
    into: &mut [f32],
) {
    let places = Places::of(format, panel);
    let Layout { low, high, part: part_len, minimum, .. } = places.layout;
    for (index, into) in into.chunks_mut(places.block_len).enumerate() {
        let from = from.wrapping_add(index * panel * column_block_bytes(format));
        // SAFETY: the caller's: everything read is inside the panel's block.
        let half = |at: usize| unsafe { from.add(at).cast::<f16>().add(column).read_unaligned() }.to_f32();
        // SAFETY: as above.
        let sub = |index: usize| unsafe { from.add(places.sub_scales() + index * panel + column).read() };
        let code = |words: usize, bits: usize, k: usize| {
            // SAFETY: as above.
            let word = unsafe { from.add(words).cast::<u32>().add(k * bits / 32 * panel + column).read_unaligned() };
            word >> (k * bits % 32) & ((1 << bits) - 1)
        };
        let (scale, least) = (half(0), if minimum { half(places.minimum()) } else { 0.0 });
        for (part, into) in into.chunks_mut(part_len).enumerate() {
            let [scale, least] = match format {
                BlockFormat::Q4_K | BlockFormat::Q5_K => {
                    [scale * f32::from(sub(part)), least * f32::from(sub(8 + part))]
                }
                BlockFormat::Q2_K => [scale * f32::from(sub(part) & 0xf), least * f32::from(sub(part) >> 4)],
                BlockFormat::Q3_K | BlockFormat::Q6_K => [scale * f32::from(sub(part).cast_signed()), least],
                _ => [scale, least],
            };
            let addend = if format.offset() > 0 { -f32::from(format.offset()) * scale } else { least };
            for (number, k) in into.iter_mut().zip(part * part_len..) {
                let above = if high > 0 { code(places.high_words(), high, k) << low } else { 0 };
                // The product is exact, so that it does not matter whether it is rounded before the sum.
                *number = (code(places.low_words(), low, k) | above) as f32 * scale + addend;
            }
        }
    }
}

/// One format, known when a kernel is compiled.
pub(super) trait Coding {
    /// The format that a panel has.
    const FORMAT: BlockFormat;
}

/// Declares a type for each format.
macro_rules! codings {
    ($($format:ident)*) => {
        $(
            #[allow(non_camel_case_types)]
            pub(super) struct $format;

            impl Coding for $format {
                const FORMAT: BlockFormat = BlockFormat::$format;
            }
        )*
    };
}

codings!(Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K);

/// Taker of the weights of one `k` after the other.
pub(super) trait Visit<S: Simd> {
    /// Takes the weights of `k`, of all columns of a panel. Must be `#[inline(always)]`.
    fn take(&mut self, simd: S, k: usize, weights: [S::V; 2]);
}

/// Widens the first `depth` rows of the panel at `from`, whole blocks of them.
///
/// # Safety
/// The panel has these blocks.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, C: Coding>(simd: S, from: *const u8, depth: usize, visit: &mut impl Visit<S>) {
    let layout = const { Layout::of(C::FORMAT) };
    let (low_bits, high_bits) = (layout.low as u32, layout.high as u32);
    let panel = 2 * S::LANES;
    let block_len = C::FORMAT.block_len();
    for block in 0..depth / block_len {
        let from = from.wrapping_add(block * panel * const { column_block_bytes(C::FORMAT) });
        let mut low_from = from.wrapping_add(layout.header() * panel).cast::<u32>();
        let mut high_from = low_from.wrapping_add(block_len * layout.low / 32 * panel);
        let mut k = 0;
        // SAFETY: the caller's: everything read is inside the panel's block.
        unsafe {
            let halves = Halves::<S>::load(simd, from, layout.minimum);
            let mut high = [simd.load_words(low_from); 2];
            for part in 0..block_len / layout.part {
                let [scale, addend] = halves.of_part::<C>(simd, from, part);
                for _ in 0..layout.part * layout.low / 32 {
                    if high_bits > 0 && (k * layout.high).is_multiple_of(32) {
                        high = load_words(simd, high_from);
                        high_from = high_from.wrapping_add(panel);
                    }
                    let mut low = load_words(simd, low_from);
                    low_from = low_from.wrapping_add(panel);
                    for _ in 0..32 / layout.low {
                        let mut weights = scale;
                        for half in 0..2 {
                            let mut code = simd.low_bits(low[half], low_bits);
                            low[half] = simd.shift_right(low[half], low_bits);
                            if high_bits > 0 {
                                let above = simd.shift_left(simd.low_bits(high[half], high_bits), low_bits);
                                code = simd.or(code, above);
                                high[half] = simd.shift_right(high[half], high_bits);
                            }
                            weights[half] = simd.fma(simd.float(code), scale[half], addend[half]);
                        }
                        visit.take(simd, block * block_len + k, weights);
                        k += 1;
                    }
                }
            }
        }
    }
}

/// A row of words, two vectors.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn load_words<S: Simd>(simd: S, from: *const u32) -> [S::I; 2] {
    // SAFETY: the caller's.
    unsafe { [simd.load_words(from), simd.load_words(from.add(S::LANES))] }
}

/// Scale and minimum of a block, of all columns.
struct Halves<S: Simd> {
    scale: [S::V; 2],
    minimum: [S::V; 2],
}

impl<S: Simd> Halves<S> {
    /// # Safety
    /// A panel's block can be read.
    #[inline(always)]
    unsafe fn load(simd: S, from: *const u8, has_minimum: bool) -> Self {
        let from = from.cast::<f16>();
        // SAFETY: the caller's.
        let pair = |from: *const f16| unsafe { [simd.load_f16(from), simd.load_f16(from.add(S::LANES))] };
        let scale = pair(from);
        let minimum = if has_minimum { pair(from.wrapping_add(2 * S::LANES)) } else { [simd.splat(0.0); 2] };
        Self { scale, minimum }
    }

    /// Scale and addend of the weights of a part of the block.
    ///
    /// # Safety
    /// As [`Halves::load`].
    #[inline(always)]
    unsafe fn of_part<C: Coding>(&self, simd: S, from: *const u8, part: usize) -> [[S::V; 2]; 2] {
        // SAFETY: the caller's.
        let [a, b] = unsafe { [self.of_columns::<C>(simd, from, part, 0), self.of_columns::<C>(simd, from, part, 1)] };
        [[a[0], b[0]], [a[1], b[1]]]
    }

    /// The same of one half of the columns.
    ///
    /// # Safety
    /// As [`Halves::load`].
    #[inline(always)]
    unsafe fn of_columns<C: Coding>(&self, simd: S, from: *const u8, part: usize, half: usize) -> [S::V; 2] {
        let panel = 2 * S::LANES;
        let layout = const { Layout::of(C::FORMAT) };
        let sub_scales = from.wrapping_add(layout.halves() * panel);
        let at = |index: usize| sub_scales.wrapping_add(index * panel + half * S::LANES);
        let (scale, minimum) = (self.scale[half], self.minimum[half]);
        // SAFETY: the caller's: scales of parts are inside the panel's block.
        let [scale, minimum] = unsafe {
            match C::FORMAT {
                BlockFormat::Q4_K | BlockFormat::Q5_K => {
                    let [sub_scale, sub_minimum] = [part, 8 + part].map(|index| simd.float(simd.load_u8(at(index))));
                    [simd.mul(scale, sub_scale), simd.mul(minimum, sub_minimum)]
                }
                BlockFormat::Q2_K => {
                    let both = simd.load_u8(at(part));
                    let sub_scale = simd.float(simd.low_bits(both, 4));
                    let sub_minimum = simd.float(simd.shift_right(both, 4));
                    [simd.mul(scale, sub_scale), simd.mul(minimum, sub_minimum)]
                }
                BlockFormat::Q3_K | BlockFormat::Q6_K => {
                    [simd.mul(scale, simd.float(simd.load_i8(at(part).cast()))), minimum]
                }
                _ => [scale, minimum],
            }
        };
        // Both products are exact: what is added to a code's product is what was taken from the code.
        let offset = const { C::FORMAT.offset() };
        [scale, if offset > 0 { simd.mul(scale, simd.splat(-f32::from(offset))) } else { minimum }]
    }
}
