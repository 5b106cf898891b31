//! Measured limits.

use std::time::{Duration, Instant};

use flashjob::kernels::measure_limits;

use super::pools;

#[test]
fn are_those_of_a_computer_and_found_quickly() {
    let begin = Instant::now();
    let limits = measure_limits(&pools()[0][0], None).unwrap();
    // Promised: 2 s. The rest is for a machine that is busy with other tests.
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!((1e8..1e16).contains(&limits.flops_per_second), "{limits:?}");
    assert!((1e8..1e14).contains(&limits.bytes_per_second), "{limits:?}");
}

#[test]
fn are_not_measured_where_that_would_take_what_is_not_there() {
    measure_limits(&pools()[0][0], Some(1 << 20)).unwrap_err();
}
