//! Repeated regions in the result: the figures of each, and for each figure its mean with a 95 % interval.

use std::collections::BTreeMap;

use serde::Serialize;

use flashjob_results::{CONFIDENCE, ConfidenceInterval, StoppedBy};

use super::figures::{Basis, Figures, named};
use crate::bench::MeasuredRegion;

/// The regions of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RepeatsReport {
    /// Confidence of the intervals.
    confidence: f64,
    /// Reason why no further region followed; `None` where the run ended early.
    stopped_by: Option<StoppedBy>,
    regions: Vec<RegionFigures>,
    /// By figure, for those that each region has.
    summary: BTreeMap<String, ConfidenceInterval>,
}

#[derive(Clone, Debug, Serialize)]
struct RegionFigures {
    seed: u64,
    metrics: Figures,
}

impl RepeatsReport {
    /// The report on the regions of `basis`; `None` for fewer than two.
    pub fn new(basis: &Basis<'_>, stopped_by: Option<StoppedBy>) -> Option<Self> {
        if basis.regions.len() < 2 {
            return None;
        }
        let of_region = |region: &MeasuredRegion| RegionFigures {
            seed: region.seed,
            // Phases and answers are those of the whole job.
            metrics: Figures::new(&Basis {
                measurement: &region.measurement,
                regions: &[],
                phases: &[],
                accuracy: None,
                ..*basis
            }),
        };
        let regions: Vec<RegionFigures> = basis.regions.iter().map(of_region).collect();
        let mut values = BTreeMap::<String, Vec<f64>>::new();
        for (name, value) in regions.iter().flat_map(|region| named(&region.metrics)) {
            values.entry(name).or_default().push(value);
        }
        values.retain(|_, values| values.len() == regions.len());
        let interval = |(name, values): (String, Vec<f64>)| Some((name, ConfidenceInterval::of(&values)?));
        let summary = values.into_iter().filter_map(interval).collect();
        Some(Self { confidence: CONFIDENCE, stopped_by, regions, summary })
    }
}
