//! Plots of ordinary, odd and hostile data.

use flashjob_charts::{
    Axis, Better, DistributionChart, Figure, HeatMap, Line, LineChart, Roof, RooflineChart, Sample, Scatter,
    ScatterPoint, StepGroup, StepPoint, Unit, escape, pareto_front,
};
use proptest::prelude::*;

fn line(points: Vec<(f64, f64)>) -> LineChart {
    LineChart {
        id: "line",
        title: "Throughput",
        description: "Tokens over time.".to_owned(),
        x: Axis::new("time", Unit::Time),
        y: Axis::new("output", Unit::Count("tokens/s")),
        lines: vec![Line { name: "output".to_owned(), points }],
    }
}

fn distribution(seconds: Vec<f64>) -> DistributionChart {
    let samples = vec![Sample::of("TTFT", seconds, vec![("p50", 0.5)])];
    DistributionChart { id: "latency", title: "Latency", description: String::new(), samples }
}

fn roofline(points: Vec<StepPoint>, roof: Option<Roof>) -> RooflineChart {
    let groups = vec![StepGroup { name: "decode", points }];
    RooflineChart { id: "roofline", title: "Roofline", description: String::new(), roof, groups }
}

fn scatter(points: Vec<(f64, f64)>) -> Scatter {
    let point = |(place, (x, y)): (usize, (f64, f64))| ScatterPoint {
        name: place.to_string(),
        details: "max-num-seqs=64".to_owned(),
        x,
        y,
    };
    Scatter {
        id: "pareto",
        title: "Throughput and latency",
        description: String::new(),
        x: (Axis::new("latency", Unit::Time), Better::Lower),
        y: (Axis::new("output", Unit::Count("tokens/s")), Better::Higher),
        points: points.into_iter().enumerate().map(point).collect(),
    }
}

/// Checks what holds for each figure: balanced tags, a title, a description, a table, and nothing that a browser would load or
/// run.
fn checked(figure: &Figure) -> String {
    let html = figure.to_html();
    for part in ["<title id=", "<desc id=", "aria-labelledby=", "<table>", "<figcaption>"] {
        assert!(html.contains(part), "{part}: {html}");
    }
    for tag in ["svg", "figure", "table", "tr", "td", "text", "details", "circle", "rect"] {
        let opened = html.matches(&format!("<{tag} ")).count() + html.matches(&format!("<{tag}>")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}: {html}");
    }
    for absent in ["<script", "style=", "href", "http", "NaN", "inf\"", "onload"] {
        assert!(!html.contains(absent), "{absent}: {html}");
    }
    html
}

#[test]
fn a_line_has_its_axes_its_name_and_its_numbers() {
    let html = checked(&line(vec![(0.0, 0.0), (1.0, 1500.0), (2.0, 3000.0)]).figure().unwrap());
    for text in [">output (tokens/s)<", ">3\u{a0}k<", ">2\u{a0}s<", "<td>1500\u{a0}tokens/s</td>", "Tokens over time."]
    {
        assert!(html.contains(text), "{text}: {html}");
    }
}

#[test]
fn a_million_points_are_a_small_figure_with_their_peak() {
    let points = (0..1_000_000).map(|place| (f64::from(place), if place == 777_777 { 9e9 } else { 1.0 })).collect();
    let html = checked(&line(points).figure().unwrap());
    assert!(html.len() < 60_000, "{} bytes", html.len());
    assert!(html.contains("rows of") || html.contains("One row of"), "the table says that it is thinned");
    let y = |html: &str| {
        html.split('L').filter_map(|point| point.split_whitespace().nth(1)?.parse().ok()).fold(999.0, f64::min)
    };
    assert!(y(&html) < 60.0, "the peak is drawn");
}

#[test]
fn nothing_to_show_is_no_figure() {
    assert!(line(vec![]).figure().is_none());
    assert!(line(vec![(f64::NAN, 1.0), (1.0, f64::INFINITY)]).figure().is_none());
    assert!(distribution(vec![]).figure().is_none());
    assert!(distribution(vec![0.0]).figure().is_none());
    assert!(roofline(vec![StepPoint { steps: 1, flops: 0.0, bytes: 1.0, seconds: 1.0 }], None).figure().is_none());
    assert!(scatter(vec![(f64::NAN, 1.0)]).figure().is_none());
    assert!(heat_map(vec![vec![None, None]]).figure().is_none());
}

fn heat_map(cells: Vec<Vec<Option<f64>>>) -> HeatMap {
    HeatMap {
        id: "heat",
        title: "Output tokens per second",
        description: String::new(),
        quantity: Axis::new("output", Unit::Count("tokens/s")),
        columns: ("max-num-seqs".to_owned(), vec!["64".to_owned(), "256".to_owned()]),
        rows: ("dtype".to_owned(), vec!["bfloat16".to_owned()]),
        cells,
    }
}

