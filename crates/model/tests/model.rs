//! The model room from outside: real files in, configuration, tokens and weights out.

pub mod altered;
mod chat_template;
mod configuration;
mod damaged;
mod directories;
mod families;
mod gguf;
pub mod golden;
mod logits;
mod plain_decoder;
mod shards;
pub mod smollm2;
mod texts;
mod tokens;
mod vocabularies;
