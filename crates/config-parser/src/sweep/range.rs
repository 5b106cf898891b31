//! Ranges of whole numbers: `128..4096*2` multiplies, `1..9+2` adds. Both ends count, the second one where a step reaches it.

use super::MOST_COMBINATIONS;
use crate::quoting::quoted;

/// The step from one number to the next.
enum Step {
    Add(u64),
    Multiply(u64),
}

impl Step {
    fn after(&self, number: u64) -> Option<u64> {
        match self {
            Self::Add(step) => number.checked_add(*step),
            Self::Multiply(factor) => number.checked_mul(*factor),
        }
    }
}

/// Returns whether `text` is meant as a range: a path may hold two dots, too.
fn is_meant(text: &str) -> bool {
    let is_digit = |character: Option<char>| character.is_some_and(|character| character.is_ascii_digit());
    text.split_once("..").is_some_and(|(start, end)| is_digit(start.chars().next()) && is_digit(end.chars().next()))
}

/// `text` itself, or the numbers of the range that it is.
///
/// # Errors
/// What is wrong with the range, as the rest of a sentence.
pub(super) fn expand(text: &str) -> Result<Vec<String>, String> {
    if !is_meant(text) {
        return Ok(vec![text.to_owned()]);
    }
    let shown = quoted(text);
    let Some((start, end, step)) = parse(text) else {
        return Err(format!("the range {shown} must be of whole numbers with a step, such as 128..4096*2 or 1..9+2"));
    };
    let does_not_grow =
        matches!(step, Step::Add(0) | Step::Multiply(0 | 1)) || (start == 0 && matches!(step, Step::Multiply(_)));
    if does_not_grow {
        return Err(format!("the range {shown} does not grow"));
    }
    if start > end {
        return Err(format!("the range {shown} ends before it begins"));
    }
    let numbers = std::iter::successors(Some(start), |number| step.after(*number)).take_while(|number| *number <= end);
    let texts: Vec<String> = numbers.take(MOST_COMBINATIONS + 1).map(|number| number.to_string()).collect();
    match texts.len() > MOST_COMBINATIONS {
        true => Err(format!("the range {shown} has more than {MOST_COMBINATIONS} values")),
        false => Ok(texts),
    }
}

fn parse(text: &str) -> Option<(u64, u64, Step)> {
    // Not `parse` alone, which accepts a plus sign.
    let whole = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (start, rest) = text.split_once("..")?;
    let (end, step) = rest.split_at(rest.find(['*', '+'])?);
    let amount = whole(&step[1..])?;
    let step = if step.starts_with('*') { Step::Multiply(amount) } else { Step::Add(amount) };
    Some((whole(start)?, whole(end)?, step))
}
