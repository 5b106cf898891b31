//! The combinations of a sweep as text, for `dry-run` and `flashjob check`: each with what it sets up anew, or why it is refused.

use std::fmt::Write;

use flashjob_config::{Reload, Sweep, escape_controls, hide_pars};

/// Widest column of keys and values, in characters; what is longer moves its line's end.
const WIDEST_NAME: usize = 80;

/// One line a combination, under a line that sums them up.
pub fn list(sweep: &Sweep) -> String {
    let combinations = &sweep.combinations;
    let loads = sweep.planned().filter(|(_, job)| job.reload == Reload::Model).count();
    let refused = combinations.len() - sweep.planned().count();
    let mut text = format!("{} of {}", counted(combinations.len(), "combination"), sweep.keys.join(", "));
    // Writing to a String cannot fail.
    let _ = write!(text, "; the model is loaded {}", counted(loads, "time"));
    if refused > 0 {
        let _ = write!(text, "; {} refused", counted(refused, "combination"));
    }
    text.push_str("\n\n");
    let names: Vec<String> =
        combinations.iter().map(|combination| escape_controls(&combination.name()).into_owned()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default().min(WIDEST_NAME);
    for (combination, name) in combinations.iter().zip(&names) {
        let what = match &combination.job {
            Ok(job) => says(job.reload).to_owned(),
            Err(refusal) => format!("refused: {}", escape_controls(&hide_pars(&refusal.to_string()))),
        };
        let _ = writeln!(text, "{:>4}  {name:<width$}  {what}", combination.number);
    }
    text
}

fn says(reload: Reload) -> &'static str {
    match reload {
        Reload::Nothing => "reloads nothing",
        Reload::Scheduler => "sets up scheduler and KV cache",
        Reload::Model => "loads the model",
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use flashjob_config_parser::{Command, parse};

    #[test]
    fn each_combination_is_a_line() {
        let words =
            ["--model=m", "--dry-run", "--max-model-len=2048", "--sweep=dtype=float16,float32 input-len=128,4096"];
        let Ok(Command::ListSweep(sweep)) =
            parse(words.into_iter().map(OsString::from), std::iter::empty(), &|_| unreachable!())
        else {
            panic!("no list");
        };
        let refused = "refused: input-len 4096 + output-len 128 = 4224 is above max-model-len 2048; lower one of the two or raise \
                       max-model-len";
        assert_eq!(
            super::list(&sweep),
            format!(
                "4 combinations of dtype, input-len; the model is loaded 2 times; 2 combinations refused\n\n\
                 \x20  1  dtype=float16 input-len=128   loads the model\n\
                 \x20  2  dtype=float16 input-len=4096  {refused}\n\
                 \x20  3  dtype=float32 input-len=128   loads the model\n\
                 \x20  4  dtype=float32 input-len=4096  {refused}\n"
            )
        );
    }
}
