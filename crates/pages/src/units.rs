//! Units of figures as plots and pages show them.

use flashjob_charts::Unit;
use flashjob_results::figure;

/// Figures that are shares of a whole.
const SHARES: [&str; 7] = [
    "roofline_fraction",
    "roofline_serial_fraction",
    "roofline_compute_bound_share",
    "mfu",
    "mbu",
    "prefix_cache_hit_rate",
    "accuracy",
];

/// Name and unit of the figure under `key`.
pub fn named(key: &str) -> (String, Unit) {
    let figure = figure(key);
    let unit = match figure.unit {
        _ if SHARES.contains(&key) => Unit::Share,
        "s" => Unit::Time,
        symbol @ ("FLOP/s" | "B/s" | "J" | "W" | "J/token" | "B") => Unit::Symbol(symbol),
        words => Unit::Count(words),
    };
    (figure.label, unit)
}
