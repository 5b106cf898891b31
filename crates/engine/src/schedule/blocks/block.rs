//! One block of the KV cache, as a value that cannot be copied.

/// One block of the KV cache. Only a block pool makes them, each exists once and cannot be copied: two tables
/// cannot hold the same one. To be held by several it must first become a shared block of the prefix cache.
#[derive(Debug, PartialEq, Eq)]
pub struct Block(pub(super) u32);
