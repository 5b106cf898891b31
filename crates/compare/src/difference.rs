//! Settings, engine and machine of runs: everything that may explain different figures.

use super::run::Run;

/// Subject of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A key of the configuration.
    Settings,
    /// Report of the engine on itself.
    Engine,
    /// Host, processor, memory.
    Machine,
}

impl Subject {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Settings => "settings",
            Subject::Engine => "engine",
            Subject::Machine => "machine",
        }
    }
}

/// One thing in which runs differ.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Subject that it belongs to.
    pub subject: Subject,
    /// Key of the setting, or name of the property.
    pub key: String,
    /// Value of each run, in their order; `None` where it is unknown.
    pub values: Vec<Option<String>>,
}

/// Settings that change where results go, and no figure.
const WITHOUT_EFFECT: [&str; 11] = [
    "results-dir",
    "run-name",
    "experiment-name",
    "mlflow-uri",
    "output-par",
    "output-prefix",
    "termination-message-path",
    "metrics-port",
    "metrics-address",
    "metrics-linger-seconds",
    "log-format",
];

/// Parts of an engine's report that are measurements, or follow from the model and the number format.
const NOT_COMPARED: [&str; 2] = ["limits.", "cost."];

/// Everything in which `runs` differ: settings first, then engine, then machine.
pub(super) fn differences(runs: &[Run]) -> Vec<Difference> {
    let mut found = Vec::new();
    let of_settings = keys(runs, |run| run.settings.iter().map(|setting| setting.key.clone()).collect());
    for key in of_settings.iter().filter(|key| !WITHOUT_EFFECT.contains(&key.as_str())) {
        keep(&mut found, Subject::Settings, key, runs, |run| run.settings.get(key).map(str::to_owned));
    }
    let engine = |key: &str, value: fn(&Run) -> Option<String>, found: &mut Vec<Difference>| {
        keep(found, Subject::Engine, key, runs, value);
    };
    engine("backend", |run| Some(run.backend.as_ref()?.backend.clone()), &mut found);
    engine("version", |run| Some(run.backend.as_ref()?.version.clone()), &mut found);
    engine("architecture of the model", |run| Some(run.backend.as_ref()?.architecture.clone()), &mut found);
    engine("parameters", |run| Some(run.backend.as_ref()?.parameters?.to_string()), &mut found);
    engine("version of flashjob", |run| Some(run.flashjob_version.clone()), &mut found);
    let of_engines = keys(runs, |run| {
        let details = run.backend.iter().flat_map(|backend| backend.engine.iter());
        details.map(|(key, _)| key.to_owned()).collect()
    });
    for key in of_engines.iter().filter(|key| !NOT_COMPARED.iter().any(|part| key.starts_with(part))) {
        keep(&mut found, Subject::Engine, key, runs, |run| run.backend.as_ref()?.engine.get(key).map(str::to_owned));
    }
    let machine = |key: &str, value: fn(&Run) -> Option<String>, found: &mut Vec<Difference>| {
        keep(found, Subject::Machine, key, runs, value);
    };
    machine("host", |run| run.environment.host.clone(), &mut found);
    machine("processor", |run| run.environment.cpu.clone(), &mut found);
    machine("architecture", |run| run.environment.architecture.clone(), &mut found);
    machine("processors", |run| run.environment.cpu_threads.map(|threads| threads.to_string()), &mut found);
    machine("CPU kernels", |run| run.environment.cpu_kernels.clone(), &mut found);
    machine("memory", |run| run.environment.memory_bytes.map(gibibytes), &mut found);
    machine("kernel", |run| run.environment.kernel.clone(), &mut found);
    found
}

/// Machines of one type report some MiB more or less.
fn gibibytes(bytes: u64) -> String {
    format!("{:.0} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// The keys of all runs, each once, in the order of the first run that has it.
fn keys(runs: &[Run], of: impl Fn(&Run) -> Vec<String>) -> Vec<String> {
    // A key that only a later run has is a difference, too.
    let mut seen = std::collections::HashSet::new();
    runs.iter().flat_map(of).filter(|key| seen.insert(key.clone())).collect()
}

fn keep(
    found: &mut Vec<Difference>,
    subject: Subject,
    key: &str,
    runs: &[Run],
    value: impl Fn(&Run) -> Option<String>,
) {
    let values: Vec<Option<String>> = runs.iter().map(value).collect();
    if values.iter().any(|value| *value != values[0]) {
        found.push(Difference { subject, key: key.to_owned(), values });
    }
}
