//! Behaviour of this package through its public functions.

mod timeline;
