//! Makes metrics and enters them into the registry in one step.
//!
//! Names, help texts and labels are constants of this crate, so a mistake in one is a bug that every
//! construction of a registry shows at once: these functions panic rather than return errors.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

const CONSTANT: &str = "metric names and labels are constants of this crate";

pub(super) struct Registrar<'a>(pub(super) &'a Registry);

impl Registrar<'_> {
    pub(super) fn enter<C: Collector + Clone + 'static>(&self, metric: C) -> C {
        self.0.register(Box::new(metric.clone())).expect(CONSTANT);
        metric
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.enter(IntCounter::new(name, help).expect(CONSTANT))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.enter(IntCounterVec::new(Opts::new(name, help), labels).expect(CONSTANT))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.enter(IntGauge::new(name, help).expect(CONSTANT))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.enter(IntGaugeVec::new(Opts::new(name, help), labels).expect(CONSTANT))
    }

    pub(super) fn fractional_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.enter(GaugeVec::new(Opts::new(name, help), labels).expect(CONSTANT))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.enter(HistogramVec::new(options, labels).expect(CONSTANT))
    }
}
