//! The model crate from outside: real files in, configuration, tokens and weights out.

mod chat_template;
mod configuration;
mod damaged;
mod directories;
mod families;
mod gguf;
mod logits;
mod plain_decoder;
mod shards;
mod smollm2;
mod texts;
mod tokens;
mod vocabularies;

use flashjob_test_models::{altered, golden};
