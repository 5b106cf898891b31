//! The model room from outside: real files in, configuration, tokens and weights out.

pub mod golden;
mod logits;
mod plain_decoder;
