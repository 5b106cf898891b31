//! A workload and a backend become a measurement: timings, percentiles, exact counts.
//!
//! It does not know where results go.
