//! Chat templates that would fill the stack or memory, or never end: each harms the conversation that needs it, and nothing else.

use serde_json::json;
use tempfile::TempDir;

use super::{answered, copy_of_tiny_model, expect_none};

/// A template's name, its source, and a part of what is said of the conversation; nothing where it is answered.
type Case = (&'static str, String, &'static str);

/// A list that holds twice what it held, sixty times over.
fn doubled(name: &str) -> String {
    format!("{{% set {name} = [1] %}}") + &format!("{{% set {name} = [{name}, {name}] %}}").repeat(60)
}

/// Brackets, signs and the like, deep in each other.
fn nested(open: &str, close: &str, times: usize) -> String {
    format!("{{{{ {}1{} }}}}", open.repeat(times), close.repeat(times))
}

/// An operand with the same behind it many times.
fn chained(first: &str, next: &str, times: usize) -> String {
    format!("{{{{ {first}{} }}}}", next.repeat(times))
}

const SELF: &str = "a namespace keeps no other namespace, nor itself";
const DEEP: &str = "a namespace keeps at most 256 lists in lists";
const WORK: &str = "it works without an end, or makes too much";
const MANY: &str = "repeated sequence is too large";
const LONG: &str = "it makes a text of more than";

fn with_namespaces() -> Vec<Case> {
    let make = |source: &str| format!("{{% set n = namespace(x=[1]) %}}{source}");
    let often = |statement: &str, count: usize, end: &str| {
        make(&format!("{{% for i in range({count}) %}}{{% set {statement} %}}{{% endfor %}}{end}"))
    };
    vec![
        ("a namespace in itself", make("{% set n.x = n %}{{ n }}"), SELF),
        ("in itself through a list", make("{% set n.x = [1, [n]] %}{{ n }}"), SELF),
        ("in itself through a map", make("{% set n.x = {'a': n} %}{{ n.x }}"), SELF),
        ("in itself through dict", make("{% set n.x = dict(a=n) %}{{ n.x }}"), SELF),
        ("in itself and compared", make("{% set n.x = n %}{{ n == n }}"), SELF),
        ("in itself as JSON", make("{% set n.x = n %}{{ n | tojson }}"), SELF),
        ("in itself behind signs", make("{%- set n.x = n -%}{{- n | string -}}"), SELF),
        ("in itself where a condition says so", make("{% set n.x = n if true else 1 %}{{ n }}"), SELF),
        ("in itself behind a tab", make("{% set n\t.x = n %}{{ n }}"), SELF),
        ("in itself in brackets", make("{% set (n.x) = n %}{{ n }}"), SELF),
        ("in itself without a space", make("{% set(n.x) = n %}{{ n }}"), SELF),
        ("in itself beside another", make("{% set n.x, y = n, 1 %}{{ n }}"), SELF),
        ("in itself by a filter", make("{% set n.x | default(n, true) %}{% endset %}{{ n }}"), SELF),
        ("in itself past a name taken", make("{% set __kept__ = dict %}{% set n.x = [['a', n]] %}{{ n }}"), SELF),
        ("in itself past a raw block", make("{% raw %}{% set a.b = {% endraw %}{% set n.x = n %}{{ n }} %}"), SELF),
        ("in itself past a comment", make("{# {% set a.b = { #}{% set n.x = n %}{{ n }}} %}"), SELF),
        ("in itself past a text", make("{{ '{% for a in \"' }}{% set n.x = n %}{{ n }}{{ '\" %}' }}"), SELF),
        ("in itself through a cycler", make("{% set n.x = cycler(n) %}{{ n }}"), ""),
        ("in itself through a joiner", make("{% set n.x = joiner(n) %}{{ n }}"), ""),
        ("two in each other", make("{% set m = namespace(n=n) %}{% set n.m = m %}{{ n ~ m }}"), SELF),
        ("lists in lists", often("n.x = [n.x]", 100_000, "{{ n.x }}"), DEEP),
        ("maps in maps", often("n.x = {'a': n.x}", 100_000, "{{ n.x | tojson }}"), DEEP),
        ("a doubled list in lists", often("n.x = [n.x, n.x]", 60, "{{ n.x }}"), WORK),
        // Where memory is slow, the limit of time comes first.
        ("a doubled list", often("n.x = n.x + n.x", 60, "{{ n.x }}"), "cannot be applied: "),
        ("a doubled text", often("n.x = n.x ~ n.x", 60, "{{ n.x }}"), WORK),
        ("a text that replaces itself", often("n.x = (n.x | string).replace('1', '1111')", 60, "{{ n.x }}"), WORK),
    ]
}

