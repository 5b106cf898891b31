//! The page of a sweep: the combinations by throughput and latency, over two settings, and as a table.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use flashjob_charts::{Axis, Better, Figure, HeatMap, Scatter, ScatterPoint, Unit, escape};
use flashjob_results::{Combination, CombinationStatus, Metrics, Sweep};

use crate::page::{document, large_value, plots, section, table, tiles, value};
use crate::units::named;

/// Throughput that combinations are compared by.
const THROUGHPUT: &str = "output_tokens_per_second";

/// Latencies that combinations are compared by: the first that any of them has.
const LATENCIES: [&str; 3] = ["tpot_seconds_p50", "itl_seconds_p50", "e2e_seconds_p50"];

/// A sweep with the figures of its runs.
#[derive(Clone, Debug)]
pub struct SweptRuns(Vec<(Combination, Metrics)>);

impl SweptRuns {
    /// Reads the results of all combinations; one that cannot be read has no figures.
    pub fn read(sweep: &Sweep) -> Self {
        // One damaged result must not hide all others.
        let figures = |combination: &Combination| {
            let result = (combination.status == CombinationStatus::Finished).then(|| sweep.result(combination).ok());
            result.flatten().map(|result| result.metrics).unwrap_or_default()
        };
        Self(sweep.combinations.iter().map(|combination| (combination.clone(), figures(combination))).collect())
    }

    /// The latency that combinations are compared by, where any of them has one.
    fn latency(&self) -> Option<&'static str> {
        LATENCIES.into_iter().find(|key| self.0.iter().any(|(_, metrics)| metrics.get(key).is_some()))
    }

    /// Values of a setting in the order in which the sweep has them.
    fn values(&self, key: &str) -> Vec<String> {
        let mut values: Vec<String> = Vec::new();
        for value in self.0.iter().filter_map(|(combination, _)| setting(combination, key)) {
            if !values.iter().any(|known| known == value) {
                values.push(value.to_owned());
            }
        }
        values
    }
}

fn setting<'a>(combination: &'a Combination, key: &str) -> Option<&'a str> {
    combination.settings.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
}

fn words(combination: &Combination) -> String {
    combination.settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// `report.html` of a sweep called `name`.
pub fn sweep_page(name: &str, runs: &SweptRuns) -> String {
    let measured = || runs.0.iter().filter_map(|(combination, metrics)| Some((combination, metrics.get(THROUGHPUT)?)));
    let header = format!(
        "<h1>{}</h1>\n<p class=\"facts\">sweep of {} combinations · {} with a result</p>\n",
        escape(name),
        runs.0.len(),
        measured().count()
    );
    let mut main = String::new();
    if let Some((combination, throughput)) = measured().max_by(|one, other| one.1.total_cmp(&other.1)) {
        main += &tiles(&[
            ("highest output".to_owned(), large_value(THROUGHPUT, Unit::Count("tokens/s"), throughput)),
            ("reached by".to_owned(), format!("combination {}", combination.number)),
        ]);
        main += &format!("<p class=\"facts\">{}</p>\n", escape(&words(combination)));
    }
    let shown = [pareto(runs), heat_map(runs)];
    main += &section("Throughput and latency", "throughput-and-latency", &plots(shown.iter().flatten()));
    main += &section("Combinations", "combinations", &combinations(runs));
    document(&format!("{name} – sweep"), &header, &main)
}

fn pareto(runs: &SweptRuns) -> Option<Figure> {
    let key = runs.latency()?;
    let point = |(combination, metrics): &(Combination, Metrics)| {
        Some(ScatterPoint {
            name: combination.number.to_string(),
            details: words(combination),
            x: metrics.get(key)?,
            y: metrics.get(THROUGHPUT)?,
        })
    };
    Scatter {
        id: "pareto",
        title: "Throughput and latency of each combination",
        description: "Combinations on the front are beaten by no other one in both; further up and to the left is better. Numbers are \
                      those of the table."
            .to_owned(),
        x: (Axis::new(named(key).0, Unit::Time), Better::Lower),
        y: (Axis::new("output", Unit::Count("tokens/s")), Better::Higher),
        points: runs.0.iter().filter_map(point).collect(),
    }
    .figure()
}

/// Throughput over the two settings that have the most values; of combinations that differ in others, the best.
fn heat_map(runs: &SweptRuns) -> Option<Figure> {
    let keys: BTreeSet<&str> =
        runs.0.iter().flat_map(|(combination, _)| combination.settings.iter().map(|(key, _)| key.as_str())).collect();
    let mut varied: Vec<(&str, Vec<String>)> = keys.into_iter().map(|key| (key, runs.values(key))).collect();
    varied.retain(|(_, values)| values.len() > 1);
    // Stable, so that equals stay in the order of their names.
    varied.sort_by_key(|(_, values)| Reverse(values.len()));
    let mut varied = varied.into_iter();
    let (column_key, columns) = varied.next()?;
    let (row_key, rows) = varied.next()?;
    let best = |row: &str, column: &str| {
        let matching = runs.0.iter().filter(|(combination, _)| {
            setting(combination, column_key) == Some(column) && setting(combination, row_key) == Some(row)
        });
        matching.filter_map(|(_, metrics)| metrics.get(THROUGHPUT)).max_by(f64::total_cmp)
    };
    let cells = rows.iter().map(|row| columns.iter().map(|column| best(row, column)).collect()).collect();
    HeatMap {
        id: "heat-map",
        title: "Output tokens per second by setting",
        description: format!(
            "Darker is more. Of combinations that differ in other settings than {column_key} and {row_key}, the best is shown."
        ),
        quantity: Axis::new("output", Unit::Count("tokens/s")),
        columns: (column_key.to_owned(), columns),
        rows: (row_key.to_owned(), rows),
        cells,
    }
    .figure()
}

fn combinations(runs: &SweptRuns) -> String {
    let latency = runs.latency();
    let rows = runs.0.iter().map(|(combination, metrics)| {
        let shown = |key: &str| metrics.get(key).map_or("–".to_owned(), |number| value(key, named(key).1, number));
        // Relative, so that a copy of the whole directory has working links.
        let number = match is_plain(&combination.directory) {
            true => format!("<a href=\"{0}/report.html\">{1}</a>", combination.directory, combination.number),
            false => combination.number.to_string(),
        };
        let status = match &combination.error {
            Some(error) => format!("{:?}: {error}", combination.status),
            None => format!("{:?}", combination.status),
        };
        vec![
            number,
            escape(&words(combination)),
            shown(THROUGHPUT),
            latency.map_or("–".to_owned(), shown),
            escape(&status.to_lowercase()),
        ]
    });
    let latency = latency.map_or("latency".to_owned(), |key| named(key).0);
    table(&["number", "settings", "output tokens per second", &latency, "status"], rows)
}

/// Tells that a folder's name needs no escaping in a link. That it leads nowhere else, the reader has seen to.
fn is_plain(directory: &str) -> bool {
    !directory.is_empty() && directory.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}
