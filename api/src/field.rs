//! Errors about one field of an object, worded as upstream words them.

use std::fmt;

use serde_json::Value;

/// What is wrong with a field. `reason()` is the word of `Status.details.causes[].reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TooFew,
    TypeInvalid,
    Internal,
}

impl ErrorKind {
    /// The machine-readable reason, as in `metav1.CauseType`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TooFew => "FieldValueTooFew",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::TooFew => "Too few",
            Self::Internal => "Internal error",
        }
    }

    /// Whether the message shows the offending value.
    fn shows_value(self) -> bool {
        !matches!(
            self,
            Self::Required | Self::Forbidden | Self::TooLong | Self::Internal
        )
    }
}

/// One thing wrong with one field. `Display` is upstream's `field.Error.Error()`:
/// `spec.containers[0].name: Required value`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path of the field, `spec.containers[0].name`.
    pub field: String,
    pub kind: ErrorKind,
    /// The value that was found; shown where the kind of error shows one.
    pub bad_value: Option<Value>,
    /// What would have been right; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(
        field: impl fmt::Display,
        kind: ErrorKind,
        bad_value: Option<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            field: field.to_string(),
            kind,
            bad_value,
            detail: detail.into(),
        }
    }

    pub fn required(field: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self::new(field, ErrorKind::Required, None, detail)
    }

    pub fn invalid(
        field: impl fmt::Display,
        bad: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(field, ErrorKind::Invalid, Some(bad.into()), detail)
    }

    pub fn forbidden(field: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self::new(field, ErrorKind::Forbidden, None, detail)
    }

    pub fn duplicate(field: impl fmt::Display, bad: impl Into<Value>) -> Self {
        Self::new(field, ErrorKind::Duplicate, Some(bad.into()), "")
    }

    pub fn not_found(field: impl fmt::Display, bad: impl Into<Value>) -> Self {
        Self::new(field, ErrorKind::NotFound, Some(bad.into()), "")
    }

    /// The value is none of `supported`, which are listed sorted and quoted.
    pub fn not_supported(
        field: impl fmt::Display,
        bad: impl Into<Value>,
        supported: &[&str],
    ) -> Self {
        let mut known: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        known.sort();
        let detail = if known.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", known.join(", "))
        };
        Self::new(field, ErrorKind::NotSupported, Some(bad.into()), detail)
    }

    /// The value is longer than `max` bytes.
    pub fn too_long(field: impl fmt::Display, max: usize) -> Self {
        Self::new(
            field,
            ErrorKind::TooLong,
            None,
            format!("may not be more than {max} bytes"),
        )
    }

    /// There are `actual` items, `max` are allowed.
    pub fn too_many(field: impl fmt::Display, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(
            field,
            ErrorKind::TooMany,
            Some(actual.into()),
            format!("must have at most {max} {items}"),
        )
    }

    pub fn type_invalid(
        field: impl fmt::Display,
        bad: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(field, ErrorKind::TypeInvalid, Some(bad.into()), detail)
    }

    /// The message without the field's path, as in `Status.details.causes[].message`.
    pub fn body(&self) -> String {
        let mut body = self.kind.words().to_owned();
        if self.kind.shows_value()
            && let Some(bad) = &self.bad_value
        {
            // JSON text is Go's `%q` for plain strings and `%v` for numbers and booleans.
            body.push_str(": ");
            body.push_str(&bad.to_string());
        }
        if !self.detail.is_empty() {
            body.push_str(": ");
            body.push_str(&self.detail);
        }
        body
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// What upstream prints after `… is invalid: ` for a list of errors: one plainly, several in brackets, each once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// A path to a field, built while walking an object: `root.child("spec").child("ports").index(0)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    /// `self.name`
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    /// `self[i]`
    pub fn index(&self, i: usize) -> Self {
        Self(format!("{}[{i}]", self.0))
    }

    /// `self[key]`
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_writes_them() {
        let containers = Path::new("spec").child("containers").index(0);
        assert_eq!(
            FieldError::required(containers.child("name"), "").to_string(),
            "spec.containers[0].name: Required value"
        );
        assert_eq!(
            FieldError::invalid("metadata.name", "A", "bad").to_string(),
            r#"metadata.name: Invalid value: "A": bad"#
        );
        assert_eq!(
            FieldError::not_supported("spec.restartPolicy", "x", &["OnFailure", "Always", "Never"])
                .to_string(),
            r#"spec.restartPolicy: Unsupported value: "x": supported values: "Always", "Never", "OnFailure""#
        );
        assert_eq!(
            FieldError::invalid("p", 0, "d").to_string(),
            "p: Invalid value: 0: d"
        );
    }

    #[test]
    fn several_errors_stand_in_brackets_and_each_once() {
        let one = FieldError::required("a", "");
        assert_eq!(aggregate(std::slice::from_ref(&one)), "a: Required value");
        let two = [one.clone(), one, FieldError::required("b", "")];
        assert_eq!(aggregate(&two), "[a: Required value, b: Required value]");
    }
}
