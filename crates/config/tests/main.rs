//! Configuration from outside.

mod config;
