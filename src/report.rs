//! A measurement becomes what people and controllers read: terminal, JSON, termination message.
//!
//! It does not know how anything was measured.
