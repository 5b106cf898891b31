//! Any text in any key is understood or refused by name, and never a panic.

use flashjob_config::Origin;
use flashjob_config_parser::{self as config_parser, Command, Stop};
use proptest::prelude::*;

use super::parse_with;

/// Every key, out of the reference page.
pub fn keys() -> Vec<String> {
    let page = config_parser::manual();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `--"));
    let keys: Vec<String> = rows.filter_map(|row| Some(row.split_once(' ')?.0.to_owned())).collect();
    assert!(keys.len() > 40, "{keys:?}");
    keys
}

/// Texts that are nearly right, beside any text at all.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[-+0-9.eE]{0,24}",
        "[a-z0-9]{0,10}",
        "/?([a-z.]{0,3}/){0,4}",
        r#"\[?\{?"?(par|mount_location|include|volume_size_in_gbs)?"?:?("|\[|-|[0-9]|/){0,6}\}?\]?"#,
        r"(https?|ftp|p)?(://)?([a-z0-9:@%\[\].]{0,12})(/p/t/n/n/b/b/o/)?[?#/]{0,2}",
        r"[$()a-z-]{0,12}",
        "[0-9]{1,21}[kKMGTi ]?[iB]?",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_text_is_resolved_or_refused_by_name(
        key in proptest::sample::select(keys()),
        text in text(),
        way in 0..3,
    ) {
        prop_assume!(!text.contains('\0'));
        let file = serde_json::json!({"recipe_mode": "job", "recipe_container_env": [{"key": key, "value": text}]}).to_string();
        let flag = format!("--{key}={text}");
        let (words, variables): (Vec<&str>, Vec<(&str, &str)>) = match way {
            0 => (vec![&flag], vec![]),
            1 => (vec![], vec![(&key, &text)]),
            _ => (vec!["--blueprint=b"], vec![]),
        };
        let words: Vec<&str> = words.into_iter().chain((key != "model").then_some("--model=m")).collect();
        match parse_with(&words, &variables, &[("b", file.as_bytes())]) {
            Ok(Command::Run(job)) => prop_assert!(!job.settings.is_empty()),
            Err(Stop::Invalid(errors)) => {
                let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
                prop_assert!(said.iter().all(|sentence| !sentence.contains('\n')), "{said:?}");
                prop_assert!(said.iter().any(|sentence| sentence.contains(&key)), "{key}={text:?}: {said:?}");
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// Words in any order and number: mistakes are many, panics none.
    #[test]
    fn any_command_line_has_an_outcome(words in proptest::collection::vec(
        prop_oneof![
            any::<String>(),
            Just("run".to_owned()), Just("check".to_owned()), Just("publish".to_owned()), Just("--".to_owned()),
            Just("--help".to_owned()), Just("--ignore-eos".to_owned()), Just("-".to_owned()), Just("=".to_owned()),
            proptest::sample::select(keys()).prop_map(|key| format!("--{key}")),
        ], 0..6)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Err(Stop::Invalid(errors)) = parse_with(&words, &[], &[]) {
            prop_assert!(!errors.is_empty());
            for error in errors {
                prop_assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }

    /// Values that are shown can be parsed again to the same values.
    #[test]
    fn settings_read_back_as_themselves(
        input_len in 1..100_000usize, temperature in 0.0f32..5.0, top_p in 0.01f32..=1.0, seed in any::<u64>(),
        linger in 0u32..1_000_000, step in 1u32..1_000_000, memory in 1..u64::MAX / 2,
    ) {
        let words = [
            "--model=m".to_owned(), format!("--input-len={input_len}"), format!("--temperature={temperature}"),
            format!("--top-p={top_p}"), format!("--seed={seed}"), format!("--kv-cache-memory={memory}"),
            format!("--metrics-linger-seconds={}", f64::from(linger) / 1000.0),
            format!("--step-timeout-seconds={}", f64::from(step) / 1000.0),
        ];
        let parse = |words: Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            super::job(&words, &[])
        };
        let job = parse(words.to_vec());
        prop_assert_eq!(job.sampling.temperature, temperature);
        prop_assert_eq!(job.sampling.top_p, top_p);
        let given = job.settings.iter().filter(|setting| setting.origin == Origin::Flag);
        let again = parse(given.map(|setting| format!("--{}={}", setting.key, setting.value)).collect());
        prop_assert_eq!(job.settings, again.settings);
    }
}
