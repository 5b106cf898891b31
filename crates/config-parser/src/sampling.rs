//! Sampling parameters from their keys.

use flashjob_config::Sampling;

use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// Reads all keys of sampling. `None`: an error was noted.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<Sampling> {
    // Checked as `f32`: a value that rounds to infinity or zero is not the value that was meant.
    let temperature = resolver.read(
        &raw.temperature,
        |text| {
            let fits = |number: f64| (number as f32).is_finite() && (number == 0.0 || number as f32 > 0.0);
            parsing::number(text, "a number of at least 0", fits).map(|number| number as f32)
        },
        f32::to_string,
    );
    let top_p = resolver.read(
        &raw.top_p,
        |text| {
            let fits = |share: f64| share as f32 > 0.0 && share <= 1.0;
            parsing::number(text, "a number above 0 and at most 1", fits).map(|number| number as f32)
        },
        f32::to_string,
    );
    let top_k = resolver.read(
        &raw.top_k,
        |text| match text {
            // Both are spellings of vLLM for "all tokens".
            "0" | "-1" => Ok(None),
            _ => parsing::count(text).map(Some).map_err(|clause| format!("{clause}, or 0 or -1 for all")),
        },
        // Shown as it can be given again.
        |top_k| top_k.map_or_else(|| "0".to_owned(), |count| count.to_string()),
    );
    Some(Sampling { temperature: temperature?, top_p: top_p?, top_k: top_k? })
}
