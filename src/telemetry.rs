//! Events and host samples become Prometheus text, log lines and a progress bar.
//!
//! Everything shown is derived from [`crate::event`]; this room knows nothing else of the house.