#[test]
fn a_heat_map_shows_its_values_and_the_gaps() {
    let html = checked(&heat_map(vec![vec![Some(1200.0), None]]).figure().unwrap());
    for text in [">1200<", ">–<", ">max-num-seqs<", ">bfloat16<", "<td>1200\u{a0}tokens/s</td>"] {
        assert!(html.contains(text), "{text}: {html}");
    }
}

#[test]
fn empty_bins_do_not_stretch_the_axis() {
    let bins = [(0.001, 0), (0.01, 0), (0.1, 3), (1.0, 0), (10.0, 1), (100.0, 0), (f64::INFINITY, 0)];
    let sample = Sample::of_bins("ITL", &bins, vec![]);
    assert_eq!(sample.shares, [(0.1, 0.75), (1.0, 0.75), (10.0, 1.0)]);
    assert!(Sample::of_bins("ITL", &[(1.0, 0)], vec![]).shares.is_empty());
    let sorted = Sample::of("TTFT", vec![3.0, 1.0, f64::NAN], vec![]);
    assert_eq!(sorted.shares, [(1.0, 0.5), (3.0, 1.0)]);
}

#[test]
fn a_roofline_has_the_ridge_and_the_share_of_the_limit() {
    let roof = Roof { flops_per_second: 1e12, bytes_per_second: 1e11 };
    assert_eq!((roof.ridge(), roof.at(1.0), roof.at(100.0)), (10.0, 1e11, 1e12));
    let point = StepPoint { steps: 3, flops: 1e10, bytes: 1e10, seconds: 0.2 };
    let html = checked(&roofline(vec![point], Some(roof)).figure().unwrap());
    for text in ["limit of the machine", "<td>50\u{a0}%</td>", "decode: 3 steps, 200\u{a0}ms"] {
        assert!(html.contains(text), "{text}: {html}");
    }
    checked(&roofline(vec![point], None).figure().unwrap());
}

#[test]
fn the_front_is_what_nothing_beats() {
    use Better::{Higher, Lower};
    for (points, x, y, front) in [
        (vec![(1.0, 10.0), (2.0, 20.0), (3.0, 15.0), (0.5, 5.0)], Lower, Higher, vec![3, 0, 1]),
        (vec![(1.0, 1.0), (1.0, 1.0)], Lower, Higher, vec![0, 1]),
        (vec![(1.0, 1.0), (1.0, 2.0)], Lower, Higher, vec![1]),
        (vec![(1.0, 1.0), (2.0, 2.0), (3.0, 0.0)], Higher, Higher, vec![1, 2]),
        (vec![(f64::NAN, 9.0), (1.0, 1.0)], Lower, Higher, vec![1]),
    ] {
        assert_eq!(pareto_front(&points, x, y), front, "{points:?}");
    }
    let html = checked(&scatter(vec![(1.0, 10.0), (2.0, 20.0), (3.0, 15.0)]).figure().unwrap());
    assert_eq!(html.matches("<td>yes</td>").count(), 2);
}

#[test]
fn names_of_others_stay_text() {
    let mut chart = line(vec![(0.0, 1.0), (1.0, 2.0)]);
    chart.lines[0].name = "<script>alert(1)</script>\u{202e}\u{7}\"'".to_owned();
    chart.description = "</desc><img src=x onerror=1>".to_owned();
    let html = chart.figure().unwrap().to_html();
    assert!(!html.contains("<script") && !html.contains("<img") && !html.contains('\u{202e}'), "{html}");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert_eq!(escape("a&b\0"), "a&amp;b ");
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), -1e6f64..1e6, Just(0.0), Just(1e-300), Just(1e300)]
}

proptest! {
    #[test]
    fn any_numbers_make_a_whole_figure_or_none(points in prop::collection::vec((any_number(), any_number()), 0..40)) {
        let values: Vec<f64> = points.iter().map(|point| point.1).collect();
        let steps = points.iter().map(|(a, b)| StepPoint { steps: 1, flops: a.abs(), bytes: b.abs(), seconds: a.abs() });
        let roof = values.first().map(|value| Roof { flops_per_second: *value, bytes_per_second: 1.0 });
        let cells = vec![points.iter().take(2).map(|point| Some(point.0)).collect()];
        let figures = [
            line(points.clone()).figure(),
            distribution(values).figure(),
            roofline(steps.collect(), roof).figure(),
            scatter(points).figure(),
            heat_map(cells).figure(),
        ];
        for figure in figures.into_iter().flatten() {
            checked(&figure);
        }
    }
}
