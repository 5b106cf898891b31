//! A sweep as words: `max-num-seqs=64,256 input-len,output-len=128/128,2048/128`.

use super::{Axis, all_or_mistakes, joined, range, sweepable};
use crate::quoting::quoted;

/// One axis a word.
///
/// # Errors
/// What is wrong with each word, as the rest of a sentence.
pub(super) fn axes(text: &str) -> Result<Vec<Axis>, Vec<String>> {
    all_or_mistakes(text.split_whitespace().map(axis))
}

fn axis(word: &str) -> Result<Axis, String> {
    let Some((names, list)) = word.split_once('=').filter(|(names, _)| !names.is_empty()) else {
        return Err(format!("{} is no KEY=VALUE,VALUE", quoted(word)));
    };
    let fields = sweepable::fields(names)?;
    let linked = fields.clone();
    let rows = |item| match linked.as_slice() {
        [_] => Ok(range::expand(item)?.into_iter().map(|text| vec![text]).collect()),
        linked => Ok(vec![row(linked, item)?]),
    };
    // Splitting an empty list gives one empty value.
    let items = list.split(',').filter(|_| !list.is_empty());
    Axis::collect(fields, items.map(rows))
}

/// One value for each of the linked keys.
fn row(fields: &[&str], item: &str) -> Result<Vec<String>, String> {
    let row: Vec<String> = item.split('/').map(str::to_owned).collect();
    match row.len() == fields.len() {
        true => Ok(row),
        false => Err(format!(
            "{} has {}, which is not one value for each of {} keys; separate them by a slash, and give the sweep as JSON where a \
             value has one itself",
            joined(fields),
            quoted(item),
            fields.len()
        )),
    }
}
