//! Configuration from outside.

mod config_parser;
