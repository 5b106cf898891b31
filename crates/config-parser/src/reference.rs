//! `$(NAME)` references, by the rules of Kubernetes for `args` and `env`.
//!
//! From the Kubernetes API reference (Container.args): a reference to a variable that there is not stays as it is, and
//! `$$` is an escaped `$`, so that `$$(NAME)` gives `$(NAME)`.

/// `text` with each reference to a variable that `lookup` knows replaced.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        expanded.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let reference = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match reference.and_then(|(name, after)| Some((lookup(name)?, after))) {
            Some((value, after)) => {
                expanded.push_str(&value);
                rest = after;
            }
            None => expanded.push('$'),
        }
    }
    expanded.push_str(rest);
    expanded
}

/// The variable of the first reference in `text`, if there is one.
pub fn unresolved(text: &str) -> Option<&str> {
    text.split("$(").skip(1).find_map(|inner| {
        let (name, _) = inner.split_once(')')?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (!name.is_empty() && name.chars().all(is_name)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_as_kubernetes_does() {
        let lookup = |name: &str| (name == "a-b").then(|| "$(x)".to_owned());
        for (text, expanded) in [
            ("$(a-b)", "$(x)"),
            ("x$(a-b)y$(a-b)", "x$(x)y$(x)"),
            ("$(c)", "$(c)"),
            ("$$(a-b)", "$(a-b)"),
            ("$$$(a-b)", "$$(x)"),
            ("$(a-b", "$(a-b"),
            ("5$", "5$"),
            ("$", "$"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, lookup), expanded, "{text}");
        }
    }

    #[test]
    fn what_is_left_over_is_found() {
        for (text, name) in
            [("$(model)", Some("model")), ("a/$(x)$(y)", Some("x")), ("$( )", None), ("$(", None), ("x", None)]
        {
            assert_eq!(unresolved(text), name, "{text}");
        }
    }
}
