//! Whether equal beginnings of prompts are computed once, and who decided it: two results are compared only with that known.

use serde::Serialize;

use flashjob_config::{JobConfig, Origin};

/// `prefix_caching` of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrefixCaching {
    /// Value of `enable-prefix-caching`.
    pub enabled: bool,
    /// Origin of the value, and for a default what it is one of.
    pub reason: String,
}

impl PrefixCaching {
    /// As `job` has it.
    pub fn of(job: &JobConfig) -> Self {
        let setting = job.settings.iter().find(|setting| setting.key == "enable-prefix-caching");
        let reason = match setting.map(|setting| &setting.origin) {
            None | Some(Origin::Default) if job.workload.batch.is_some() => "default of a batch".to_owned(),
            None | Some(Origin::Default) => "default of a measurement".to_owned(),
            Some(set) => set.to_string(),
        };
        Self { enabled: job.engine.prefix_caching, reason }
    }
}
