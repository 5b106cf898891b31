//! `flashjob check`: the resolved configuration, and everything that would fail, all at once, without side effects.

use std::fmt::Write;

use flashjob_config::{JobConfig, Sweep, escape_controls, hide_pars};
use flashjob_config_parser::Check;
use flashjob_mount as mount;

use super::privileges::Plan;
use super::{Exit, sweep, terminal};
use crate::backend;

/// Prints settings and problems. Exit 2 where there is a problem.
pub fn check(check: &Check) -> Exit {
    let mut text = String::new();
    for setting in &check.settings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<28} {}  ({})", setting.key, escape_controls(&setting.value), setting.origin);
    }
    if let Some(sweep) = &check.sweep {
        let _ =
            writeln!(text, "\nthese are the settings of the first combination that can run\n\n{}", sweep::list(sweep));
    }
    let mut problems: Vec<String> = check.errors.iter().map(ToString::to_string).collect();
    problems.extend(jobs(check).filter_map(|job| backend::check(job).err()));
    if let Some(job) = &check.job {
        for input in &job.inputs {
            // A mount that is passed in answers no request before the job serves it.
            if job.mount.descriptor.is_none() || input.par.is_none() {
                problems.extend(mount::preflight(input));
            }
        }
        // Bound and closed at once: whether the port is free is known only by taking it.
        if let Err(error) = std::net::TcpListener::bind(job.telemetry.metrics_address) {
            problems.push(format!("metrics cannot be served at {}: {error}", job.telemetry.metrics_address));
        }
    }
    if let Some(job) = &check.job {
        let _ = writeln!(text, "\n{}", escape_controls(&Plan::of(job).to_string()));
    }
    text.push('\n');
    if problems.is_empty() {
        text.push_str("nothing here would fail; the bucket, MLflow and the model's files were not asked\n");
        return terminal::print(&text);
    }
    for problem in &problems {
        let _ = writeln!(text, "would fail: {}", escape_controls(&hide_pars(problem)));
    }
    terminal::print(&text);
    Exit::Configuration
}

/// The job, or the first one of each engine of a sweep: looking for an engine starts a program.
fn jobs(check: &Check) -> impl Iterator<Item = &JobConfig> {
    let mut seen = Vec::new();
    let of_sweep = check.sweep.iter().flat_map(Sweep::planned).map(|(_, job)| &*job.config);
    let alone = check.job.as_deref().filter(|_| check.sweep.is_none());
    of_sweep.chain(alone).filter(move |job| {
        let is_new = !seen.contains(&job.backend);
        seen.push(job.backend);
        is_new
    })
}
