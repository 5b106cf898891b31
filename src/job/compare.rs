//! `flashjob compare A B …`: finds the runs, on disk or in MLflow, and prints them side by side.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashjob_compare::{self as comparing, Comparison, Format, MOST_RUNS, Run, Threshold};
use flashjob_config::Tracking;
use flashjob_config_parser::{Compare, CompareFormat};
use flashjob_mlflow::StoredRuns;
use flashjob_pages::comparison_page;
use flashjob_results::{LARGEST_RESULT_BYTES, RunResult, Stored, open};

use super::{Exit, exit, terminal};

/// Time that MLflow has in all.
const LIMIT: Duration = Duration::from_secs(120);

/// Beginning of an argument that names runs in MLflow.
const IN_MLFLOW: &str = "mlflow:";

const RESULT: &str = "result.json";

/// Prints the comparison. Exit 2 where there is none, exit 8 where a run is below the threshold.
pub fn compare(asked: &Compare) -> Exit {
    match compared(asked) {
        Ok(exit) => exit,
        Err(sentences) => {
            exit::first_of(sentences.into_iter()).iter().for_each(|sentence| terminal::complain(sentence));
            Exit::Configuration
        }
    }
}

fn compared(asked: &Compare) -> Result<Exit, Vec<String>> {
    let threshold = asked.fail_below.as_deref().map(str::parse::<Threshold>).transpose();
    let threshold = threshold.map_err(|error| vec![error.to_string()])?;
    // In the order of the arguments: the first run is the baseline.
    let mut found = NamedRuns::default();
    for argument in &asked.runs {
        let added = match argument.strip_prefix(IN_MLFLOW) {
            Some(path) => found.add_from_mlflow(path, asked.tracking.as_ref()),
            None => found.add_from_disk(Path::new(argument)),
        };
        added.map_err(|sentence| vec![sentence])?;
    }
    let runs: Vec<Run> = found.runs.iter().map(|run| Run::new(run.name.clone(), run.result.clone())).collect();
    let comparison = Comparison::new(&runs, asked.allow_different);
    let comparison = comparison.map_err(|error| match error {
        comparing::Error::NotComparable(sentences) => sentences,
        error => vec![error.to_string()],
    })?;
    // Before the threshold is judged: who reads the exit code wants to see why.
    let render = |format| comparing::render(&comparison, format, terminal::width());
    let text = match asked.format {
        CompareFormat::Table => render(Format::Table),
        CompareFormat::Markdown => render(Format::Markdown),
        CompareFormat::Csv => render(Format::Csv),
        CompareFormat::Json => render(Format::Json),
        CompareFormat::Html => Ok(comparison_page(&comparison, &found.pages())),
    };
    terminal::print(&text.map_err(|error| vec![format!("the comparison cannot be written: {error}")])?);
    let below = threshold.map(|threshold| threshold.below(&comparison)).unwrap_or_default();
    below.iter().for_each(|run| terminal::complain(&run.to_string()));
    Ok(if below.is_empty() { Exit::Done } else { Exit::BelowThreshold })
}

/// Runs that were found so far.
#[derive(Default)]
struct NamedRuns {
    runs: Vec<NamedRun>,
    /// Name of each run by the place where it lies.
    places: HashMap<PathBuf, String>,
}

/// A run as it was named.
struct NamedRun {
    name: String,
    result: RunResult,
    /// The other files of a run on disk are in it.
    directory: Option<PathBuf>,
}

impl NamedRuns {
    /// Everything that a page shows of each run.
    fn pages(self) -> Vec<flashjob_pages::Run> {
        let page = |NamedRun { result, directory, .. }| match directory {
            Some(directory) => flashjob_pages::Run::beside(result, &directory),
            None => flashjob_pages::Run::new(result),
        };
        self.runs.into_iter().map(page).collect()
    }

    /// Keeps the run of the file `result.json` at `file`, unless it was named before.
    fn add_file(&mut self, file: PathBuf, name: String, result: RunResult) -> Result<(), String> {
        let directory = file.parent().map(Path::to_owned);
        // Two names may lead to one file.
        let place = file.canonicalize().unwrap_or(file);
        self.add(place, NamedRun { name, result, directory })
    }

    fn add(&mut self, place: PathBuf, run: NamedRun) -> Result<(), String> {
        let name = &run.name;
        if let Some(earlier) = self.places.insert(place, name.clone()) {
            return Err(format!("`{name}` is the same run as `{earlier}`; name each run once"));
        }
        // A directory of a sweep may hold more runs than a comparison takes.
        if self.runs.len() == MOST_RUNS {
            return Err(comparing::Error::TooMany(MOST_RUNS + 1).to_string());
        }
        self.runs.push(run);
        Ok(())
    }

    /// The run at `path`, or all finished combinations of a sweep.
    fn add_from_disk(&mut self, path: &Path) -> Result<(), String> {
        let unreadable = |error: flashjob_results::Error| error.to_string();
        match open(path).map_err(unreadable)? {
            Stored::Run(file, result) => self.add_file(file, path.display().to_string(), *result),
            Stored::Sweep(sweep) => {
                let mut finished = sweep.finished().peekable();
                if finished.peek().is_none() {
                    return Err(format!(
                        "no combination of the sweep `{}` has finished; wait for it, or see its log",
                        path.display()
                    ));
                }
                for combination in finished {
                    let file = sweep.result_path(combination);
                    let name = sweep.directory.join(&combination.directory).display().to_string();
                    self.add_file(file, name, sweep.result(combination).map_err(unreadable)?)?;
                }
                Ok(())
            }
        }
    }

    /// The run at `EXPERIMENT/RUN`, or all finished runs of `EXPERIMENT` that have a result.
    fn add_from_mlflow(&mut self, path: &str, tracking: Option<&Tracking>) -> Result<(), String> {
        let Some(tracking) = tracking else {
            return Err(format!(
                "{IN_MLFLOW}{path} is in MLflow, and mlflow-uri is not set; give its address as --mlflow-uri"
            ));
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("no threads for the runtime: {error}"))?;
        runtime.block_on(async {
            let said = |error: flashjob_mlflow::Error| error.to_string();
            let stored = StoredRuns::open(tracking, LIMIT).map_err(said)?;
            let all = stored.find(path, MOST_RUNS).await.map_err(said)?;
            let before = self.runs.len();
            for run in &all {
                let name = format!("{IN_MLFLOW}{}/{}", run.experiment, run.name());
                let most = usize::try_from(LARGEST_RESULT_BYTES).unwrap_or(usize::MAX);
                // Parents of replicas and runs of other programs have none.
                let Some(bytes) = stored.read(run, RESULT, most).await.map_err(said)? else { continue };
                let result = RunResult::parse(&bytes, &name).map_err(|error| error.to_string())?;
                self.add(Path::new(IN_MLFLOW).join(run.id()), NamedRun { name, result, directory: None })?;
            }
            match self.runs.len() > before {
                true => Ok(()),
                false => {
                    Err(format!("no run at {IN_MLFLOW}{path} has a {RESULT}; name a run of flashjob that has finished"))
                }
            }
        })
    }
}
