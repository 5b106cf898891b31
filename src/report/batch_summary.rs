//! `summary.json` of a batch, made of its answers and of the result.

use flashjob_event::AnswerKind;
use flashjob_results::{AnswersSummary, JobSummary, LineCounts, SCHEMA_VERSION, ShardCounts, Summary, TokenCounts};

use super::batch_answers::BatchAnswers;
use super::result::JobResult;

/// The summary of a job that ended with `result` and did this of the batch. Without `answers` it ended before it had opened them.
pub fn batch_summary(result: &JobResult, answers: Option<&BatchAnswers>, job: JobSummary) -> Summary {
    let prefix_cache_hit_rate = result.figures.as_ref().and_then(|figures| figures.prefix_cache_hit_rate);
    Summary {
        schema_version: SCHEMA_VERSION,
        flashjob_version: env!("CARGO_PKG_VERSION").to_owned(),
        status: result.status,
        exit_code: result.exit_code,
        error: result.error.clone(),
        started_at: result.started_at.clone(),
        ended_at: result.ended_at.clone(),
        answers: answers.map(summary_of_answers),
        job: JobSummary { prefix_cache_hit_rate, ..job },
    }
}

fn summary_of_answers(answers: &BatchAnswers) -> AnswersSummary {
    let (counts, total, [finished, unfinished]) = answers.state();
    let answered = counts.answers();
    AnswersSummary {
        lines: LineCounts {
            total,
            answered,
            completed: counts.of(AnswerKind::Completed),
            missing: total.map(|total| total.saturating_sub(answered)),
        },
        errors: AnswerKind::errors().map(|kind| (kind, counts.of(kind))).collect(),
        tokens: TokenCounts { input: counts.input_tokens, output: counts.output_tokens },
        shards: ShardCounts { finished, unfinished },
    }
}

/// The numbers of a summary by name, as MLflow takes them.
pub fn batch_figures(summary: &Summary) -> Vec<(String, f64)> {
    let JobSummary { lines_per_second, cost, .. } = summary.job;
    let answers = summary.answers.iter().flat_map(|AnswersSummary { lines, errors, .. }| {
        let counts = [
            ("lines".to_owned(), lines.total),
            ("lines_answered".to_owned(), Some(lines.answered)),
            ("lines_completed".to_owned(), Some(lines.completed)),
            ("lines_missing".to_owned(), lines.missing),
        ];
        let errors = errors.iter().map(|(kind, count)| (format!("errors_{}", kind.name()), Some(*count)));
        let counts = counts.into_iter().chain(errors);
        counts.map(|(name, count)| (name, count.map(|count| count as f64))).collect::<Vec<_>>()
    });
    let of_job = [("lines_per_second", lines_per_second), ("cost", cost)];
    let all = answers.chain(of_job.map(|(name, value)| (name.to_owned(), value)));
    all.filter_map(|(name, value)| Some((format!("batch_{name}"), value?))).collect()
}
