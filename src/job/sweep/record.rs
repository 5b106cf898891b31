//! `sweep.json`: the state of each combination, written again after each of them.

use flashjob_config::{Combination, PlannedJob};
use flashjob_results::{self as results, CombinationStatus, RunResult, Status};

use crate::job::Exit;
use crate::job::exit::Failure;
use crate::job::terminal;
use crate::report::{JobResult, ResultsDirectory};

/// Settings that say where results go and who watches, and nothing of what is measured.
const NOT_MEASURED: [&str; 14] = [
    "results-dir",
    "run-name",
    "experiment-name",
    "mlflow-uri",
    "metrics-port",
    "metrics-address",
    "metrics-linger-seconds",
    "log-format",
    "termination-message-path",
    "blueprint",
    "sweep",
    "output-par",
    "output-prefix",
    "output-object-storage",
];

/// The record of a sweep that is running.
pub struct SweepRecord<'a> {
    directory: &'a ResultsDirectory,
    sweep: results::Sweep,
}

/// End of a combination.
#[derive(Debug)]
pub struct Ended {
    pub status: CombinationStatus,
    pub exit_code: u8,
    pub error: Option<String>,
    pub output_tokens_per_second: Option<f64>,
}

impl Ended {
    /// The end that `result` has.
    pub fn of(result: &JobResult) -> Self {
        Self {
            status: result.status.into(),
            exit_code: result.exit_code,
            error: result.error.clone(),
            output_tokens_per_second: result
                .figures
                .as_ref()
                .map(|figures| figures.throughput.output_tokens_per_second),
        }
    }

    /// A combination without a result.
    pub fn failed(exit: Exit, error: String) -> Self {
        Self {
            status: CombinationStatus::Failed,
            exit_code: exit.code(),
            error: Some(error),
            output_tokens_per_second: None,
        }
    }
}

/// Name of the directory of combination `number`.
pub fn directory_name(number: usize) -> String {
    format!("{number:04}")
}

impl<'a> SweepRecord<'a> {
    /// Begins the record, with what is refused already.
    pub fn new(directory: &'a ResultsDirectory, sweep: &flashjob_config::Sweep) -> Self {
        let empty = results::Sweep { directory: directory.path().to_owned(), combinations: Vec::new() };
        let mut record = Self { directory, sweep: empty };
        for combination in &sweep.combinations {
            let Err(refusal) = &combination.job else { continue };
            tracing::warn!(combination = combination.number, "{} is refused: {refusal}", combination.name());
            let refused = Ended {
                status: CombinationStatus::Refused,
                exit_code: Exit::Configuration.code(),
                error: Some(refusal.to_string()),
                output_tokens_per_second: None,
            };
            record.insert(combination, &refused);
        }
        record.write();
        record
    }

    /// Tells that an earlier attempt has the result of `planned`, and takes it over.
    pub fn is_finished(&mut self, combination: &Combination, planned: &PlannedJob) -> bool {
        let path = self.directory.path().join(directory_name(combination.number)).join("result.json");
        let Ok(earlier) = RunResult::read(&path) else { return false };
        let settings = planned.config.settings.iter().filter(|setting| !NOT_MEASURED.contains(&setting.key.as_str()));
        let is_same = earlier.flashjob_version == env!("CARGO_PKG_VERSION")
            && settings.into_iter().all(|setting| earlier.settings.get(&setting.key) == Some(setting.value.as_str()));
        if earlier.status != Status::Finished || !is_same {
            return false;
        }
        tracing::info!(
            combination = combination.number,
            "{} was finished by an earlier attempt in this results-dir",
            combination.name()
        );
        let ended = Ended {
            status: CombinationStatus::Finished,
            exit_code: earlier.exit_code,
            error: None,
            output_tokens_per_second: earlier.metrics.output_tokens_per_second(),
        };
        self.insert(combination, &ended);
        self.write();
        true
    }

    /// Notes the end of `combination`.
    pub fn note(&mut self, combination: &Combination, ended: &Ended) {
        tracing::info!(
            combination = combination.number,
            output_tokens_per_second = ended.output_tokens_per_second,
            "{}: {}",
            combination.name(),
            ended.status.name()
        );
        self.insert(combination, ended);
        self.write();
    }

    fn insert(&mut self, combination: &Combination, ended: &Ended) {
        self.sweep.combinations.push(results::Combination {
            number: combination.number as u64,
            directory: directory_name(combination.number),
            settings: combination.values.iter().map(|swept| (swept.key.clone(), swept.value.clone())).collect(),
            status: ended.status,
            exit_code: Some(ended.exit_code),
            error: ended.error.clone(),
            output_tokens_per_second: ended.output_tokens_per_second,
        });
        self.sweep.combinations.sort_by_key(|combination| combination.number);
    }

    fn write(&self) {
        if let Err(error) = self.directory.write_sweep(&self.sweep) {
            tracing::error!(%error, "sweep.json could not be written");
        }
    }

    /// Prints the combinations with their figures.
    pub fn show(&self) {
        for combination in &self.sweep.combinations {
            let results::Combination { number, settings, status, error, output_tokens_per_second, .. } = combination;
            let settings: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let outcome = match (output_tokens_per_second, error) {
                (Some(rate), None) => format!("{rate:.2} output tokens/s"),
                (_, Some(error)) => error.clone(),
                (None, None) => String::new(),
            };
            terminal::tell(&format!("{number:>4}  {:<9} {}  {outcome}", status.name(), settings.join(" ")));
        }
    }

    /// The outcome of the whole sweep: good where one combination finished, and all that did were delivered.
    pub fn end(&self) -> Result<(), Failure> {
        let combinations = &self.sweep.combinations;
        let count = |status| combinations.iter().filter(|combination| combination.status == status).count();
        let [finished, failed, refused] =
            [CombinationStatus::Finished, CombinationStatus::Failed, CombinationStatus::Refused].map(count);
        tracing::info!(finished, failed, refused, "the sweep has ended");
        if finished == 0 {
            let first = combinations.iter().find(|combination| combination.status != CombinationStatus::Refused);
            let code = first.and_then(|combination| combination.exit_code).unwrap_or(Exit::Configuration.code());
            let error = first.and_then(|combination| combination.error.as_deref()).unwrap_or_default();
            return Err(Failure::sentence(
                Exit::of(code),
                format!("no combination of the sweep finished; the first that failed ended so: {error}"),
            ));
        }
        match combinations.iter().any(|combination| combination.exit_code == Some(Exit::Undelivered.code())) {
            true => Err(Failure::sentence(
                Exit::Undelivered,
                "some combinations could not be delivered; `flashjob publish` with this results-dir sends them later",
            )),
            false => Ok(()),
        }
    }
}
