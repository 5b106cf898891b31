//! A model directory (or GGUF file) becomes a [`DecoderConfig`], a tokenizer, and tensors of one rank's shard.
//!
//! This room reads headers first and weights by range, and knows every spelling that checkpoints have for the
//! same thing. It knows nothing of scheduling, batching or devices: tensors come out on the CPU.

mod chat_template;
mod config_json;
mod decode;
mod decoder_config;
mod dtype;
mod error;
pub mod families;
#[doc(hidden)]
pub mod fuzzing;
mod gguf;
mod hugging_face;
mod layout;
mod message_format;
mod open;
mod read_at;
mod safetensors;
mod shard;
mod small_file;
mod special_tokens;
mod stored;
mod substitute;
mod tensor_name;
mod text_service;
mod texts;
mod texts_process;
mod token_bytes;
mod tokenizer;
mod tokenizer_files;
mod weights;

pub use chat_template::ChatTemplate;
pub use decoder_config::{Activation, DecoderConfig, RopeConfig, RopeScaling};
pub use dtype::Dtype;
pub use error::Error;
pub use message_format::{MessageFormat, ToolCallFormat};
pub use open::Model;
pub use read_at::{Files, Lent, ReadAt, SystemFiles};
pub use shard::{Shard, ShardShape};
pub use stored::Encoding;
pub use tensor_name::{LayerTensor, TensorName};
pub use text_service::{Ask, Conversation, SharedTexts, TextFacts, TextService};
pub use texts::Texts;
pub use texts_process::serve_texts;
pub use token_bytes::TokenBytes;
pub use tokenizer::Tokenizer;
pub use weights::{RowBuffer, RowSlice, Validation, Weights, WeightsFormat};
