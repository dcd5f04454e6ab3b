//! `$(NAME)` in commands, arguments and values of the environment.

/// Replaces each `$(NAME)` that `value` knows; `$$` is a dollar, and what is unknown stays as written.
pub fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match value(name) {
                Some(found) => out.push_str(&found),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Like [`expand`], but names what is unknown (`subPathExpr` must not keep a reference).
pub fn expand_strictly(
    text: &str,
    value: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let missing = std::cell::RefCell::new(Vec::new());
    let expanded = expand(text, |name| {
        let found = value(name);
        if found.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        found
    });
    let missing = missing.into_inner();
    if missing.is_empty() {
        Ok(expanded)
    } else {
        Err(missing.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_once() {
        let value = |name: &str| (name == "A").then(|| "$(A)".to_owned());
        assert_eq!(expand("x$(A)y", value), "x$(A)y");
        assert_eq!(expand("$$(A) $$$(A)", value), "$(A) $$(A)");
        assert_eq!(expand("$(B) $A $( $", value), "$(B) $A $( $");
        assert_eq!(expand_strictly("$(B)/$(A)", value), Err("B".to_owned()));
    }
}
