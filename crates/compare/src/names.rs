//! Short names for columns: the end of each name, as far as it takes to tell them apart.

/// A short name for each of `names`, which all differ.
pub(super) fn short(names: &[&str]) -> Vec<String> {
    let parts: Vec<Vec<&str>> = names.iter().map(|name| components(name)).collect();
    let deepest = parts.iter().map(Vec::len).max().unwrap_or(0);
    // One length for all: names of different depths would look like different things.
    for taken in 1..=deepest {
        let shortened: Vec<String> = parts.iter().map(|parts| end(parts, taken)).collect();
        let mut sorted = shortened.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() == names.len() {
            return shortened;
        }
    }
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Components of a path, without the file name that all results have.
fn components(name: &str) -> Vec<&str> {
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    match parts.split_last() {
        Some((&"result.json", rest)) if !rest.is_empty() => rest.to_vec(),
        _ => parts,
    }
}

fn end(parts: &[&str], taken: usize) -> String {
    parts[parts.len().saturating_sub(taken)..].join("/")
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn names_are_as_long_as_it_takes_to_tell_them_apart() {
        assert_eq!(short(&["out/a", "out/b/result.json"]), ["a", "b"]);
        assert_eq!(short(&["a/out", "b/out/"]), ["a/out", "b/out"]);
        assert_eq!(short(&["out", "b/out"]), ["out", "b/out"]);
        assert_eq!(short(&["result.json", "out"]), ["result.json", "out"]);
        assert_eq!(short(&["out", "./out"]), ["out", "./out"]);
        assert_eq!(short(&["sweep/0001", "sweep/0002", "mlflow:x/y"]), ["0001", "0002", "y"]);
    }
}
