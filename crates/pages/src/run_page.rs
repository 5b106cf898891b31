//! The page of one run.

use flashjob_charts::{Axis, Bars, Figure, Unit, escape};
use flashjob_timeline::figures;

use crate::latencies::{latency_plot, latency_table};
use crate::page::{document, figure_table, large_value, note, pairs, plots, section, table, tiles};
use crate::run::Run;
use crate::units::named;

/// Figures that stand at the top, by key.
const TOP: [&str; 12] = [
    "output_tokens_per_second",
    "steady_output_tokens_per_second",
    "output_tokens_per_second_per_gpu",
    "total_tokens_per_second",
    "requests_per_second",
    "ttft_seconds_p50",
    "itl_seconds_p50",
    "e2e_seconds_p99",
    "roofline_fraction",
    "accuracy",
    "energy_joules_per_output_token",
    "cost_per_million_output_tokens",
];

/// `report.html` of `run`.
pub fn run_page(run: &Run) -> String {
    // The roofline is no plot over time, and stands beside the phases.
    let over_time = run.timeline.as_ref().map(figures).unwrap_or_default();
    let (roofline, over_time): (Vec<Figure>, Vec<Figure>) =
        over_time.into_iter().partition(|figure| figure.id() == "roofline");
    let phases = phases(run);
    let mut main = tiles(&top(run)) + &notes(run);
    main += &section("The run over time", "over-time", &plots(&over_time));
    main += &section("Latency", "latency", &latency(run));
    main += &section("Roofline and phases", "limits", &plots(roofline.iter().chain(&phases)));
    main += &section("Regions", "regions", &regions(run));
    main += &section("All figures", "figures", &figure_table(run.result.metrics.iter()));
    main += &section("Settings", "settings", &settings(run));
    main += &section("Engine", "engine", &engine(run));
    main += &section("Environment", "environment", &environment(run));
    main += &section("Inputs", "inputs", &inputs(run));
    document(&format!("{} – flashjob", run.name), &header(run), &main)
}

/// The plot with the table of percentiles beside it.
fn latency(run: &Run) -> String {
    let (plot, table) = (latency_plot(run).map(|plot| plot.to_html()), latency_table(run));
    match plot {
        Some(plot) => format!("<div class=\"plots\">\n{plot}{table}</div>\n"),
        None => table,
    }
}

fn header(run: &Run) -> String {
    let (result, environment) = (&run.result, &run.result.environment);
    let backend = result.backend.as_ref();
    let facts = [
        backend.map(|backend| backend.backend.as_str()),
        backend.map(|backend| backend.architecture.as_str()),
        backend.and_then(|backend| backend.device_name()),
        backend.and_then(|backend| backend.dtype()),
        environment.cpu.as_deref(),
        environment.host.as_deref(),
    ];
    let facts: Vec<&str> = facts.into_iter().flatten().filter(|fact| !fact.is_empty()).collect();
    let status = result.status.name();
    format!(
        "<h1>{}</h1>\n<p class=\"facts\">{}</p>\n\
         <p class=\"facts\"><span class=\"status {status}\">{status}</span> · exit code {} · {} to {} · flashjob {}</p>\n",
        escape(&run.name),
        escape(&facts.join(" · ")),
        result.exit_code,
        escape(&result.started_at),
        escape(&result.ended_at),
        escape(&result.flashjob_version)
    )
}

fn top(run: &Run) -> Vec<(String, String)> {
    let tile = |key: &&str| {
        let ((name, unit), number) = (named(key), run.result.metrics.get(key)?);
        Some((name, large_value(key, unit, number)))
    };
    TOP.iter().filter_map(tile).collect()
}

/// The reason of a failed run, and what may have spoiled its figures.
pub(crate) fn notes(run: &Run) -> String {
    let reason = |error| format!("<p class=\"note error\">{}</p>\n", escape(error));
    let error = run.result.error.as_deref().map(reason);
    error.into_iter().chain(run.warnings().iter().map(|warning| note(warning))).collect()
}

fn phases(run: &Run) -> Option<Figure> {
    let phases = &run.result.phases;
    let whole: f64 = phases.iter().map(|phase| phase.seconds).sum();
    let description = format!("{} from the start of the job to its result.", Unit::Time.text(whole));
    let bars = phases.iter().map(|phase| (phase.phase.name().replace('_', "-"), phase.seconds)).collect();
    Bars { id: "phases", title: "Phases of the job", description, quantity: Axis::new("time", Unit::Time), bars }
        .figure()
}

/// Means and intervals over the regions of a run that repeated its measurement, for the figures at the top.
fn regions(run: &Run) -> String {
    let Some(repeats) = &run.result.repeats else { return String::new() };
    let rows = TOP.iter().filter_map(|key| {
        let ((name, unit), interval) = (named(key), repeats.summary(key)?);
        let values: Vec<String> = repeats.values(key).into_iter().map(|value| unit.text(value)).collect();
        let texts =
            [interval.mean, interval.low, interval.high, interval.standard_deviation].map(|value| unit.text(value));
        Some([name].into_iter().chain(texts).chain([values.join(", ")]).map(|text| escape(&text)).collect())
    });
    let about = format!(
        "<p class=\"about\">{} regions with prompts of their own; the interval has a confidence of {}. The plots are of the last \
         one.</p>\n",
        repeats.regions.len(),
        escape(&Unit::Share.text(repeats.confidence))
    );
    about + &table(&["figure", "mean", "interval from", "to", "standard deviation", "each region"], rows)
}

fn settings(run: &Run) -> String {
    let rows = run.result.settings.iter().map(|setting| {
        vec![format!("<code>{}</code>", escape(&setting.key)), escape(&setting.value), escape(&setting.origin)]
    });
    table(&["setting", "value", "origin"], rows)
}

fn engine(run: &Run) -> String {
    let Some(backend) = &run.result.backend else { return String::new() };
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let own = [
        ("backend", Some(backend.backend.clone())),
        ("version", Some(backend.version.clone())),
        ("architecture", Some(backend.architecture.clone())),
        ("parameters", number(backend.parameters)),
        ("max_model_len", number(backend.max_model_len)),
    ];
    let own = own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let others = backend.engine.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    pairs(["key", "value"], own.chain(others))
}

fn environment(run: &Run) -> String {
    let environment = &run.result.environment;
    let own = [
        ("host", environment.host.clone()),
        ("kernel", environment.kernel.clone()),
        ("architecture", environment.architecture.clone()),
        ("processor", environment.cpu.clone()),
        ("processors of the quota", environment.cpu_threads.map(|threads| threads.to_string())),
        ("instruction set", environment.cpu_kernels.clone()),
        ("memory", environment.memory_bytes.map(|bytes| Unit::Symbol("B").text(bytes as f64))),
    ];
    let own = own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let pod = environment.pod.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    pairs(["key", "value"], own.chain(pod))
}

fn inputs(run: &Run) -> String {
    let rows = run.result.inputs.iter().map(|input| {
        let source = input.source.clone().unwrap_or_default();
        [&input.location, &input.method, &input.reason, &source].map(|text| escape(text)).to_vec()
    });
    table(&["location", "method", "reason", "source"], rows)
}
