//! Answers of a batch on disk: shards that are complete, journals of those that are not, and a manifest of what is answered.
//!
//! A batch has entries, numbered from 0 over all of its input. A *shard* is a run of entries of equal number, and becomes a file
//! `outputs-00017.jsonl` once each of them has an answer. Until then answers are appended to the shard's *journal* in the order in
//! which they come, so that a process that is killed loses none that it had written. The *manifest* says which job the files belong
//! to, and counts the answers of each finished shard; a job that is started again goes on with the entries that have none. Shards and
//! journals of another place, such as a bucket, are taken over where they are lacking (`remote`).
//!
//! It knows neither where entries come from nor how they are answered.

mod counts;
mod error;
mod identity;
mod journal;
mod manifest;
mod remote;
mod shard;
mod shards;

pub use counts::AnswerCounts;
pub use error::Error;
pub use flashjob_event::AnswerKind;
pub use identity::{Identity, InputFile};
pub use manifest::FinishedShard;
pub use remote::RemoteManifest;
pub use shard::shard_of_journal;
pub use shards::{Answer, Layout, Shards};

/// Name of the manifest.
pub const MANIFEST: &str = "manifest.jsonl";
