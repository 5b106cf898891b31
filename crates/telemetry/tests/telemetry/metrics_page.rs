//! `docs/METRICS.md` lists every metric as it is. `BLESS=1` rewrites its table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flashjob_event::{AnswerKind, Event, Fact, Observer, Phase};
use flashjob_host::cgroup::Cgroup;
use flashjob_host::gpus::GpuSample;
use flashjob_telemetry::Registry;
use flashjob_telemetry::host::Sample;

const BEGIN: &str = "<!-- metrics: written by crates/telemetry/tests/telemetry/metrics_page.rs -->\n";
const END: &str = "<!-- end of metrics -->\n";

/// A sample in which nothing is missing, so that every family shows.
fn full_sample() -> Sample {
    let some = Some(1.0);
    Sample {
        process_cpu_seconds: some,
        process_resident_bytes: some,
        process_virtual_bytes: some,
        process_threads: some,
        process_open_files: some,
        process_max_open_files: some,
        process_start_time_seconds: some,
        host_cpus: some,
        host_cpu_busy_seconds: some,
        host_cpu_idle_seconds: some,
        host_memory_bytes: some,
        host_memory_available_bytes: some,
        network_received_bytes: some,
        network_sent_bytes: some,
        disk_read_bytes: some,
        disk_written_bytes: some,
        filesystem_bytes: some,
        filesystem_used_bytes: some,
        filesystem_available_bytes: some,
        cgroup: Cgroup { memory_limit_bytes: some, memory_used_bytes: some, cpu_limit: some, throttled_seconds: some },
        gpus: vec![GpuSample {
            index: 0,
            uuid: "UUID".to_owned(),
            name: "NAME".to_owned(),
            utilization: some,
            memory_used_bytes: some,
            memory_bytes: some,
            power_watts: some,
            power_limit_watts: some,
            temperature_celsius: some,
            sm_clock_hertz: some,
            memory_clock_hertz: some,
            energy_joules: some,
            throttled_by: Some(Vec::new()),
        }],
    }
}

#[derive(Default)]
struct Family {
    kind: String,
    help: String,
    /// Each label's values, in the order in which they come.
    labels: BTreeMap<String, Vec<String>>,
}

/// The families of Prometheus text, by name.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((_, labels)) = line.split_once('{') {
            let labels = labels.split_once('}').unwrap().0;
            for (label, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
                let values = families.get_mut(&current).unwrap().labels.entry(label.to_owned()).or_default();
                let value = value.trim_matches('"').to_owned();
                if label != "le" && !values.contains(&value) {
                    values.push(value);
                }
            }
        }
    }
    families
}

fn table() -> String {
    let registry = Registry::new();
    registry.set_sample(full_sample());
    let at = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
    for fact in [
        Fact::PhaseStarted(Phase::Measure),
        Fact::BatchStarted { price_per_hour: Some(1.0) },
        Fact::BatchSized { lines: 2, is_estimate: false },
        Fact::LinesAnswered { kind: AnswerKind::Completed, lines: 1 },
    ] {
        registry.observe(&Event { at, fact });
    }
    let mut table = "| Metric | Type | Labels | What it is |\n|---|---|---|---|\n".to_owned();
    for (name, Family { kind, help, labels }) in families(&registry.render()) {
        let labels: Vec<String> = labels
            .into_iter()
            .filter(|(label, _)| label != "le")
            .map(|(label, values)| match label.as_str() {
                "version" => format!("`{label}`"),
                _ => format!("`{label}`: {}", values.join(", ")),
            })
            .collect();
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join("; "));
    }
    table
}

#[test]
fn the_page_lists_every_metric() {
    let path = crate::support::project().join("docs/METRICS.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has the line where its table begins");
    let (found, after) = rest.split_once(END).expect("the page has the line where its table ends");
    let expected = table();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(found, expected, "docs/METRICS.md does not list the metrics as they are; BLESS=1 rewrites it");
}
