//! The reference page of the command line, rendered from the same clap command that reads it.

use std::fmt::Write as _;

use super::flags;
use super::keys::{KEYS, VARIABLES};
use super::slot::Preset;

/// Content of `docs/CLI.md`.
pub fn manual() -> String {
    let mut command = flags::command();
    command.build();
    let mut page = String::new();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    paragraph(&mut page, "# The command line");
    paragraph(
        &mut page,
        "<!-- Generated from the code; `UPDATE_DOCS=1 scripts/dev test config-parser documentation` renews it. -->",
    );
    paragraph(&mut page, &format!("{about}."));
    commands(&mut page, &command);
    keys(&mut page, &command);
    variables(&mut page);
    // One line break at the end, as the formatter of Markdown has it.
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn paragraph(page: &mut String, text: &str) {
    page.push_str(text);
    page.push_str("\n\n");
}

/// A cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn row(page: &mut String, cells: &[&str]) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

fn commands(page: &mut String, command: &clap::Command) {
    paragraph(page, "## Commands");
    row(page, &["Command", "What it does"]);
    row(page, &["---", "---"]);
    for sub in command.get_subcommands() {
        let positionals: Vec<String> =
            sub.get_positionals().map(|arg| format!(" {}", arg.get_id().as_str().to_uppercase())).collect();
        let takes_keys = sub.get_arguments().any(|arg| arg.get_long() == Some("model"));
        let own: Vec<String> = sub
            .get_arguments()
            .filter(|arg| !takes_keys && !arg.is_positional() && arg.get_id() != "help")
            .filter_map(|arg| Some(format!(" [--{}]", arg.get_long()?)))
            .collect();
        let keys = if takes_keys { " [--KEY VALUE]…" } else { "" };
        let usage = format!("`flashjob {}{}{}{keys}`", sub.get_name(), positionals.concat(), own.concat());
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        row(page, &[&cell(&usage), &cell(&about)]);
    }
    page.push('\n');
}

fn keys(page: &mut String, command: &clap::Command) {
    paragraph(page, "## Keys");
    paragraph(
        page,
        "Each key is a flag (`--input-len 12`, `--input-len=12`, `--input_len 12`), an environment variable in three \
         spellings (`input-len`, `input_len`, `INPUT_LEN`) and an entry of a blueprint's `recipe_container_env`. Flags \
         beat variables, variables beat the blueprint, the blueprint beats the default. A key given twice with different \
         values in one of these places is an error, and so is an unresolved reference such as `$(model)`. White \
         space around a value does not count, and a variable with nothing else in it is not set.",
    );
    let mut heading = "";
    for arg in command.get_arguments() {
        let Some((field, preset, _)) = KEYS.iter().find(|(field, ..)| *field == arg.get_id().as_str()) else {
            continue;
        };
        if let Some(own) = arg.get_help_heading()
            && own != heading
        {
            if !heading.is_empty() {
                page.push('\n');
            }
            heading = own;
            paragraph(page, &format!("### {own}"));
            row(page, &["Flag", "Variable", "Default", "Meaning"]);
            row(page, &["---", "---", "---", "---"]);
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        // The default stands in a column of its own.
        let help = help.split(" [default: ").next().unwrap_or_default().split(" [required]").next().unwrap_or_default();
        let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
        let default = match preset {
            Preset::Text(text) => format!("`{text}`"),
            Preset::Decided(words) => (*words).to_owned(),
            Preset::Required => "required".to_owned(),
        };
        let flag = format!("`--{} {value}`", field.replace('_', "-"));
        row(page, &[&cell(&flag), &format!("`{}`", field.to_uppercase()), &cell(&default), &cell(help)]);
    }
    page.push('\n');
}

fn variables(page: &mut String) {
    paragraph(page, "## Variables without a flag");
    paragraph(
        page,
        "Those of MLflow are read as its Python client reads them; all count in exactly this spelling, and an empty one counts \
         as not set. A login has no flag, because every process of a machine can read another's command line; where that \
         matters, give `par` as a variable too.",
    );
    row(page, &["Variable", "Meaning"]);
    row(page, &["---", "---"]);
    for (name, help) in VARIABLES {
        row(page, &[&format!("`{name}`"), &cell(help.trim())]);
    }
}
