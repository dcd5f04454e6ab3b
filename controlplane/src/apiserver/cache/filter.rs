//! Which objects a list or a watch is about.

use api::selector::{FieldSelector, LabelSelector};

use super::super::object::Index;

/// A namespace and selectors; the default lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty for all namespaces.
    pub namespace: String,
    pub labels: Option<LabelSelector>,
    pub fields: Option<FieldSelector>,
}

impl Filter {
    pub fn matches(&self, index: &Index) -> bool {
        (self.namespace.is_empty() || *index.namespace == *self.namespace)
            && self
                .labels
                .as_ref()
                .is_none_or(|s| s.matches_with(|name| index.label(name)))
            && self
                .fields
                .as_ref()
                .is_none_or(|s| s.matches(&index.fields))
    }

    /// Whether it selects anything within its namespace.
    pub fn selects(&self) -> bool {
        self.labels.is_some() || self.fields.is_some()
    }

    /// Where the keys begin that can match.
    pub(super) fn key_prefix(&self) -> Option<String> {
        (!self.namespace.is_empty()).then(|| format!("{}/", self.namespace))
    }
}
