//! Reads the machine every few seconds, for scrapes and other readers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Registry;
use super::host::{Sample, system_metrics};
use super::ticker::Ticker;
use flashjob_host::gpus::Gpus;
use flashjob_timeline::Timeline;

/// Samples the machine until it is dropped.
pub struct Sampler {
    _ticker: Ticker,
}

impl Sampler {
    /// Samples now and after each `interval`: into `registry`, power into `timeline`, and under MLflow's names into `report`,
    /// which is called on the sampler's thread and must not block. `results` is any path on the file
    /// system that takes the results.
    ///
    /// # Errors
    /// Those of the operating system when it gives no thread.
    pub fn start(
        interval: Duration,
        results: PathBuf,
        gpus: Arc<Gpus>,
        registry: Arc<Registry>,
        timeline: Arc<Timeline>,
        mut report: impl FnMut(&str, f64) + Send + 'static,
    ) -> std::io::Result<Self> {
        let first = Sample::read(&results, &gpus);
        // Before the first tick, so that no scrape finds a registry without a sample.
        registry.set_sample(first.clone());
        let mut before = (Instant::now(), first.clone());
        let ticker = Ticker::start("host-sampler", interval, move || {
            let now = (Instant::now(), Sample::read(&results, &gpus));
            if let Some(watts) = now.1.gpu_power_watts() {
                timeline.power(now.0, watts);
            }
            let elapsed = now.0.duration_since(before.0).as_secs_f64();
            // The first tick comes at once; a rate over almost no time is noise.
            if elapsed >= interval.as_secs_f64() / 2.0 {
                for (name, value) in system_metrics(&first, &before.1, &now.1, elapsed) {
                    report(&name, value);
                }
                registry.set_sample(now.1.clone());
                before = now;
            }
        })?;
        Ok(Self { _ticker: ticker })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};

    use super::*;

    #[test]
    fn samples_reach_scrapes_and_reports_until_the_sampler_is_dropped() {
        let registry = Arc::new(Registry::new());
        assert!(!registry.render().contains("process_resident_memory_bytes"));
        let (reports, inbox) = channel();
        let interval = Duration::from_millis(50);
        let report = move |name: &str, value| reports.send((name.to_owned(), value)).unwrap();
        let sampler =
            Sampler::start(interval, "/".into(), Arc::default(), registry.clone(), Arc::default(), report).unwrap();
        assert!(registry.render().contains("process_resident_memory_bytes"));
        let mut names = Vec::new();
        while !names.iter().any(|name| name == "system/process_cpu_utilization_percentage") {
            let (name, value) = inbox.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(name.starts_with("system/") && f64::is_finite(value) && value >= 0.0, "{name}: {value}");
            names.push(name);
        }
        drop(sampler);
        // The thread is gone, and its end of the channel with it.
        while inbox.try_recv().is_ok() {}
        assert_eq!(inbox.try_recv(), Err(TryRecvError::Disconnected));
    }
}
