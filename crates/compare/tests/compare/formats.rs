//! The four formats: the same comparison in each.

use flashjob_compare::{Comparison, Format, Run, render};
use serde_json::{Value, json};

use super::{repeated, run};

fn compared(runs: &[Run]) -> Comparison {
    Comparison::new(runs, true).unwrap()
}

fn two() -> Comparison {
    compared(&[repeated("out/a", &[100.0, 101.0, 99.5]), repeated("out/b", &[104.0, 103.2, 104.9, 103.7])])
}

#[test]
fn a_terminal_has_aligned_columns_with_units_and_a_mark() {
    let text = render(&two(), Format::Table, Some(120)).unwrap();
    let line = text.lines().find(|line| line.contains("output tokens per second (tokens/s) ↑")).unwrap();
    assert!(line.contains("100.2 ± 1.9") && line.contains("* 104.0 ± 1.1  1.038× p 0.002"), "{line}");
    let line = text.lines().find(|line| line.contains("time to first token, p50")).unwrap();
    assert!(line.contains("(s) ↓") && !line.contains('*'), "equal values have no best: {line}");
    assert!(
        text.contains("a: out/a (3 regions, the baseline)")
            && text.contains("settings, engine and machine do not differ")
    );
    assert!(text.lines().all(|line| line.chars().count() <= 120 || !line.contains('─')), "{text}");
}

#[test]
fn many_runs_are_rows() {
    let runs: Vec<Run> = (0..8)
        .map(|number| {
            let rate = json!(100.0 + f64::from(number));
            run(
                &format!("sweep/000{number}"),
                &[
                    (&["metrics", "output_tokens_per_second"], rate),
                    (&["settings", "max-num-seqs", "value"], json!(number.to_string())),
                ],
            )
        })
        .collect();
    let text = render(&compared(&runs), Format::Markdown, None).unwrap();
    assert!(text.contains("| run | max-num-seqs |") && text.contains("| 0003 | 3 |"), "{text}");
    assert!(text.contains("| 0007 | **107  1.070×** |"), "{text}");
}

#[test]
fn a_terminal_and_markdown_act_on_nothing_that_a_result_holds() {
    let attack = "</td><script>alert(1)</script>|*x*\n\u{1b}[2J";
    let changes = [(&["environment", "host"][..], json!(attack)), (&["disturbances"][..], json!([attack]))];
    let comparison = compared(&[run("a", &[]), run(attack, &changes)]);
    for format in [Format::Table, Format::Markdown] {
        let text = render(&comparison, format, None).unwrap();
        assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}"), "{text}");
    }
    let markdown = render(&comparison, Format::Markdown, None).unwrap();
    assert!(
        !markdown.contains("<script") && markdown.contains("&lt;script&gt;alert(1)&lt;/script&gt;\\|\\*x\\*"),
        "{markdown}"
    );
    let columns: Vec<usize> = markdown
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.replace("\\|", "").matches('|').count())
        .collect();
    assert!(columns.iter().all(|count| [4, 5].contains(count)), "{columns:?}\n{markdown}");
}

#[test]
fn csv_has_a_line_for_each_value() {
    let changes = [
        (&["environment", "host"][..], json!("a,\"b\"")),
        (&["metrics", "output_tokens_per_second"][..], json!(610.496)),
    ];
    let text = render(&compared(&[run("a", &[]), run("b", &changes)]), Format::Csv, None).unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let heading: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let place = |name: &str| heading.iter().position(|heading| heading == name).unwrap();
    let lines: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
    let line = |key: &str, run: &str| {
        lines.iter().find(|line| &line[place("key")] == key && &line[place("run")] == run).unwrap()
    };
    assert_eq!((&line("host", "b")[place("kind")], &line("host", "b")[place("value")]), ("machine", "a,\"b\""));
    let faster = line("output_tokens_per_second", "b");
    let found = ["kind", "value", "ratio", "p_value", "significant", "best"].map(|name| &faster[place(name)]);
    assert_eq!(found, ["figure", "610.496", "2", "", "", "true"]);
    assert_eq!(&line("steps", "a")[place("ratio")], "1");
}

#[test]
fn json_has_everything() {
    let document: Value = serde_json::from_str(&render(&two(), Format::Json, None).unwrap()).unwrap();
    assert_eq!(document["runs"][0], json!({"name": "out/a", "regions": 3, "baseline": true}));
    assert_eq!(document["differences"], json!([]));
    let row = &document["figures"][0];
    assert_eq!((&row["key"], &row["better"]), (&json!("output_tokens_per_second"), &json!("higher")));
    assert_eq!(row["runs"][1]["significant"], json!(true));
    assert_eq!(row["runs"][0]["p_value"], json!(null));
    assert!(row["runs"][1]["interval"]["low"].as_f64().unwrap() < row["runs"][1]["value"].as_f64().unwrap());
    let keys: Vec<&str> =
        document["figures"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap()).collect();
    assert!(keys.contains(&"steps") && keys.contains(&"phase_load_seconds"), "{keys:?}");
}
