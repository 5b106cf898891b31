//! Combinations that share a loaded model: it is loaded once, and their regions take turns.

use std::sync::Arc;
use std::time::Duration;

use flashjob_config::{BackendKind, Combination, JobConfig, PlannedJob};
use flashjob_event::{Fact, Phase};
use flashjob_model::SharedTexts;

use super::record::{Ended, directory_name};
use crate::backend::{self, Backend, Found};
use crate::bench::{self, RunProgress};
use crate::job::Exit;
use crate::job::context::Context;
use crate::job::exit::Failure;
use crate::job::finish::{self, Ending};
use crate::job::load::{self, Sources, ToLoad};
use crate::job::work::{self, Work, from_backend, from_bench};
use crate::prepare::{Prepared, Prompts};
use crate::report::ResultsDirectory;

/// A model that is loaded for some combinations, or will be for the first of them.
pub struct Group<'a> {
    context: &'a Context,
    /// Mounted inputs of the sweep.
    mounted: &'a Work,
    /// Texts of the model, opened with it.
    texts: Option<SharedTexts>,
    backend: Option<Box<dyn Backend>>,
}

/// One combination while it runs.
struct Member<'a> {
    combination: &'a Combination,
    context: Context,
    work: Work,
    prompts: Arc<Prompts>,
    progress: Arc<RunProgress>,
}

impl<'a> Group<'a> {
    /// A group of the sweep that `context` runs with the inputs of `mounted`.
    pub fn new(context: &'a Context, mounted: &'a Work) -> Self {
        Self { context, mounted, texts: None, backend: None }
    }

