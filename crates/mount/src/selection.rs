//! `include` and `exclude`: which objects of a bucket an input asks for.
//!
//! Both hold paths of directories or files, and match whole path components: `include: ["org/model-8B"]`
//! takes the object `org/model-8B` and everything under `org/model-8B/`, but nothing of
//! `org/model-8B-Instruct/`. Slashes at either end do not matter, there are no wildcards, and `exclude` wins.

/// The objects that an input asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Included paths; empty selects everything.
    include: Vec<String>,
    exclude: Vec<String>,
}

impl Selection {
    /// Selection by the lists as they were configured.
    pub fn new(include: &[String], exclude: &[String]) -> Self {
        let trim = |paths: &[String]| -> Vec<String> { paths.iter().map(|p| p.trim_matches('/').to_owned()).collect() };
        let include = trim(include);
        // An empty path selects the whole bucket. Excluding the whole bucket is never meant.
        let include = if include.iter().any(String::is_empty) { Vec::new() } else { without_nested(include) };
        let exclude = trim(exclude).into_iter().filter(|path| !path.is_empty()).collect();
        Self { include, exclude }
    }

    /// Returns whether the object called `name` is selected.
    pub fn takes(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|path| is_under(name, path)))
            && !self.exclude.iter().any(|path| is_under(name, path))
    }

    /// Paths to list, none inside another; empty for the whole bucket.
    pub fn paths(&self) -> &[String] {
        &self.include
    }
}

/// Returns whether `name` is `path` itself or lies below it.
fn is_under(name: &str, path: &str) -> bool {
    name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `paths` without those below another one, so that no object is listed twice.
fn without_nested(mut paths: Vec<String>) -> Vec<String> {
    paths.sort();
    paths.dedup();
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|other| other != path && is_under(path, other)));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(include: &[&str], exclude: &[&str]) -> Selection {
        let own = |paths: &[&str]| paths.iter().map(|&p| p.to_owned()).collect::<Vec<_>>();
        Selection::new(&own(include), &own(exclude))
    }

    #[test]
    fn whole_components_match() {
        for include in ["org/model-8B", "org/model-8B/", "/org/model-8B"] {
            let wanted = selection(&[include], &["org/model-8B/original/"]);
            for (name, taken) in [
                ("org/model-8B", true),
                ("org/model-8B/", true),
                ("org/model-8B/config.json", true),
                ("org/model-8B/a/b", true),
                ("org/model-8B/original", false),
                ("org/model-8B/original/x.pth", false),
                ("org/model-8B/originals", true),
                ("org/model-8B-Instruct/config.json", false),
                ("org/model", false),
                ("config.json", false),
            ] {
                assert_eq!(wanted.takes(name), taken, "{include}: {name}");
            }
        }
    }

    #[test]
    fn nothing_written_takes_everything_and_nested_paths_are_listed_once() {
        assert!(selection(&[], &[]).takes("a//b"));
        assert!(selection(&["", "x"], &[""]).takes("y"));
        assert!(selection(&["", "x"], &[]).paths().is_empty());
        assert_eq!(selection(&["b/c", "a", "b", "a/", "b-c"], &[]).paths(), ["a", "b", "b-c"]);
    }
}
