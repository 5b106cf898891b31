//! `/metrics` is clean under the real `promtool check metrics`, at every stage of a job.

use std::path::Path;

use flashjob_event::{Fact, Phase, RequestId};
use flashjob_host::gpus::Gpus;
use flashjob_telemetry::host::Sample;

use super::job_story::Story;
use crate::support::process::{Process, installed};

/// Complaints of promtool; empty if there are none.
fn complaints(promtool: &Path, metrics: &str) -> String {
    let finished = Process::new(promtool).args(["check", "metrics"]).input(metrics).run();
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.code() == Some(0), said.is_empty(), "{finished}");
    said
}

#[test]
fn metrics_are_clean_at_every_stage() {
    let Some(promtool) = installed("promtool", "prometheus") else { return };
    let story = Story::new();
    let check = |stage: &str| {
        let text = story.registry.render();
        assert_eq!(complaints(&promtool, &text), "", "{stage}:\n{text}");
    };
    check("nothing happened");
    story.registry.set_sample(Sample::read(Path::new("/"), &Gpus::default()));
    story.load();
    check("loaded");
    story.phase(Phase::WarmUp);
    story.begin(0, 12);
    story.step(&[0]);
    check("in the middle of a request");
    story.finish(0, 1);
    story.phase(Phase::Measure);
    story.begin(0, 12);
    story.tell([Fact::RequestPreempted { request: RequestId(0) }, Fact::BucketRetried { reason: "\"odd\"\n\\" }]);
    story.step(&[0]);
    story.finish(0, 1);
    check("measured");
    story.phase(Phase::Publish);
    story.phase(Phase::Linger);
    check("over");
}

#[test]
fn promtool_would_complain() {
    let Some(promtool) = installed("promtool", "prometheus") else { return };
    let text = Story::new().registry.render();
    let spoiled = text.replace("flashjob_generated_tokens_total", "flashjob_generated_tokens");
    assert!(complaints(&promtool, &spoiled).contains("_total"));
}
