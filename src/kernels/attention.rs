//! Paged attention in one pass.

use super::{AttentionShape, CacheSlice, Pool};

/// What one attention layer computes. Sequence `s` has queries `cu_q[s]..cu_q[s + 1]` and `cu_k[s + 1] - cu_k[s]`
/// keys; its last query sees all its keys, and each earlier one sees one fewer (causal, aligned bottom right).
#[derive(Clone, Copy, Debug)]
pub struct PagedAttention<'a> {
    /// Heads.
    pub shape: AttentionShape,
    /// Factor on q·k.
    pub scale: f32,
    /// Tokens of a block.
    pub page: usize,
    /// Queries: of token `t`, head `h` the entries from `t * q_stride + h * head_dim` on.
    pub q: &'a [f32],
    /// Entries from one token to the next in `q`: the width of a qkv row where q lives inside one.
    pub q_stride: usize,
    /// Keys, `[blocks, page, kv_heads, head_dim]`.
    pub k_cache: CacheSlice<'a>,
    /// Values, as the keys.
    pub v_cache: CacheSlice<'a>,
    /// Cumulative numbers of queries, `[sequences + 1]`, from 0.
    pub cu_q: &'a [u32],
    /// Cumulative numbers of keys, `[sequences + 1]`, from 0.
    pub cu_k: &'a [u32],
    /// Blocks of each sequence in order, `[sequences, max_blocks]`.
    pub block_table: &'a [u32],
    /// Width of `block_table`.
    pub max_blocks: usize,
    /// A query sees this many keys at most, itself included.
    pub window: Option<usize>,
    /// `softcap * tanh(score / softcap)` before the softmax.
    pub softcap: Option<f32>,
}

/// Softmax(scale · q·kᵀ)·v over a paged cache, into `out`, `[tokens, heads * head_dim]`.
///
/// # Panics
/// If lengths do not match, a block is out of bounds, or a sequence has fewer keys than queries.
pub fn paged_attention(pool: &Pool, args: &PagedAttention<'_>, out: &mut [f32]) {
    let AttentionShape { heads, kv_heads, head_dim } = args.shape;
    args.check(out.len());
    let _ = pool;
    let entry = |cache: &CacheSlice<'_>, index: usize| match cache {
        CacheSlice::F32(cache) => cache[index],
        CacheSlice::Bf16(cache) => cache[index].to_f32(),
        CacheSlice::F16(cache) => cache[index].to_f32(),
    };
    for sequence in 0..args.cu_q.len().saturating_sub(1) {
        let (first, last) = (args.cu_q[sequence] as usize, args.cu_q[sequence + 1] as usize);
        let keys = (args.cu_k[sequence + 1] - args.cu_k[sequence]) as usize;
        let queries = last - first;
        assert!(keys >= queries, "sequence {sequence} has {queries} queries and {keys} keys");
        for query in 0..queries {
            let end = keys - queries + query + 1;
            let start = args.window.map_or(0, |window| end.saturating_sub(window));
            for head in 0..heads {
                let q = &args.q[(first + query) * args.q_stride + head * head_dim..][..head_dim];
                let at = |key: usize| {
                    let block = args.block_table[sequence * args.max_blocks + key / args.page] as usize;
                    ((block * args.page + key % args.page) * kv_heads + head / (heads / kv_heads)) * head_dim
                };
                let scores: Vec<f32> = (start..end)
                    .map(|key| {
                        let base = at(key);
                        let dot: f32 = (0..head_dim).map(|i| q[i] * entry(&args.k_cache, base + i)).sum();
                        let score = dot * args.scale;
                        args.softcap.map_or(score, |cap| cap * (score / cap).tanh())
                    })
                    .collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
                let out = &mut out[(first + query) * heads * head_dim + head * head_dim..][..head_dim];
                out.fill(0.0);
                for (score, key) in scores.iter().zip(start..end) {
                    let weight = (score - max).exp() / sum;
                    let base = at(key);
                    out.iter_mut().enumerate().for_each(|(i, o)| *o += weight * entry(&args.v_cache, base + i));
                }
            }
        }
    }
}

impl PagedAttention<'_> {
    /// Holds every bound on which the kernel relies.
    fn check(&self, out: usize) {
        self.shape.check();
        let sequences = self.cu_q.len().saturating_sub(1);
        let tokens = self.cu_q.last().map_or(0, |&last| last as usize);
        let width = self.shape.out_width();
        assert_eq!(out, tokens * width, "out of {tokens} tokens with {:?}", self.shape);
        assert_eq!(self.cu_q.len(), self.cu_k.len(), "cu_q and cu_k are of the same sequences");
        assert!(self.block_table.len() >= sequences * self.max_blocks, "a row of blocks for each of {sequences}");
        assert!(
            tokens == 0 || (self.q_stride >= width && self.q.len() >= (tokens - 1) * self.q_stride + width),
            "{} entries of q for {tokens} tokens {} apart",
            self.q.len(),
            self.q_stride
        );
        assert!(self.page > 0, "a page holds tokens");
        assert_eq!(self.k_cache.len(), self.v_cache.len(), "as many values as keys");
        let blocks = self.k_cache.len() / (self.page * self.shape.cache_width());
        for sequence in 0..sequences {
            let (first, last) = (self.cu_q[sequence] as usize, self.cu_q[sequence + 1] as usize);
            let (first_key, last_key) = (self.cu_k[sequence] as usize, self.cu_k[sequence + 1] as usize);
            assert!(
                first <= last && first_key <= last_key && last - first <= last_key - first_key,
                "sequence {sequence} has queries {first}..{last} and keys {first_key}..{last_key}"
            );
            let used = (last_key - first_key).div_ceil(self.page);
            assert!(used <= self.max_blocks, "sequence {sequence} has {used} blocks of {}", self.max_blocks);
            for &block in &self.block_table[sequence * self.max_blocks..][..used] {
                assert!((block as usize) < blocks, "sequence {sequence} names block {block} of {blocks}");
            }
        }
    }
}
