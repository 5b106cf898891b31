//! Sampling parameters.

use std::num::NonZeroUsize;

/// Sampling parameters. Temperature 0 is greedy.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// ≥ 0; 0 takes the likeliest token.
    pub temperature: f32,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep the `k` likeliest; `None` keeps all.
    pub top_k: Option<NonZeroUsize>,
}

impl Sampling {
    /// Returns whether sampling is greedy: the likeliest token is taken.
    pub fn is_greedy(&self) -> bool {
        // Where one token is kept, nothing is drawn, whatever the temperature.
        self.temperature == 0.0 || self.top_k.is_some_and(|k| k.get() == 1)
    }
}
