//! Metrics that are not counted here but read somewhere and passed through: a name, and the value that a sample has for it.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// A metric of samples of type `S`.
pub(super) struct Family<S> {
    pub name: &'static str,
    pub help: &'static str,
    kind: MetricType,
    value: fn(&S) -> Option<f64>,
}

pub(super) const fn counter<S>(name: &'static str, help: &'static str, value: fn(&S) -> Option<f64>) -> Family<S> {
    Family { name, help, kind: MetricType::COUNTER, value }
}

pub(super) const fn gauge<S>(name: &'static str, help: &'static str, value: fn(&S) -> Option<f64>) -> Family<S> {
    Family { name, help, kind: MetricType::GAUGE, value }
}

impl<S> Family<S> {
    /// The series for `sample` with these labels, or `None` without a value.
    pub fn series(&self, sample: &S, labels: Vec<(&str, String)>) -> Option<Metric> {
        Some(measured(self.kind, (self.value)(sample)?, labels))
    }

    /// The family with all of its series.
    pub fn of(&self, series: Vec<Metric>) -> MetricFamily {
        labelled(self.name, self.help, self.kind, series)
    }
}

/// One series: a counter's value, or a gauge's, with these labels.
pub(super) fn measured(kind: MetricType, value: f64, labels: Vec<(&str, String)>) -> Metric {
    let mut metric = Metric::default();
    match kind {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        _ => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }
    let label = |(name, value): (&str, String)| {
        let mut label = LabelPair::default();
        label.set_name(name.to_owned());
        label.set_value(value);
        label
    };
    metric.set_label(labels.into_iter().map(label).collect());
    metric
}

/// Several series under one name.
pub(super) fn labelled(name: &str, help: &str, kind: MetricType, series: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(series);
    family
}
