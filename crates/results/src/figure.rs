//! Figures as people read them: a name, a unit, and the direction in which a figure is better.

/// Direction in which a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More is better, as with throughput.
    Higher,
    /// Less is better, as with latency.
    Lower,
}

/// Description of one figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Name in words, in lower case.
    pub label: String,
    /// Unit, empty for a number without one.
    pub unit: &'static str,
    /// Direction in which it is better; `None` for amounts of work, such as the number of tokens.
    pub better: Option<Better>,
}

/// Keys with their unit and direction.
const KNOWN: [(&str, &str, &str, Option<Better>); 37] = [
    ("requests_per_second", "requests per second", "requests/s", Some(Better::Higher)),
    ("input_tokens_per_second", "input tokens per second", "tokens/s", Some(Better::Higher)),
    ("output_tokens_per_second", "output tokens per second", "tokens/s", Some(Better::Higher)),
    ("total_tokens_per_second", "total tokens per second", "tokens/s", Some(Better::Higher)),
    ("elapsed_time", "elapsed time", "s", Some(Better::Lower)),
    ("total_input_tokens", "input tokens", "tokens", None),
    ("total_output_tokens", "output tokens", "tokens", None),
    ("requested_output_tokens", "requested output tokens", "tokens", None),
    (
        "steady_output_tokens_per_second",
        "output tokens per second in the steady window",
        "tokens/s",
        Some(Better::Higher),
    ),
    ("steady_seconds", "steady window", "s", None),
    ("ramp_up_seconds", "ramp-up", "s", Some(Better::Lower)),
    ("tail_seconds", "tail", "s", Some(Better::Lower)),
    ("peak_running_requests", "running requests at most", "requests", None),
    ("output_tokens_per_second_per_gpu", "output tokens per second and GPU", "tokens/s", Some(Better::Higher)),
    ("output_tokens_per_second_per_watt", "output tokens per joule", "tokens/J", Some(Better::Higher)),
    ("output_tokens_per_currency_unit", "output tokens per currency unit", "tokens", Some(Better::Higher)),
    ("accuracy", "share of correct answers", "", Some(Better::Higher)),
    ("failed_requests", "failed requests", "requests", Some(Better::Lower)),
    ("preemptions", "preemptions", "", Some(Better::Lower)),
    ("steps", "steps", "", None),
    ("flops_per_second", "operations per second", "FLOP/s", Some(Better::Higher)),
    ("memory_bytes_per_second", "memory bytes per second", "B/s", Some(Better::Higher)),
    ("limit_flops_per_second", "limit of operations per second", "FLOP/s", None),
    ("limit_memory_bytes_per_second", "limit of memory bytes per second", "B/s", None),
    ("roofline_seconds", "time at the roofline", "s", None),
    ("roofline_fraction", "fraction of the roofline", "", Some(Better::Higher)),
    ("roofline_serial_seconds", "time at the serial limit", "s", None),
    ("roofline_serial_fraction", "fraction of the serial limit", "", Some(Better::Higher)),
    ("roofline_compute_bound_share", "compute-bound share of the roofline", "", None),
    ("mfu", "model FLOPs utilisation (MFU)", "", Some(Better::Higher)),
    ("mbu", "model bandwidth utilisation (MBU)", "", Some(Better::Higher)),
    ("prefix_cache_hit_tokens", "input tokens found in the prefix cache", "tokens", None),
    ("prefix_cache_hit_rate", "hit rate of the prefix cache", "", Some(Better::Higher)),
    ("energy_joules", "energy of the GPUs", "J", Some(Better::Lower)),
    ("energy_joules_per_output_token", "energy per output token", "J/token", Some(Better::Lower)),
    ("mean_power_watts", "mean power of the GPUs", "W", None),
    ("cost_per_million_output_tokens", "cost per million output tokens", "", Some(Better::Lower)),
];

/// Latencies, which have a mean and percentiles.
const LATENCIES: [(&str, &str); 5] = [
    ("ttft", "time to first token"),
    ("tpot", "time per output token"),
    ("itl", "inter-token latency"),
    ("e2e", "end-to-end latency"),
    ("queue", "time in the queue"),
];

/// Describes the figure under `key`; one that is not known is called by its key, and has no direction.
pub fn figure(key: &str) -> Figure {
    if let Some((_, label, unit, better)) = KNOWN.iter().find(|(known, ..)| *known == key) {
        return Figure { label: (*label).to_owned(), unit, better: *better };
    }
    // Latencies and phases have keys by a rule, which a table would only repeat.
    if let Some((latency, statistic)) = key.split_once("_seconds_")
        && let Some((_, label)) = LATENCIES.iter().find(|(known, _)| *known == latency)
    {
        return Figure { label: format!("{label}, {statistic}"), unit: "s", better: Some(Better::Lower) };
    }
    if let Some(phase) = key.strip_prefix("phase_").and_then(|rest| rest.strip_suffix("_seconds")) {
        return Figure { label: format!("phase {}", phase.replace('_', " ")), unit: "s", better: Some(Better::Lower) };
    }
    Figure { label: key.replace('_', " "), unit: "", better: None }
}