fn with_texts_and_lists() -> Vec<Case> {
    let of_doubled = |end: &str| doubled("x") + end;
    let given = |source: &str| source.to_owned();
    vec![
        ("a doubled list printed", of_doubled("{{ x }}"), LONG),
        ("a doubled list as a text", of_doubled("{{ x | string | length }}"), LONG),
        ("a doubled list as JSON", of_doubled("{{ x | tojson }}"), LONG),
        ("a doubled list formatted", of_doubled("{{ '%r' % [x] }}"), LONG),
        ("a doubled list compared", of_doubled(&(doubled("y") + "{{ x == y }}")), "its process worked for"),
        ("a repeated text", given("{{ 'ab' * 10000000000 }}"), WORK),
        ("a repeated list", given("{{ [0] * 1000000000000 }}"), MANY),
        ("a repeated list as a list", given("{{ ([0] * 1000000000000) | list | length }}"), MANY),
        ("a repeated list as JSON", given("{{ ([0] * 1000000000000) | tojson }}"), MANY),
        ("a repeated list searched", given("{{ ([0] * 1000000000000).index(1) }}"), MANY),
        ("a repeated list as a map", given("{{ dict([['a', 1]] * 1000000000000) }}"), MANY),
        ("a repeated list gone through", given("{% for x in [0] * 1000000000000 %}{% endfor %}"), MANY),
        ("a range that is too long", given("{% for i in range(1000000000000) %}x{% endfor %}"), "too many elements"),
        ("a range without a step", given("{{ range(1, 10, 0) | list }}"), "step of 0"),
        (
            "a wide indent of JSON",
            given("{{ messages | tojson(indent=9000000000000000) }}"),
            "an indent of 9000000000000000",
        ),
        ("an indent of JSON below zero", given("{{ messages | tojson(indent=-9000000000000000) }}"), ""),
        ("long separators", given("{{ range(100000) | list | tojson(separators=['x' * 1000000, ':']) }}"), LONG),
        ("a wide indent", given("{{ ('a\n' * 100000) | indent(1000000, true, true) }}"), LONG),
        ("a wide centre", given("{{ 'x' | center(1000000000000) }}"), "too long to be filled up"),
        ("wide tabs", given("{{ ('\t' * 100000).expandtabs(1000000) }}"), LONG),
        ("a wide field", given("{{ '%99999999999999999999d' % 1 }}"), "width too big"),
        ("a join of much", given("{{ ('x' * 1000000).join(range(100000) | list) }}"), WORK),
        ("a power", given("{{ 10 ** 1000000000 }}"), "cannot be applied"),
        ("a division by nothing", given("{{ 1 // 0 }}"), "cannot be applied"),
        ("a raise with much", given("{{ raise_exception('x' * 1000000000) }}"), WORK),
    ]
}

fn with_loops_and_nesting() -> Vec<Case> {
    let given = |source: &str| source.to_owned();
    let loops = "{% for a in range(100000) %}{% for b in range(100000) %}xxxxxxxxxx{% endfor %}{% endfor %}";
    vec![
        (
            "loops in loops",
            given("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
            WORK,
        ),
        ("loops that print", given(loops), LONG),
        ("loops that capture", format!("{{% set x %}}{loops}{{% endset %}}{{{{ x | length }}}}"), WORK),
        ("a macro that calls itself", given("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "recursion limit"),
        (
            "macros that call each other",
            given("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}"),
            "cannot be applied",
        ),
        (
            "a loop that calls itself",
            given("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
            "recursion limit",
        ),
        ("loops without an end", "{%for ".repeat(40_000), "cannot be applied"),
        ("assignments without an end", "{%set a.b=".repeat(25_000), "cannot be applied"),
        ("brackets", nested("(", ")", 100_000), "cannot be applied"),
        ("lists of lists", nested("[", "]", 100_000), "cannot be applied"),
        ("signs", nested("-", "", 100_000), "cannot be applied"),
        ("negations", nested("not ", "", 50_000), "cannot be applied"),
        ("conditions", "{% if true %}".repeat(8000) + &"{% endif %}".repeat(8000), "cannot be applied"),
        ("sums", chained("1", " + 1", 50_000), "cannot be applied"),
        ("remainders", chained("'x' ", "% 1 ", 50_000), "cannot be applied"),
        ("filters", chained("1", " | abs", 30_000), ""),
        ("attributes", chained("messages", ".x", 80_000), "cannot be applied"),
        ("comparisons", chained("1", " < 2", 50_000), ""),
        ("a long source", "x".repeat(300_000), "it has 300000 bytes, and 262144 are the most"),
        ("a statement without an end", given("{% set x = "), "cannot be applied"),
        ("a template that includes itself", given("{% include 'chat_template' %}"), "unknown statement include"),
    ]
}

fn outcome((name, source, said): &Case) -> Option<String> {
    let results = TempDir::new().unwrap();
    let model = copy_of_tiny_model(results.path());
    let configuration = json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": source});
    let file = model.join("tokenizer_config.json");
    std::fs::write(&file, configuration.to_string()).unwrap();
    let (finished, result) = answered(&results, &model, &["--on-bad-input=skip"]);
    let skipped = format!("line 2 is skipped: the chat template of {}", file.parent().unwrap().display());
    let line = finished.stderr.lines().find(|line| line.contains(&skipped)).unwrap_or_default();
    let as_expected = match said.is_empty() {
        true => result["skipped_inputs"] == 0,
        false => result["skipped_inputs"] == 1 && line.contains(said),
    };
    let whole = finished.code() == Some(0) && result["status"] == "finished";
    (!whole || !as_expected).then(|| {
        let beginning: String = line.chars().take(400).collect();
        format!("{name}: {} {}: {beginning}", finished.status, result["error"])
    })
}

#[test]
fn a_hostile_template_costs_the_conversation_that_needs_it() {
    let cases = [with_namespaces(), with_texts_and_lists(), with_loops_and_nesting()].concat();
    assert!(cases.len() >= 40, "{}", cases.len());
    expect_none(&cases, outcome);
}

#[test]
fn a_line_that_a_hostile_template_cannot_take_ends_a_job_that_skips_none() {
    let results = TempDir::new().unwrap();
    let model = copy_of_tiny_model(results.path());
    let source = "{% set n = namespace() %}{% set n.x = n %}{{ n }}";
    std::fs::write(model.join("tokenizer_config.json"), json!({"chat_template": source}).to_string()).unwrap();
    let (finished, result) = answered(&results, &model, &["--on-bad-input=fail"]);
    let finished = finished.expect_code(2);
    assert!(finished.stderr.contains("dataset, line 2: the chat template of "), "{finished}");
    assert_eq!((&result["status"], &result["exit_code"]), (&"failed".into(), &2.into()));
}
