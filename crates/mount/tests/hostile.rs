//! Buckets that mean harm.

mod copying;