    /// Runs `turns`, some of the combinations of this group, which are `all`; MLflow has `flush` for each of them.
    pub async fn run<'c>(
        &mut self,
        all: &[(&'c Combination, &'c PlannedJob)],
        turns: &[(&'c Combination, &'c PlannedJob)],
        flush: Duration,
    ) -> Vec<(&'c Combination, Ended)> {
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        for &(combination, planned) in turns {
            tracing::info!(combination = combination.number, "{} begins", combination.name());
            match self.open(combination, planned) {
                Err(failure) => ended.push((combination, Ended::failed(failure.exit, failure.message()))),
                Ok(context) => match self.begin(all, &context).await {
                    Ok((prompts, work)) => {
                        let (prompts, progress) = (Arc::new(prompts), Arc::default());
                        running.push(Member { combination, context, work, prompts, progress });
                    }
                    Err(failure) => {
                        let ending = Ending::of(Err(failure), &context.signals, Work::default());
                        let result = finish::finish_combination(&context, ending, flush).await;
                        ended.push((combination, Ended::of(&result)));
                    }
                },
            }
        }
        let mut is_first = true;
        while !running.is_empty() {
            let mut still_running = Vec::new();
            for mut member in running {
                let outcome = self.region(&member, is_first).await;
                let repeats = member.context.job.workload.repeats;
                if outcome.is_ok() && !member.progress.is_done(repeats) {
                    still_running.push(member);
                    continue;
                }
                let outcome = work::take_up(&member.context, &mut member.work, &member.progress, outcome);
                let ending = Ending::of(outcome, &member.context.signals, member.work);
                let result = finish::finish_combination(&member.context, ending, flush).await;
                ended.push((member.combination, Ended::of(&result)));
            }
            running = still_running;
            is_first = false;
        }
        ended
    }

    /// Context and results directory of a combination.
    fn open(&self, combination: &Combination, planned: &PlannedJob) -> Result<Context, Failure> {
        let name = directory_name(combination.number);
        let mut job = (*planned.config).clone();
        // Combinations measure: each of them runs all prompts.
        job.workload.batch = None;
        job.results_dir = self.context.job.results_dir.join(&name);
        if let Some(tracking) = &mut job.tracking {
            tracking.run_name = Some(combination.name());
        }
        if let Some(output) = &mut job.output {
            output.prefix = format!("{}{name}/", output.prefix);
        }
        let run = format!("{}-{name}", self.context.results.directory.run());
        let directory = ResultsDirectory::open(&job.results_dir, &run).map_err(|error| {
            Failure::sentence(Exit::Configuration, format!("results-dir={} {error}", job.results_dir.display()))
        })?;
        Ok(self.context.of_combination(job, directory))
    }

    /// Loads the model unless it is there, gives it the limits of `context`, and prepares its prompts.
    async fn begin(
        &mut self,
        all: &[(&Combination, &PlannedJob)],
        context: &Context,
    ) -> Result<(Prompts, Work), Failure> {
        let job = &context.job;
        let found = backend::check(job).map_err(|reason| Failure::sentence(Exit::Configuration, reason))?;
        let sources = work::sources(job)?;
        let texts = match &self.texts {
            Some(texts) if self.backend.is_some() => texts.clone(),
            _ => {
                let texts = self.texts.insert(load::texts(&sources)).clone();
                self.backend = Some(self.load(all, found, &sources, texts.clone()).await?);
                texts
            }
        };
        self.reschedule(job)?;
        let report = self.backend.as_ref().map(|backend| backend.report().clone());
        let max_model_len = report.as_ref().map(|report| report.max_model_len);
        let prepared = load::prepare(job, &context.signals, texts, sources.dataset, max_model_len, None).await?;
        if let Some(report) = &report {
            work::announce(&context.results.tracking, report);
        }
        let Prepared::Prompts { prompts, entries } = prepared else {
            return Err(Failure::sentence(
                Exit::Unexpected,
                "a combination of a sweep is no batch; this is a bug, please report it",
            ));
        };
        let mut work = Work::default();
        (work.backend, work.entries) = (report, entries);
        Ok((prompts, work))
    }

    /// Loads the model with the largest limits of the group, so that each combination finds room.
    async fn load(
        &self,
        all: &[(&Combination, &PlannedJob)],
        found: Found,
        sources: &Sources,
        texts: SharedTexts,
    ) -> Result<Box<dyn Backend>, Failure> {
        let mut job: JobConfig =
            all.first().map_or_else(|| self.context.job.clone(), |(_, planned)| (*planned.config).clone());
        let engines = || all.iter().map(|(_, planned)| &planned.config.engine);
        job.engine.max_num_seqs = engines().filter_map(|engine| engine.max_num_seqs).max();
        job.engine.max_num_batched_tokens = engines().filter_map(|engine| engine.max_num_batched_tokens).max();
        job.engine.prefix_caching = engines().any(|engine| engine.prefix_caching);
        self.context.observability.events.emit(Fact::PhaseStarted(Phase::Load));
        let stop = self.context.signals.cancel().child_token();
        let loaded = load::load(
            self.context,
            ToLoad { job: &job, found, files: self.mounted.files(), sources },
            texts,
            stop,
            backend::open,
        )
        .await;
        self.context.observability.phases.pause();
        loaded.map_err(|failure| self.mounted.storage_failure().unwrap_or(failure))
    }

    /// Gives the model that is loaded the limits of `job`.
    fn reschedule(&mut self, job: &JobConfig) -> Result<(), Failure> {
        match &mut self.backend {
            // Others have the limits with which they were started: combinations of theirs that differ in them are no group.
            Some(backend) if job.backend == BackendKind::Candle => {
                backend.reschedule(&job.engine).map_err(from_backend)
            }
            _ => Ok(()),
        }
    }

    /// Measures the next region of `member`; before its first one it is warmed up.
    async fn region(&mut self, member: &Member<'_>, is_first: bool) -> Result<(), Failure> {
        self.reschedule(&member.context.job)?;
        let Some(mut backend) = self.backend.take() else {
            return Err(Failure::sentence(
                Exit::Inference,
                "the engine of this group of combinations has failed before",
            ));
        };
        let (prompts, progress) = (member.prompts.clone(), member.progress.clone());
        let how = member.context.job.workload.warmup;
        let cancel = member.context.signals.cancel().child_token();
        let ran = work::watched(&member.context, backend.gpus(), cancel, None, move |watch| {
            let warmed = match is_first {
                true => bench::warm_up(backend.as_mut(), &prompts, how, watch, &progress),
                false => Ok(()),
            };
            let outcome = warmed.and_then(|()| bench::region(backend.as_mut(), &prompts, watch, &progress));
            (backend, outcome)
        })
        .await;
        member.context.observability.phases.pause();
        let (backend, outcome) = ran?;
        // After a failed step nothing is known of the engine's state: the next combination loads the model again.
        let is_usable = !matches!(outcome, Err(bench::Error::Backend(_)));
        self.backend = Some(backend).filter(|_| is_usable);
        outcome.map_err(from_bench)
    }
}
