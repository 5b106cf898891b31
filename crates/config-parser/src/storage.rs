//! Settings of object storage from their keys.

pub(super) mod input;
pub(super) mod mount;
pub(super) mod output;

mod entry;
