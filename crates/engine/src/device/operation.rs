//! Operations of a step by their purpose: the families that profiles and profilers tell apart.

/// Family of operations. A step has most of them once a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Rows of the embedding, by token id.
    Embedding,
    /// RMSNorm of the residual stream, and of heads where a model has that.
    Norm,
    /// The product that gives q, k and v.
    Qkv,
    /// Rotary embedding, and keys and values into the cache.
    RopeAndCache,
    /// Paged attention.
    Attention,
    /// The product that takes attention's result back into the residual stream.
    O,
    /// Rows whose logits are wanted, put together.
    GatherRows,
    /// The product that gives gate and up.
    GateUp,
    /// The nonlinearity of the gate, times up.
    Gate,
    /// The product that takes the feed-forward layer back into the residual stream.
    Down,
    /// Sums and gathers over ranks.
    Collective,
    /// The product that gives logits, and their softcap.
    Head,
    /// The choice of tokens, to where the host has them.
    Sampling,
}

impl Operation {
    /// All operations, in the order in which a step first has them.
    pub const ALL: [Operation; 13] = [
        Operation::Embedding,
        Operation::Norm,
        Operation::Qkv,
        Operation::RopeAndCache,
        Operation::Attention,
        Operation::O,
        Operation::GatherRows,
        Operation::GateUp,
        Operation::Gate,
        Operation::Down,
        Operation::Collective,
        Operation::Head,
        Operation::Sampling,
    ];

    /// Name in profiles.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Embedding => "embedding",
            Operation::Norm => "norm",
            Operation::Qkv => "qkv",
            Operation::RopeAndCache => "rope_and_cache",
            Operation::Attention => "attention",
            Operation::O => "o",
            Operation::GatherRows => "gather_rows",
            Operation::GateUp => "gate_up",
            Operation::Gate => "gate",
            Operation::Down => "down",
            Operation::Collective => "collective",
            Operation::Head => "head",
            Operation::Sampling => "sampling",
        }
    }
}

/// Time of one operation on its device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperationTime {
    /// Family of the operation.
    pub operation: Operation,
    /// Seconds from its beginning to its end.
    pub seconds: f64,
}
