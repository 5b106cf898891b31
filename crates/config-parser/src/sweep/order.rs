//! The order of combinations, and what each has to set up anew after the one before it.

use std::collections::HashMap;

use flashjob_config::{BackendKind, Reload};

use super::Values;
use crate::keys::{WORKLOAD, heading};

/// Keys of the scheduler, which our own engine sets up without touching the weights.
const SCHEDULING: [&str; 4] = ["max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "schedule"];

/// Parts of the engine that depend on the key of `field`.
fn depends_on(field: &str) -> Reload {
    match field {
        _ if heading(field) == Some(WORKLOAD) => Reload::Nothing,
        _ if SCHEDULING.contains(&field) => Reload::Scheduler,
        _ => Reload::Model,
    }
}

/// Brings combinations with the same model together, and among those the ones with the same limits of the scheduler. What is
/// written first stays first.
pub(super) fn sort(combinations: &mut [Values]) {
    let (mut models, mut schedulers) = (HashMap::new(), HashMap::new());
    let mut rank = |values: &Values| {
        let part = |reload: Reload| -> Values {
            values.iter().filter(|(field, _)| depends_on(field) == reload).cloned().collect()
        };
        let next = models.len();
        let model = *models.entry(part(Reload::Model)).or_insert(next);
        let next = schedulers.len();
        (model, *schedulers.entry(part(Reload::Scheduler)).or_insert(next))
    };
    let ranks: Vec<(usize, usize)> = combinations.iter().map(&mut rank).collect();
    let mut ranked: Vec<((usize, usize), Values)> =
        ranks.into_iter().zip(combinations.iter_mut().map(std::mem::take)).collect();
    // A rank is the place of the first combination of its group, and the sort is stable: what is equal keeps its order.
    ranked.sort_by_key(|(rank, _)| *rank);
    for (place, (_, values)) in combinations.iter_mut().zip(ranked) {
        *place = values;
    }
}

/// Parts that each combination sets up anew. The `backend` of one that cannot run is `None`, and it leaves everything as it is.
pub(super) fn reloads<'a>(combinations: impl Iterator<Item = (&'a Values, Option<BackendKind>)>) -> Vec<Reload> {
    let mut before: Option<&Values> = None;
    let reload = |(values, backend): (&'a Values, Option<BackendKind>)| {
        // One that is refused changes nothing: the next one is compared with the last that ran.
        let Some(backend) = backend else { return Reload::Nothing };
        match before.replace(values).map_or(Reload::Model, |before| difference(before, values)) {
            // Other engines take these limits when they start, together with the model.
            Reload::Scheduler if backend != BackendKind::Candle => Reload::Model,
            reload => reload,
        }
    };
    combinations.map(reload).collect()
}

/// The part that depends on any key in which `a` and `b` differ.
fn difference(a: &Values, b: &Values) -> Reload {
    let differs = |(field, _): &&(&'static str, String)| {
        let value = |values: &Values| values.iter().find(|(other, _)| other == field).map(|(_, text)| text.clone());
        value(a) != value(b)
    };
    a.iter().chain(b).filter(differs).map(|(field, _)| depends_on(field)).max().unwrap_or(Reload::Nothing)
}
