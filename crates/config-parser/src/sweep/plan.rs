//! Combinations → jobs: each is resolved like a job without a sweep.
//!
//! A value that no job could have is an error of the whole sweep; values that do not go together refuse one combination.

use flashjob_config::{Combination, Origin, PlannedJob, Refusal, Reload, Sweep, SweptValue, redact};

use super::{MOST_REASONS, Request, Values, order};
use crate::error::ConfigError;
use crate::keys::{Raw, shown};
use crate::replica;
use crate::resolve::{self, Resolved};
use crate::resolver::Resolver;
use crate::slot::Given;

/// Resolves each combination, and orders them so that those with the same model come one after the other.
///
/// # Errors
/// What is wrong with the whole sweep: values that no job could have, what is wrong with all combinations, or no combination that can
/// run.
pub(crate) fn plan(mut resolver: Resolver, raw: &Raw, request: Request) -> Result<Sweep, Vec<ConfigError>> {
    let Request { mut combinations, origin, .. } = request;
    let keys = swept_fields(&combinations);
    check_given(&mut resolver, raw, &keys, &origin);
    order::sort(&mut combinations);
    let resolved: Vec<(Values, Resolved)> =
        combinations.into_iter().map(|values| resolve(&resolver, raw, values)).collect();
    let mut errors = std::mem::take(&mut resolver.errors);
    note_errors_of_all(&resolved, &mut errors);
    check_processes(&resolved, raw, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let backends = resolved.iter().map(|(values, resolved)| (values, resolved.job.as_ref().map(|job| job.backend)));
    let reloads = order::reloads(backends);
    let combination = |(number, ((values, resolved), reload)): (usize, ((Values, Resolved), Reload))| {
        let swept = |(field, text): &(&str, String)| SweptValue { key: shown(field), value: redact(text) };
        let Resolved { job, errors, .. } = resolved;
        let refusal = || Refusal { reasons: errors.iter().map(ToString::to_string).collect() };
        let job = job.map(|config| PlannedJob { config: Box::new(config), reload }).ok_or_else(refusal);
        Combination { number, values: values.iter().map(swept).collect(), job }
    };
    let sweep = Sweep {
        keys: keys.into_iter().map(shown).collect(),
        combinations: (1..).zip(resolved.into_iter().zip(reloads)).map(combination).collect(),
    };
    if sweep.planned().next().is_none() {
        return Err(vec![ConfigError::Together(nothing_runs(&sweep.combinations))]);
    }
    Ok(sweep)
}

/// Fields that any combination has, in the order in which they were given.
fn swept_fields(combinations: &[Values]) -> Vec<&'static str> {
    let mut fields = Vec::new();
    for (field, _) in combinations.iter().flatten() {
        if !fields.contains(field) {
            fields.push(*field);
        }
    }
    fields
}

/// A key that is swept must not be given by a source that is as strong: one of the two would be lost in silence.
fn check_given(resolver: &mut Resolver, raw: &Raw, fields: &[&'static str], origin: &Origin) {
    let rank = |origin: &Origin| match origin {
        Origin::Flag => 3,
        Origin::Variable(_) => 2,
        Origin::Blueprint(_) => 1,
        Origin::Sweep | Origin::Default => 0,
    };
    let mut raw = raw.clone();
    for field in fields {
        let given = raw.slot_mut(field).and_then(|slot| slot.given.clone());
        if let Some(given) = given.filter(|given| rank(&given.origin) >= rank(origin)) {
            let key = shown(field);
            resolver.errors.push(ConfigError::Together(format!(
                "{key} is swept ({}) and given ({}); leave one of the two out",
                origin.of("sweep"),
                given.origin.of(&key)
            )));
        }
    }
}

/// The job with these values in the place of its own.
fn resolve(resolver: &Resolver, raw: &Raw, values: Values) -> (Values, Resolved) {
    let mut raw = raw.clone();
    for (field, text) in &values {
        if let Some(slot) = raw.slot_mut(field) {
            slot.given = Some(Given { text: text.trim().to_owned(), origin: Origin::Sweep });
        }
    }
    let resolved = resolve::job(resolver.clone(), &raw);
    (values, resolved)
}

/// Notes values that no job could have, and the errors that all combinations have.
fn note_errors_of_all(resolved: &[(Values, Resolved)], errors: &mut Vec<ConfigError>) {
    let is_in_all = |error: &ConfigError| resolved.iter().all(|(_, resolved)| resolved.errors.contains(error));
    for (_, Resolved { errors: found, .. }) in resolved {
        for error in found {
            let concerns_all = !matches!(error, ConfigError::Together(_)) || is_in_all(error);
            if concerns_all && !errors.contains(error) {
                errors.push(error.clone());
            }
        }
    }
}

/// Several processes that share one job cannot run several.
fn check_processes(resolved: &[(Values, Resolved)], raw: &Raw, errors: &mut Vec<ConfigError>) {
    let Some(job) = resolved.iter().find_map(|(_, resolved)| resolved.job.as_ref()) else { return };
    if job.num_nodes() > 1 {
        errors.push(ConfigError::Together(format!(
            "sweep is given, but LWS_GROUP_SIZE is {}: a group of nodes runs one combination; leave one of the two out",
            job.num_nodes()
        )));
    }
    if job.replica.share.count() > 1 {
        errors.push(ConfigError::Together(format!(
            "sweep is given, but {} is {}: replicas share the prompts of one combination; leave one of the two out",
            replica::given_as(raw),
            job.replica.share.count()
        )));
    }
}

fn nothing_runs(combinations: &[Combination]) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for reason in combinations
        .iter()
        .filter_map(|combination| combination.job.as_ref().err())
        .flat_map(|refusal| &refusal.reasons)
    {
        if !reasons.contains(reason) {
            reasons.push(reason.clone());
        }
    }
    let more = reasons.len().saturating_sub(MOST_REASONS);
    reasons.truncate(MOST_REASONS);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("none of the {} combinations of the sweep can run: {}{more}", combinations.len(), reasons.join("; "))
}
