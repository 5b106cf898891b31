//! A bucket becomes files at a path: through FUSE, or by a parallel download where FUSE is refused.
//!
//! Read-only and listed once. This room knows nothing of models or of where results go.
