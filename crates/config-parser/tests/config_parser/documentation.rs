//! The reference page says what the code does.

use flashjob_config_parser as config_parser;

#[test]
fn the_reference_page_is_up_to_date() {
    let path = flashjob_test_support::project().join("docs/CLI.md");
    let page = config_parser::manual();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/CLI.md is not what the code says; renew it with\n    \
         UPDATE_DOCS=1 scripts/dev test config-parser documentation"
    );
}

#[test]
fn every_default_on_the_page_is_the_one_that_holds() {
    let page = config_parser::manual();
    let job = super::job(&["--model=m"], &[]);
    let mut compared = 0;
    for row in page.lines().filter_map(|line| line.strip_prefix("| `--")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let key = cells[0].split(' ').next().unwrap();
        let Some(default) = cells[2].strip_prefix('`').and_then(|cell| cell.strip_suffix('`')) else { continue };
        let setting = job.settings.iter().find(|setting| setting.key == key);
        assert_eq!(setting.map(|setting| setting.value.as_str()), Some(default), "{key}");
        compared += 1;
    }
    assert!(compared > 15, "{compared}");
}
